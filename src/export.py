"""Export a trained model: `python src/export.py run=FOLDER to=onnx out=model.onnx`; `--help` lists all."""

import hydra
from omegaconf import DictConfig

import command_line
import danet.config
from danet.services import failures


@hydra.main(version_base="1.3", config_path="../conf", config_name="export")
def main(composed: DictConfig) -> None:
    """Compose, check, export, compare with PyTorch."""
    with failures.one_line():
        from danet.services import console  # here, for `--help` must not wait for PyTorch
        from danet.tools.export import export

        console.setup_logging(None)
        export.run(danet.config.load_as(export.ExportConfig, composed))


if __name__ == "__main__":
    command_line.start(main, "export", ("run", "checkpoint", "out"))
