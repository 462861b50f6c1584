"""Report a sweep or compare runs: `python src/report.py sweep=outputs/sweeps/NAME`; `--help` lists the keys."""

import command_line

from omegaconf import DictConfig

from danet import config


def main(composed: DictConfig) -> None:
    """Write the report."""
    from danet.services import console  # imported here, so that `--help` answers at once
    from danet.tools.report import report

    console.setup_logging(None)
    print(f"wrote {report.write_report(config.load_as(report.ReportConfig, composed))}")


if __name__ == "__main__":
    command_line.start(main, "report", ("sweep", "output"), lists=("runs",))
