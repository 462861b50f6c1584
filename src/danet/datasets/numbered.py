"""Data sets whose labels are images or MATLAB files of class numbers: what those of the papers share."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from danet.datasets.files import FileDataset, label_file, list_folder, pair_up, read_list
from danet.datasets.labels import read_label, read_mat_label

MATLAB = ".mat"


class NumberedDataset(FileDataset):
    """A split whose labels are images, or MATLAB files, of class numbers.

    Attributes:
        how_to_get: where the data set comes from and where its files go.
    """

    how_to_get: str
    _mat_field = ""  # see labels.read_mat_label
    _train_ids: Mapping[int, int]  # by class number

    def read_label(self, index: int) -> np.ndarray:
        """The label of the sample at `index` alone, (H, W) uint8 train ids."""
        path = label_file(self.files[index])
        if path.endswith(MATLAB):
            return read_mat_label(path, self._mat_field, self._train_ids)
        return read_label(path, "index", self._train_ids)

    def _pair(self, images: Path, labels: Mapping[str, Path], labels_at: Path, names: set[str] | None = None) -> None:
        """Set `files`: the named images of a folder with their labels; without names, all images and labels.

        Raises:
            ValueError: there are none.
        """
        found = list_folder(images)
        self.files = pair_up(found.keys() | labels.keys() if names is None else names, found, dict(labels), images)
        if not (found and labels and self.files):
            raise ValueError(f"no images in {images} with labels in {labels_at}. {self._help()}")

    def _names(self, path: Path) -> set[str]:
        """The names in a list file.

        Raises:
            ValueError: there is none.
        """
        if not path.exists():
            raise ValueError(f"no {path}. {self._help()}")
        return read_list(path)

    def _help(self) -> str:
        return self.how_to_get.format(root=self.root)


def known_split(split: str, name: str, reason: str = "the labels of the test split are not public") -> None:
    """Refuse a split other than train and val.

    Raises:
        ValueError: it is another.
    """
    if split not in ("train", "val"):
        raise ValueError(f"{name} has no split {split!r}: {reason}; take val")
