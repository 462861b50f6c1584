"""What a label says of where to crop."""

from collections.abc import Sequence

import numpy as np

from danet.interfaces import IGNORE


def largest_share(label: np.ndarray) -> float:
    """The share that the most frequent class has of a label's pixels, ignored ones left out; 1 where all are ignored.

    Args:
        label: (H, W) uint8.
    """
    counts = np.bincount(label.ravel(), minlength=IGNORE + 1)[:IGNORE]
    total = int(counts.sum())
    return int(counts.max()) / total if total else 1.0


def pixel_of_class(
    label: np.ndarray, classes: Sequence[int | str] | None, draws: Sequence[float]
) -> tuple[int, int] | None:
    """Row and column of a pixel of a class, both drawn evenly; None if the label has no such class.

    Args:
        label: (H, W) uint8.
        classes: numbers of the classes that are drawn from; None for all but the ignored.
        draws: two numbers in [0, 1), of the class and of the pixel.
    """
    present = np.flatnonzero(np.bincount(label.ravel(), minlength=IGNORE + 1)[:IGNORE]).tolist()
    candidates = [number for number in present if classes is None or number in classes]
    if not candidates:
        return None
    pixels = np.flatnonzero(label == candidates[int(draws[0] * len(candidates))])
    row, column = divmod(int(pixels[int(draws[1] * len(pixels))]), label.shape[1])
    return row, column
