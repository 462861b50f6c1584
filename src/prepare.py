"""Fetch a data set and check all its files: `python src/prepare.py dataset=camvid dataset.root=FOLDER`."""

import command_line

from omegaconf import DictConfig

from danet import config

PATHS = ("dataset.root", "dataset.images", "dataset.labels", "dataset.group")


def main(composed: DictConfig) -> None:
    """Download what is missing, where the data set's license allows it; then open every file once."""
    section = config.load_section(composed, "dataset")

    from danet.data.check import check_splits  # imported here, so that `--help` answers at once
    from danet.registry import DATASETS
    from danet.services import console

    console.setup_logging(None)
    if fetch := getattr(DATASETS[section["name"]], "prepare", None):
        fetch(section["root"])
    datasets = {split: DATASETS.build(section, split) for split in ("train", "val")}
    try:
        datasets["test"] = DATASETS.build(section, "test")
    except ValueError as error:  # there is none, or its labels are not public
        print(f"test: not checked ({str(error).splitlines()[0]})")
    check_splits(datasets, cache_dir=config.OUTPUTS / ".cache", workers=4)
    for split, dataset in datasets.items():
        print(f"{split}: {len(dataset)} images, {dataset.description}")


if __name__ == "__main__":
    command_line.start(main, "prepare", PATHS)
