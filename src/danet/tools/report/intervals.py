"""Uncertainty of the difference between two variants, over seeds and over images.

Over seeds: would other seeds give the same difference (`paired_interval`, `sign_flip_p`, `holm`)? Over images: would
other images of the same kind do so, given the same trained models (`bootstrap_miou`)?

Shapes: S seeds, N images, K classes, C models, B draws.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike

LEVEL = 0.95  # confidence level of all intervals
FEWEST_SEEDS = 3  # for an interval over seeds
DRAWS = 10_000  # bootstrap samples
FLIPS = 2**20  # sign patterns: exhaustive up to 20 differences, a random sample of this size beyond


class Interval(NamedTuple):
    """A mean and the limits of its interval."""

    mean: float
    low: float
    high: float


def paired_interval(differences: ArrayLike) -> Interval:
    """Student's t interval of the mean of paired differences, which may be taken for normally distributed.

    Args:
        differences: (..., S); the results have the shape of the leading axes.

    Returns:
        The mean and the interval; its limits are NaN for S < 3: that of two spans 13 times their distance.
    """
    values = np.asarray(differences, dtype=np.float64)
    count, mean = values.shape[-1], values.mean(axis=-1)
    if count < FEWEST_SEEDS:
        return Interval(mean, mean * np.nan, mean * np.nan)
    half = scipy.stats.t.ppf((1 + LEVEL) / 2, count - 1) * scipy.stats.sem(values, axis=-1)
    return Interval(mean, mean - half, mean + half)


def sign_flip_p(differences: ArrayLike) -> float:
    """Two-sided p-value of the mean of paired differences under random sign flips; exact up to S = 20.

    Without an effect, either sign of a difference is equally likely. p is the share of the 2^S sign patterns whose mean
    is at least as far from zero as the observed mean; it is never below 2 / 2^S.

    Args:
        differences: (S,) fractions.

    Returns:
        p; NaN for S = 0.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return 1.0 if len(values) else float("nan")

    def distance(signed: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.abs(signed.mean(axis=axis)).round(12)  # treat means that are equal in exact arithmetic as equal

    test = scipy.stats.permutation_test(
        (values,),
        distance,
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=FLIPS,
        batch=2**14,  # bounds the memory
        rng=0,
    )
    return float(test.pvalue)


def smallest_p(count: int) -> float:
    """The smallest p that `sign_flip_p` can return for a number of differences, however large the effect."""
    return min(1.0, 2 / 2**count)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p-values that can all be compared with one level.

    NaN stays NaN and does not count as a test.
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
    """Intersection and union per class and image, from which the IoU of any set of images follows.

    Args:
        matrices: (N, K, K) confusion matrices; rows are the truth.

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
    """The mIoU of every model on resampled images, N drawn from N with replacement.

    Each draw uses the same images for all models, so the difference of two rows is paired by image. The trained models
    are fixed.

    Args:
        counts: (C, N, 2, K), see `image_counts`; the images in one order for all models.
        draws: number of samples B.
        seed: seed of the draws.

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
        times = np.bincount(cells.ravel(), minlength=count * images).reshape(count, images)  # that each image was drawn
        sums = (times.astype(np.float64) @ columns).reshape(count, models, 2, classes)
        scores[:, start : start + count] = miou(sums).T
    return scores


def percentile_interval(scores: ArrayLike, mean: float) -> Interval:
    """The percentile interval of bootstrap scores (B,), with the observed mean."""
    low, high = np.percentile(np.asarray(scores), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Interval(mean, float(low), float(high))
