"""Parameters, operations, latency and memory of a model: `python src/summary.py backbone=resnet50 head=danet`."""

import hydra
from omegaconf import DictConfig

import command_line
import danet.config
from danet.services import failures


@hydra.main(version_base="1.3", config_path="../conf", config_name="summary")
def main(composed: DictConfig) -> None:
    """Compose and check the configuration, then summarize the model."""
    with failures.one_line("lower size or batch_size"):
        from danet.analysis import summary  # imported here to keep `--help` fast
        from danet.services import console

        console.setup_logging(None)
        summary.run(danet.config.load_as(summary.SummaryConfig, composed))


if __name__ == "__main__":
    command_line.start(main, "summary", ("run", "checkpoint", "output"))
