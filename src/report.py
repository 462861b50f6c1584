"""Report a sweep or compare runs: `python src/report.py sweep=outputs/sweeps/NAME`; `--help` lists the keys."""

import hydra
from omegaconf import DictConfig

import command_line
import danet.config
from danet.services import failures


@hydra.main(version_base="1.3", config_path="../conf", config_name="report")
def main(composed: DictConfig) -> None:
    """Check the configuration, write the report, say where it is."""
    with failures.one_line():
        from danet.tools.report import report  # here, for `--help` must not wait

        page = report.write_report(danet.config.load_as(report.ReportConfig, composed))
    print(f"wrote {page}")


if __name__ == "__main__":
    command_line.start(main, "report", ("sweep", "output"), lists=("runs",))
