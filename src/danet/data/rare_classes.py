"""How often each training image is drawn, so that images with rare classes come more often.

N images, K classes.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from danet.data.check import data_key, in_threads
from danet.interfaces import SegmentationDataset
from danet.services import atomic_files
from danet.services.console import track
from danet.services.text import position

VERSION = 1  # of the stored arrays


def class_presence(dataset: SegmentationDataset, *, cache_dir: Path, workers: int) -> np.ndarray:
    """Which classes occur in which image: (N, K) bool. All labels are read once; later calls read the result.

    Args:
        dataset: the training split.
        cache_dir: where results are kept between runs.
        workers: threads that read labels.

    Raises:
        ValueError: a label cannot be read.
    """
    shape = (len(dataset), len(dataset.class_names))
    cache = cache_dir / f"classes-{data_key(dataset, VERSION)}.npy"
    try:
        presence = np.load(cache)
        if presence.shape == shape and presence.dtype == bool:
            return presence
    except (OSError, ValueError, EOFError):  # none, or damaged
        pass

    def occurring(index: int) -> np.ndarray:
        return np.bincount(dataset.read_label(index).ravel(), minlength=256)[: shape[1]] > 0

    with in_threads(occurring, range(shape[0]), workers) as rows:
        presence = np.stack(list(track(rows, shape[0], "looking for classes in labels", transient=True)))
    cache_dir.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, presence)
    atomic_files.write_bytes(cache, buffer.getvalue())
    return presence


class Repeating(Protocol):
    """The options of the section `train` that say how often images are drawn; see config/sections.py."""

    @property
    def repeat_threshold(self) -> float | None:
        """Of the part of all images that have a class."""

    @property
    def rare_share(self) -> float | None:
        """Of the images drawn."""

    @property
    def rare_classes(self) -> Sequence[str]:
        """Names."""


def factors_of(options: Repeating, dataset: SegmentationDataset, *, cache_dir: Path, workers: int) -> np.ndarray | None:
    """How often each image of the training split is drawn, as configured; None where each is once, and no label read.

    Args:
        options: the section `train`.
        dataset: the training split.
        cache_dir: see `class_presence`.
        workers: likewise.

    Raises:
        ValueError: a label cannot be read, or no image has one of the rare classes.
    """
    if options.repeat_threshold is None and options.rare_share is None:
        return None
    presence = class_presence(dataset, cache_dir=cache_dir, workers=workers)
    places = (position(name, dataset.class_names) for name in options.rare_classes)
    rare = [place for place in places if place is not None]  # names of no class have been refused
    return repeat_factors(presence, threshold=options.repeat_threshold, rare=rare, share=options.rare_share)


def repeat_factors(
    presence: np.ndarray, *, threshold: float | None, rare: Sequence[int] = (), share: float | None = None
) -> np.ndarray:
    """How often each image comes while one with frequent classes alone comes once: (N,), at least 1.

    Source of the threshold: LVIS (Gupta et al., CVPR 2019), section 6: a class in a part f of all images has the factor
    max(1, sqrt(threshold / f)), an image the largest of its classes' factors.

    Args:
        presence: (N, K) bool, as `class_presence` gives it.
        threshold: of f, below which a class is rare; None for no such factors.
        rare: numbers of classes.
        share: of the drawn images that have one of `rare` at least; None for whatever comes. Where it is not reached,
            the factors of the images with such a class are multiplied by one number.

    Raises:
        ValueError: no image has a class of `rare`.
    """
    factors = np.ones(len(presence))
    if threshold is not None:
        frequency = presence.mean(0)
        of_class = np.ones(len(frequency))
        occurs = frequency > 0
        of_class[occurs] = np.maximum(1, np.sqrt(threshold / frequency[occurs]))
        factors = np.where(presence, of_class, 1).max(1)
    if share is not None:
        chosen = presence[:, list(rare)].any(1)
        if not chosen.any():
            raise ValueError("train.rare_classes: no training image has one of them; name others")
        ratio = share / (1 - share) * factors[~chosen].sum() / factors[chosen].sum()
        factors = np.where(chosen, factors * max(1.0, ratio), factors)
    return factors
