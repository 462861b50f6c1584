"""Parameters, operations, latency and memory of a model: `python src/summary.py backbone=resnet50 head=danet`."""

import command_line

from omegaconf import DictConfig

from danet import config


def main(composed: DictConfig) -> None:
    """Summarize a model, trained or not."""
    from danet.analysis import summary  # imported here, so that `--help` answers at once
    from danet.services import console

    console.setup_logging(None)
    summary.run(config.load_as(summary.SummaryConfig, composed))


if __name__ == "__main__":
    command_line.start(main, "summary", ("run", "checkpoint", "output"), memory="lower size or batch_size")
