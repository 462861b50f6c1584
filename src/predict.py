"""Segment images and videos with a trained model: `python src/predict.py run=FOLDER input=PATH output=DIR`."""

import sys

import command_line

from omegaconf import DictConfig

from danet import config


def main(composed: DictConfig) -> None:
    """Predict, and end with status 1 if some inputs failed."""
    from danet.services import console  # imported here, so that `--help` answers at once
    from danet.tools.predict import prediction

    console.setup_logging(None)
    if prediction.run(config.load_as(prediction.PredictConfig, composed)):
        sys.exit(1)


if __name__ == "__main__":
    command_line.start(main, "predict", ("run", "checkpoint", "input", "output"))
