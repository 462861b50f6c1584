"""What on a command line needs -m, and what has no effect with it: Hydra says nothing of either."""

import re
import typing
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal

from danet.config.names import Names
from danet.config.quoting import shell_word
from danet.config.run_config import RunConfig
from danet.registry import keyword_parameters
from danet.services.places import command

ONLY_OF_SWEEPS = re.compile(r"hydra/(launcher|sweeper)|hydra\.(launcher|sweeper|sweep)\..+")
SEVERAL = re.compile(r"[\w.+-]+(,[\w.+-]+)+")


def mode_problems(
    arguments: Sequence[str], names: Names, primary: str, typed: Sequence[str], *, multirun: bool
) -> list[str]:
    """What does not go with -m, or without it, a line each.

    Args:
        arguments: the command line's keys with values.
        names: of the script.
        primary: name of its primary configuration.
        typed: the whole command line, for a command to copy.
        multirun: whether it has -m.
    """
    lists = {argument: use for argument in arguments if primary == "train" and (use := _use_as_list(argument, names))}
    if multirun:
        return [
            *(_lists_swept(argument) for argument, use in lists.items() if use == "only" and "null" not in argument),
            *(
                f"{argument}: has no effect with -m; hydra.sweep.dir=FOLDER is where a sweep goes"
                for argument in arguments
                if argument.startswith("hydra.run.dir=") and primary == "train"
            ),
        ]
    one_list = {argument: _as_list(argument) for argument, use in lists.items() if use == "only"}
    with_m = f": {command(primary)} -m {' '.join(shell_word(one_list.get(word, word)) for word in typed)}"
    lines: list[str] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        first = with_m if not any(with_m in line for line in lines) else ""  # the command stands there once
        if key == "ablation" and value != "null":
            sweep = first if primary == "train" else f": {command('train')} -m {argument}"
            lines.append(f"{argument}: is a sweep of several runs, and needs -m{sweep}")
        elif ONLY_OF_SWEEPS.fullmatch(key.lstrip("+")) or (primary == "train" and key.startswith("sweep.")):
            lines.append(f"{argument}: has no effect without -m{first}")
        elif argument in one_list:
            lines.append(f"{argument}: for one list write {shell_word(one_list[argument])}")
        elif argument in lists:
            either = f"; for one list write {shell_word(_as_list(argument))}" if lists[argument] == "also" else ""
            lines.append(f"{argument}: several values are several runs, and need -m{first}{either}")
    return lines


def _as_list(argument: str) -> str:
    key, _, value = argument.partition("=")
    return f"{key}=[{value}]"


def _lists_swept(argument: str) -> str:
    key, _, value = argument.partition("=")
    one = shell_word(f"{key}=[{value}]")
    return f"{argument}: each value must be a list; write {one} for one list, or [...],[...] for several"


def _use_as_list(argument: str, names: Names) -> Literal["", "only", "also", "never"]:
    """Whether several values between commas can be meant as one list; "" where there are not several."""
    key, _, value = argument.partition("=")
    if not SEVERAL.fullmatch(value):
        return ""
    if key in names.options:
        return "never"
    kinds = names.kinds.get(key, set()) - {"null"}
    if "list" in kinds:
        return "only" if kinds == {"list"} else "also"
    section, _, name = key.partition(".")
    schema = keyword_parameters(RunConfig)
    if name and section in schema:
        options = schema[section].annotation
        schema = {} if options == dict[str, Any] else keyword_parameters(options)
    if (parameter := schema.get(name or section)) is not None:
        return _lists_in(parameter.annotation)
    numbers = re.fullmatch(r"[\d.,+-]+", value) is not None
    return "also" if not kinds or (kinds == {"text"} and numbers) else "never"


def _lists_in(annotation: Any) -> Literal["only", "also", "never"]:
    """Whether a type takes lists."""
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (typing.Union, UnionType):
        uses = {_lists_in(part) for part in typing.get_args(annotation) if part is not NoneType}
        return uses.pop() if len(uses) == 1 else "also"
    return "only" if typing.get_origin(annotation) in (list, Sequence) else "never"
