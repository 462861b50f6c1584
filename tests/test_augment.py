"""Augmentation: keyed randomness, image and label together, and problems found before anything runs."""

import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from danet.data.augment import Augmentation, augment_problems
from danet.interfaces import IGNORE

CONF = Path(__file__).parents[1] / "conf" / "augment"
NAMES = sorted(file.stem for file in CONF.glob("*.yaml"))
HEIGHT, WIDTH = 90, 120


def section(name, crop_size=None):
    config = OmegaConf.create({"augment": OmegaConf.load(CONF / f"{name}.yaml")})
    if crop_size:
        config.augment.crop_size = crop_size
    return OmegaConf.to_container(config, resolve=True)["augment"]


def transforms(*entries):
    return {"name": "test", "crop_size": None, "transforms": list(entries)}


def coordinates():
    """An image and a label that both say where a pixel came from: its row in steps of 10."""
    rows = np.arange(HEIGHT, dtype=np.uint8)[:, None].repeat(WIDTH, 1)
    columns = np.arange(WIDTH, dtype=np.uint8)[None].repeat(HEIGHT, 0)
    return np.stack([rows, columns, np.full_like(rows, 200)], 2), rows // 10


def run(augmentation, seeds):
    return [augmentation(*coordinates(), seed=seed) for seed in seeds]


def equal(first, second):
    return all(np.array_equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_option_builds_and_keeps_types(name):
    options = section(name)
    assert options["name"] == name
    assert augment_problems(options) == []
    image, label = Augmentation(options)(*coordinates(), seed=(0, 0, 0))
    assert image.dtype == label.dtype == np.uint8
    assert image.shape == (*label.shape, 3)
    expected = {"none": (HEIGHT, WIDTH), "article": (224, 224)}
    assert label.shape == expected.get(name, tuple(options["crop_size"] or ()))
    assert image.flags.c_contiguous
    assert label.flags.c_contiguous


def test_crop_size_can_be_overridden():
    options = section("strong", [40, 56])
    assert augment_problems(options) == []
    assert Augmentation(options)(*coordinates(), seed=(1,))[1].shape == (40, 56)


def test_randomness_is_a_function_of_the_seed():
    augmentation = Augmentation(section("strong", [40, 56]))
    seeds = [(17, epoch, index) for epoch in range(2) for index in range(6)]
    expected = run(augmentation, seeds)
    assert equal(run(augmentation, seeds[::-1])[::-1], expected)
    assert equal(run(pickle.loads(pickle.dumps(augmentation)), seeds), expected)
    assert len({image.tobytes() for image, _ in expected}) == len(seeds)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_agree(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"{method} is not available here")
    augmentation = Augmentation(section("strong", [40, 56]))
    seeds = [(17, 0, index) for index in range(4)]
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        assert equal(pool.submit(run, augmentation, seeds).result(), run(augmentation, seeds))


def test_flips_are_independent_of_crops():
    options = transforms({"RandomCrop": {"height": HEIGHT, "width": 20}}, {"HorizontalFlip": {"p": 0.5}})
    augmentation = Augmentation(options)
    images = [augmentation(*coordinates(), seed=(0, index))[0] for index in range(400)]
    flipped = np.array([int(image[0, 0, 1]) > int(image[0, -1, 1]) for image in images])
    left = np.array([image[0, :, 1].min() for image in images])
    assert 0.4 < flipped.mean() < 0.6
    assert len(np.unique(left)) > 60
    assert abs(np.corrcoef(flipped, left)[0, 1]) < 0.15  # three standard deviations of independent draws


def test_image_and_label_move_together():
    augmentation = Augmentation(section("standard", [64, 80]))
    scales, padded = [], 0
    for index in range(60):
        image, label = augmentation(*coordinates(), seed=(3, index))
        inside = label != IGNORE
        padded += not inside.all()
        assert set(np.unique(label)) <= {*range(HEIGHT // 10), IGNORE}
        assert (image[~inside] == (124, 116, 104)).all()
        assert (image[inside][:, 2] == 200).all()
        # the row that the image remembers, within the blur of interpolation, is the label's
        assert np.abs(image[inside][:, 0].astype(int) - (10 * label[inside].astype(int) + 4.5)).max() <= 6.5
        columns = np.flatnonzero(inside.any(0))
        span = abs(int(image[inside][:, 1].max()) - int(image[inside][:, 1].min()))
        scales.append(len(columns) / (span + 1))
    assert padded > 5
    assert 0.45 < min(scales) < 0.65
    assert 1.8 < max(scales) < 2.2


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"HorizontalFlp": {}}, "HorizontalFlp: unknown transform; did you mean 'HorizontalFlip'?"),
        ({"HorizontalFlip": {"prob": 1}}, "HorizontalFlip.prob: unknown argument; known: p"),
        ({"Resize": {"height": 9, "widht": 9}}, "Resize.widht: unknown argument; did you mean 'width'?"),
        ({"RandomCrop": {"height": 9}}, "RandomCrop.width: missing; give it a value"),
        ({"HorizontalFlip": {"p": 2}}, "HorizontalFlip.p=2: Input should be less than or equal to 1"),
        ({"Rotate": None}, "Rotate.fill_mask=0 is a class; set it to 255 (ignored)"),
        (
            {"RandomCrop": {"height": 9, "width": 9, "pad_if_needed": True}},
            "RandomCrop.fill_mask=0.0 is a class; set it to 255 (ignored)",
        ),
        (
            {"Resize": {"height": 9, "width": 9, "mask_interpolation": 1}},
            "Resize.mask_interpolation=1 mixes classes; set it to 0 (nearest)",
        ),
        ({"FDA": {}}, "FDA: needs fda_metadata; only images and labels are given"),
        ({"Normalize": {}}, "Normalize: images stay uint8 and are normalised on the device; remove it"),
        (
            {"HorizontalFlip": 0.5},
            "HorizontalFlip=0.5 must be the transform's arguments, as `HorizontalFlip: {p: 0.5}`",
        ),
    ],
)
def test_problems(entry, problem):
    options = transforms({"VerticalFlip": {}}, entry)
    assert f"augment.transforms[1].{problem}" in augment_problems(options)
    with pytest.raises(ValueError, match="augment.transforms"):
        Augmentation(options)


def test_every_problem_is_listed():
    problems = augment_problems(
        transforms("VerticalFlip", {"Blurr": {}}, {"RandomCrop": {"height": 0, "width": -1}}) | {"seed": 1}
    )
    assert [problem.split("=")[0].split(":")[0] for problem in problems] == [
        "augment.seed",
        "augment.transforms[0]",
        "augment.transforms[1].Blurr",
        "augment.transforms[2].RandomCrop.height",
        "augment.transforms[2].RandomCrop.width",
    ]


def test_transforms_are_a_list():
    assert "must be a list" in augment_problems({"name": "test", "transforms": {"HorizontalFlip": {}}})[0]


def test_a_crop_size_without_effect_is_a_problem():
    assert "has no effect" in augment_problems(section("article", [64, 64]))[0]
    assert "must be [height, width]" in augment_problems(transforms() | {"crop_size": 64})[0]


def test_importing_the_module_is_light():
    code = "import danet.data.augment, sys; assert not {'albumentations', 'cv2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
