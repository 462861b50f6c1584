"""Export a trained model: `python src/export.py run=FOLDER to=onnx out=model.onnx`; `--help` lists all."""

import command_line

from omegaconf import DictConfig

from danet import config


def main(composed: DictConfig) -> None:
    """Export a model, and compare the file with PyTorch."""
    from danet.services import console  # imported here, so that `--help` answers at once
    from danet.tools.export import export

    console.setup_logging(None)
    export.run(config.load_as(export.ExportConfig, composed))


if __name__ == "__main__":
    command_line.start(main, "export", ("run", "checkpoint", "out"))
