"""The runs in Weights & Biases of what comes after training: evaluations and reports, in the group of their runs."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from danet.config.resume import read_saved
from danet.config.sections import TrackingConfig
from danet.services.tracking import open_mirror
from danet.services.tracking.addresses import group_name
from danet.services.tracking.tensorboard_mirror import TensorBoardMirror
from danet.services.tracking.wandb_mirror import WandbMirror
from danet.sweeps.sweep import sweep_of


@contextlib.contextmanager
def mirror(
    tracking: TrackingConfig, job_type: str, folder: Path, runs: Sequence[Path], config: Mapping[str, Any]
) -> Iterator[WandbMirror | TensorBoardMirror]:
    """Open a run for the results in a folder; it ends with the context.

    Args:
        tracking: where it goes.
        job_type: what was done, in a word.
        folder: has the results; wandb's files go to `folder`/wandb.
        runs: folders of the training runs that the results are about.
        config: what was done, in plain values.
    """
    groups = {_group(run, tracking) for run in runs} if tracking.mode != "disabled" else set()
    group = groups.pop() if len(groups) == 1 else group_name(tracking.group, None)
    options: dict[str, Any] = {
        "job_type": job_type,
        "name": f"{group or folder.parent.name}/{folder.name}",
        "group": group,
    }
    opened = open_mirror(**tracking.destination(), **options, folder=folder, config=config, alone=False)
    try:
        yield opened
    except BaseException:
        opened.finish(exit_code=1)
        raise
    opened.finish()


def _group(run: Path, tracking: TrackingConfig) -> str | None:
    """The group that a training run is in."""
    own = (read_saved(run).get("tracking") or {}).get("group")
    return group_name(tracking.group or own, (sweep_of(run) or run).name)
