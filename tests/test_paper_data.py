"""The data sets of the papers: small copies in their true layouts; numbers, names and lists against published ones."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from danet.datasets import download
from danet.datasets.ade20k import ADE20K
from danet.datasets.coco_stuff import CocoStuff10k, CocoStuff164k
from danet.datasets.pascal_context import PascalContext, PascalContext59
from danet.datasets.voc2012 import VOC2012
from danet.interfaces import IGNORE
from danet.registry import DATASETS


def picture(path: Path, size: tuple[int, int]) -> None:
    """Write a gray image of (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1]).save(path)


def label(path: Path, codes: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(codes.astype(np.uint8)).save(path)


def lines(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def filled(value: int) -> np.ndarray:
    return np.full((2, 3), value, np.uint8)


def names(dataset) -> list[str]:
    return [pair.name for pair in dataset.files]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("voc2012", 21),
        ("ade20k", 150),
        ("pascal_context", 60),
        ("pascal_context59", 59),
        ("coco_stuff10k", 171),
        ("coco_stuff164k", 171),
    ],
)
def test_number_of_classes(name, count):
    assert len(DATASETS[name].class_names) == count
    assert all(word == word.strip() for word in DATASETS[name].class_names)


# -- PASCAL VOC 2012 and SBD


@pytest.fixture
def voc(tmp_path):
    """VOC with a, b in train and x, y in val; further images m, n of SBD."""
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for name in "abxymn":
        picture(folder / "JPEGImages" / f"{name}.jpg", (2, 3))
    for name, value in zip("abxy", (1, 2, 3, 4), strict=True):
        label(folder / "SegmentationClass" / f"{name}.png", filled(value))
    lines(folder / "ImageSets" / "Segmentation" / "train.txt", "a", "b")
    lines(folder / "ImageSets" / "Segmentation" / "val.txt", "x", "y")
    return tmp_path


def sbd(root: Path) -> None:
    """SBD's own files: its lists overlap with both of VOC's, as they do in truth."""
    lines(root / "train.txt", "a", "m", "x")
    lines(root / "val.txt", "n", "y")
    (root / "cls").mkdir()
    for name in "amxny":
        savemat(root / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": filled(20), "Boundaries": 0}})


def test_voc_alone(voc):
    train, val = (VOC2012(split, root=str(voc)) for split in ("train", "val"))
    assert (names(train), names(val)) == (["a", "b"], ["x", "y"])
    assert [int(train[index].label[0, 0]) for index in range(2)] == [1, 2]


@pytest.mark.parametrize("place", ["benchmark_RELEASE/dataset", "VOCdevkit/VOCaug/dataset"])
def test_trainaug_is_vocs_train_and_sbd_without_vocs_val(voc, place):
    sbd(voc / place)
    train, val = (VOC2012(split, root=str(voc), train_set="trainaug") for split in ("train", "val"))
    assert names(train) == ["a", "b", "m", "n"]
    assert [int(train.read_label(index)[0, 0]) for index in range(4)] == [1, 2, 20, 20]  # VOC's own where there is one
    assert names(val) == ["x", "y"]
    assert "trainaug" in train.description
    assert train.fingerprint() != VOC2012("train", root=str(voc)).fingerprint()


@pytest.mark.parametrize("listed", [("trainaug.txt", "abmn"), ("aug.txt", "mn")])
def test_trainaug_as_converted_pngs(voc, listed):
    folder = voc / "VOCdevkit" / "VOC2012"
    for name in "abxymn":
        label(folder / "SegmentationClassAug" / f"{name}.png", filled(20))
    with pytest.raises(ValueError, match=r"SegmentationClassAug: its list is missing; write .*trainaug\.txt"):
        VOC2012("train", root=str(voc), train_set="trainaug")
    lines(folder / "ImageSets" / "Segmentation" / listed[0], *listed[1])
    train = VOC2012("train", root=str(voc), train_set="trainaug")
    assert names(train) == ["a", "b", "m", "n"]
    assert [int(train.read_label(index)[0, 0]) for index in range(4)] == [1, 2, 20, 20]


def test_the_border_of_a_palette_label_is_ignored(voc):
    image = Image.fromarray(np.array([[0, 15, 255], [20, 20, 255]], np.uint8), mode="P")
    image.putpalette([value for color in VOC2012.palette for value in color])
    image.save(voc / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "a.png")
    assert VOC2012("train", root=str(voc)).read_label(0).tolist() == [[0, 15, IGNORE], [20, 20, IGNORE]]


def test_vocs_colors_are_those_of_its_devkit():
    colors = dict(zip(VOC2012.class_names, VOC2012.palette, strict=True))
    assert colors["background"] == (0, 0, 0)
    assert colors["aeroplane"] == (128, 0, 0)
    assert colors["cat"] == (64, 0, 0)
    assert colors["person"] == (192, 128, 128)
    assert colors["tvmonitor"] == (0, 64, 128)


def test_wrong_layouts_are_told(tmp_path, voc):
    with pytest.raises(
        ValueError, match=r"no .*none/ImageSets/Segmentation/train\.txt\. .*src/prepare\.py.*VOCtrainval_11"
    ):
        VOC2012("train", root=str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"no .*benchmark_RELEASE/dataset/train\.txt\. .*benchmark\.tgz"):
        VOC2012("train", root=str(voc), train_set="trainaug")
    with pytest.raises(ValueError, match="labels of the test split are not public; take val"):
        VOC2012("test", root=str(voc))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"GTcls": {"Segmentation": filled(21)}}, r"value 21 \(6 pixels\), which no class has"),
        ({"GTcls": {"Boundaries": filled(1)}}, r"has no variable GTcls\.Segmentation"),
        ({"other": filled(1)}, r"has no variable GTcls\.Segmentation"),
        ({"GTcls": {"Segmentation": filled(1) + 0.5}}, "does not hold class numbers"),
        ({"GTcls": {"Segmentation": "words"}}, "does not hold class numbers"),
        ({"GTcls": filled(1)}, r"has no variable GTcls\.Segmentation"),
    ],
)
def test_a_bad_matlab_label_is_refused(voc, content, problem):
    sbd(voc / "benchmark_RELEASE" / "dataset")
    savemat(voc / "benchmark_RELEASE" / "dataset" / "cls" / "m.mat", content)
    with pytest.raises(ValueError, match=rf"m\.mat: .*({problem})"):
        VOC2012("train", root=str(voc), train_set="trainaug").read_label(2)


def test_a_damaged_matlab_label_is_told(voc):
    sbd(voc / "benchmark_RELEASE" / "dataset")
    (voc / "benchmark_RELEASE" / "dataset" / "cls" / "m.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(ValueError, match=r"m\.mat: cannot be decoded \(.*\); restore or remove this file"):
        VOC2012("train", root=str(voc), train_set="trainaug").read_label(2)


# -- ADE20K


def test_ade20ks_numbers_begin_at_1(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    picture(root / "images" / "training" / "ADE_train_00000001.jpg", (2, 76))
    label(root / "annotations" / "training" / "ADE_train_00000001.png", np.arange(152).reshape(2, 76) % 151)
    for folder in (tmp_path, root):
        got = ADE20K("train", root=str(folder)).read_label(0).ravel().tolist()
        assert got == [IGNORE, *range(150), IGNORE]
    colors = dict(zip(ADE20K.class_names, ADE20K.palette, strict=True))
    assert (colors["wall"], colors["sky"], colors["flag"]) == ((120, 120, 120), (6, 230, 230), (92, 0, 255))
    assert ADE20K.class_names[12] == "person"
    with pytest.raises(ValueError, match=r"no images in .*images/validation with labels in .*annotations/validation"):
        ADE20K("val", root=str(tmp_path))


def test_an_archive_is_unpacked_once(tmp_path, monkeypatch):
    ADE20K.tiny(tmp_path / "source")
    served = io.BytesIO()
    with zipfile.ZipFile(served, "w") as zipped:
        for path in sorted((tmp_path / "source").rglob("*.*g")):
            zipped.write(path, path.relative_to(tmp_path / "source"))
    calls = []

    def fetch(url, path, *, md5):
        calls.append((url, md5))
        path.parent.mkdir(parents=True)
        path.write_bytes(served.getvalue())

    monkeypatch.setattr(download, "fetch", fetch)
    root = tmp_path / "data" / "ade20k"
    for _ in range(2):
        ADE20K.prepare(str(root))
    assert len(calls) == 1
    assert calls[0][0].endswith("/ADEChallengeData2016.zip")
    assert len(ADE20K("val", root=str(root))) == 2
    assert [path.name for path in root.iterdir()] == ["ADEChallengeData2016"]  # neither the archive nor a temporary


# -- PASCAL Context

# From the data set's labels.txt; 1 (accordion) is one of the 400 classes that are background.
SOME_CONTEXT_NUMBERS = {2: "aeroplane", 9: "bag", 258: "motorbike", 397: "table", 427: "tvmonitor", 454: "window"}


@pytest.fixture
def context(tmp_path):
    folder = tmp_path / "VOCdevkit" / "VOC2010"
    picture(folder / "JPEGImages" / "2008_000002.jpg", (1, 9))
    lines(folder / "ImageSets" / "Main" / "train.txt", "2008_000002")
    return tmp_path


@pytest.mark.parametrize(("kind", "classes"), [(PascalContext59, 59), (PascalContext, 60)])
def test_contexts_459_numbers_become_59_or_60(context, kind, classes):
    (context / "trainval").mkdir()
    numbers = np.array([[0, 1, 459, *SOME_CONTEXT_NUMBERS]], np.uint16)
    savemat(context / "trainval" / "2008_000002.mat", {"LabelMap": numbers})
    dataset = kind("train", root=str(context))
    got = dataset.read_label(0).ravel().tolist()
    assert got[:3] == [0 if classes == 60 else IGNORE] * 3
    assert [dataset.class_names[number] for number in got[3:]] == list(SOME_CONTEXT_NUMBERS.values())
    assert f"{classes} classes" in dataset.description


def test_contexts_converted_numbers_are_the_places_among_the_sorted_numbers(context):
    """mmsegmentation's converter writes 55 and 58 into 2008_000002 (its issue 1940): tvmonitor and window."""
    label(
        context / "VOCdevkit" / "VOC2010" / "SegmentationClassContext" / "2008_000002.png",
        np.array([[0, 1, 2, 34, 50, 55, 58, 59, 59]]),
    )
    expected = ["background", "aeroplane", "bag", "motorbike", "table", "tvmonitor", "window", "wood", "wood"]
    dataset = PascalContext("train", root=str(context))
    assert [dataset.class_names[number] for number in dataset.read_label(0).ravel()] == expected
    without = PascalContext59("train", root=str(context))
    assert without.read_label(0)[0, 0] == IGNORE
    assert [without.class_names[number] for number in without.read_label(0)[0, 1:]] == expected[1:]
    assert without.fingerprint() != dataset.fingerprint()


def test_context_without_labels_says_where_they_go(context):
    with pytest.raises(ValueError, match=r"with labels in .*SegmentationClassContext\. .*trainval\.tar\.gz"):
        PascalContext("train", root=str(context))
    with pytest.raises(ValueError, match="papers test on are those of val; take val"):
        PascalContext("test", root=str(context))


# -- COCO-Stuff

# From the data set's labels.txt, where 0 is unlabeled: numbers beside the gaps, and the ends.
SOME_STUFF_NUMBERS = {
    1: "person", 11: "fire hydrant", 13: "stop sign", 25: "giraffe", 27: "backpack", 44: "bottle", 46: "wine glass",
    67: "dining table", 70: "toilet", 72: "tv", 82: "refrigerator", 84: "book", 90: "toothbrush", 92: "banner",
    157: "sky-other", 182: "wood",
}  # fmt: skip
ABSENT_NUMBERS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}


def stuff_names(dataset) -> list[str | None]:
    return [None if number == IGNORE else dataset.class_names[number] for number in dataset.read_label(0).ravel()]


def test_stuff10k_as_published(tmp_path):
    picture(tmp_path / "images" / "COCO_train2014_000000000077.jpg", (1, 17))
    lines(tmp_path / "imageLists" / "train.txt", "COCO_train2014_000000000077")
    with pytest.raises(ValueError, match=r"no images in .*images with labels in .*annotations\. .*cocostuff-10k-v1\.1"):
        CocoStuff10k("train", root=str(tmp_path))
    (tmp_path / "annotations").mkdir()
    numbers = np.array([[0, *SOME_STUFF_NUMBERS]], np.uint8)
    savemat(tmp_path / "annotations" / "COCO_train2014_000000000077.mat", {"S": numbers})
    assert stuff_names(CocoStuff10k("train", root=str(tmp_path))) == [None, *SOME_STUFF_NUMBERS.values()]


def test_stuff10k_as_mmsegmentation_converts_it(tmp_path):
    picture(tmp_path / "images" / "test2014" / "a.jpg", (1, 172))
    label(tmp_path / "annotations" / "test2014" / "a_labelTrainIds.png", np.arange(172)[None])
    dataset = CocoStuff10k("val", root=str(tmp_path))
    assert dataset.read_label(0).ravel().tolist() == [IGNORE, *range(171)]
    assert names(dataset) == ["a"]


@pytest.mark.parametrize("places", [("images", "annotations"), ("", "stuffthingmaps")])
def test_stuff164k_as_published(tmp_path, places):
    picture(tmp_path / places[0] / "train2017" / "000000000009.jpg", (1, 17))
    numbers = np.array([[255, *(number - 1 for number in SOME_STUFF_NUMBERS)]])
    label(tmp_path / places[1] / "train2017" / "000000000009.png", numbers)
    label(tmp_path / places[1] / "train2017" / "000000000009_labelTrainIds.png", numbers * 0)
    dataset = CocoStuff164k("train", root=str(tmp_path))
    assert names(dataset) == ["000000000009"]
    assert stuff_names(dataset) == [None, *SOME_STUFF_NUMBERS.values()]


def test_stuff164k_as_mmsegmentation_converts_it(tmp_path):
    picture(tmp_path / "images" / "val2017" / "a.jpg", (1, 172))
    label(tmp_path / "annotations" / "val2017" / "a_labelTrainIds.png", np.array([[*range(171), 255]]))
    assert CocoStuff164k("val", root=str(tmp_path)).read_label(0).ravel().tolist() == [*range(171), IGNORE]


def test_a_stuff_class_that_no_label_has_is_refused(tmp_path):
    for number in ABSENT_NUMBERS:
        picture(tmp_path / "images" / "val2017" / "a.jpg", (2, 3))
        label(tmp_path / "annotations" / "val2017" / "a.png", filled(number - 1))
        with pytest.raises(ValueError, match=rf"a\.png: label has value {number - 1} "):
            CocoStuff164k("val", root=str(tmp_path)).read_label(0)
