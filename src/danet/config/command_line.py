"""What the scripts' command lines say, before Hydra composes: unknown names, a run's own configuration, quoting."""

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from danet.config.names import Names, known_names
from danet.config.resolve import OUTPUTS
from danet.config.resume import SEARCHED, read_saved
from danet.registry import did_you_mean
from danet.schema import ConfigError
from danet.services.places import command

RUN_DIR = (
    "hydra.run.dir: not used here; a run's folder is outputs/<date>/<time>_<name>, and the environment variable "
    "DANET_OUTPUTS=FOLDER takes the place of outputs/"
)


# ---- unknown names ---------------------------------------------------------------------------------------------------


def check_arguments(
    arguments: Sequence[str],
    primary: str | None = "train",
    folders: Sequence[Path] | None = (),
    *,
    multirun: bool = True,
) -> None:
    """Check the names on a command line against the YAML files, because Hydra suggests nothing for a misspelled one.

    Args:
        arguments: of the script, such as `backbone=resnet50` or `head.aux_loss=true`.
        primary: name of the script's primary configuration; None for one of the user's own, whose keys are unknown
            here.
        folders: with options of the user's own, besides conf/ and experiments/. None: they are unknown, and so is
            which options and keys there are.
        multirun: whether the command line has -m.

    Raises:
        ConfigError: lists what does not exist: options of groups, keys without "+", environment variables; and what
            does nothing without -m.
    """
    names = known_names(primary or "train", folders or ())
    given = dict(argument.partition("=")[::2] for argument in arguments)
    problems = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key.lstrip("+") == "hydra.run.dir":
            problems.append(RUN_DIR)
        if not equals or key.partition(".")[0] == "hydra":
            continue
        problems += _unset_variables(argument)
        if re.fullmatch(r"\+\w+", key) and key[1:] in names.options:
            problems.append(f"{argument}: {key[1:]} has an option already; leave out the +: {argument[1:]}")
        if key == "ablation" and value != "null" and not multirun:
            problems.append(f"{argument}: is a sweep of several runs, and needs -m: {command('train')} -m {argument}")
        if folders is None or not re.fullmatch(r"[\w/.]+", key):
            continue
        if key in names.options:
            problems += _unknown_options(key, value, names, own="" if folders else " (extensions=FOLDER adds your own)")
        elif primary and "/" not in key:
            problems += _unknown_key(key, names, given)
    if problems:
        raise ConfigError(problems)


def _unset_variables(argument: str) -> list[str]:
    """A line for each environment variable without a value or a default."""
    unset = [name for name in re.findall(r"\$\{oc\.env:(\w+)\}", argument) if name not in os.environ]
    return [
        f"{argument}: the environment has no {name}; set it, or give a default, ${{oc.env:{name},VALUE}}"
        for name in unset
    ]


def _unknown_options(group: str, value: str, names: Names, own: str) -> list[str]:
    """A line for each option that the group does not have."""
    options = [option for option in value.split(",") if option.isidentifier() and option != "null"]
    hints = {o: did_you_mean(o, list(names.options[group])) for o in options if o not in names.options[group]}
    return [f"{group}={o}: unknown option; {hint}{own if '?' not in hint else ''}" for o, hint in hints.items()]


def _unknown_key(key: str, names: Names, given: Mapping[str, str]) -> list[str]:
    """A line if there is no such key, or none of the option that the command line chooses."""
    if not names.has(key):
        return [f"{key}: unknown key; {names.nearest(key)}"]
    group = key.partition(".")[0]
    own = names.keys_of.get((group, given.get(group, "")))
    others = {k for (g, _), keys in names.keys_of.items() if g == group for k in keys}
    if own is None or key not in others or key in own:
        return []
    if any(key in keys for (g, _), keys in names.keys_of.items() if g != group):  # a recipe's, which may add keys
        return []
    return [f"{key}: {group}={given[group]} has no such key; it has {', '.join(sorted(k for k in own if k != group))}"]


# ---- the configuration of a run --------------------------------------------------------------------------------------


def with_run_folders(arguments: Sequence[str]) -> list[str]:
    """A script's arguments with the folder of the run that `run=latest` or `run=NAME` names, NAME below outputs/.

    Raises:
        ConfigError: there is no run yet, or several have this name.
    """
    given = [argument.removeprefix("run=") for argument in arguments if argument.startswith("run=")]
    if not given or given[-1] in ("", "null") or Path(unquoted(given[-1])).expanduser().exists():
        return list(arguments)
    wanted, runs = unquoted(given[-1]), _runs()
    if wanted != "latest":
        if "/" in wanted or "," in wanted:
            return list(arguments)
        runs = [run for run in runs if wanted in (run.name, run.name.partition("_")[2])]
    if not runs and wanted != "latest":
        return list(arguments)  # the check of the folder says that there is none
    if not runs:
        raise ConfigError([f"run = {wanted!r}: there is no run in {OUTPUTS}"])
    if wanted != "latest" and len(runs) > 1:
        places = ", ".join(map(str, runs[:4]))
        raise ConfigError([f"run = {wanted!r}: {len(runs)} runs have this name: {places}; give a folder"])
    return [f"run={quoted(str(runs[0]))}" if a.startswith("run=") else a for a in arguments]


def _runs() -> list[Path]:
    """The run folders below outputs/ and its sweeps, the newest first."""
    files = [*OUTPUTS.glob("*/*/config.yaml"), *OUTPUTS.glob("sweeps/*/*/*/config.yaml")]
    return [file.parent for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)]


def require_run(arguments: Sequence[str]) -> None:
    """See whether `run=` names a run's folder.

    Raises:
        ConfigError: it names another folder.
    """
    run = dict(argument.partition("=")[::2] for argument in arguments).get("run", "")
    folder = Path(unquoted(run)).expanduser()
    if run and folder.is_dir() and not (folder / "config.yaml").is_file():
        newest = f"; the newest run is {runs[0]}" if (runs := _runs()) else ""
        raise ConfigError([f"run = {str(folder)!r}: is no run's folder, for it has no config.yaml{newest}"])


def with_dataset_of_run(arguments: Sequence[str]) -> list[str]:
    """A script's arguments, preceded by the data set of the run that `run=FOLDER` names, the first of several.

    So the run's data set is the default, and dataset.key=value changes a key of it.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    run = given.get("run", "")
    if not (Path(unquoted(run)).expanduser() / "config.yaml").is_file():
        run = run.split(",")[0]
    file = Path(unquoted(run)).expanduser() / "config.yaml"
    if "run" not in given or "dataset" in given or not file.is_file():
        return list(arguments)
    section = read_saved(file.parent).get("dataset")
    if not isinstance(section, dict) or "name" not in section:
        raise ConfigError([f"{file}: has no section dataset with a name"])
    options = [f"dataset.{key}={_hydra_text(value)}" for key, value in section.items() if key != "name"]
    return [f"dataset={section['name']}", *options, *arguments]


def with_changes_of_resume(arguments: Sequence[str]) -> list[str]:
    """The arguments of src/train.py, where `resume=FOLDER` allows the keys of that run.

    They need not be in what Hydra composes, such as those of another data set: "++" lets Hydra add them.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if given.get("resume", "null") in ("", "null", *SEARCHED):
        return list(arguments)
    return [f"++{a}" if re.match(r"\w+(\.\w+)+=", a) and not a.startswith("hydra.") else a for a in arguments]


# ---- quoting ---------------------------------------------------------------------------------------------------------


def quoted(text: str) -> str:
    """A text in quotes, as Hydra's grammar takes any."""
    # In quotes a backslash is itself, but before a quote, where it must be doubled.
    return "'" + re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), text) + "'"


def unquoted(value: str) -> str:
    """The reverse of `quoted`, for double quotes, too; a value without quotes stays as it is."""
    if not re.fullmatch(r"""(["']).*\1""", value, re.DOTALL):
        return value
    return re.sub(rf"(\\*)({value[0]}|$)", lambda match: match[1][: len(match[1]) // 2] + match[2], value[1:-1])


def shell_word(argument: str) -> str:
    """An argument as a shell takes it, for commands that people copy; square brackets stay as they are."""
    return argument if re.fullmatch(r"[\w@%+=:,./\[\]-]*", argument) else shlex.quote(argument)


def _hydra_text(value: Any) -> str:
    """A plain value as Hydra's grammar takes it: as JSON, except text, in which no interpolation is resolved."""
    if isinstance(value, str):
        return quoted(value.replace("${", "\\${"))
    if isinstance(value, list):
        return f"[{','.join(map(_hydra_text, value))}]"
    if isinstance(value, dict):
        keys = {key: re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", str(key)) for key in value}  # no quotes are allowed there
        return "{" + ",".join(f"{keys[key]}:{_hydra_text(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)
