"""What a dataset is: a sequence of samples that knows its classes.

Register a class with these members; nothing has to be inherited. Shapes: H, W image height and width in pixels.
"""

from typing import ClassVar, NamedTuple, Protocol

import numpy as np

IGNORE = 255  # the label of pixels that neither train nor score


class Sample(NamedTuple):
    """One labelled image."""

    image: np.ndarray  # (H, W, 3) uint8, RGB
    label: np.ndarray  # (H, W) uint8, train ids 0..num_classes-1, or IGNORE
    name: str  # stable and unique within the split, without extension


class FilePair(NamedTuple):
    """The files behind one sample; `label` is None where the file is missing."""

    image: str
    label: str | None
    name: str


class SegmentationDataset(Protocol):
    """The members that a registered dataset class has.

    The constructor takes the split ("train", "val" or "test") as its positional-only argument and the options of
    its YAML as keyword-only arguments; it lists files but opens none of them. It raises ValueError where the
    data cannot be found, saying where to put it.
    """

    class_names: ClassVar[tuple[str, ...]]
    palette: ClassVar[tuple[tuple[int, int, int], ...]]
    description: str  # the data in words, with all that decides what a score on it means

    def __len__(self) -> int:
        """Number of images in the split."""

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`."""

    def read_label(self, index: int) -> np.ndarray:
        """The label at `index` alone, without decoding the image."""

    def fingerprint(self) -> str:
        """A short hash that changes when the data behind the split changes."""
