"""Which folder a run lies in: a new one, the one that Hydra names, or that of an earlier start."""

import contextlib
import datetime
import itertools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danet import config
from danet.config import ConfigError, RunConfig
from danet.config.resume import SEARCHED
from danet.interfaces import SegmentationDataset
from danet.registry import DATASETS
from danet.services import atomic_files, console

# What a run that was killed at its very beginning leaves, and what Hydra writes.
UNSTARTED = {".hydra", ".lock", "train.log"}


def folder_of(run_config: RunConfig, sweep_folder: str | None, placed: str | None) -> tuple[Path, bool]:
    """The run folder, and whether it is that of an earlier start."""
    if placed:
        return _placed_folder(run_config, Path(placed))
    if sweep_folder:  # which goes on by itself
        if run_config.resume and run_config.resume not in SEARCHED:
            raise ConfigError([f"resume = {run_config.resume!r}: a sweep goes on by itself; leave it out"])
        folder = Path(sweep_folder)
        folder.mkdir(parents=True, exist_ok=True)
        config.remember(folder, config.OUTPUTS)
        return folder, (folder / "config.yaml").is_file()
    if run_config.resume in SEARCHED:
        if earlier := newest_run(run_config) or newest_run(run_config, finished=True):
            return earlier, True
        if run_config.resume == "required":
            remedy = "resume=auto starts one where there is none"
            raise ConfigError([f"resume = 'required': no run of this configuration in {config.OUTPUTS}; {remedy}"])
        console.print_text(f"resume=auto: no run of this configuration in {config.OUTPUTS}, so a new one starts")
    elif run_config.resume:
        return Path(run_config.resume), True
    return new_run_folder(run_config), False


def _placed_folder(run_config: RunConfig, folder: Path) -> tuple[Path, bool]:
    """The folder that hydra.run.dir names, and whether it has the run to resume.

    Raises:
        ConfigError: it has another run or other files, or not the run to resume.
    """
    given, resume = f"hydra.run.dir = {str(folder)!r}", run_config.resume
    is_run = (folder / "config.yaml").is_file()
    if resume and resume not in SEARCHED and not (folder.is_dir() and folder.samefile(resume)):
        raise ConfigError([f"{given}: resume names another folder, {resume}; leave out one of them"])
    if resume == "required" and not is_run:
        raise ConfigError([f"{given}: holds no run to resume; resume=auto starts one"])
    if is_run and not resume:
        again = config.shell_word(f"resume={folder}")
        raise ConfigError([f"{given}: holds a run; {again} resumes it, another folder starts a new one"])
    if is_run and (changes := config.changes_of_run(folder, run_config)):
        raise ConfigError([f"{given}: holds a run of another configuration: {'; '.join(changes[:4])}"])
    folder.mkdir(parents=True, exist_ok=True)
    if not is_run and (others := sorted({path.name for path in folder.iterdir()} - UNSTARTED)):
        raise ConfigError([f"{given}: is not empty (it has {', '.join(others[:3])}); name a new folder"])
    config.remember(folder, config.OUTPUTS)
    return folder, is_run


def new_run_folder(run_config: RunConfig) -> Path:
    """Create outputs/<date>/<time>_<name>, with a number where that second already has one.

    Raises:
        ConfigError: the folder cannot be made.
    """
    now = datetime.datetime.now()
    base = config.OUTPUTS / now.strftime("%Y-%m-%d") / f"{now.strftime('%H-%M-%S')}_{run_config.name}"
    for attempt in itertools.count():
        folder = base.with_name(f"{base.name}_{attempt}") if attempt else base
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except OSError as error:
            remedy = "DANET_OUTPUTS=FOLDER in the environment takes another place"
            raise ConfigError([f"{folder}: cannot be made ({error.strerror}). {remedy}"]) from None
    return folder


def newest_run(run_config: RunConfig, *, finished: bool = False) -> Path | None:
    """The newest run folder with a checkpoint whose configuration has the same identity, unfinished or finished.

    Runs in folders without write access, such as another user's, are skipped.
    """
    folders = [folder for folder in config.run_folders(config.OUTPUTS) if _may_go_on(folder)]
    identity = run_config.identity()
    for folder in sorted(folders, key=lambda folder: (folder / "checkpoints").stat().st_mtime, reverse=True):
        if (folder / "result.json").exists() == finished:
            recorded = _recorded_data(folder, identity)
            if recorded is None or atomic_files.is_locked(folder) or _changed(folder, recorded, run_config):
                continue
            return folder
    return None


def _may_go_on(folder: Path) -> bool:
    """Whether a folder has checkpoints, and may be written."""
    lock = folder / ".lock"
    places = [folder, folder / "checkpoints", *([lock] if os.path.exists(lock) else [])]
    return all(os.access(place, os.W_OK) for place in places)


def _recorded_data(folder: Path, identity: str) -> dict[str, Any] | None:
    """What a run recorded of its data, by split; None if it is another run, one that was pruned, or a damaged one."""
    result = folder / "result.json"
    try:
        if config.identity_of_run(folder) != identity:
            return None
        if result.exists() and atomic_files.read_json(result).get("pruned"):
            return None
        return dict(atomic_files.read_json(folder / "environment.json")["data"])
    except ConfigError:  # of another version of the code
        return None
    except (ValueError, KeyError, OSError) as error:
        file = folder / "environment.json"
        reason = str(error) if isinstance(error, ValueError) else f"{file}: missing or damaged"
        console.print_text(f"resume: {folder} is skipped, its files are damaged ({reason})")
        return None


def changed_data(folder: Path, run_config: RunConfig) -> list[str]:
    """A line for each split whose data are not those of the run in `folder`."""
    return _changed(folder, atomic_files.read_json(folder / "environment.json")["data"], run_config)


def _changed(folder: Path, recorded: Mapping[str, Any], run_config: RunConfig) -> list[str]:
    return [
        f"{folder}: the {split} data have changed since"
        for split, data in recorded.items()
        if data["fingerprint"] != open_split(run_config, split).fingerprint()
    ]


def open_split(run_config: RunConfig, split: str) -> SegmentationDataset:
    """Open a split of the run's data set."""
    return DATASETS.build(run_config.dataset, split)


def remove_unstarted(folder: Path) -> None:
    """Remove the folder of a new run that failed before it trained, and the day's if it has no other."""
    if not any((folder / name).exists() for name in ("metrics.jsonl", "checkpoints", "wandb")):
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty
            for place in (folder.parent, config.OUTPUTS) if folder.parent.parent == config.OUTPUTS else ():
                place.rmdir()
