"""Time and memory of DANet beside its peers: `python src/benchmark.py` (`make bench`); `--help` lists the keys."""

import hydra
from omegaconf import DictConfig

import command_line
import danet.config
from danet.services import failures


@hydra.main(version_base="1.3", config_path="../conf", config_name="benchmark")
def main(composed: DictConfig) -> None:
    """Check the configuration, measure, say where the report is."""
    with failures.one_line():
        from danet.services import console  # here, for `--help` must not wait for PyTorch
        from danet_benchmark import settings, suite

        console.setup_logging(None)
        page = suite.run(danet.config.load_as(settings.BenchmarkConfig, composed))
    print(f"wrote {page}")


if __name__ == "__main__":
    command_line.start(main, "benchmark", ("output",))
