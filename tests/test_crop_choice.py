"""Crops chosen by their classes, against all crops of an image enumerated in NumPy."""

from itertools import product

import numpy as np
import pytest

from conftest import load
from danet.config import ConfigError
from danet.data.augment import Augmentation
from danet.data.scale_crop import RandomScaleCrop
from danet.interfaces import IGNORE

DRAWS = 3000
# 6x7: class 0 and ignored pixels, class 1 in a corner, class 2 one row.
LABEL = np.zeros((6, 7), np.uint8)
LABEL[:2, :3], LABEL[4, 1:], LABEL[2, 5:] = 1, 2, IGNORE
PLACES = list(product(range(4), range(5)))  # the first row and column of the crops of 3x3


def image_of(label: np.ndarray) -> np.ndarray:
    """An image whose pixels tell their row and column."""
    rows, columns = np.indices(label.shape)
    return np.stack([rows, columns, rows * 0], axis=2).astype(np.uint8)


def places(label: np.ndarray = LABEL, **options: object) -> np.ndarray:
    """How often crops of 3x3 at scale 1 begin where, as shares in PLACES' order."""
    crop = RandomScaleCrop(scale=[1, 1], height=3, width=3, flip=0, **options)
    counts = dict.fromkeys(PLACES, 0)
    for seed in range(DRAWS):
        image, part = crop(image_of(label), label, np.random.default_rng(seed))
        row, column = int(image[0, 0, 0]), int(image[0, 0, 1])
        assert np.array_equal(part, label[row : row + 3, column : column + 3])
        counts[row, column] += 1
    return np.array([counts[place] for place in PLACES]) / DRAWS


def assert_shares(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal within 4.5 standard deviations of the found shares."""
    assert expected.sum() == pytest.approx(1)
    assert (np.abs(found - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / DRAWS)).all()


def shares_around(numbers: list[int]) -> np.ndarray:
    """The probabilities of PLACES for crops around a pixel of a class that is drawn among `numbers`."""
    probability = dict.fromkeys(PLACES, 0.0)
    for number in numbers:
        pixels = np.argwhere(number == LABEL)
        for row, column in pixels:
            around = [(y, x) for y, x in PLACES if 0 <= row - y < 3 and 0 <= column - x < 3]
            for place in around:
                probability[place] += 1 / len(numbers) / len(pixels) / len(around)
    return np.array(list(probability.values()))


def largest(place: tuple[int, int]) -> float:
    """The largest share of a class among the labeled pixels of the crop at a place."""
    part = LABEL[place[0] : place[0] + 3, place[1] : place[1] + 3]
    return float(max(np.mean(part[part != IGNORE] == number) for number in range(3)))


def test_crops_around_a_drawn_class_have_the_probabilities_of_all_their_pixels() -> None:
    assert_shares(places(class_crop=1.0), shares_around([0, 1, 2]))
    assert_shares(places(class_crop=1.0, classes=[1, 7]), shares_around([1]))
    anywhere = np.full(len(PLACES), 1 / len(PLACES))
    assert_shares(places(class_crop=0.3, classes=[2]), 0.3 * shares_around([2]) + 0.7 * anywhere)
    assert_shares(places(class_crop=1.0, classes=[7]), anywhere)  # the image has none of class 7


def test_a_crop_with_too_large_a_share_is_drawn_again_up_to_ten_times() -> None:
    # Crops that pass are equally likely; of the others each is left with the chance that ten draws before it failed.
    for limit in (0.6, 0.99):
        passes = np.array([largest(place) < limit for place in PLACES])
        assert 0 < passes.sum() < len(PLACES)
        failing = 1 - passes.mean()
        expected = np.where(passes, (1 - failing**11) / passes.sum(), failing**11 / max(1, (~passes).sum()))
        # The eleventh draw is taken as it is, so it may pass, too.
        assert_shares(places(max_share=limit), expected)
    # Crops around a class are taken as they are.
    assert_shares(places(max_share=0.6, class_crop=1.0), shares_around([0, 1, 2]))
    one_class = np.zeros((6, 7), np.uint8)
    assert places(one_class, max_share=0.5).sum() == pytest.approx(1)


@pytest.mark.parametrize("scale", [0.5, 0.7, 1.0, 1.37, 2.0])
@pytest.mark.parametrize("size", [(61, 83), (20, 200)])
def test_a_crop_around_a_class_contains_it_at_every_scale(scale: float, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(int(scale * 100))
    label = np.zeros(size, np.uint8)
    label[:, rng.integers(size[1], size=2)] = 1  # poles of one pixel
    label[-2:, -2:] = 2  # in the last corner
    image = image_of(label)
    one_pole = RandomScaleCrop(scale=[scale, scale], height=24, width=32, class_crop=1.0, classes=[1])
    corner = RandomScaleCrop(scale=[scale, scale], height=24, width=32, class_crop=1.0, classes=[2])
    for seed in range(40):
        for number, crop in ((1, one_pole), (2, corner)):
            part = crop(image, label, np.random.default_rng(seed))[1]
            assert part.shape == (24, 32)
            assert (part == number).any() or not survives(label, number, scale)
    assert survives(label, 1, scale) or scale < 1  # so that there is something to find


def survives(label: np.ndarray, number: int, scale: float) -> bool:
    """Whether a resized label, by the centers of its pixels, still shows a class."""
    rows, columns = (((np.arange(int(size * scale)) + 0.5) / scale).astype(int) for size in label.shape)
    return bool((label[rows][:, columns] == number).any())


def test_classes_are_named_and_unknown_ones_are_errors_before_work() -> None:
    def section(classes: list[object]) -> dict[str, object]:
        options = {"scale": [1, 1], "height": 3, "width": 3, "flip": 0, "class_crop": 1, "classes": classes}
        return {"transforms": [{"RandomScaleCrop": options}]}

    names = ("road", "pole", "sign")
    by_name, by_number = Augmentation(section(["pole"]), names), Augmentation(section([1]), names)
    for seed in range(20):
        named, numbered = (crop(image_of(LABEL), LABEL, seed=(seed,)) for crop in (by_name, by_number))
        assert (named[1] == 1).any()
        assert np.array_equal(named[0], numbered[0])
    for wrong, hint in (("pol", "did you mean 'pole'"), (3, "known: pole, road, sign")):
        with pytest.raises(ValueError, match=rf"transforms\[0\].RandomScaleCrop.classes = {wrong!r}: no class.*{hint}"):
            Augmentation(section(["road", wrong]), names)


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("max_share: 0", "max_share = 0: must be greater than 0"),
        ("max_share: 1.2", "max_share = 1.2: must be less than or equal to 1"),
        ("class_crop: 2", "class_crop = 2: must be less than or equal to 1"),
        ("classes: [disc]", "classes = ['disc']: no crop is around a class; set class_crop"),
        ("class_crop: 1, classes: []", "classes = []: "),
        ("class_crop: 1, classes: [disk]", "classes = 'disk': no class of the data set; did you mean"),
    ],
)
def test_mistakes_are_named_before_a_run(option: str, line: str) -> None:
    transform = f"{{RandomScaleCrop: {{scale: [1,1], height: 8, width: 8, {option}}}}}"
    with pytest.raises(ConfigError) as error:
        load([f"augment.transforms=[{transform}]", "augment.crop_size=null"])
    assert f"augment.transforms[0].RandomScaleCrop.{line}" in str(error.value)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize("name", ["max_share", "class_crop", "rare"])
def test_the_augments_that_ship_crop_by_class(name: str) -> None:
    label = np.zeros((120, 160), np.uint8)
    label[:, 110:] = 3
    label[100:104, 30:34] = 4
    image = np.repeat(label[:, :, None], 3, axis=2)
    mixed, small = {}, {}  # crops without a class of more than 75 %, crops with the small class
    for augment in ("standard", name):
        crops = Augmentation(load([f"augment={augment}", "augment.crop_size=[48,64]"]).augment)
        labels = [crops(image, label, seed=(seed,))[1] for seed in range(300)]
        counts = np.array([np.bincount(part[part != IGNORE], minlength=5) for part in labels])
        mixed[augment] = np.mean(counts.max(1) < 0.75 * counts.sum(1))
        small[augment] = np.mean(counts[:, 4] > 0)
    if name != "class_crop":
        assert mixed[name] > 1.2 * mixed["standard"]
    if name != "max_share":
        assert small[name] > 1.2 * small["standard"]


def test_a_command_line_names_the_classes_that_crops_are_drawn_around() -> None:
    names = ["augment=class_crop", "augment.classes=[ring_red,disc]"]
    config = load(names)
    assert config.augment["transforms"][0]["RandomScaleCrop"]["classes"] == ["ring_red", "disc"]
    with pytest.raises(ConfigError, match="classes = 'ring_red': no class of the data set; known: .*Bicyclist"):
        load([*names, "dataset=camvid", "dataset.root=."])
