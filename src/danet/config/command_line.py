"""What the scripts' command lines say, before Hydra composes: unknown names, a run's own configuration, quoting."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from danet.config import resolve
from danet.config.resolve import REPOSITORY
from danet.config.resume import read_saved
from danet.registry import did_you_mean
from danet.schema import ConfigError

RUN_DIR = (
    "hydra.run.dir: not used here; a run's folder is outputs/<date>/<time>_<name>, and the environment variable "
    "DANET_OUTPUTS=FOLDER takes the place of outputs/"
)


# ---- unknown names ---------------------------------------------------------------------------------------------------


def check_arguments(
    arguments: Sequence[str], primary: str | None = "train", folders: Sequence[Path] | None = ()
) -> None:
    """Check the names on a command line against the YAML files, because Hydra suggests nothing for a misspelled one.

    Args:
        arguments: of the script, such as `backbone=resnet50` or `head.aux_loss=true`.
        primary: name of the script's primary configuration; None for one of the user's own, whose keys are unknown
            here.
        folders: with options of the user's own, besides conf/ and experiments/. None: they are unknown, and so is
            which options there are.

    Raises:
        ConfigError: an option of a group, or a key without "+", does not exist.
    """
    own = resolve.read(REPOSITORY / "conf" / f"{primary}.yaml") if primary else {}
    groups = _groups(own)
    own = _with_defaults(own)
    problems = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key.lstrip("+") == "hydra.run.dir":
            problems.append(RUN_DIR)
        if not equals or key.partition(".")[0] == "hydra":
            continue
        if re.fullmatch(r"\+\w+", key) and key[1:] in groups:
            problems.append(f"{argument}: {key[1:]} has an option already; leave out the +: {argument[1:]}")
        if primary and "recipe" not in groups and re.fullmatch(r"[\w.]+", key):  # recipes may add keys
            problems += _unknown_key(key, {**own, **groups})
        section = key.partition(".")[0]
        if folders is not None and (section not in own or section in groups):  # a section may be called as a group
            problems += _unknown_option(key, value, folders)
    if problems:
        raise ConfigError(problems)


def _groups(primary: Mapping[str, Any]) -> dict[str, None]:
    """The groups in a primary configuration's defaults list."""
    entries = [entry for entry in primary.get("defaults", ()) if isinstance(entry, dict)]
    return {name.partition("@")[0]: None for entry in entries for name in entry if " " not in name}


def _with_defaults(primary: Mapping[str, Any]) -> dict[str, Any]:
    """A primary configuration with the keys of the options that its defaults list places in a section."""
    merged: dict[str, Any] = dict(primary)
    for entry in primary.get("defaults", ()):
        for name, option in entry.items() if isinstance(entry, dict) else ():
            group, _, section = name.partition("@")
            if section and option:
                merged[section] = {**resolve.read(REPOSITORY / "conf" / group / f"{option}.yaml"), **merged[section]}
    return merged


def _unknown_option(key: str, value: str, own_folders: Sequence[Path]) -> list[str]:
    """A line for each option of a group that does not exist, or for a key that none of its options has."""
    group, _, rest = key.partition(".")
    if not group.isidentifier():
        return []
    places = (REPOSITORY / "conf", REPOSITORY / "experiments", *own_folders)
    files = {file.stem: file for place in places for file in (place / group).glob("*.yaml")}
    if not files:
        return []
    if not rest:
        options = [option for option in value.split(",") if option.isidentifier() and option != "null"]
        hints = {o: did_you_mean(o, list(files)) for o in options if o not in files}
        own = "" if own_folders else " (extensions=FOLDER adds your own)"
        return [f"{group}={o}: unknown option; {hint}{own if '?' not in hint else ''}" for o, hint in hints.items()]
    sections = [resolve.read(file) for file in files.values()]
    keys = {name for section in sections for name in (section.keys() - {"defaults"}) | _groups(section).keys()}
    if (name := rest.split(".")[0]) not in keys:
        return [f"{key}: unknown key; {did_you_mean(name, sorted(keys))}"]
    return []


def _unknown_key(key: str, section: Any) -> list[str]:
    """A line if a dotted key is neither one of a primary configuration nor of a group in its defaults list."""
    for name in key.split("."):
        if not isinstance(section, dict):
            break
        if name not in section:
            return [f"{key}: unknown key; {did_you_mean(name, sorted(section.keys() - {'defaults', 'hydra'}))}"]
        section = section[name]
    return []


# ---- the configuration of a run --------------------------------------------------------------------------------------


def with_dataset_of_run(arguments: Sequence[str]) -> list[str]:
    """A script's arguments, preceded by the data set of the run that `run=FOLDER` names.

    So the run's data set is the default, and dataset.key=value changes a key of it.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    file = Path(unquoted(given.get("run", ""))).expanduser() / "config.yaml"
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
    if given.get("resume", "null") in ("", "null", "auto"):
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
