"""Augmentation: keyed randomness, image and label together, and problems found before anything runs."""

import inspect
import multiprocessing
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from danet.data import augment as augment_module
from danet.data.augment import Augmentation, augment_problems, output_sizes
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
        ({"HorizontalFlip": {"p": 2}}, "HorizontalFlip.p=2: must be less than or equal to 1"),
        ({"Rotate": None}, "Rotate.fill_mask=0 is a class; set it to 255 (ignored)"),
        (
            {"RandomCrop": {"height": 9, "width": 9, "pad_if_needed": True}},
            "RandomCrop.fill_mask=0.0 is a class; set it to 255 (ignored)",
        ),
        (
            {"Resize": {"height": 9, "width": 9, "mask_interpolation": 1}},
            "Resize.mask_interpolation=1 mixes classes; set it to 0 (nearest)",
        ),
        (
            {"PixelDropout": {"mask_drop_value": 0, "p": 0.01}},
            "PixelDropout.mask_drop_value=0 is a class; set it to 255 (ignored)",
        ),
        ({"GridDropout": {"fill_mask": 3}}, "GridDropout.fill_mask=3 is a class; set it to 255 (ignored)"),
        (
            {"Morphological": {"operation": "dilation"}},
            "Morphological: the numbers of classes decide what it makes of a label (as if they were gray); remove it",
        ),
        (
            {"BBoxSafeRandomCrop": {}},
            "BBoxSafeRandomCrop: fails on an image of 128x96 pixels (KeyError: 'bboxes'); "
            "change its arguments or remove it",
        ),
        (
            {"CubicSymmetry": {}},
            "CubicSymmetry: fails on an image of 128x96 pixels (KeyError: 'volume'); change its arguments or remove it",
        ),
        (
            {"ToGray": {"num_output_channels": 1}},
            "ToGray: gives images of shape (96, 128), uint8; they must stay 8-bit RGB",
        ),
        ({"FDA": {}}, "FDA: needs fda_metadata; only images and labels are given"),
        ({"Normalize": {}}, "Normalize: images stay uint8 and are normalized on the device; remove it"),
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


@pytest.mark.parametrize(
    "entries",
    [
        [{"PixelDropout": {"mask_drop_value": 255}}],
        [
            {"GridDropout": {"fill_mask": 255}},
            {"CoarseDropout": {}},
            {"XYMasking": {"num_masks_x": 2, "mask_x_length": 9}},
        ],
        [{"MaskDropout": {"fill_mask": 255}}],  # which objects it drops depends on the label, what it writes does not
        [{"CropNonEmptyMaskIfExists": {"height": 40, "width": 30}}],
        [{"RandomCrop": {"height": 500, "width": 700}}],  # of larger images
        [{"RandomCrop": {"height": 5000, "width": 5000}}],  # of images that only the check of the data knows
        [{"Resize": {"height": 400, "width": 400}}, {"CenterCrop": {"height": 300, "width": 300}}],
        [{"PixelDropout": {"mask_drop_value": 0, "p": 0.0}}],  # never applied
        [{"ToRGB": {}}, {"ElasticTransform": {"fill_mask": 255}}, {"Affine": {"fill_mask": 255, "rotate": [-30, 30]}}],
    ],
    ids=str,
)
def test_what_keeps_labels_is_no_problem(entries):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert augment_problems(transforms(*entries)) == []


def test_trials_apply_what_is_rare_and_one_after_the_other():
    """The second crop never gets an image that is large enough, whatever the images are."""
    crops = [{"RandomCrop": {"height": 64, "width": 64}}, {"CenterCrop": {"height": 100, "width": 100, "p": 0.01}}]
    [problem] = augment_problems(transforms(*crops, {"PixelDropout": {"mask_drop_value": 7}}))[:1]
    assert problem.startswith("augment.transforms[1].CenterCrop: fails on an image of 64x64 pixels (CropSizeError")
    assert augment_problems(transforms(*crops[::-1])) == []


def test_trials_find_every_problem():
    found = augment_problems(
        transforms({"CubicSymmetry": {}}, {"HorizontalFlip": {}}, {"PixelDropout": {"mask_drop_value": 7}})
    )
    assert [line.split(":")[0].split("=")[0] for line in found] == [
        "augment.transforms[0].CubicSymmetry",
        "augment.transforms[2].PixelDropout.mask_drop_value",
    ]


NOT_TRIED = ("Superpixels", "Crop")  # which is slow, and which wants larger images than ours


@pytest.mark.filterwarnings("ignore::UserWarning:albumentations.*")
def test_every_transform_is_harmless_or_refused():
    """Each one of the library with its defaults, at work on labels that no argument of theirs names."""
    known = {
        name: kind
        for name, kind in vars(augment_module._albumentations()).items()
        if inspect.isclass(kind)
        and kind.__module__.startswith("albumentations.augmentations.")
        and name not in NOT_TRIED
    }
    assert len(known) > 100
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 80, 3), np.uint8)
    label = np.where(np.add.outer(np.arange(60) // 9, np.arange(80) // 9) % 2, 77, 78).astype(np.uint8)
    accepted = 0
    for name in known:
        options = transforms({name: {"p": 1.0}})
        if augment_problems(options):
            continue
        accepted += 1
        for seed in range(3):
            changed, found = Augmentation(options)(image.copy(), label.copy(), seed=(seed,))
            assert changed.shape == (*found.shape, 3), name
            assert changed.dtype == found.dtype == np.uint8, name
            assert set(np.unique(found)) <= {77, 78, IGNORE}, name
    assert accepted > 50


def test_trials_are_made_once():
    options = transforms({"GaussianBlur": {}})
    augment_problems(options)
    before = augment_module._trial_problems.cache_info()
    Augmentation(options)
    after = augment_module._trial_problems.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)


def test_sizes_of_images_behind_the_transforms():
    crop = {"height": 20, "width": 30}
    assert output_sizes(transforms({"RandomCrop": crop}), (72, 96)) == {(20, 30)}
    assert output_sizes(transforms({"RandomCrop": crop}, {"Transpose": {"p": 0.001}}), (72, 96)) == {(20, 30), (30, 20)}
    assert output_sizes(transforms({"RandomCrop": {**crop, "p": 0.001}}), (72, 96)) == {(20, 30), (72, 96)}
    assert output_sizes(transforms(), (72, 96)) == {(72, 96)}
    assert len(output_sizes(transforms({"RandomScale": {"p": 1.0}}), (72, 96))) > 1


def test_the_articles_resize_keeps_labels_on_their_pixels():
    """224 columns of 2240: the middle of each ten, as in the image."""
    label = (np.arange(2240) // 10 % 200).astype(np.uint8)[None].repeat(224, 0)
    places = (np.arange(2240) % 10).astype(np.uint8)[None].repeat(224, 0)
    augmentation = Augmentation(section("article"))
    found = augmentation(label[..., None].repeat(3, 2), places, seed=(0,))[1]
    assert set(np.unique(found)) == {5}
