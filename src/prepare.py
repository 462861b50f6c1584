"""Fetch a data set and check all its files: `python src/prepare.py dataset=camvid dataset.root=FOLDER`."""

import hydra
from omegaconf import DictConfig

import command_line
import danet.config
from danet.services import failures


@hydra.main(version_base="1.3", config_path="../conf", config_name="prepare")
def main(composed: DictConfig) -> None:
    """Download what is missing, where the data set's licence allows it; then open every file once."""
    with failures.one_line():
        section = danet.config.load_section(composed, "dataset")

        from danet import registry
        from danet.data.check import check_splits
        from danet.services import console  # here, for `--help` must not wait

        console.setup_logging(None)
        name, options = section["name"], {key: value for key, value in section.items() if key != "name"}
        dataset_class = registry.DATASETS[name]
        if fetch := getattr(dataset_class, "prepare", None):
            fetch(options["root"])
        datasets = {split: dataset_class(split, **options) for split in ("train", "val")}
        check_splits(datasets, cache_dir=danet.config.OUTPUTS / ".cache", workers=4)
        for split, dataset in datasets.items():
            print(f"{split}: {len(dataset)} images, {dataset.description}")


if __name__ == "__main__":
    command_line.start(main, "prepare", ("dataset.root",))
