"""Names and places of runs in Weights & Biases, and how to get there."""

import contextlib
import os
import shlex
import urllib.parse
from pathlib import Path
from typing import Any

GROUP_FILE = "group_url.txt"  # in wandb's folder of a run: URL of its group, for online runs


def project_name(configured: str | None) -> str:
    """Name of the project on the server: as configured, else WANDB_PROJECT, else "danet"."""
    return configured or os.environ.get("WANDB_PROJECT") or "danet"


def group_name(configured: str | None, default: str | None) -> str | None:
    """Name of the runs' group: as configured, else WANDB_RUN_GROUP, else `default`."""
    return configured or os.environ.get("WANDB_RUN_GROUP") or default


def remember_group(folder: Path, project: str, group: str) -> None:
    """Keeps the address of an online run's group, for `how_to_open`; `project` is the URL of the project."""
    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    (folder / "wandb" / GROUP_FILE).write_text(f"{_group_url(project, group)}\n", encoding="utf-8")


def how_to_sync(folder: Path, run: Any) -> str:
    """The command that uploads everything of an offline run; resumed ones have a folder for each start.

    Where WANDB_DIR is elsewhere, the run folder gets a link, by which the next start finds this one.
    """
    place, link = Path(run.dir).parent, folder / "wandb" / Path(run.dir).parent.name
    if not link.exists():
        with contextlib.suppress(OSError):  # a file system without links
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(place.absolute())
    runs = [file.parent for file in sorted(folder.glob(f"wandb/offline-run-*-{run.id}/*.wandb")) if not _is_sent(file)]
    return shlex.join(["wandb", "sync", *map(str, runs or [place])])


def how_to_open(sweep: Path, *, project: str | None, entity: str | None, group: str) -> list[str]:
    """Instructions for viewing the runs of a sweep side by side, as lines; empty if nothing was tracked.

    Args:
        sweep: folder that contains the run folders.
        project: project of the runs, as configured.
        entity: user or team of the runs, as configured.
        group: name of the runs' group.
    """
    lines = [
        f"Weights & Biases: {url}"
        for url in sorted({file.read_text(encoding="utf-8").strip() for file in sweep.rglob(f"wandb/{GROUP_FILE}")})
    ]
    offline = [file.parent for file in sweep.rglob("wandb/offline-run-*/*.wandb") if not _is_sent(file)]
    if offline:
        patterns = sorted({"/".join(("*",) * (len(run.relative_to(sweep).parts) - 2)) for run in offline})
        paths = [f"{shlex.quote(str(sweep))}/{pattern}/wandb/offline-run-*" for pattern in patterns]
        lines.append(f"Weights & Biases: upload {len(offline)} offline runs with")
        lines.append(f"  wandb sync {' '.join(paths)}")
        user = entity or os.environ.get("WANDB_ENTITY") or "<your entity>"
        address = f"https://wandb.ai/{user}/{project_name(project)}"
        lines.append(f"  and open {_group_url(address, group)}")
    return lines


def _group_url(project: str, group: str) -> str:
    return f"{project}/groups/{urllib.parse.quote(group, safe='')}"


def _is_sent(file: Path) -> bool:
    """Whether `wandb sync` has marked a run's file as uploaded."""
    return file.with_name(f"{file.name}.synced").exists()
