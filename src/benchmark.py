"""Time and memory of DANet beside its peers: `python src/benchmark.py` (`make bench`); `--help` lists the keys."""

import command_line

from omegaconf import DictConfig

from danet import config


def main(composed: DictConfig) -> None:
    """Measure, and write the report."""
    from danet.services import console  # imported here, so that `--help` answers at once
    from danet_benchmark import settings, suite

    console.setup_logging(None)
    print(f"wrote {suite.run(config.load_as(settings.BenchmarkConfig, composed))}")


if __name__ == "__main__":
    command_line.start(main, "benchmark", ("output",))
