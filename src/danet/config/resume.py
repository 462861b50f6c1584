"""The configuration of an existing run, and what of it may change when the run is resumed."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from danet.config import resolve
from danet.config.identity import UNTIL_FINISHED, deciding, flat, initial_values, starting, without_files
from danet.config.quoting import shell_word
from danet.config.run_config import RunConfig, checked
from danet.schema import ConfigError
from danet.services import atomic_files

SEARCHED = ("auto", "required")  # values of `resume` for which the run is looked for


def of_run(folder: Path) -> RunConfig:
    """The configuration of an existing run, without the files that its weights started from, which may be gone.

    Raises:
        ConfigError: the folder has none, or one that this version of the code does not accept.
    """
    return checked(_untracked(without_files(read_saved(folder))))


def _untracked(values: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration without its tracker, which need not be here: it makes no run another."""
    tracking = values.get("tracking")
    return {**values, "tracking": {**tracking, "mode": "disabled"}} if isinstance(tracking, dict) else values


def identity_of_run(folder: Path) -> str:
    """`RunConfig.identity` of an existing run, with the weights it started from.

    Raises:
        ConfigError: as `of_run`.
        ValueError: environment.json is damaged.
    """
    return of_run(folder).identity(initial_values_of_run(folder))


def changes_of_run(folder: Path, wanted: RunConfig) -> list[str]:
    """What makes a wanted run another one than an existing run, a key with both values each.

    Raises:
        ConfigError: as `of_run`.
        ValueError: environment.json is damaged.
    """
    now, before = deciding(asdict(wanted)), deciding(asdict(of_run(folder)))
    initial, recorded = wanted.initial_values(), initial_values_of_run(folder)
    lines = [f"{key} = {now.get(key)!r}, there {before.get(key)!r}" for key in _differing(now, before)]
    return lines + [f"{key}: other weights" for key in _differing(initial, recorded)]


def _differing(values: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ."""
    return [key for key in dict.fromkeys([*values, *others]) if values.get(key) != others.get(key)]


def initial_values_of_run(folder: Path) -> dict[str, str]:
    """`RunConfig.initial_values` of an existing run, as recorded when it started.

    Raises:
        ConfigError: config.yaml is missing or damaged.
        ValueError: environment.json is damaged.
    """
    file = folder / "environment.json"
    recorded = atomic_files.read_json(file).get("initial_values") if file.is_file() else None
    return recorded if recorded is not None else initial_values(read_saved(folder))


def read_saved(folder: Path) -> dict[str, Any]:
    """A run's config.yaml as plain values. Nothing in it is resolved, because it may come from anybody.

    Raises:
        ConfigError: it is missing or damaged.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise ConfigError(
            [f"resume = {str(folder)!r}: no config.yaml there. Give a run folder, or resume=required for the newest"]
        )
    saved = resolve.parse(file.read_bytes().decode("utf-8", errors="replace"))
    if saved is None:
        raise ConfigError([f"{file}: not YAML with sections. Restore the file, or start a new run"])
    return saved


def resumed(composed: Mapping[str, Any], folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of the run in `folder` with the command line's changes, if they leave it the same run.

    From its first checkpoint on, a run no longer needs the files that its weights started from.

    Raises:
        ConfigError: lists what would make it another run.
    """
    saved = read_saved(folder)
    wanted = _with_changes(saved, composed, overrides)
    recorded = initial_values_of_run(folder)
    started = any((folder / "checkpoints").glob("step_*.pt"))
    initial = recorded if started and starting(wanted) == starting(saved) else initial_values(wanted)
    if started:
        wanted = without_files(wanted)
    before, now = (deciding(asdict(checked(values))) for values in (_untracked(without_files(saved)), wanted))
    may_change = () if (folder / "result.json").is_file() else UNTIL_FINISHED
    problems = [
        f"{key} = {now.get(key)!r}: the run in {folder} has {before.get(key)!r} and can only be resumed as it is "
        "(runtime.*, tracking.* and dataset.root may change). For another run leave out resume; "
        f"{shell_word(f'init_from={folder}/checkpoints/best.pt')} takes its weights"
        for key in _differing(before, now)
        if key not in may_change
    ]
    problems += [
        f"{key}: other weights ({initial.get(key)}) than the run in {folder} started from ({recorded.get(key)})"
        for key in _differing(recorded, initial)
    ]
    if problems:
        raise ConfigError(problems)
    return {**wanted, "name": saved["name"], "resume": str(folder.resolve())}


def record_changes(folder: Path, config: RunConfig) -> None:
    """Write what a resume changed of UNTIL_FINISHED into a run's config.yaml, so that it tells how the run ended."""
    saved = read_saved(folder)
    before, now = flat(saved), flat(asdict(config))
    changed = [key for key in UNTIL_FINISHED if before.get(key) != now[key]]
    for section, _, key in (key.partition(".") for key in changed):
        saved[section][key] = now[f"{section}.{key}"]
    if changed:
        atomic_files.write_text(folder / "config.yaml", resolve.to_yaml(saved))


def _with_changes(saved: Mapping[str, Any], composed: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """What the command line makes of a run's configuration.

    With a recipe or an ablation, which may set anything, it is all that was composed. Otherwise an option of a group
    gives its section, a key its value, and what has a ~ is removed.
    """
    words = [o.lstrip("+").partition("=") for o in overrides if not o.lstrip("+~").startswith("hydra")]
    keys = [key for key, equals, _ in words if equals and not key.startswith("~")]
    if {"recipe", "ablation", "scale"} & set(keys):
        return {key: value for key, value in composed.items() if key != "sweep"}
    wanted = copy.deepcopy(dict(saved))
    for key in [key.removeprefix("~") for key, _, _ in words if key.startswith("~")]:
        *path, last = _section_of(key).split(".")
        section: Any = wanted
        for name in path:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.pop(last, None)
    for key in [*keys, *(["train.steps"] if "train.epochs" in keys else [])]:  # which it replaces
        *path, last = _section_of(key).split(".")
        target, source = wanted, composed
        for name in path:
            if not isinstance(target.get(name), dict):
                target[name] = {}
            target, source = target[name], source[name]
        target[last] = source[last]
    return wanted


def _section_of(key: str) -> str:
    """The dotted key that a command line's key sets: that of the section which a group such as loss/weights fills."""
    return (key.partition("@")[2] or key).replace("/", ".")
