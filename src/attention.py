"""Show what a trained model attends to: `python src/attention.py run=FOLDER image=FILE points=[[120,200]]`."""

import sys

import hydra
from omegaconf import DictConfig

import danet.config
from danet import failures

PATHS = ("run", "checkpoint", "image", "label", "sample", "output", "dataset.root")


@hydra.main(version_base="1.3", config_path="../conf", config_name="attention")
def main(composed: DictConfig) -> None:
    """Compose, check, look."""
    with failures.one_line("take a smaller image"):
        from danet import attention_report, progress  # here, for `--help` must not wait

        progress.setup_logging(None)
        attention_report.run(danet.config.load_as(attention_report.AttentionConfig, composed))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    try:
        danet.config.check_arguments(arguments, "attention")
    except danet.config.ConfigError as error:
        sys.exit(f"ConfigError: {error}")
    if any(argument.startswith("sample=") for argument in arguments):
        arguments = danet.config.with_dataset_of_run(arguments)
    sys.argv[1:] = danet.config.quote_paths(arguments, PATHS)
    main()
