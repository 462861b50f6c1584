"""Export a trained model: `python src/export.py run=FOLDER to=onnx out=model.onnx`; `--help` lists all."""

import command_line

from omegaconf import DictConfig

from danet import config


def main(composed: DictConfig) -> None:
    """Export a model, and compare the file with PyTorch."""
    from danet.services import console
    from danet.tools.export.options import ExportConfig

    console.setup_logging(None)
    options = config.load_as(ExportConfig, composed)

    from danet.tools.export import export  # with PyTorch, which takes seconds: what is wrong has been said before

    export.run(options)


if __name__ == "__main__":
    command_line.start(main, "export", ("run", "checkpoint", "out"))
