"""Report a sweep or compare runs: `python src/report.py sweep=outputs/sweeps/NAME`; `--help` lists the keys."""

import sys

import hydra
from omegaconf import DictConfig

import command_line
import danet.config


@hydra.main(version_base="1.3", config_path="../conf", config_name="report")
def main(composed: DictConfig) -> None:
    """Check the configuration, write the report, say where it is."""
    from danet.report import write  # here, for `--help` must not wait

    try:
        page = write.write_report(danet.config.load_as(write.ReportConfig, composed))
    except (danet.config.ConfigError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"wrote {page}")


if __name__ == "__main__":
    command_line.start(main, "report", ("sweep", "output"), lists=("runs",))
