"""The built-in scenes: always the same, and labeled so that far context decides."""

import hashlib

import numpy as np
import pytest

from danet.datasets.shapes import Shapes
from danet.interfaces import IGNORE

REACH = 0.5  # distance between the lamp and the far shapes that depend on it, in image sides
NAMES = Shapes.class_names
LAMPS = {color: NAMES.index(f"lamp_{color}") for color in ("red", "blue")}
BY_COLOUR = {
    color: {i for i, name in enumerate(NAMES) if name in (f"ring_{color}", f"cross_{color}")}
    for color in ("red", "blue")
}


def test_scenes_are_the_same_on_every_machine_and_differ_between_splits() -> None:
    scene = Shapes("train")[3]
    assert hashlib.sha256(scene.label.tobytes()).hexdigest()[:16] == "36cfdf5d855808ea"
    assert np.array_equal(scene.image, Shapes("train")[3].image)
    assert not np.array_equal(scene.image, Shapes("val")[3].image)
    assert not np.array_equal(scene.image, Shapes("train", scene_seed=1)[3].image)
    assert Shapes("train").fingerprint() != Shapes("val").fingerprint() != Shapes("val", size=64).fingerprint()
    with pytest.raises(IndexError):
        Shapes("val", val_images=4)[4]


@pytest.mark.parametrize("size", [64, 128, 150])
def test_the_lamp_decides_the_class_of_shapes_most_of_which_are_out_of_reach(size: int) -> None:
    dataset = Shapes("val", size=size, val_images=40)
    found = {"red": 0, "blue": 0}
    near, far = 0, 0
    for scene in (dataset[i] for i in range(len(dataset))):
        lit = np.isin(scene.label, list(LAMPS.values()))
        lamp = np.argwhere(lit)
        red, _, blue = scene.image[lit].mean(axis=0)
        color, other = ("red", "blue") if red > blue else ("blue", "red")
        assert (scene.label[lit] == LAMPS[color]).all()
        found[color] += 1
        assert not np.isin(scene.label, list(BY_COLOUR[other])).any()
        dependent = np.argwhere(np.isin(scene.label, list(BY_COLOUR[color])))
        if len(dependent):
            # The distance along the axis in which they are farther apart: what a square receptive field must span.
            apart = abs(dependent[:, None] - lamp[None]).max(axis=2).min(axis=1)
            assert not ((apart > 0.4 * size) & (apart <= REACH * size)).any()  # none in between
            near += int((apart <= 0.4 * size).sum())
            far += int((apart > REACH * size).sum())
    assert min(found.values()) > 10
    assert 0.6 < far / (near + far) < 0.9


def test_no_local_statistic_tells_the_lamp_color() -> None:
    """Rings and crosses of both kinds have the same colors on average: nothing near a shape gives it away."""
    dataset = Shapes("train", train_images=300)
    colors: dict[str, list[np.ndarray]] = {"red": [], "blue": []}
    for scene in (dataset[i] for i in range(len(dataset))):
        for name, classes in BY_COLOUR.items():
            region = np.isin(scene.label, list(classes))
            if region.any():
                red, green, blue = scene.image[region].mean(axis=0)
                colors[name].append(np.array([red, green, blue, red - blue]))
    means = {name: np.mean(values, axis=0) for name, values in colors.items()}
    errors = np.sqrt(sum(np.var(values, axis=0) / len(values) for values in colors.values()))
    assert (abs(means["red"] - means["blue"]) < 3.5 * errors).all()


def test_every_class_occurs_and_outlines_are_ignored() -> None:
    dataset = Shapes("train", train_images=60)
    counts = sum(np.bincount(dataset[i].label.ravel(), minlength=256) for i in range(len(dataset)))
    assert (counts[: len(NAMES)] > 0).all()
    assert 0.01 < counts[IGNORE] / counts.sum() < 0.06
    assert counts[len(NAMES) : IGNORE].sum() == 0
    assert len(Shapes.palette) == len(NAMES)
