"""dataset=folder: where it finds images and masks, and which split they are in."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from danet.datasets.folder import ImageFolder
from danet.schema import check_component

PIXELS = np.arange(4 * 6).reshape(4, 6)


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([PIXELS] * 3, axis=2).astype(np.uint8)).save(path)
    return path


def mask(path: Path, classes: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((PIXELS % classes).astype(np.uint8)).save(path)
    return path


def names(root: Path, split: str, **options) -> list[str]:
    dataset = ImageFolder(split, root=str(root), **{"classes": ["background", "crack"], **options})
    for pair in dataset.files:
        assert os.path.exists(pair.image)
        assert pair.label is not None
        assert os.path.exists(pair.label)
        assert pair.image != pair.label
    return [pair.name for pair in dataset.files]


LAYOUTS = {  # image and mask of the sample `n` of a split
    "folders, split below": ("images/{s}/{n}.jpg", "masks/{s}/{n}.png"),
    "folders, split above": ("{s}/images/{n}.jpg", "{s}/labels/{n}.png"),
    "mmseg": ("img_dir/{s}/{n}.jpg", "ann_dir/{s}/{n}.png"),
    "SegNet": ("{s}/{n}.png", "{s}annot/{n}.png"),
    "Kaggle": ("{s}/{n}.png", "{s}_labels/{n}_L.png"),
    "article": ("{s}_images/{n}.png", "{s}_labels/{n}.png"),
    "Cityscapes' folders": ("leftImg8bit/{s}/city/{n}_leftImg8bit.png", "gtFine/{s}/city/{n}_gtFine_labelIds.png"),
    "COCO's names": ("images/{s}2017/{n}.jpg", "annotations/{s}2017/{n}.png"),
    "one folder above": ("My Data/images/{s}/{n}.JPG", "My Data/masks/{s}/{n}.png"),
    "beside each other": ("{s}/{n}.jpg", "{s}/{n}_mask.png"),
    "beside each other, by suffix": ("{s}/{n}.jpg", "{s}/{n}.png"),
    "nested": ("images/{s}/scene0/{n}.jpg", "masks/{s}/scene0/{n}_gt.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_usual_layouts_are_found(tmp_path, layout):
    for split, number in itertools.product(("train", "val"), (1, 2)):
        picture, label = (text.format(s=split, n=f"{split}{number}") for text in LAYOUTS[layout])
        image(tmp_path / picture)
        mask(tmp_path / label)
    for split in ("train", "val"):
        found = names(tmp_path, split)
        assert [name.removesuffix("_leftImg8bit")[-len(split) - 1 :] for name in found] == [f"{split}1", f"{split}2"]


def test_val_has_many_names(tmp_path):
    for word in ("training", "validation", "testing"):
        image(tmp_path / word / "images" / f"{word}.jpg")
        mask(tmp_path / word / "masks" / f"{word}.png")
    assert names(tmp_path, "val") == ["validation"]
    assert names(tmp_path, "test") == ["testing"]


def test_voc_layout_by_its_lists(tmp_path):
    for number in range(4):
        image(tmp_path / "JPEGImages" / f"{number}.jpg")
        mask(tmp_path / "SegmentationClass" / f"{number}.png")
        mask(tmp_path / "SegmentationObject" / f"{number}.png")  # instances: to be left alone
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n2\n")
    (lists / "val.txt").write_text("3\n")
    assert names(tmp_path, "train") == ["0", "2"]
    assert names(tmp_path, "val") == ["3"]
    (lists / "val.txt").write_text("7\nJPEGImages/3.jpg SegmentationClass/3.png\n")
    with pytest.raises(ValueError, match=r"val\.txt: '7' names no image of this folder.*\n.*correct the list"):
        names(tmp_path, "val")


def test_templates(tmp_path):
    for split, name in (("train", "a/1"), ("train", "b/1"), ("val", "a/2")):
        image(tmp_path / "raw" / split / f"{name}.tif")
        mask(tmp_path / "truth" / split / f"{name}-v2.png")
        mask(tmp_path / "truth" / split / f"{name}-v1.png", classes=1)
    options = {"images": "raw/{split}/{name}.tif", "labels": "truth/{split}/{name}-v2.png"}
    assert names(tmp_path, "train", **options) == ["a_1", "b_1"]
    assert names(tmp_path, "val", **options) == ["a_2"]
    with pytest.raises(
        ValueError, match=r"dataset\.labels = 'truth/\{name\}\.bmp': no file below .*truth/train/a \(2\)"
    ):
        names(tmp_path, "val", **{**options, "labels": "truth/{name}.bmp"})


def test_links_are_followed_and_loops_are_not(tmp_path):
    image(tmp_path / "elsewhere" / "x.jpg")
    image(tmp_path / "elsewhere" / "y.jpg")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "data")
    for name in "xy":
        mask(tmp_path / "data" / "masks" / f"{name}.png")
    assert sorted(names(tmp_path / "data", "train") + names(tmp_path / "data", "val")) == ["x", "y"]


def test_several_labels_of_one_image_are_told_apart_by_a_template(tmp_path):
    for name in "ab":
        image(tmp_path / "images" / f"{name}.png")
        mask(tmp_path / "masks" / f"{name}_mask.png")
        mask(tmp_path / "masks" / f"{name}_gt.png")
    with pytest.raises(
        ValueError, match=r"images/a\.png has 2 labels: a_gt\.png and a_mask\.png\n(.*\n)*.*dataset\.labels"
    ):
        names(tmp_path, "train")
    assert names(tmp_path, "train", labels="masks/{name}_gt.png", val_fraction=0.5) in (["a"], ["b"])


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ([], "has no images"),
        (["pictures/1.png"], r"1 images and no masks .*pictures \(1\)\. Say where in dataset\.labels="),
        (["masks/1.png"], r"1 masks and no images .*masks \(1\)\. Say where in dataset\.images="),
    ],
)
def test_what_is_not_found_is_explained(tmp_path, files, text):
    for file in files:
        image(tmp_path / file)
    with pytest.raises(ValueError, match=text):
        names(tmp_path, "train")
    with pytest.raises(ValueError, match="there is no folder .*gone; set dataset.root"):
        names(tmp_path / "gone", "train")


def test_a_test_split_without_labels_is_for_predict(tmp_path):
    for split in ("train", "val", "test"):
        image(tmp_path / "images" / split / f"{split}.jpg")
    for split in ("train", "val"):
        mask(tmp_path / "masks" / split / f"{split}.png")
    with pytest.raises(ValueError, match=r"images/test has 1 images and no labels: python src/predict\.py input="):
        names(tmp_path, "test")
    assert names(tmp_path, "train") == ["train"]


# ---- draws -----------------------------------------------------------------------------------------------------------


def many(root: Path, count: int, folders: int = 1) -> Path:
    for number in range(count):
        name = f"scene{number % folders}/{number:02}"
        image(root / "images" / f"{name}.jpg")
        mask(root / "masks" / f"{name}.png")
    return root


def test_a_split_is_drawn_by_seed_and_fraction(tmp_path):
    many(tmp_path, 20)
    train, val = (names(tmp_path, split, val_fraction=0.25) for split in ("train", "val"))
    assert (len(train), len(val)) == (15, 5)
    assert not set(train) & set(val)
    assert val != names(tmp_path, "val", val_fraction=0.25, split_seed=1)
    dataset = ImageFolder("val", root=str(tmp_path), classes=["a", "b"], test_fraction=0.2)
    assert dataset.drawn
    assert dataset.description == "folder, 2 classes (a, b), 20% drawn for test, 20% drawn for val"
    parts = [names(tmp_path, split, test_fraction=0.2) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [13, 3, 4]
    assert len({name for part in parts for name in part}) == 20
    with pytest.raises(ValueError, match=r"has no test split \(it has train 16, val 4\).*dataset\.test_fraction"):
        names(tmp_path, "test")


def test_an_image_that_is_added_leaves_the_others_where_they_are(tmp_path):
    many(tmp_path, 19)
    before = set(names(tmp_path, "val"))
    many(tmp_path, 20)
    assert len(before - set(names(tmp_path, "val"))) <= 1


def test_what_was_drawn_can_be_written_down_as_a_list(tmp_path):
    many(tmp_path, 10, folders=2)
    train, val = names(tmp_path, "train"), names(tmp_path, "val")
    (tmp_path / "train.txt").write_text("\n".join(train))
    (tmp_path / "val.txt").write_text("\n".join(val))
    dataset = ImageFolder("val", root=str(tmp_path), classes=["a", "b"])
    assert ([pair.name for pair in dataset.files], dataset.drawn) == (val, False)
    assert names(tmp_path, "train", split_seed=5) == train


@pytest.mark.parametrize("group", ["folder", r"(scene\d)"])
def test_groups_stay_together(tmp_path, group):
    many(tmp_path, 20, folders=5)
    for seed in range(5):
        scenes = [{name[:6] for name in names(tmp_path, s, group=group, split_seed=seed)} for s in ("train", "val")]
        assert not scenes[0] & scenes[1]
        assert len(scenes[1]) == 1
    with pytest.raises(ValueError, match=r"dataset\.group = 'city': does not occur in 'scene0/00'"):
        names(tmp_path, "train", group="city")


@pytest.mark.parametrize("group", [None, "folder"])
def test_folds_are_disjoint_and_together_everything(tmp_path, group):
    many(tmp_path, 23, folders=6)
    folds = [names(tmp_path, "val", fold=f"{k}/5", group=group) for k in range(5)]
    assert sorted(itertools.chain(*folds)) == sorted(
        name.replace("/", "_") for name in names(tmp_path, "train") + names(tmp_path, "val")
    )
    if group is None:
        assert sorted(map(len, folds)) == [4, 4, 5, 5, 5]
    for number, fold in enumerate(folds):
        assert not set(fold) & set(names(tmp_path, "train", fold=f"{number}/5", group=group))
    prints = {ImageFolder("val", root=str(tmp_path), classes=["a", "b"], fold=f"{k}/5").fingerprint() for k in range(5)}
    assert len(prints) == 5


def test_folds_pool_train_and_val_and_leave_the_test_alone(tmp_path):
    for split, number in itertools.product(("train", "val", "test"), range(4)):
        image(tmp_path / "images" / split / f"{split}{number}.jpg")
        mask(tmp_path / "masks" / split / f"{split}{number}.png")
    folds = [names(tmp_path, "val", fold=f"{k}/2") for k in range(2)]
    assert sorted(folds[0] + folds[1]) == sorted(f"{s}{n}" for s in ("train", "val") for n in range(4))
    assert names(tmp_path, "test", fold="0/2") == [f"test{n}" for n in range(4)]


def test_pooled_images_of_one_name_are_told_apart(tmp_path):
    """Scores, pictures and predictions go by name."""
    for split in ("train", "val"):
        for number in range(3):
            image(tmp_path / "images" / split / f"{number}.png")
            mask(tmp_path / "masks" / split / f"{number}.png")
    scored = [name for fold in (0, 1) for name in names(tmp_path, "val", fold=f"{fold}/2")]
    assert sorted(scored) == sorted(f"{split}_{number}" for split in ("train", "val") for number in range(3))
    assert names(tmp_path, "val") == ["0", "1", "2"]


def test_lists_and_folders_that_look_like_a_mistake_are_told(tmp_path, caplog):
    for number in range(5):
        image(tmp_path / "images" / f"{number}.png")
        mask(tmp_path / "masks" / f"{number}.png")
    (tmp_path / "train.txt").write_text("0\n1\n2\n")
    (tmp_path / "val.txt").write_text("2\n3\n")
    dataset = ImageFolder("train", root=str(tmp_path), classes=["a", "b"])
    assert "1 images are in train and in val, such as 2: they are trained on and scored" in dataset.notes()
    assert "1 images of the folder are in none of train, val and are left out" in dataset.notes()
    (tmp_path / "valid.txt").write_text("4\n")
    with pytest.raises(ValueError, match=r"val\.txt and .*valid\.txt: both list val; remove one"):
        ImageFolder("train", root=str(tmp_path), classes=["a", "b"])


def test_too_few_images(tmp_path):
    many(tmp_path, 1)
    with pytest.raises(ValueError, match="one image cannot be divided into train and val"):
        names(tmp_path, "train")
    many(tmp_path, 3)
    with pytest.raises(ValueError, match=r"dataset\.fold = 0/5: there are only 3 images; take fewer folds"):
        names(tmp_path, "train", fold="0/5")
    with pytest.raises(ValueError, match=r"one group \(dataset\.group = 'folder'\)"):
        names(tmp_path, "train", group="folder")


def test_two_images_train(tmp_path):
    many(tmp_path, 2)
    assert len(names(tmp_path, "train")) == len(names(tmp_path, "val")) == 1


def test_wrong_options_are_told_together():
    problems: list[str] = []
    wrong = {
        "fold": "5/5",
        "images": "{nam}.jpg",
        "labels": "x.png",
        "group": "(",
        "val_fraction": 0.6,
        "test_fraction": 0.5,
    }
    check_component("dataset", {"name": "folder", "root": "x", **wrong}, problems)
    assert len(problems) == 5
    assert [line.partition(" = ")[0] for line in problems] == [
        f"dataset.{key}" for key in ("images", "labels", "fold", "test_fraction", "group")
    ]
