"""Report a sweep or compare runs: `python src/report.py sweep=outputs/sweeps/NAME`; `--help` lists the keys."""

import command_line

from omegaconf import DictConfig

from danet import config


def main(composed: DictConfig) -> None:
    """Write the report."""
    from danet.tools.report import report  # imported here, so that `--help` answers at once

    print(f"wrote {report.write_report(config.load_as(report.ReportConfig, composed))}")


if __name__ == "__main__":
    command_line.start(main, "report", ("sweep", "output"), lists=("runs",))
