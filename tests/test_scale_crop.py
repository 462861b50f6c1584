"""RandomScaleCrop against what it stands for: resize the whole image, pad, crop, mirror."""

import fractions
from itertools import product

import cv2
import numpy as np
import pytest
from PIL import Image

from danet.data.augment import Augmentation, augment_problems
from danet.data.scale_crop import MAX_DENOMINATOR, RandomScaleCrop, _linear, _Span
from danet.interfaces import IGNORE

FILL = (124, 116, 104)


class Draws:
    """A generator that gives the numbers it is told: scale, row, column, mirror, each in [0, 1)."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def random(self, count):
        assert count == len(self.numbers)
        return self.numbers


def nearest_fraction(value):
    """The fraction p/q nearest to a value, with q up to 64, by trying all of them."""
    q = np.arange(1, MAX_DENOMINATOR + 1)
    p = np.maximum(1, np.round(value * q)).astype(int)
    best = np.argmin(np.abs(p / q - value))
    divisor = np.gcd(p[best], q[best])
    return int(p[best] // divisor), int(q[best] // divisor)


def whole(image, label, scale, height, width, draws):
    """The whole image and label resized, padded and cropped, in NumPy (the image also in float64)."""
    p, q = nearest_fraction(1 / (scale[0] + (scale[1] - scale[0]) * draws[0]))
    sizes = [size * q // p for size in label.shape]
    y, x = ((2 * np.arange(size) + 1) * p // (2 * q) for size in sizes)
    by_opencv = cv2.resize(image, None, fx=q / p, fy=q / p)[: sizes[0], : sizes[1]]
    parts = [by_opencv, linear(image, sizes, p / q), label[y][:, x]]
    places = [
        (int(draw * (abs(size - wanted) + 1)), size - wanted)
        for draw, size, wanted in zip(draws[1:3], sizes, (height, width), strict=True)
    ]
    pads = [(place, -free - place) if free < 0 else (0, 0) for place, free in places]
    top, left = (place if free > 0 else 0 for place, free in places)
    found = []
    for part, fill in zip(parts, (FILL, FILL, (IGNORE,)), strict=True):
        channels = zip(np.atleast_3d(part).transpose(2, 0, 1), fill, strict=True)
        padded = np.stack([np.pad(channel, pads, constant_values=value) for channel, value in channels])
        crop = padded[:, top : top + height, left : left + width]
        crop = crop[:, :, ::-1] if draws[3] < 0.5 else crop
        found.append(crop.transpose(1, 2, 0) if len(fill) == 3 else crop[0])
    return found


def linear(image, sizes, step):
    """Bilinear interpolation at the centers of the resized image's pixels, in float64."""
    (y0, y1, wy), (x0, x1, wx) = (taps(size, length, step) for size, length in zip(image.shape, sizes, strict=False))
    image = image.astype(np.float64)
    rows = image[y0] * (1 - wy)[:, None, None] + image[y1] * wy[:, None, None]
    return rows[:, x0] * (1 - wx)[:, None] + rows[:, x1] * wx[:, None]


def taps(size, length, step):
    place = np.clip((np.arange(length) + 0.5) * step - 0.5, 0, size - 1)
    low = np.floor(place).astype(int)
    return low, np.minimum(low + 1, size - 1), place - low


@pytest.mark.parametrize("scale", [(0.5, 2.0), (0.2, 5.0), (1.0, 1.0)])
def test_it_equals_resizing_the_whole_image_then_padding_and_cropping(scale):
    rng = np.random.default_rng(0)
    differing = []
    for _ in range(80):
        size, (height, width) = rng.integers(20, 200, 2), (int(side) for side in rng.integers(8, 200, 2))
        image, label = rng.integers(0, 256, (*size, 3)).astype(np.uint8), rng.integers(0, 255, size).astype(np.uint8)
        draws = rng.random(4)
        transform = RandomScaleCrop(scale=scale, height=height, width=width)
        found, found_label = transform(image, label, Draws(*draws))
        opencv, exact, expected_label = whole(image, label, scale, height, width, draws)
        np.testing.assert_array_equal(found_label, expected_label)
        assert found.dtype == found_label.dtype == np.uint8
        assert np.abs(found.astype(int) - opencv).max() <= 1
        assert np.abs(found - exact).max() <= 1
        differing.append((found != opencv).mean())
    assert np.mean(differing) < 0.001


@pytest.mark.parametrize(("size", "scale"), [((28, 28), 64 / 63), ((20, 31), 64 / 65), ((32, 40), 64 / 63)])
def test_a_small_image_is_resized_by_a_little_though_its_size_stays(size, scale):
    """OpenCV alone would copy it, and the label would move against it."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    step = fractions.Fraction(63, 64) if scale > 1 else fractions.Fraction(65, 64)
    lengths = [side * step.denominator // step.numerator for side in size]
    spans = [_Span(0, length, 0, 0) for length in lengths]
    found = _linear(image, *spans, step)
    assert np.abs(found - linear(image, lengths, float(step))).max() <= 1


@pytest.mark.parametrize(("size", "factor"), [((100, 150), 1.28), ((400, 256), 0.5)])
def test_a_short_side_makes_the_scale_relative_to_it(size, factor):
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (*size, 3)).astype(np.uint8), rng.integers(0, 255, size).astype(np.uint8)
    draws = Draws(0.3, 0.2, 0.7, 0.9)
    got = RandomScaleCrop(scale=[0.5, 2.0], short_side=128, height=70, width=50)(image, label, draws)
    expected = RandomScaleCrop(scale=[0.5 * factor, 2.0 * factor], height=70, width=50)(image, label, draws)
    for part, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(part, other)


def columns(width, height=60):
    """An image and a label that hold their column."""
    label = np.arange(width, dtype=np.uint8)[None].repeat(height, 0)
    return label[..., None].repeat(3, 2), label


def test_every_scale_is_equally_likely():
    image, label = columns(200)
    transform, generator = RandomScaleCrop(scale=[0.5, 2.0], height=8, width=100, flip=0), np.random.default_rng(0)
    scales = []
    for _ in range(1500):
        row = transform(image, label, generator)[1][4]
        inside = np.flatnonzero(row != IGNORE)
        scales.append((len(inside) - 1) / (int(row[inside[-1]]) - int(row[inside[0]])))
    expected = np.linspace(0.5, 2.0, len(scales))
    assert np.abs(np.sort(scales) - expected).max() < 0.07  # Kolmogorov's 1 % bound is 0.063


@pytest.mark.parametrize(("scale", "places"), [(1.0, 51), (0.5, 21)])
def test_every_place_of_crop_and_padding_is_equally_likely(scale, places):
    image, label = columns(*((130, 60) if scale == 1 else (120, 160)))
    transform = RandomScaleCrop(scale=[scale, scale], height=60 if scale == 1 else 80, width=80)
    generator, found, mirrored = np.random.default_rng(0), [], 0
    for _ in range(100 * places):
        row = transform(image, label, generator)[1][0].astype(int)
        inside = row[row != IGNORE]
        mirrored += inside[0] > inside[-1]
        row = row[::-1] if inside[0] > inside[-1] else row
        found.append(row[0] if scale == 1 else np.flatnonzero(row != IGNORE)[0])
    counts = np.bincount(found, minlength=places)
    assert len(counts) == places
    assert counts.min() > 60  # of 100, with a standard deviation of 10
    assert counts.max() < 140
    assert abs(mirrored / len(found) - 0.5) < 0.05


def test_crops_are_distributed_as_by_the_transforms_it_replaces():
    crop, fill = {"height": 40, "width": 56}, {"fill": list(FILL), "fill_mask": IGNORE}
    chain = [
        {"RandomScale": {"scale_limit": [-0.5, 1.0], "p": 1.0}},
        {"PadIfNeeded": {"min_height": 40, "min_width": 56, "position": "random", **fill}},
        {"RandomCrop": crop},
        {"HorizontalFlip": {"p": 0.5}},
    ]
    own = [{"RandomScaleCrop": {"scale": [0.5, 2.0], "flip": 0.5, **crop}}]
    label = np.add.outer(np.arange(45), 2 * np.arange(60)).astype(np.uint8)
    image = label[..., None].repeat(3, 2)
    means, errors = [], []
    for transforms in (own, chain):
        augment, facts = Augmentation({"transforms": transforms}), []
        for seed in range(300):
            found = augment(image, label, seed=(seed,))[1]
            inside = found[found != IGNORE]
            facts.append([inside.size, inside.mean(), inside.std(), found[:, :28].mean(), found[:20].mean()])
        means.append(np.mean(facts, 0))
        errors.append(np.std(facts, 0) / np.sqrt(len(facts)))
    assert (np.abs(means[0] - means[1]) < 3.5 * np.hypot(*errors)).all()


def test_its_arguments_are_checked_with_those_of_all_transforms():
    problems = augment_problems(
        {
            "transforms": [
                {"RandomScaleCrop": {"scale": [2.0, 0.5], "height": 8, "width": 8}},
                {"RandomScaleCrop": {"scael": [0.5, 2], "height": 0, "width": 8, "flip": 2, "fill": [0, 0, 300]}},
                {"RandomScaleCrp": {}},
                {"RandomScaleCrop": {"scale": [1e-9, 1.0], "height": 8, "width": 8}},
            ]
        }
    )
    where = "augment.transforms"
    expected = [
        (f"{where}[0].RandomScaleCrop.scale = [2.0, 0.5]", "smallest"),
        (f"{where}[1].RandomScaleCrop.scael: unknown", "did you mean 'scale'?"),
        (f"{where}[1].RandomScaleCrop.scale: is required", ""),
        (f"{where}[1].RandomScaleCrop.height = 0", "greater than 0"),
        (f"{where}[1].RandomScaleCrop.flip = 2", "less than or equal to 1"),
        (f"{where}[1].RandomScaleCrop.fill = [0, 0, 300]", "255"),
        (f"{where}[2].RandomScaleCrp: unknown transform", "did you mean 'RandomScaleCrop'?"),
        (f"{where}[3].RandomScaleCrop.scale = [1e-09, 1.0]", "greater than or equal to 0.015625"),
    ]
    assert len(problems) == len(expected)
    for problem, (beginning, words) in zip(problems, expected, strict=True):
        assert problem.startswith(beginning)
        assert words in problem


def test_it_works_at_any_place_of_the_list():
    flip, scale_crop = {"HorizontalFlip": {"p": 1.0}}, {"scale": [1.0, 1.0], "height": 60, "width": 80, "flip": 0.0}
    image, label = columns(100)
    for before, after in product((0, 1), repeat=2):
        transforms = [flip] * before + [{"RandomScaleCrop": scale_crop}] + [flip] * after
        assert augment_problems({"transforms": transforms}) == []
        row = Augmentation({"transforms": transforms})(image, label, seed=(1,))[1][0].astype(int)
        assert (np.diff(row) == (-1) ** (before + after)).all()


# ---- where pixels come from ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0, 1.3, 1.5, 2.0, 3.2])
def test_labels_are_resized_as_by_pillow_and_opencvs_exact_nearest(scale):
    """Both take the pixel that a resized pixel's center lies in; where it lies between two, they take either."""
    p, q = nearest_fraction(1 / scale)
    size = 3 * p, 2 * p
    height, width = (side * q // p for side in size)
    label = np.random.default_rng(0).integers(0, 250, size).astype(np.uint8)
    transform = RandomScaleCrop(scale=[scale, scale], height=height, width=width, flip=0)
    found = transform(label[..., None].repeat(3, 2), label, Draws(0, 0, 0, 0.9))[1]
    between = [((2 * np.arange(side) + 1) * p) % (2 * q) == 0 for side in (height, width)]
    clear = ~(between[0][:, None] | between[1])
    assert clear.any() or scale in (0.25, 0.5)  # there every center lies between two
    by_pillow = np.asarray(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))
    by_opencv = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    for expected in (by_pillow, by_opencv):
        np.testing.assert_array_equal(found[clear], expected[clear])


@pytest.mark.parametrize("scale", [0.6, 0.75, 0.9, 1.0, 1.3, 1.7])
def test_image_and_label_lie_on_each_other(scale):
    """An image whose pixels hold 4 times their column, and a label that holds the column: the nearest one."""
    columns = np.arange(63, dtype=np.uint8)[None].repeat(40, 0)
    transform = RandomScaleCrop(scale=[scale, scale], height=20, width=30, flip=0)
    image, label = transform((4 * columns)[..., None].repeat(3, 2), columns, Draws(0, 0.5, 0.5, 0.9))
    shift = image[..., 0] / 4 - label
    assert np.abs(shift).max() <= 0.5 + 0.125  # half a pixel, and half a gray value; by the corners of pixels up to 1


@pytest.mark.parametrize("scale", [1 / 64, 0.1, 0.3, 0.5, 0.9, 1.0, 2.5, 64.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (2, 3), (3, 64)])
@pytest.mark.parametrize("short_side", [None, 100])
def test_images_of_few_pixels_keep_one_at_least(size, scale, short_side):
    transform = RandomScaleCrop(scale=[scale, scale], short_side=short_side, height=13, width=9)
    for seed in range(4):
        image, label = np.full((*size, 3), 77, np.uint8), np.full(size, 5, np.uint8)
        image, label = transform(image, label, np.random.default_rng(seed))
        assert image.shape == (13, 9, 3)
        assert label.shape == (13, 9)
        inside = label == 5
        assert inside.any()
        assert (label[~inside] == IGNORE).all()
        assert (image[inside] == 77).all()
        assert (image[~inside] == FILL).all()
