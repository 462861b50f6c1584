"""What a difference between two variants is worth: over seeds, and over images.

Two questions, two answers. Over seeds: would other seeds give the same difference (`paired_interval`, `sign_flip_p`,
`holm`)? Over images: would other images of the same kind, with the trained models as they are (`bootstrap_miou`)?

Shapes: S seeds, N images, K classes, C models, B draws.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

LEVEL = 0.95  # of all intervals
DRAWS = 10_000  # of the bootstrap
MAX_FLIPS = 40  # differences whose sign patterns are still counted exactly


class Interval(NamedTuple):
    """A mean with the ends of its interval."""

    mean: float
    low: float
    high: float


def paired_interval(differences: ArrayLike, level: float = LEVEL) -> Interval:
    """Student's t interval of the mean of paired differences.

    Args:
        differences: (..., S); with leading axes the three results have their shape.
        level: share of such intervals that hold the true mean, where the differences are normal.

    Returns:
        The mean and the interval, whose ends are NaN for S < 2.
    """
    values = np.asarray(differences, dtype=np.float64)
    count, mean = values.shape[-1], values.mean(axis=-1)
    if count < 2:
        return Interval(mean, mean * np.nan, mean * np.nan)
    error = values.std(axis=-1, ddof=1) / np.sqrt(count)
    half = special.stdtrit(count - 1, (1 + level) / 2) * error  # the quantile of Student's t
    return Interval(mean, mean - half, mean + half)


def sign_flip_p(differences: ArrayLike) -> float:
    """Exact two-sided p of the mean of paired differences under random signs.

    Without an effect each difference is as likely to have the other sign. p is the share of the 2^S sign patterns whose
    mean is at least as far from zero as the observed one; it is never below 2 / 2^S.

    Args:
        differences: (S,)

    Returns:
        p; NaN for S = 0 and for S > 40.
    """
    values = np.asarray(differences, dtype=np.float64)
    count = len(values)
    if not 1 <= count <= MAX_FLIPS:
        return float("nan")
    # Sums of equal size in exact arithmetic must count as equal.
    bound = abs(values.sum()) - 1e-9 * np.abs(values).sum()
    if bound <= 0:
        return 1.0
    # Each pattern is one of the first half with one of the second: 2 * 2^20 sums tell about 2^40 patterns.
    first, second = _signed_sums(values[: count // 2]), np.sort(_signed_sums(values[count // 2 :]))
    above = len(second) - np.searchsorted(second, bound - first, side="left")
    below = np.searchsorted(second, -bound - first, side="right")
    return float((above + below).sum() / 2.0**count)


def _signed_sums(values: np.ndarray) -> np.ndarray:
    """The sums of `values` under all sign patterns."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def smallest_p(count: int) -> float:
    """The smallest p that `sign_flip_p` can give for so many differences, whatever the effect."""
    return min(1.0, 2 / 2**count)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p values that may all be held against one level.

    NaN stays NaN and counts as no test.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(p), np.nan)
    order = [index for index in np.argsort(p, kind="stable") if not np.isnan(p[index])]
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted.tolist()


def image_counts(matrices: np.ndarray) -> np.ndarray:
    """What the IoU needs of each image: right pixels and union of each class.

    Args:
        matrices: (N, K, K) confusion matrices, rows truth.

    Returns:
        (N, 2, K) int64
    """
    right = np.diagonal(matrices, axis1=1, axis2=2)
    union = matrices.sum(axis=1) + matrices.sum(axis=2) - right
    return np.stack([right, union], axis=1).astype(np.int64)


def miou(counts: np.ndarray) -> np.ndarray:
    """Mean IoU of summed counts (..., 2, K) -> (...); classes with an empty union are left out of the mean."""
    right, union = counts[..., 0, :], counts[..., 1, :]
    present = union > 0
    iou = np.divide(right, union, out=np.zeros(right.shape), where=present)
    with np.errstate(invalid="ignore"):  # no class at all: NaN
        return iou.sum(axis=-1) / present.sum(axis=-1)


def bootstrap_miou(counts: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """The mIoU of every model on images drawn anew, N of N with replacement.

    A draw takes the same images for all models. So the difference of two rows is paired by image, and the mean over
    rows is over trained models that stay as they are.

    Args:
        counts: (C, N, 2, K), see `image_counts`; the images in one order for all models.
        draws: B.
        seed: of the draws.

    Returns:
        (C, B)
    """
    models, images, _, classes = counts.shape
    generator = np.random.default_rng(seed)
    columns = counts.transpose(1, 0, 2, 3).reshape(images, -1).astype(np.float64)  # sums below 2^53 are exact
    scores = np.empty((models, draws))
    chunk = 500  # bounds the memory
    for start in range(0, draws, chunk):
        count = min(chunk, draws - start)
        drawn = generator.integers(images, size=(count, images))
        cells = drawn + images * np.arange(count)[:, None]
        times = np.bincount(cells.ravel(), minlength=count * images).reshape(count, images)  # each image was drawn
        sums = (times.astype(np.float64) @ columns).reshape(count, models, 2, classes)
        scores[:, start : start + count] = miou(sums).T
    return scores


def percentile_interval(scores: ArrayLike, mean: float, level: float = LEVEL) -> Interval:
    """The percentile interval of bootstrap scores (B,) around an observed mean."""
    low, high = np.percentile(np.asarray(scores), [50 * (1 - level), 50 * (1 + level)])
    return Interval(mean, float(low), float(high))
