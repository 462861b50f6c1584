"""Show the attention of a trained model: `python src/attention.py run=FOLDER image=FILE points=[[120,200]]`."""

from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

import command_line
import danet.config
from danet.services import failures

PATHS = ("run", "checkpoint", "image", "label", "sample", "output", "dataset.root")


@hydra.main(version_base="1.3", config_path="../conf", config_name="attention")
def main(composed: DictConfig) -> None:
    """Compose and check the configuration, then write the sheet."""
    with failures.one_line("use a smaller image"):
        from danet.services import console  # imported here to keep `--help` fast
        from danet.tools import attention_report

        console.setup_logging(None)
        attention_report.run(danet.config.load_as(attention_report.AttentionConfig, composed))


def _with_dataset_of_sample(overrides: Sequence[str]) -> list[str]:
    """The overrides, with the run's dataset if the image is a sample of it."""
    sample = any(override.startswith("sample=") for override in overrides)
    return danet.config.with_dataset_of_run(overrides) if sample else list(overrides)


if __name__ == "__main__":
    command_line.start(main, "attention", PATHS, adapt=_with_dataset_of_sample)
