"""Parameters, operations, latency and memory of a model: `python src/summary.py backbone=resnet50 head=danet`."""

import command_line

from omegaconf import DictConfig

from danet import config


def main(composed: DictConfig) -> None:
    """Summarize a model, trained or not."""
    from danet.analysis.summary_options import SummaryConfig
    from danet.services import console

    console.setup_logging(None)
    options = config.load_as(SummaryConfig, composed)

    from danet.analysis import summary  # with PyTorch, which takes seconds: what is wrong has been said before

    summary.run(options)


if __name__ == "__main__":
    command_line.start(main, "summary", ("run", "checkpoint", "output"), memory="lower size or batch_size")
