"""Where runs are: below outputs/, and wherever Hydra was told to put one."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from danet.config.identity import MAY_CHANGE
from danet.config.quoting import quoted, unquoted
from danet.config.resolve import OUTPUTS
from danet.schema import ConfigError

# Keys that say how a run is done, or what else is in its name.
NOT_IN_NAME = (
    *(*MAY_CHANGE, "evaluate.", "recipe", "scale", "train.eval_every", "train.precision", "~", "hydra"),
    *("runtime", "tracking"),  # the groups, too
)

ELSEWHERE = ".cache/runs.txt"  # in outputs/: the folders of runs in other places, a line each


def run_folders(outputs: Path) -> list[Path]:
    """All run folders that still exist, sweeps' included, the newest first."""
    files = {*outputs.glob("*/*/config.yaml"), *outputs.glob("sweeps/*/*/*/config.yaml")}
    if (listed := outputs / ELSEWHERE).is_file():
        lines = os.fsdecode(listed.read_bytes()).splitlines()
        files |= {file for line in lines if os.path.isfile(file := Path(line) / "config.yaml")}
    return [file.parent for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)]


def remember(folder: Path, outputs: Path) -> None:
    """Let `run_folders` find a run, should it be in none of the usual places."""
    places = [*folder.absolute().parents]
    if places[1:2] == [outputs] or places[2:3] == [outputs / "sweeps"]:
        return
    listed = outputs / ELSEWHERE
    listed.parent.mkdir(parents=True, exist_ok=True)
    with listed.open("ab") as opened:
        opened.write(os.fsencode(folder.absolute()) + b"\n")


def named(name: str, overrides: Sequence[str]) -> str:
    """The name of a run: its recipe's, with what the command line changes, such as quickstart_head-fcn."""
    given = dict(override.lstrip("+").partition("=")[::2] for override in overrides)
    words = [] if "name" in given else [name]
    for key, value in given.items() if words else ():
        plain = re.sub(r"[^\w.-]+", "-", value).strip("-")
        if plain and "/" not in value and not key.startswith(NOT_IN_NAME):
            words.append(f"{key.rpartition('.')[2]}-{plain}")
    return "_".join(words)[:60].rstrip("-_.") or name


def with_run_folders(arguments: Sequence[str]) -> list[str]:
    """A script's arguments with the folder of the run that `run=latest` or `run=NAME` names, NAME below outputs/.

    Raises:
        ConfigError: there is no run yet, or several have this name.
    """
    given = [argument.removeprefix("run=") for argument in arguments if argument.startswith("run=")]
    if not given or given[-1] in ("", "null") or Path(unquoted(given[-1])).expanduser().exists():
        return list(arguments)
    wanted, runs = unquoted(given[-1]), run_folders(OUTPUTS)
    if wanted != "latest":
        if "/" in wanted or "," in wanted:
            return list(arguments)
        runs = [run for run in runs if wanted in (run.name, run.name.partition("_")[2])]
    if not runs and wanted != "latest":
        return list(arguments)  # the check of the folder says that there is none
    if wanted == "latest":
        runs = [run for run in runs if os.path.isfile(run / "checkpoints" / "best.pt")]
    if not runs:
        raise ConfigError([f"run = {wanted!r}: there is no run with a best checkpoint in {OUTPUTS}"])
    if wanted != "latest" and len(runs) > 1:
        places = ", ".join(map(str, runs[:4]))
        raise ConfigError([f"run = {wanted!r}: {len(runs)} runs have this name: {places}; give a folder"])
    return [f"run={quoted(str(runs[0]))}" if a.startswith("run=") else a for a in arguments]


def with_sweep_folder(arguments: Sequence[str]) -> list[str]:
    """A script's arguments with the folder of the sweep that `sweep=NAME` names, NAME in outputs/sweeps."""
    changed = list(arguments)
    for number, argument in enumerate(arguments):
        key, _, value = argument.partition("=")
        folder = OUTPUTS / "sweeps" / (name := unquoted(value))
        if key == "sweep" and name and "/" not in name and folder.is_dir() and not Path(name).exists():
            changed[number] = f"sweep={quoted(str(folder))}"
    return changed


def require_run(arguments: Sequence[str]) -> None:
    """See whether `run=` names a run's folder.

    Raises:
        ConfigError: it names another folder.
    """
    run = dict(argument.partition("=")[::2] for argument in arguments).get("run", "")
    folder = Path(unquoted(run)).expanduser()
    if run and folder.is_dir() and not (folder / "config.yaml").is_file():
        newest = f"; the newest run is {runs[0]}" if (runs := run_folders(OUTPUTS)) else ""
        raise ConfigError([f"run = {str(folder)!r}: is no run's folder, for it has no config.yaml{newest}"])
