"""Convert weights of other code to ours, or back: `python src/convert.py from=mmseg in=FILE out=FILE`."""

import hydra
from omegaconf import DictConfig

import command_line
import danet.config
from danet.services import failures
from danet.tools.convert.options import ConvertConfig


@hydra.main(version_base="1.3", config_path="../conf", config_name="convert")
def main(composed: DictConfig) -> None:
    """Check the options, convert, say what went where."""
    with failures.one_line():
        options = danet.config.load_as(ConvertConfig, composed)

        from danet.tools.convert.conversion import convert  # here, for `--help` must not wait for PyTorch

        report = convert(options)
    print(report.summary())


if __name__ == "__main__":
    command_line.start(main, "convert", ("in", "out"))
