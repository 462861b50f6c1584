"""The check before training names every bad file, once, and remembers a good answer."""

import logging
import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from danet.data import check as check_module
from danet.data.camvid import CamVid
from danet.data.check import DataError, check


def make(root, number=4, size=(12, 16)):
    """A good data set in SegNet's layout: image i holds class i and void."""
    (root / "train").mkdir(parents=True)
    (root / "trainannot").mkdir()
    rng = np.random.default_rng(0)
    for index in range(number):
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        label = np.full(size, index % 11, np.uint8)
        label[0] = 11
        Image.fromarray(image).save(root / "train" / f"{index:02}.jpg")
        Image.fromarray(label).save(root / "trainannot" / f"{index:02}.png")
    return root


def run(root, cache):
    return check(CamVid("train", root=str(root)), cache_dir=cache, workers=2)


def test_counts(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        report = run(make(tmp_path / "data"), tmp_path / "cache")
    assert report.num_images == 4
    assert report.sizes == {"16x12": 4}
    assert report.class_pixels == [11 * 16] * 4 + [0] * 7
    assert report.image_pixels == [12 * 16] * 4 + [0] * 7
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
    palette = Image.fromarray(good + 12)  # indices 12, whose colour is black
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
        "trainannot/02.png: label values go from 0 to 300",
        "trainannot/03.png: label has value 12 (192 pixels)",
        "trainannot/04.png: label holds RGB colours, but class numbers",
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
    real_read_image = check_module.read_image
    monkeypatch.setattr(check_module, "read_image", lambda path, **_: opened.append(path) or real_read_image(path))
    first = run(root, cache)
    assert len(opened) == 4
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
