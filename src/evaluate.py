"""Score a trained model: `python src/evaluate.py run=FOLDER` or `checkpoint=FILE dataset=NAME`; `--help` says more."""

from omegaconf import DictConfig

import command_line
from danet import config

PATHS = ("run", "checkpoint", "output", *command_line.DATASET, "runtime.cache")


def main(composed: DictConfig) -> float:
    """Score a model; returns the mIoU."""
    from danet.evaluation import scoring  # imported here, so that `--help` answers at once

    result, _ = scoring.score(config.load_as(scoring.ScoringConfig, composed))
    return float(result["miou"])


if __name__ == "__main__":
    command_line.start(main, "evaluate", PATHS, adapt=config.with_dataset_of_run)
