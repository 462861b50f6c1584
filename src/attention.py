"""Show the attention of a trained model: `python src/attention.py run=FOLDER image=FILE points=[[120,200]]`.

With page=FILE.html it writes a page that follows the mouse instead of a sheet.
"""

from collections.abc import Sequence

import command_line

from omegaconf import DictConfig

from danet import config

PATHS = (
    "run",
    "checkpoint",
    "image",
    "label",
    "sample",
    "output",
    "page",
    "dataset.root",
    "dataset.images",
    "dataset.labels",
    "dataset.group",
)
LISTS = ("image", "compare")


def main(composed: DictConfig) -> None:
    """Write the attention sheets of images, or their page."""
    from danet.analysis.attention_options import AttentionConfig
    from danet.services import console

    console.setup_logging(None)
    options = config.load_as(AttentionConfig, composed)

    from danet.tools import attention_report  # with PyTorch, which takes seconds: what is wrong has been said before

    attention_report.run(options)


def with_dataset_of_sample(overrides: Sequence[str]) -> list[str]:
    """The overrides with the run's data set, if the image is one of its samples."""
    sample = any(override.startswith("sample=") for override in overrides)
    return config.with_dataset_of_run(overrides) if sample else list(overrides)


if __name__ == "__main__":
    command_line.start(main, "attention", PATHS, LISTS, adapt=with_dataset_of_sample, memory="use a smaller image")
