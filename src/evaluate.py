"""Score a trained model: `python src/evaluate.py run=FOLDER` or `checkpoint=FILE dataset=NAME`; `--help` says more."""

import contextlib

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

import command_line
import danet.config
from danet.services import failures

PATHS = ("run", "checkpoint", "output", "dataset.root", "runtime.cache")


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
def main(composed: DictConfig) -> float | None:
    """Compose, check, score; the mIoU is what Hydra's sweepers optimise."""
    alone = HydraConfig.get().mode != RunMode.MULTIRUN  # else Hydra reports an error and goes on with the next job
    with failures.one_line() if alone else contextlib.nullcontext():
        from danet.evaluation import scoring  # here, for `--help` must not wait for PyTorch

        result, _ = scoring.score(danet.config.load_as(scoring.ScoringConfig, composed))
    return result["miou"]


if __name__ == "__main__":
    command_line.start(main, "evaluate", PATHS, adapt=danet.config.with_dataset_of_run)
