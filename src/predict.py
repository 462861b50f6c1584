"""Segment images and videos with a trained model: `python src/predict.py run=FOLDER input=PATH output=DIR`."""

import sys

import hydra
from omegaconf import DictConfig

import command_line
import danet.config
from danet.services import failures


@hydra.main(version_base="1.3", config_path="../conf", config_name="predict")
def main(composed: DictConfig) -> None:
    """Compose, check, predict."""
    with failures.one_line():
        from danet.services import console  # here, for `--help` must not wait
        from danet.tools.predict import prediction

        console.setup_logging(None)
        failed = prediction.run(danet.config.load_as(prediction.PredictConfig, composed))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    command_line.start(main, "predict", ("run", "checkpoint", "input", "output"))
