"""The check before training names every bad file, once, and remembers a good answer."""

import json
import logging
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from danet.data.batch_sizes import images_of, mixed_evaluation_batch, mixed_training_batch, sizes_in_training
from danet.data.check import DataError, check, check_splits
from danet.datasets import files as files_module
from danet.datasets.camvid import CamVid


def make(root, number=4, size=(12, 16), split="train"):
    """A good data set in SegNet's layout: image i holds class i and void."""
    (root / split).mkdir(parents=True)
    (root / f"{split}annot").mkdir()
    rng = np.random.default_rng(0)
    for index in range(number):
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        label = np.full(size, index % 11, np.uint8)
        label[0] = 11
        Image.fromarray(image).save(root / split / f"{index:02}.jpg")
        Image.fromarray(label).save(root / f"{split}annot" / f"{index:02}.png")
    return root


def run(root, cache):
    return check(CamVid("train", root=str(root)), cache_dir=cache, workers=2)


def test_counts(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        report = run(make(tmp_path / "data"), tmp_path / "cache")
    assert report.num_images == 4
    assert report.sizes == {"16x12": 4}
    assert report.class_pixels == [11 * 16] * 4 + [0] * 7
    assert report.ignored_pixels == 4 * 16
    assert "no pixel of Pavement, Tree, SignSymbol, Fence, Car, Pedestrian, Bicyclist" in caplog.text


def test_one_error_lists_every_bad_file(tmp_path):
    root = make(tmp_path / "data", number=11)
    images, labels = root / "train", root / "trainannot"
    good = np.zeros((12, 16), np.uint8)
    (images / "01.jpg").write_bytes((images / "01.jpg").read_bytes()[:-200])
    wide = good.astype(np.uint16)
    wide[0, 0] = 300
    Image.fromarray(wide).save(labels / "02.png")
    palette = Image.fromarray(good + 12)  # indices 12, whose color is black
    palette.putpalette([0, 0, 0] * 13)
    palette.save(labels / "03.png")
    Image.new("RGB", (16, 12), (64, 0, 128)).save(labels / "04.png")
    Image.fromarray(np.zeros((16, 12), np.uint8)).save(labels / "05.png")
    (labels / "06.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (16, 12)).save(images / "07.jpg", exif=exif)
    Image.fromarray(good + 200).save(labels / "08.png")
    (images / "09.jpg").unlink()
    (labels / "10.png").write_bytes(b"")

    with pytest.raises(DataError) as caught:
        run(root, tmp_path / "cache")
    head, *lines = str(caught.value).splitlines()
    assert head == "camvid, SegNet layout, 11 classes (segnet grouping): 10 problem(s) in 11 pairs of files"
    expected = [
        "train/01.jpg: cannot be decoded",
        "trainannot/02.png: label has value 300 (1 pixels), which no class has",
        "trainannot/03.png: label has value 12 (192 pixels)",
        "trainannot/04.png: label holds RGB colors, but class numbers",
        "trainannot/05.png: label is 12x16, its image 16x12",
        "train/06.jpg: has no label",
        "train/07.jpg: EXIF orientation is 8",
        "trainannot/08.png: label has value 200 (192 pixels)",
        "train/09.*: image is missing",
        "trainannot/10.png: cannot be decoded",
    ]
    assert len(lines) == len(expected)
    for line, text in zip(lines, expected, strict=True):
        assert text in line
    with pytest.raises(DataError):  # a bad answer is not remembered
        run(root, tmp_path / "cache")


def test_a_listed_name_without_files_is_one_problem(tmp_path):
    root = make(tmp_path / "data", number=1)
    (root / "train.txt").write_text("00.jpg\nabsent.jpg\n")
    with pytest.raises(DataError, match=r"1 problem.*\n.*train/absent\.\*: image is missing; .*from the list"):
        run(root, tmp_path / "cache")


def test_many_bad_files_end_in_a_count(tmp_path):
    root = make(tmp_path / "data", number=60, size=(2, 2))
    for path in (root / "trainannot").iterdir():
        path.unlink()
    (root / "trainannot" / "00.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        run(root, tmp_path / "cache")
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 50 + 1
    assert lines[-1].strip() == "... and 10 more"


def test_labels_without_any_class_are_refused(tmp_path):
    root = make(tmp_path / "data", number=1)
    Image.fromarray(np.full((12, 16), 11, np.uint8)).save(root / "trainannot" / "00.png")
    with pytest.raises(DataError, match="every pixel of every label is ignored"):
        run(root, tmp_path / "cache")


def test_second_run_opens_no_file_until_one_changes(tmp_path, monkeypatch):
    root, cache = make(tmp_path / "data"), tmp_path / "cache"
    opened = []
    real_read_image = files_module.read_image
    monkeypatch.setattr(files_module, "read_image", lambda path, **_: opened.append(path) or real_read_image(path))
    first = run(root, cache)
    assert len(opened) == 4
    (stored,) = cache.iterdir()
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"image_pixels": [0]}))  # as older versions did
    assert run(root, cache) == first
    assert len(opened) == 4

    label = root / "trainannot" / "00.png"
    damaged = bytearray(label.read_bytes())
    stat = label.stat()
    damaged[-20] ^= 255
    label.write_bytes(damaged)  # the same size
    os.utime(label, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(DataError, match=r"00\.png"):
        run(root, cache)


def test_labels_of_other_content_and_equal_size_are_noticed(tmp_path):
    """The fingerprint is of names and sizes, so that a copy keeps it."""
    root, cache = make(tmp_path / "data", number=2), tmp_path / "cache"
    first = run(root, cache)
    shutil.copytree(root, tmp_path / "copy")
    assert run(tmp_path / "copy", cache).content == first.content
    labels = [root / "trainannot" / f"0{number}.png" for number in (0, 1)]
    for label, value in zip(labels, (1, 2), strict=True):
        Image.fromarray(np.full((12, 16), value, np.uint8)).save(label)
    contents = [label.read_bytes() for label in labels]
    assert len(contents[0]) == len(contents[1])
    before = run(root, cache)
    for label, content in zip(labels, contents[::-1], strict=True):
        label.write_bytes(content)
        os.utime(label, (10**9, 10**9))
    after = run(root, cache)
    assert after.content != before.content
    assert after.class_pixels == before.class_pixels


def test_damaged_cache_is_no_answer(tmp_path):
    root, cache = make(tmp_path / "data"), tmp_path / "cache"
    first = run(root, cache)
    (file,) = cache.iterdir()
    file.write_text('{"num_images": 4')
    assert run(root, cache) == first


def test_values_are_checked_against_the_classes_of_any_data_set(tmp_path):
    """A data set whose own reader lets a value pass."""
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")

    class Loose:
        class_names = ("one", "two")
        description = "loose"
        files = [SimpleNamespace(image=str(tmp_path / "a.png"), label=str(tmp_path / "a.png"), name="a")]

        def read_label(self, index):
            return np.array([[0, 1], [2, 255]], np.uint8)

        def fingerprint(self):
            return "loose"

    with pytest.raises(DataError, match=r"label values \[2\] are neither 0\.\.1 nor 255"):
        check(Loose(), cache_dir=tmp_path, workers=1)


def test_generated_data_pass_at_once(tmp_path):
    assert check(SimpleNamespace(class_names=("a",)), cache_dir=tmp_path / "none", workers=1) is None
    assert not (tmp_path / "none").exists()


def test_the_problems_of_all_splits_are_told_together(tmp_path):
    for split in ("train", "val"):
        make(tmp_path / "data", split=split)
        (tmp_path / "data" / split / "01.jpg").write_bytes(b"broken")
    datasets = {split: CamVid(split, root=str(tmp_path / "data")) for split in ("train", "val")}
    with pytest.raises(DataError) as caught:
        check_splits(datasets, cache_dir=tmp_path / "cache", workers=2)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].split(", ")[-1] for line in lines[::2]] == ["train", "val"]
    assert [line.strip().split(":")[0] for line in lines[1::2]] == [
        str(tmp_path / "data" / split / "01.jpg") for split in ("train", "val")
    ]


def test_a_broken_link_is_not_a_name_in_a_list(tmp_path):
    root = make(tmp_path / "data")
    for name in ("01", "02"):
        (root / "train" / f"{name}.jpg").unlink()
        (root / "train" / f"{name}.jpg").symlink_to("/nowhere.jpg")
    (root / "trainannot" / "02.png").unlink()
    with pytest.raises(DataError) as caught:
        run(root, tmp_path / "cache")
    _, *lines = str(caught.value).splitlines()
    assert [line.partition(": ")[2] for line in lines] == [
        "is a broken link, to /nowhere.jpg; add that file or remove the link",
        "is a broken link, to /nowhere.jpg; add that file or remove the link",
        "has no label; add it or remove the image",
    ]


@pytest.mark.parametrize(
    ("image", "label", "words"),
    [
        ("{}", "{}_mask", "labels end with '_mask', their images do not"),
        ("{}_sat", "{}_mask", "labels end with '_mask', their images with '_sat'"),
        ("{}_rgb", "{}", "labels do not end with '_rgb', as their images do"),
        ("{}", "mask_{}", "labels begin with 'mask_', their images do not"),
        ("img_{}", "gt_{}", "labels begin with 'gt_', their images with 'img_'"),
        ("Scene{}", "scene{}", "labels differ from their images' names in capital letters"),
    ],
)
def test_names_that_differ_in_one_way_are_one_problem(tmp_path, image, label, words):
    """With numbers of which one is the beginning of another."""
    root = make(tmp_path / "data", number=11)
    for index in range(11):
        (root / "train" / f"{index:02}.jpg").rename(root / "train" / f"{image.format(index)}.jpg")
        (root / "trainannot" / f"{index:02}.png").rename(root / "trainannot" / f"{label.format(index)}.png")
    with pytest.raises(DataError) as caught:
        run(root, tmp_path / "cache")
    head, line = str(caught.value).splitlines()
    assert "1 problem(s)" in head
    assert line.strip().startswith(f"11 {words}, such as {root}/trainannot/")
    (root / "train" / f"{image.format(10)}.jpg").write_bytes(b"broken")  # pairs with another problem are named besides
    (root / "trainannot" / "alone.png").write_bytes(b"broken")
    with pytest.raises(DataError) as caught:
        run(root, tmp_path / "cache")
    _, line, *others = str(caught.value).splitlines()
    assert line.strip().startswith(f"11 {words}")
    assert len(others) == 2
    assert all("alone" in other for other in others)


def test_two_strangers_are_not_a_rule(tmp_path):
    root = make(tmp_path / "data", number=3)
    (root / "trainannot" / "01.png").rename(root / "trainannot" / "09.png")
    with pytest.raises(DataError) as caught:
        run(root, tmp_path / "cache")
    _, *lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "01.jpg: has no label" in lines[0]
    assert "09.*: image is missing" in lines[1]


def test_a_split_without_any_label_is_one_problem(tmp_path):
    root = make(tmp_path / "data", number=9)
    for path in (root / "trainannot").iterdir():
        path.unlink()
    (root / "train.txt").write_text("".join(f"{index:02}\n" for index in range(9)))
    (root / "trainannot" / "other.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        run(root, tmp_path / "cache")
    _, line = str(caught.value).splitlines()
    assert "none of the 9 images has a label, such as" in line


def test_labels_that_teach_nothing_are_noticed(tmp_path, caplog):
    """The numbers: 12 rows, of which one is void; half of the rest is 255 in the second data set."""
    for name, rows, words in (
        ("one", 0, "8.3% of the pixels are ignored (255 is), and only one class is left (Sky): are these masks 0/255?"),
        ("most", 8, "75% of the pixels are ignored; are these the right labels?"),
    ):
        root = make(tmp_path / name, number=2)
        for index in range(2):
            label = np.full((12, 16), index if rows else 0, np.uint8)
            label[: 1 + rows] = 255
            Image.fromarray(label).save(root / "trainannot" / f"{index:02}.png")
        caplog.clear()
        run(root, tmp_path / "cache")
        assert words in caplog.text
        assert caplog.text.count("WARNING") == (2 if rows else 1)  # the other one: which classes are not there


# ---- batches ---------------------------------------------------------------------------------------------------------

SMALL, WIDE, TALL = (72, 96), (67, 101), (96, 72)
AUGMENT = {"name": "test", "crop_size": None}


def images(*sizes):
    return [(f"image{number}", size) for number, size in enumerate(sizes)]


def test_sizes_are_those_of_the_files(tmp_path):
    root = make(tmp_path / "data", number=2)
    for index, (height, width) in enumerate([(12, 16), (16, 12), (12, 16)]):
        Image.new("RGB", (width, height)).save(root / "train" / f"{index:02}.jpg")
        Image.fromarray(np.full((height, width), index, np.uint8)).save(root / "trainannot" / f"{index:02}.png")
    report = run(root, tmp_path / "cache")
    assert report.sizes == {"16x12": 2, "12x16": 1}
    for again in (report, run(root, tmp_path / "cache")):
        found = images_of(CamVid("train", root=str(root)), again)
        assert found == [("00", (12, 16)), ("01", (16, 12)), ("02", (12, 16))]


@pytest.mark.parametrize(
    ("sizes", "batch_size", "max_images", "processes", "mixed"),
    [
        ([SMALL, TALL], 1, None, 1, ""),
        ([SMALL, TALL], 2, None, 1, "image0 96x72, image1 72x96"),
        ([SMALL, SMALL, TALL, TALL], 2, None, 1, ""),  # every batch is of one size
        ([SMALL, SMALL, TALL, TALL], 2, None, 2, "image0 96x72, image2 72x96"),
        ([SMALL, TALL, SMALL, TALL], 2, None, 2, ""),
        ([SMALL, SMALL, TALL], 3, 2, 1, ""),
        ([SMALL, SMALL, TALL], 3, 3, 1, "image0 96x72, image2 72x96"),
        ([SMALL, SMALL, TALL], 2, None, 1, ""),
    ],
)
def test_a_batch_to_score_has_images_of_one_size(sizes, batch_size, max_images, processes, mixed):
    options = {"batch_size": batch_size, "max_images": max_images, "processes": processes}
    found = mixed_evaluation_batch(images(*sizes), **options)
    assert (mixed in found and found.startswith(f"evaluate.batch_size = {batch_size}: ")) if mixed else found == ""


@pytest.mark.parametrize(
    ("transforms", "sizes", "mixed"),
    [
        ([], [SMALL, SMALL], ""),
        ([], [SMALL, WIDE], "image0 96x72, image1 101x67"),
        ([{"RandomScaleCrop": {"scale": [0.5, 2], "height": 48, "width": 64}}], [SMALL, WIDE, TALL], ""),
        ([{"RandomCrop": {"height": 48, "width": 64}}], [SMALL, WIDE, TALL], ""),
        ([{"HorizontalFlip": {}}], [SMALL, WIDE], "image0 96x72, image1 101x67"),
        ([{"RandomCrop": {"height": 48, "width": 64, "p": 0.01}}], [SMALL], "image0 64x48, image0 96x72"),
        ([{"Transpose": {"p": 0.01}}], [SMALL], "image0 96x72, image0 72x96"),
        ([{"Transpose": {"p": 0.01}}, {"Resize": {"height": 9, "width": 9}}], [SMALL], ""),
        ([{"RandomRotate90": {}}], [SMALL], "image0 96x72, image0 72x96"),
        ([{"RandomRotate90": {}}], [(64, 64)], ""),
    ],
    ids=str,
)
def test_a_batch_to_train_on_has_images_of_one_size(transforms, sizes, mixed):
    found = mixed_training_batch(sizes_in_training(images(*sizes), {**AUGMENT, "transforms": transforms}))
    assert set(found.split(", ")) == set(mixed.split(", "))


def test_a_transform_that_fails_on_the_smallest_image_is_named_with_it():
    transforms = [{"HorizontalFlip": {}}, {"RandomCrop": {"height": 70, "width": 70}}]
    with pytest.raises(DataError) as caught:
        sizes_in_training(images(SMALL, WIDE, SMALL, TALL), {**AUGMENT, "transforms": transforms})
    text = str(caught.value)
    assert text.startswith(
        "image1, 101x67 pixels: augment.transforms[1].RandomCrop fails on 101x67 pixels (CropSizeErr"
    )
    assert "put PadIfNeeded (with fill_mask: 255) before it" in text


def test_of_many_sizes_the_extreme_ones_are_tried():
    """Among them the lowest, the narrowest and the smallest."""
    sizes = [(100 + n, 300 - n) for n in range(50)] + [(60, 400), (400, 60), (90, 90)]
    found = sizes_in_training(images(*sizes), {**AUGMENT, "transforms": []})
    assert {(60, 400), (400, 60), (90, 90)} <= {size for several in found.values() for size in several}
    assert len(found) <= 8


def test_sizes_of_a_generated_data_set_are_those_of_its_first_samples():
    class Growing:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            size = 8 + index
            return SimpleNamespace(name=f"s{index}", label=np.zeros((size, 5), np.uint8))

    assert images_of(Growing(), None) == [("s0", (8, 5)), ("s1", (9, 5)), ("s2", (10, 5))]
