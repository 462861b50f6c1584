"""Show the attention of a trained model: `python src/attention.py run=FOLDER image=FILE points=[[120,200]]`.

With page=FILE.html it writes a page that follows the mouse instead of a sheet.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import command_line

from omegaconf import DictConfig

from danet import config

if TYPE_CHECKING:
    from danet.analysis.attention_options import AttentionConfig

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


def main(composed: DictConfig) -> None:
    """Write the attention sheet of an image, or its page."""
    from danet.analysis.attention_options import AttentionConfig
    from danet.services import console

    console.setup_logging(None)
    options = config.load_as(AttentionConfig, composed)

    from danet.tools import attention_report  # with PyTorch, which takes seconds: what is wrong has been said before

    if options.page is None:
        attention_report.run(options)
    else:
        write_page(options)


def write_page(options: "AttentionConfig") -> None:
    """Write the page of an image."""
    from danet.tools import attention_report
    from danet.tools.attention_page.page import page_file, write_page

    predictor = attention_report.load_model(options)
    name, image, label = attention_report.picture(options, predictor)
    write_page(
        predictor,
        image,
        page_file(str(options.page), name),
        label=label,
        points=options.points,
        name=name,
        facts=attention_report.facts(predictor),
        page_size=options.attention.page_size,
    )


def with_dataset_of_sample(overrides: Sequence[str]) -> list[str]:
    """The overrides with the run's data set, if the image is one of its samples."""
    sample = any(override.startswith("sample=") for override in overrides)
    return config.with_dataset_of_run(overrides) if sample else list(overrides)


if __name__ == "__main__":
    command_line.start(main, "attention", PATHS, adapt=with_dataset_of_sample, memory="use a smaller image")
