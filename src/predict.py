"""Segment images and videos with a trained model: `python src/predict.py run=FOLDER input=PATH output=DIR`."""

import sys

import hydra
from omegaconf import DictConfig

import danet.config
from danet import failures


@hydra.main(version_base="1.3", config_path="../conf", config_name="predict")
def main(composed: DictConfig) -> None:
    """Compose, check, predict."""
    with failures.one_line():
        from danet import prediction, progress  # here, for `--help` must not wait

        progress.setup_logging(None)
        failed = prediction.run(danet.config.load_as(prediction.PredictConfig, composed))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    try:
        danet.config.check_arguments(sys.argv[1:], "predict")
    except danet.config.ConfigError as error:
        sys.exit(f"ConfigError: {error}")
    sys.argv[1:] = danet.config.quote_paths(sys.argv[1:], ("run", "checkpoint", "input", "output"))
    main()
