"""CamVid's five layouts, its classes and its split, against values typed from the published sources."""

import io
import logging
import tarfile
from pathlib import Path

import numpy as np
import pydantic
import pytest
from PIL import Image

from conftest import load
from danet.data.check import check
from danet.datasets import camvid_files, download
from danet.datasets.camvid import CamVid, CamVid32
from danet.datasets.camvid_files import official_split, prepare
from danet.registry import DATASETS

REAL = Path(__file__).resolve().parents[2] / "shared" / "camvid"
real_camvid = pytest.mark.skipif(not REAL.exists(), reason="needs the real CamVid")

# (name, color, SegNet's 11-class number or 255), by 32-class number.
CLASSES = [
    ("Animal", (64, 128, 64), 9),
    ("Archway", (192, 0, 128), 1),
    ("Bicyclist", (0, 128, 192), 10),
    ("Bridge", (0, 128, 64), 1),
    ("Building", (128, 0, 0), 1),
    ("Car", (64, 0, 128), 8),
    ("CartLuggagePram", (64, 0, 192), 9),
    ("Child", (192, 128, 64), 9),
    ("Column_Pole", (192, 192, 128), 2),
    ("Fence", (64, 64, 128), 7),
    ("LaneMkgsDriv", (128, 0, 192), 3),
    ("LaneMkgsNonDriv", (192, 0, 64), 3),
    ("Misc_Text", (128, 128, 64), 6),
    ("MotorcycleScooter", (192, 0, 192), 10),
    ("OtherMoving", (128, 64, 64), 8),
    ("ParkingBlock", (64, 192, 128), 4),
    ("Pedestrian", (64, 64, 0), 9),
    ("Road", (128, 64, 128), 3),
    ("RoadShoulder", (128, 128, 192), 4),
    ("Sidewalk", (0, 0, 192), 4),
    ("SignSymbol", (192, 128, 128), 6),
    ("Sky", (128, 128, 128), 0),
    ("SUVPickupTruck", (64, 128, 192), 8),
    ("TrafficCone", (0, 0, 64), 2),
    ("TrafficLight", (0, 64, 64), 6),
    ("Train", (192, 64, 128), 8),
    ("Tree", (128, 128, 0), 5),
    ("Truck_Bus", (192, 128, 192), 8),
    ("Tunnel", (64, 0, 64), 1),
    ("VegetationMisc", (192, 192, 0), 5),
    ("Void", (0, 0, 0), 255),
    ("Wall", (64, 192, 0), 1),
]
# Those whose colors PIDNet and DDRNet keep.
KEPT = (
    "Bicyclist",
    "Building",
    "Car",
    "Column_Pole",
    "Fence",
    "Pedestrian",
    "Road",
    "Sidewalk",
    "SignSymbol",
)
KEPT += ("Sky", "Tree")
ALL_32 = np.arange(32, dtype=np.uint8).reshape(4, 8)
FRAMES = {
    "train": ["0001TP_006690", "0001TP_008520", "0006R0_f00930", "0016E5_07920", "0016E5_08190"],
    "val": ["0016E5_07959", "0016E5_08159"],
    "test": ["0001TP_008550", "Seq05VD_f00000"],
}


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def colors(indices):
    return np.array([color for _, color, _ in CLASSES], np.uint8)[indices]


def make(root, layout):
    """The frames above in the given layout; every 32-class label holds every class."""
    for split, names in FRAMES.items():
        for name in names:
            if layout == "segnet":
                save(root / split / f"{name}.jpg", np.zeros((2, 6, 3)))
                save(root / f"{split}annot" / f"{name}.png", np.arange(12).reshape(2, 6))
            elif layout == "original":
                save(root / "701_StillsRaw_full" / f"{name}.png", np.zeros((4, 8, 3)))
                save(root / "LabeledApproved_full" / f"{name}_L.png", colors(ALL_32))
            elif layout == "fastai":
                save(root / "images" / f"{name}.png", np.zeros((4, 8, 3)))
                save(root / "labels" / f"{name}_P.png", ALL_32)
            elif layout == "kaggle":
                save(root / split / f"{name}.png", np.zeros((4, 8, 3)))
                save(root / f"{split}_labels" / f"{name}_L.png", colors(ALL_32))
            elif split != "test":  # the article's layout has none
                folder = {"train": "train", "val": "valid"}[split]
                save(root / f"{folder}_images" / f"{name}.jpg", np.zeros((4, 8, 3)))
                save(root / f"{folder}_labels" / f"{name}.png", ALL_32)
    if layout == "fastai":
        (root / "codes.txt").write_text("\n".join(name for name, _, _ in CLASSES))
        (root / "valid.txt").write_text("".join(f"{name}.png\n" for name in FRAMES["val"]))
    return str(root)


def names(dataset):
    return [pair.name for pair in dataset.files]


def test_names_colors_and_order():
    assert CamVid32.class_names == tuple(name for name, _, _ in CLASSES)
    assert CamVid32.palette == tuple(color for _, color, _ in CLASSES)
    order = "Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist"
    assert CamVid.class_names == tuple(order.split())
    assert CamVid.palette[0] == (128, 128, 128)
    assert CamVid.palette[4] == (0, 0, 192)


@pytest.mark.parametrize("layout", ["segnet", "original", "fastai", "kaggle", "article"])
@pytest.mark.parametrize("named", [False, True])
def test_every_layout_is_found_and_split(tmp_path, layout, named):
    root = make(tmp_path, layout)
    for split, expected in FRAMES.items():
        if layout == "article" and split == "test":
            with pytest.raises(ValueError, match="test split was not found"):
                CamVid(split, root=root)
            continue
        dataset = CamVid(split, root=root, layout=layout if named else "auto")
        assert names(dataset) == expected
        sample = dataset[0]
        assert sample.name == expected[0]
        truth = [*range(11), 255] if layout == "segnet" else [eleven for _, _, eleven in CLASSES]
        assert sample.label.ravel().tolist() == truth
        assert sample.image.shape == (*sample.label.shape, 3)


@pytest.mark.parametrize("layout", ["segnet", "original", "fastai", "kaggle", "article"])
@pytest.mark.parametrize("kind", [CamVid, CamVid32])
def test_trainval_trains_on_val_as_well_and_says_so(tmp_path, caplog, kind, layout):
    if kind is CamVid32 and layout == "segnet":
        pytest.skip("has 11 classes")
    root = make(tmp_path, layout)
    dataset = kind("train", root=root, train_set="trainval")
    assert names(dataset) == FRAMES["train"] + FRAMES["val"]
    assert "val is trained on" in caplog.text
    first = len(FRAMES["train"])
    np.testing.assert_array_equal(dataset.read_label(first), kind("val", root=root).read_label(0))
    assert dataset.description == kind("train", root=root).description + ", train and val"
    for split in ("val",) if layout == "article" else ("val", "test"):
        same = kind(split, root=root, train_set="trainval")
        assert names(same) == FRAMES[split]
        assert same.fingerprint() == kind(split, root=root).fingerprint()


def test_the_check_before_a_run_leaves_its_warnings_to_the_run(tmp_path, caplog):
    options = CamVid.tiny(tmp_path)
    load(["dataset=camvid", f"dataset.root={options['root']}", "dataset.train_set=trainval"], probe=True)
    assert not caplog.text
    CamVid("train", **options, train_set="trainval")
    assert caplog.text.count("val is trained on") == 1


@pytest.mark.parametrize("layout", ["original", "fastai", "kaggle", "article"])
def test_32_classes_keep_their_numbers_and_ignore_void(tmp_path, layout):
    dataset = CamVid32("val", root=make(tmp_path, layout))
    assert dataset[0].label.ravel().tolist() == [255 if i == 30 else i for i in range(32)]


@pytest.mark.parametrize("layout", ["original", "fastai"])
def test_rival_grouping_ignores_21_classes(tmp_path, layout):
    root = make(tmp_path, layout)
    dataset = CamVid("val", root=root, grouping="colors")
    assert dataset[0].label.ravel().tolist() == [e if name in KEPT else 255 for name, _, e in CLASSES]
    assert "colors grouping" in dataset.description
    older = CamVid("val", root=root, grouping="colours")
    assert older[0].label.tolist() == dataset[0].label.tolist()
    assert dataset.fingerprint() != CamVid("val", root=root).fingerprint()


def test_segnet_labels_cannot_be_ungrouped(tmp_path):
    root = make(tmp_path, "segnet")
    with pytest.raises(ValueError, match="have 11 classes; take dataset=camvid"):
        CamVid32("train", root=root)
    with pytest.raises(ValueError, match="'colors' needs labels with 32 classes"):
        CamVid("train", root=root, grouping="colors")


def test_segnet_lists_choose_the_files_whatever_their_prefix(tmp_path):
    root = make(tmp_path, "segnet")
    lines = [f"/SegNet/CamVid/train/{n}.png /SegNet/CamVid/trainannot/{n}.png" for n in FRAMES["train"][:2]]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    assert names(CamVid("train", root=root)) == FRAMES["train"][:2]


def test_own_lists_win_over_the_official_split(tmp_path):
    root = make(tmp_path, "original")
    (tmp_path / "val.txt").write_text("0001TP_006690\n")
    assert names(CamVid("val", root=root)) == ["0001TP_006690"]
    with pytest.raises(ValueError, match=r"train\.txt is missing, while another split has such a list"):
        CamVid("train", root=root)  # by the rule it would hold the frame that is now in val


def test_kaggle_copy_warns(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        CamVid("train", root=make(tmp_path, "kaggle"))
    assert "split at random" in caplog.text


def test_fastai_codes_in_another_order_are_refused(tmp_path):
    root = make(tmp_path, "fastai")
    (tmp_path / "codes.txt").write_text("\n".join(reversed([name for name, _, _ in CLASSES])))
    with pytest.raises(ValueError, match=r"codes\.txt: its classes are not"):
        CamVid("train", root=root)


def test_two_layouts_in_one_folder_must_be_named(tmp_path):
    make(tmp_path, "segnet")
    root = make(tmp_path, "article")
    with pytest.raises(ValueError, match=r"twice: segnet and article; name one in dataset\.layout"):
        CamVid("val", root=root)
    assert CamVid("val", root=root, layout="segnet").description == (
        "camvid, SegNet layout, 11 classes (segnet grouping)"
    )


@pytest.mark.parametrize("name", ["camvid", "camvid32", "cityscapes"])
def test_a_configured_root_becomes_absolute_and_need_not_exist(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    root = pydantic.TypeAdapter(DATASETS.schema(name)["root"].annotation)
    assert root.validate_python("~/data", strict=True) == str(tmp_path / "home" / "data")
    assert root.validate_python("missing/../data", strict=True) == str(tmp_path / "data")


def test_nothing_found_says_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)trainannot/NAME.*labels/NAME_P.*src/prepare\.py dataset=camvid"):
        CamVid("train", root=str(tmp_path / "absent"))


def test_official_split_has_367_101_and_233_frames():
    """The 701 labeled frames: every 30th of each sequence, and the val stretch at every second frame."""
    frames = [f"0001TP_{i:06}" for i in range(6690, 10381, 30)]
    frames += [f"0006R0_f{i:05}" for i in range(930, 3931, 30)]
    # One frame of this sequence, 901, is off its grid.
    train_0016e5 = [*range(390, 2401, 30), *range(4350, 7921, 30), *range(8190, 8641, 30)]
    frames += [f"0016E5_{901 if i == 900 else i:05}" for i in train_0016e5]
    frames += [f"0016E5_{i:05}" for i in range(7959, 8160, 2)]
    frames += [f"Seq05VD_f{i:05}" for i in range(0, 5101, 30)]
    assert len(frames) == 701
    splits = [official_split(frame) for frame in frames]
    assert [splits.count(s) for s in ("train", "val", "test")] == [367, 101, 233]
    with pytest.raises(ValueError, match=r"'holiday' is not a frame name of CamVid"):
        official_split("holiday")


def archive(path, layout_root, top="camvid"):
    with tarfile.open(path, "w:gz") as tar:
        tar.add(layout_root, arcname=top)


def test_prepare_unpacks_a_download_once(tmp_path, monkeypatch):
    make(tmp_path / "source", "fastai")
    archive(tmp_path / "served.tgz", tmp_path / "source")
    calls = []

    def fake_fetch(url, path, *, md5):
        calls.append((url, md5))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((tmp_path / "served.tgz").read_bytes())

    monkeypatch.setattr(download, "fetch", fake_fetch)
    root = tmp_path / "data" / "camvid"
    prepare(str(root))
    prepare(str(root))
    assert calls == [("https://s3.amazonaws.com/fast-ai-imagelocal/camvid.tgz", "648371e4f3a833682afb39b08a3ce2aa")]
    assert names(CamVid("val", root=str(root))) == FRAMES["val"]
    assert [path.name for path in root.parent.iterdir()] == ["camvid"]  # neither the archive nor a temporary


def test_prepare_refuses_an_archive_that_leads_outside(tmp_path, monkeypatch):
    def fake_fetch(url, path, *, md5):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("../../escaped"), io.BytesIO())

    monkeypatch.setattr(download, "fetch", fake_fetch)
    with pytest.raises(tarfile.OutsideDestinationError):
        prepare(str(tmp_path / "data" / "camvid"))
    assert not (tmp_path / "escaped").exists()


def test_prepare_without_network_says_how_to_do_it_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(camvid_files, "ARCHIVE_URL", "http://127.0.0.1:1/camvid.tgz")
    with pytest.raises(ValueError, match=r"(?s)no connection.*copy it to .*camvid\.tgz and run this again"):
        prepare(str(tmp_path / "camvid"))


@real_camvid
def test_real_camvid_passes_the_check_with_the_published_shares(tmp_path):
    train = CamVid("train", root=str(REAL))
    assert (len(train), len(CamVid("val", root=str(REAL)))) == (367, 101)
    for split in ("train", "val"):
        assert {official_split(name) for name in names(CamVid(split, root=str(REAL)))} == {split}
    report = check(train, cache_dir=tmp_path, workers=2)
    assert report is not None
    assert report.sizes == {"480x360": 367}
    pixels = 367 * 480 * 360
    shares = 100 * np.array([*report.class_pixels, report.ignored_pixels]) / pixels
    expected = [16.85, 23.26, 0.98, 31.66, 4.49, 9.72, 1.17, 1.13, 5.87, 0.64, 0.29, 3.95]
    np.testing.assert_allclose(shares, expected, atol=0.01)


# ---- hints where a split is not found --------------------------------------------------------------------------------


def hint(root, split="train", **options):
    with pytest.raises(ValueError, match="was not found") as caught:
        CamVid(split, root=str(root), **options)
    lines = str(caught.value).splitlines()
    return [line for line in lines[1:-1] if not line.startswith("  ")]


def test_pictures_in_subfolders_are_noticed(tmp_path, caplog):
    save(tmp_path / "train" / "scene0" / "a.png", np.zeros((2, 6, 3)))
    save(tmp_path / "trainannot" / "scene0" / "a.png", np.zeros((2, 6)))
    folder = tmp_path / "train"
    assert hint(tmp_path) == [
        f"{folder} has its images in subfolders, such as scene0/a.png, which are not read; move them up"
    ]
    save(tmp_path / "train" / "b.png", np.zeros((2, 6, 3)))
    save(tmp_path / "trainannot" / "b.png", np.zeros((2, 6)))
    with caplog.at_level(logging.WARNING):
        assert names(CamVid("train", root=str(tmp_path))) == ["b"]
    assert f"{folder}: subfolders are not read, such as scene0/a.png" in caplog.text


def test_images_without_labels_are_noticed(tmp_path):
    for split in ("test", "train"):
        for number in range(3):
            save(tmp_path / split / f"{number}.png", np.zeros((2, 6, 3)))
    folder = tmp_path / "test"
    assert hint(tmp_path, "test") == [
        f"{folder} has 3 images and no labels: python src/predict.py input={folder} predicts them"
    ]
    assert hint(tmp_path) == [f"{tmp_path / 'train'} has 3 images, but {tmp_path / 'trainannot'} no labels for them"]


def test_labels_without_images_and_with_another_ending_are_noticed(tmp_path):
    save(tmp_path / "trainannot" / "a.png", np.zeros((2, 6)))
    assert hint(tmp_path) == [f"{tmp_path / 'trainannot'} has 1 labels, but {tmp_path / 'train'} no images for them"]
    save(tmp_path / "images" / "a.png", np.zeros((2, 6, 3)))
    save(tmp_path / "labels" / "a.png", np.zeros((2, 6)))
    expected = f"{tmp_path / 'images'} has 1 images, but no label in {tmp_path / 'labels'} ends with _P"
    assert hint(tmp_path, layout="fastai") == [expected]


def test_classes_of_ones_own_are_noticed(tmp_path):
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\n")
    [line] = hint(tmp_path)
    assert (
        line == f"{tmp_path / 'labelmap.txt'} describes classes of its own, which camvid has not; take dataset=folder"
    )


def test_list_files_name_frames_in_any_unicode_form_and_encoding(tmp_path):
    import os
    import unicodedata

    composed = unicodedata.normalize("NFC", "Straßenfoto_ä1")
    decomposed, gbk = unicodedata.normalize("NFD", composed), "照片1".encode("gbk")
    for folder, shape in (("train", (2, 6, 3)), ("trainannot", (2, 6))):
        for name in (decomposed, os.fsdecode(gbk), "c"):
            save(tmp_path / folder / f"{name}.png", np.zeros(shape))
    (tmp_path / "train.txt").write_bytes(composed.encode() + b".png\n" + gbk + b".png\n")
    assert names(CamVid("train", root=str(tmp_path))) == ["%D5%D5Ƭ1", composed]


@real_camvid
def test_the_test_splits_shifted_label_is_the_one_that_the_docs_name() -> None:
    """Rolled to the right by 88 pixels, it fits its neighbors; docs/protocols.md says so."""
    data = CamVid("test", root=str(REAL))
    index = [pair.name for pair in data.files].index("Seq05VD_f02610")
    label, *neighbors = (data.read_label(index + step) for step in (0, -1, 1))

    def agreement(shift: int, other: np.ndarray) -> float:
        moved = np.roll(label, shift, axis=1)
        both = (moved != 255) & (other != 255)
        return float((moved == other)[both].mean())

    for other in neighbors:
        assert max(range(-240, 240, 4), key=lambda shift: agreement(shift, other)) == 88
        assert agreement(0, other) < 0.6 < 0.88 < agreement(88, other)
