"""Convert weights of other code to ours, or back: `python src/convert.py from=mmseg in=FILE out=FILE`."""

import command_line

from omegaconf import DictConfig

from danet import config


def main(composed: DictConfig) -> None:
    """Convert a file of weights, and print what became of each key."""
    from danet.tools.convert.options import ConvertConfig

    options = config.load_as(ConvertConfig, composed)

    from danet.tools.convert.conversion import convert  # imported here, so that `--help` answers at once

    print(convert(options).summary())


if __name__ == "__main__":
    command_line.start(main, "convert", ("in", "out"))
