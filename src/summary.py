"""Parameters, operations, latency and memory of a model: `python src/summary.py backbone=resnet50 head=danet`."""

import sys

import hydra
from omegaconf import DictConfig

import danet.config
from danet import failures


@hydra.main(version_base="1.3", config_path="../conf", config_name="summary")
def main(composed: DictConfig) -> None:
    """Compose, check, summarise."""
    with failures.one_line("lower size or batch_size"):
        from danet import progress, summary  # here, for `--help` must not wait for PyTorch

        progress.setup_logging(None)
        summary.run(danet.config.load_as(summary.SummaryConfig, composed))


if __name__ == "__main__":
    try:
        danet.config.check_arguments(sys.argv[1:], "summary")
    except danet.config.ConfigError as error:
        sys.exit(f"ConfigError: {error}")
    sys.argv[1:] = danet.config.quote_paths(sys.argv[1:], ("run", "checkpoint", "output"))
    main()
