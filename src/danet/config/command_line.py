"""What the scripts' command lines say, before Hydra composes: unknown names, a run's own configuration."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from danet.config.multirun import mode_problems
from danet.config.names import Names, is_global, known_names, primaries
from danet.config.quoting import hydra_text, unquoted
from danet.config.resume import SEARCHED, read_saved
from danet.registry import did_you_mean, options_of
from danet.schema import ConfigError

GLOBAL = ("recipe", "scale", "ablation", "protocol")  # groups whose files set any section
RUN_DIR = "hydra.run.dir: this script makes no run folder; --help shows the key for its output"


# ---- unknown names ---------------------------------------------------------------------------------------------------


def without_empty_groups(arguments: Sequence[str], primary: str, own_primary: str | None = None) -> list[str]:
    """A script's arguments without `ablation=null` and the like, of groups that begin without an option.

    Hydra takes no null there, though its --help shows them so. A primary configuration of the user's own may begin with
    an option, of which null would be another thing: there it stays, and is told.
    """
    if own_primary or not any(argument.endswith("=null") for argument in arguments):
        return list(arguments)
    empty = {f"{group}=null" for group, option in known_names(primary).defaults.items() if option == "None"}
    return [argument for argument in arguments if argument not in empty]


def check_arguments(
    arguments: Sequence[str],
    primary: str = "train",
    folders: Sequence[Path] | None = (),
    *,
    own_primary: str | None = None,
    multirun: bool | None = None,
    typed: Sequence[str] | None = None,
) -> None:
    """Check the names on a command line against the YAML files, because Hydra suggests nothing for a misspelled one.

    Args:
        arguments: of the script, such as `backbone=resnet50` or `head.aux_loss=true`.
        primary: name of the script's primary configuration.
        folders: with options of the user's own, besides conf/ and experiments/. None: they are unknown, and so is
            which options and keys there are.
        own_primary: name of the user's own primary configuration, by --config-name.
        multirun: whether the command line has -m. None: nothing is run.
        typed: the whole command line, for a command to copy; None: the arguments.

    Raises:
        ConfigError: lists what does not exist: options of groups, keys without "+", environment variables; and what
            has no effect with -m, or without it.
    """
    own_primary = own_primary.removesuffix(".yaml") if own_primary and own_primary != primary else None
    names = known_names(primary, folders or (), own_primary)
    given = dict(argument.partition("=")[::2] for argument in arguments)
    problems = _own_file_problems(names, folders, own_primary)
    if multirun is not None:
        words = arguments if typed is None else typed
        problems += mode_problems(arguments, names, primary, words, multirun=multirun)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key.lstrip("+") == "hydra.run.dir" and primary != "train":
            problems.append(RUN_DIR)
        if not equals or re.match(r"hydra\b", key):
            continue
        problems += _unset_variables(argument)
        if re.fullmatch(r"\+\w+", key) and key[1:] in names.options:
            problems.append(f"{argument}: {key[1:]} has an option already; leave out the +: {argument[1:]}")
        if folders is None:
            continue
        if key in names.options:
            problems += _unknown_options(key, value, names, own="" if folders else " (extensions=FOLDER adds your own)")
        elif re.fullmatch(r"[\w.]+", key):
            problems += _unknown_key(key, names, given) or _named_option(key, value, names)
    if problems:
        raise ConfigError(problems)


def _own_file_problems(names: Names, folders: Sequence[Path] | None, own_primary: str | None) -> list[str]:
    """What is wrong with the user's folders of configuration, a line each."""
    problems = [f"{folder}: no such folder of configuration" for folder in folders or () if not folder.is_dir()]
    if own_primary and folders is not None and own_primary not in (known := primaries(folders)):
        hint = did_you_mean(own_primary, known) if known else "--config-dir=FOLDER says where it is"
        problems.append(f"--config-name {own_primary}: no such file; {hint}")
    if names.hidden:
        files = ", ".join(map(str, dict.fromkeys(names.hidden)))
        problems.append(f"{files}: not used, because there are ours of this name, which come first; rename yours")
    return problems


def _unset_variables(argument: str) -> list[str]:
    """A line for each environment variable without a value or a default."""
    unset = [name for name in re.findall(r"\$\{oc\.env:(\w+)\}", argument) if name not in os.environ]
    return [
        f"{argument}: the environment has no {name}; set it, or give a default, ${{oc.env:{name},VALUE}}"
        for name in unset
    ]


def _unknown_options(group: str, value: str, names: Names, own: str) -> list[str]:
    """A line for each option that the group does not have."""
    if not re.fullmatch(r"[\w.+-]*(,[\w.+-]+)*", value):
        return []  # in quotes, a list, choice(...): Hydra reads it
    options, known = value.split(","), names.options[group]
    lines = [f"{group}=null: {_instead_of_null(group, names)}" for option in options if option == "null"]
    unknown = [o for o in options if o != "null" and o.removesuffix(".yaml") not in known]
    hints = {o: did_you_mean(o, list(known)) for o in unknown}
    lines += [f"{group}={o}: unknown option; {hint}{own if '?' not in hint else ''}" for o, hint in hints.items()]
    local = [known[o] for o in options if o in known and group in GLOBAL and not is_global(known[o])]
    return [*lines, *(f"{file}: needs the first line '# @package _global_', as every {group} does" for file in local)]


def _instead_of_null(group: str, names: Names) -> str:
    """What to write for a group that is to have no option."""
    nothing = [option for option in ("none", "disabled") if option in names.options[group]]
    if nothing:
        return f"write {group}={nothing[0]}"
    if names.defaults.get(group) == "None":
        return f"null is not an option; leave the group out, or write ~{group}"
    return f"an option is needed; leave it out for the default, or choose one: {', '.join(names.options[group])}"


def _named_option(key: str, value: str, names: Names) -> list[str]:
    """A line if the name in a section is set where the option of its group is meant, which brings its own keys."""
    group, _, name = key.partition(".")
    options = names.options.get(group, {})
    if name != "name" or not all(option in options for option in value.split(",")):
        return []
    return [f"{key}={value}: the other keys would stay as they are; write {group}={value}"]


def _unknown_key(key: str, names: Names, given: Mapping[str, str]) -> list[str]:
    """A line if there is no such key, or none of the option that the command line chooses."""
    if not names.has(key):
        return [f"{key}: unknown key; {names.nearest(key)}"]
    group = key.partition(".")[0]
    keys_of = {option: names.keys_of.get((group, option)) for option in given.get(group, "").split(",")}
    option, own = next(((o, keys) for o, keys in keys_of.items() if keys is not None and key not in keys), ("", None))
    others = {k for (g, _), keys in names.keys_of.items() if g == group for k in keys}
    if own is None or key not in others:
        return []
    if any(key in keys for (g, _), keys in names.keys_of.items() if g != group):  # a recipe's, which may add keys
        return []
    return [f"{key}: {group}={option} has no such key; it has {', '.join(sorted(k for k in own if k != group))}"]


# ---- the configuration of a run --------------------------------------------------------------------------------------


def with_dataset_of_run(arguments: Sequence[str]) -> list[str]:
    """A script's arguments, preceded by the data set of the run that `run=FOLDER` names, or which several share.

    So the run's data set is the default, and dataset.key=value changes a key of it.

    Raises:
        ConfigError: a run has no data set, or several have different ones.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if "run" not in given or "dataset" in given:
        return list(arguments)
    files = [Path(unquoted(run)).expanduser() / "config.yaml" for run in (given["run"], *given["run"].split(","))]
    files = files[:1] if files[0].is_file() else [file for file in files[1:] if file.is_file()]
    if not files:
        return list(arguments)
    section = _dataset_of(files[0])
    if other := next((file for file in files if _dataset_of(file) != section), None):
        raise ConfigError(
            [f"run: {files[0].parent} and {other.parent} have different data sets; start one command for each"]
        )
    options = [f"dataset.{key}={hydra_text(value)}" for key, value in options_of(section).items()]
    return [f"dataset={section['name']}", *options, *arguments]


def _dataset_of(file: Path) -> dict[str, Any]:
    """The section dataset of a run's config.yaml."""
    section = read_saved(file.parent).get("dataset")
    if not isinstance(section, dict) or "name" not in section:
        raise ConfigError([f"{file}: has no section dataset with a name"])
    return section


def with_changes_of_resume(arguments: Sequence[str]) -> list[str]:
    """The arguments of src/train.py, where `resume=FOLDER` allows the keys of that run.

    They need not be in what Hydra composes, such as those of another data set: "++" lets Hydra add them.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if given.get("resume", "null") in ("", "null", *SEARCHED):
        return list(arguments)
    return [f"++{a}" if re.match(r"\w+(\.\w+)+=", a) and not a.startswith("hydra.") else a for a in arguments]
