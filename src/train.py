"""Train a segmentation model: `python src/train.py group=option key=value ...`; `--help` lists them."""

import contextlib
import os
import sys
from pathlib import Path

import command_line

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from danet import config
from danet.services import failures
from danet.services.signals import EXIT_CODE

PATHS = (
    "dataset.root",
    "dataset.images",
    "dataset.labels",
    "dataset.group",
    "init_from",
    "resume",
    "runtime.cache",
)  # backbone.pretrained may be false, too


def main(composed: DictConfig) -> float | None:
    """Train; returns the best mIoU. A job of a sweep leaves its error in error.txt for the sweep's end."""
    job = HydraConfig.get()
    sweep_folder = job.runtime.output_dir if job.mode == RunMode.MULTIRUN else None
    placed = job.runtime.output_dir if not sweep_folder and job.run.dir != "." else None
    overrides = list(job.overrides.task)
    if job.job.name != JobRuntime.instance().get("name"):
        composed.name = job.job.name
    elif not sweep_folder and not OmegaConf.is_missing(composed, "name"):
        composed.name = config.named(composed.name, overrides)
    error_file = Path(sweep_folder) / "error.txt" if sweep_folder else None
    if error_file:
        error_file.unlink(missing_ok=True)
    try:
        run_config = config.load(composed, overrides, probe=True)

        from danet.training import run  # imported here, so that `--help` answers at once

        outcome = run.start(run_config, overrides, sweep_folder, placed)
    except Exception as error:
        if error_file and not isinstance(error, failures.BusyError):
            error_file.parent.mkdir(parents=True, exist_ok=True)
            error_file.write_text(failures.in_words(error) + "\n")
        raise
    finally:
        if placed:  # Hydra makes it before anything is checked, and each process of torchrun its own
            with contextlib.suppress(OSError):
                os.rmdir(placed)  # only if it is empty
    if not outcome.finished:
        sys.exit(EXIT_CODE)
    return outcome.result.get("miou")


if __name__ == "__main__":
    command_line.start(main, "train", PATHS, adapt=config.with_changes_of_resume, check=config.check_beside)
