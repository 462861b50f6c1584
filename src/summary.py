"""Parameters, operations, latency and memory of a model: `python src/summary.py backbone=resnet50 head=danet`."""

import sys

import hydra
from omegaconf import DictConfig

import command_line
import danet.config


@hydra.main(version_base="1.3", config_path="../conf", config_name="summary")
def main(composed: DictConfig) -> None:
    """Compose, check, summarise."""
    try:
        from danet import progress, summary  # here, for `--help` must not wait for PyTorch

        progress.setup_logging(None)
        summary.run(danet.config.load_as(summary.SummaryConfig, composed))
    except (danet.config.ConfigError, ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    command_line.start(main, "summary", ("run", "checkpoint", "output"))
