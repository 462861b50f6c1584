"""Export a trained model: `python src/export.py run=FOLDER to=onnx out=model.onnx`; `--help` lists all."""

import sys

import hydra
from omegaconf import DictConfig

import command_line
import danet.config


@hydra.main(version_base="1.3", config_path="../conf", config_name="export")
def main(composed: DictConfig) -> None:
    """Compose, check, export, compare with PyTorch."""
    try:
        from danet import export, progress  # here, for `--help` must not wait for PyTorch

        progress.setup_logging(None)
        export.run(danet.config.load_as(export.ExportConfig, composed))
    except (danet.config.ConfigError, ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    command_line.start(main, "export", ("run", "checkpoint", "out"))
