"""Export a trained model: `python src/export.py run=FOLDER to=onnx out=model.onnx`; `--help` lists all."""

import sys

import hydra
from omegaconf import DictConfig

import danet.config
from danet import failures


@hydra.main(version_base="1.3", config_path="../conf", config_name="export")
def main(composed: DictConfig) -> None:
    """Compose, check, export, compare with PyTorch."""
    with failures.one_line():
        from danet import export, progress  # here, for `--help` must not wait for PyTorch

        progress.setup_logging(None)
        export.run(danet.config.load_as(export.ExportConfig, composed))


if __name__ == "__main__":
    try:
        danet.config.check_arguments(sys.argv[1:], "export")
    except danet.config.ConfigError as error:
        sys.exit(f"ConfigError: {error}")
    sys.argv[1:] = danet.config.quote_paths(sys.argv[1:], ("run", "checkpoint", "out"))
    main()
