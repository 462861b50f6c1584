"""The statistics of reports, on simulated sweeps whose truth is known, by hand, and against SciPy."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from danet.tools.report import intervals


def simulated_sweeps(effects, seeds, repetitions, rng):
    """mIoU (repetitions, 1 + variants, seeds): a seed moves all variants alike, each run has a noise of its own."""
    shared = 0.02 * rng.standard_normal((repetitions, 1, seeds))
    noise = 0.01 * rng.standard_normal((repetitions, 1 + len(effects), seeds))
    return 0.7 + np.array([0.0, *effects])[:, None] + shared + noise


@pytest.mark.parametrize("seeds", [3, 6, 10])
def test_interval_over_seeds_covers_the_true_effect_95_times_in_100(seeds):
    scores = simulated_sweeps([0.03], seeds, 20_000, np.random.default_rng(seeds))
    interval = intervals.paired_interval(scores[:, 1] - scores[:, 0])
    covered = ((interval.low <= 0.03) & (interval.high >= 0.03)).mean()
    assert covered == pytest.approx(0.95, abs=0.01)


def test_interval_is_that_of_the_paired_t_test():
    a, b = np.random.default_rng(0).normal(0.7, 0.02, (2, 5))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    interval = intervals.paired_interval(a - b)
    assert interval == pytest.approx(((a - b).mean(), expected.low, expected.high))
    assert math.isnan(intervals.paired_interval([0.1]).low)
    assert math.isnan(intervals.paired_interval([0.1, 0.2]).low)  # it would reach from -0.49 to 0.79
    assert intervals.paired_interval([0.25, 0.25, 0.25]) == (0.25, 0.25, 0.25)


def sign_flip_p_by_hand(differences):
    """The share of all sign patterns with a sum at least as far from zero, in whole numbers."""
    sums = np.zeros(1, np.int64)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    return (abs(sums) >= abs(sum(differences))).mean()


@pytest.mark.parametrize("count", [2, 3, 6, 7, 10, 17])
def test_sign_flip_p_is_that_of_all_sign_patterns_in_whole_numbers(count):
    """Fractions whose sums tie in exact arithmetic, though not in floating point."""
    thousandths = np.random.default_rng(count).integers(-9, 20, count)
    assert intervals.sign_flip_p(thousandths / 1000) == pytest.approx(sign_flip_p_by_hand(thousandths), abs=1e-12)


def test_sign_flip_p_of_very_many_differences_is_close_and_repeatable():
    thousandths = np.random.default_rng(0).integers(-9, 14, 22)
    p = intervals.sign_flip_p(thousandths / 1000)
    assert p == pytest.approx(sign_flip_p_by_hand(thousandths), abs=0.002)
    assert p == intervals.sign_flip_p(thousandths / 1000)


def test_smallest_p_is_reached_when_all_seeds_agree():
    for count in range(1, 12):
        assert intervals.sign_flip_p(np.linspace(1, 2, count)) == intervals.smallest_p(count)
    assert [intervals.smallest_p(count) > 0.05 for count in (5, 6)] == [True, False]


def test_sign_flip_p_without_any_difference_is_one():
    assert intervals.sign_flip_p([0.0, 0.0, 0.0]) == 1
    assert intervals.sign_flip_p([0.1, 0.2, -0.3]) == 1
    assert intervals.sign_flip_p([0.1]) == 1
    assert math.isnan(intervals.sign_flip_p([]))


@pytest.mark.parametrize("seeds", [6, 7])
def test_false_positives_are_at_most_5_in_100(seeds):
    scores = simulated_sweeps([0.0], seeds, 4000, np.random.default_rng(seeds))
    p = np.array([intervals.sign_flip_p(d) for d in scores[:, 1] - scores[:, 0]])
    # An exact test: p <= x in a share x of null sweeps for each x that p can take. 0.008: 2.5 standard errors.
    attainable = 2 * math.floor(0.05 * 2**seeds / 2) / 2**seeds
    assert (p <= 0.05).mean() == pytest.approx(attainable, abs=0.008)
    assert (p <= 0.05).mean() <= 0.05


@pytest.mark.slow
def test_false_positives_in_any_of_three_variants_are_at_most_5_in_100_after_holm():
    scores = simulated_sweeps([0.0, 0.0, 0.0], 8, 2000, np.random.default_rng(1))
    raw = [[intervals.sign_flip_p(d) for d in sweep[1:] - sweep[0]] for sweep in scores]
    assert np.mean([min(p) <= 0.05 for p in raw]) > 0.07  # without the correction there are more
    assert np.mean([min(intervals.holm(p)) <= 0.05 for p in raw]) <= 0.05


def test_an_effect_is_found_next_to_variants_without():
    scores = simulated_sweeps([0.05, 0.0, 0.0], 8, 500, np.random.default_rng(2))
    corrected = np.array([intervals.holm([intervals.sign_flip_p(d) for d in s[1:] - s[0]]) for s in scores])
    assert (corrected[:, 0] <= 0.05).mean() > 0.95
    assert (corrected[:, 1:].min(axis=1) <= 0.05).mean() <= 0.05


def test_holm_against_numbers_worked_by_hand():
    # Sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, then 0.04 * 1, which may not be below the one before.
    assert intervals.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([0.6, 0.7]) == [1, 1]
    first, missing, last = intervals.holm([0.02, math.nan, 0.03])
    assert (first, last) == pytest.approx((0.04, 0.04))
    assert math.isnan(missing)


# ---- over images -----------------------------------------------------------------------------------------------------


def simulated_matrices(rng, images, rate, repetitions=1):
    """Confusion matrices (repetitions, N, 2, 2) of images with few to many pixels, about `rate` of them right."""
    pixels = rng.integers(50, 500, (repetitions, images, 2))
    right = rng.binomial(pixels, np.clip(rate + 0.1 * rng.standard_normal(pixels.shape), 0, 1))
    missed = pixels - right
    rows = [[right[..., 0], missed[..., 0]], [missed[..., 1], right[..., 1]]]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def miou_by_loop(matrix):
    ious = []
    for c in range(len(matrix)):
        union = matrix[c, :].sum() + matrix[:, c].sum() - matrix[c, c]
        if union:
            ious.append(matrix[c, c] / union)
    return sum(ious) / len(ious)


def test_miou_of_summed_counts_is_that_of_the_summed_matrices():
    matrices = np.random.default_rng(0).integers(0, 9, (5, 4, 4))
    matrices[:, 3, :] = matrices[:, :, 3] = 0  # a class that does not occur
    counts = intervals.image_counts(matrices)
    assert intervals.miou(counts.sum(axis=0)) == pytest.approx(miou_by_loop(matrices.sum(axis=0)))
    assert math.isnan(intervals.miou(np.zeros((2, 4))))


def test_bootstrap_draws_images_with_replacement_and_the_same_for_all_models():
    # Of three images there are 27 draws: the scores must be those, about equally often.
    matrices = simulated_matrices(np.random.default_rng(0), 3, 0.7)[0]
    counts = intervals.image_counts(matrices)
    scores = intervals.bootstrap_miou(np.stack([counts, counts, counts[::-1]]), draws=2700)
    np.testing.assert_array_equal(scores[0], scores[1])
    assert (scores[0] != scores[2]).any()
    draws = [round(miou_by_loop(matrices[list(d)].sum(axis=0)), 12) for d in itertools.product(range(3), repeat=3)]
    seen = np.round(scores[0], 12)
    assert set(seen) == set(draws)
    for score in set(draws):
        assert (seen == score).mean() == pytest.approx(draws.count(score) / 27, abs=0.03)


def test_bootstrap_interval_is_that_of_scipy():
    rng = np.random.default_rng(3)
    ours, theirs = (intervals.image_counts(simulated_matrices(rng, 60, rate)[0]) for rate in (0.8, 0.7))
    scores = intervals.bootstrap_miou(np.stack([ours, theirs]), draws=4000)
    interval = intervals.percentile_interval(scores[0] - scores[1], 0.0)

    def difference(drawn, axis=-1):
        drawn = drawn.astype(int)
        return intervals.miou(ours[drawn].sum(axis=-3)) - intervals.miou(theirs[drawn].sum(axis=-3))

    expected = stats.bootstrap(
        (np.arange(60),), difference, n_resamples=4000, method="percentile", vectorized=True, rng=0
    ).confidence_interval
    width = expected.high - expected.low
    assert interval[1:] == pytest.approx((expected.low, expected.high), abs=0.06 * width)


def test_interval_over_images_covers_the_true_difference_95_times_in_100():
    rng = np.random.default_rng(4)
    repetitions, images = 600, 80
    truth = [miou_by_loop(simulated_matrices(rng, 400_000, rate)[0].sum(axis=0)) for rate in (0.8, 0.78)]
    pair = [simulated_matrices(rng, images, rate, repetitions) for rate in (0.8, 0.78)]
    covered = 0
    for ours, theirs in zip(*pair, strict=True):
        counts = np.stack([intervals.image_counts(ours), intervals.image_counts(theirs)])
        scores = intervals.bootstrap_miou(counts, draws=500, seed=covered)
        interval = intervals.percentile_interval(scores[0] - scores[1], 0.0)
        covered += interval.low <= truth[0] - truth[1] <= interval.high
    assert covered / repetitions == pytest.approx(0.95, abs=0.02)
