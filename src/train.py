"""Train a segmentation model: `python src/train.py group=option key=value ...`; `--help` lists them."""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

import command_line
import danet.config  # registers the resolver that conf/train.yaml uses
from danet.services import failures
from danet.services.signals import EXIT_CODE

PATHS = ("dataset.root", "init_from", "resume", "runtime.cache")  # backbone.pretrained may be false, too


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(composed: DictConfig) -> float | None:
    """Compose, check, train; the best mIoU is what Hydra's sweepers optimise."""
    job = HydraConfig.get()
    sweep_folder = job.runtime.output_dir if job.mode == RunMode.MULTIRUN else None
    overrides = list(job.overrides.task)
    error_file = Path(sweep_folder or "") / "error.txt"  # a sweep goes on and tells at its end
    try:
        error_file.unlink(missing_ok=True)
        config = danet.config.load(composed, overrides, probe=True)

        from danet.training import run  # here, for `--help` must not wait for PyTorch

        outcome = run.start(config, overrides, sweep_folder)
    except Exception as error:
        if sweep_folder:
            error_file.parent.mkdir(parents=True, exist_ok=True)
            error_file.write_text(failures.in_words(error) + "\n")
            raise
        with failures.one_line():
            raise
    if not outcome.finished:
        sys.exit(EXIT_CODE)
    return outcome.result.get("miou")


if __name__ == "__main__":
    command_line.start(main, "train", PATHS, adapt=danet.config.with_changes_of_resume)
