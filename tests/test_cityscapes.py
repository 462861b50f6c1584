"""Cityscapes: folders, and the ids of its public label table."""

import numpy as np
import pytest
from PIL import Image

from danet.datasets.cityscapes import Cityscapes

IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]  # road ... bicycle


def make(root, split, city, name, label, kind="gtFine"):
    image_folder, label_folder = root / "leftImg8bit" / split / city, root / kind / split / city
    image_folder.mkdir(parents=True, exist_ok=True)
    label_folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", label.shape[::-1]).save(image_folder / f"{name}_leftImg8bit.png")
    Image.fromarray(label).save(label_folder / f"{name}_{kind}_labelIds.png")
    Image.fromarray(label).save(label_folder / f"{name}_{kind}_instanceIds.png")  # to be left alone


def test_ids_become_train_ids(tmp_path):
    label = np.arange(34, dtype=np.uint8).reshape(2, 17)
    make(tmp_path, "val", "munster", "munster_000000_000019", label)
    make(tmp_path, "val", "frankfurt", "frankfurt_000001_007973", label)
    dataset = Cityscapes("val", root=str(tmp_path))
    assert [pair.name for pair in dataset.files] == ["frankfurt_000001_007973", "munster_000000_000019"]
    expected = [IDS.index(i) if i in IDS else 255 for i in range(34)]
    assert dataset[1].label.ravel().tolist() == expected
    assert dataset[1].image.shape == (2, 17, 3)
    assert len(Cityscapes.class_names) == 19
    assert dict(zip(Cityscapes.class_names, Cityscapes.palette, strict=True))["bicycle"] == (119, 11, 32)


def test_an_id_that_does_not_exist_is_refused(tmp_path):
    make(tmp_path, "train", "aachen", "aachen_000000_000019", np.full((2, 2), 34, np.uint8))
    with pytest.raises(ValueError, match=r"aachen_000000_000019_gtFine_labelIds\.png: label has value 34"):
        Cityscapes("train", root=str(tmp_path))[0]


def test_missing_files_and_the_test_split_are_explained(tmp_path):
    with pytest.raises(ValueError, match=r"leftImg8bit_trainvaltest\.zip"):
        Cityscapes("train", root=str(tmp_path))
    with pytest.raises(ValueError, match=r"gtFine_trainvaltest\.zip"):
        Cityscapes.prepare(str(tmp_path))
    with pytest.raises(ValueError, match="test split are not public"):
        Cityscapes("test", root=str(tmp_path))


def test_train_extra_has_coarse_labels(tmp_path):
    make(tmp_path, "train", "aachen", "aachen_000000_000019", np.full((2, 2), 7, np.uint8))
    make(tmp_path, "val", "munster", "munster_000000_000019", np.full((2, 2), 7, np.uint8))
    with pytest.raises(ValueError, match=r"train_extra/CITY/.*leftImg8bit_trainextra\.zip and gtCoarse\.zip"):
        Cityscapes("train", root=str(tmp_path), train_set="both")
    make(tmp_path, "train", "aachen", "aachen_000000_000019", np.full((2, 2), 7, np.uint8), "gtCoarse")
    make(tmp_path, "train_extra", "bayreuth", "bayreuth_000000_000019", np.full((2, 2), 23, np.uint8), "gtCoarse")
    sets = {name: Cityscapes("train", root=str(tmp_path), train_set=name) for name in ("fine", "coarse", "both")}
    labels = {name: [int(data.read_label(i)[0, 0]) for i in range(len(data))] for name, data in sets.items()}
    assert labels == {"fine": [0], "coarse": [10], "both": [0, 10]}
    assert sets["both"].description == "cityscapes, gtFine and gtCoarse of train_extra, 19 classes"
    assert len({data.fingerprint() for data in sets.values()}) == 3
    assert len(Cityscapes("val", root=str(tmp_path), train_set="coarse")) == 1


def test_the_server_gets_ids_under_the_images_names(tmp_path):
    make(tmp_path, "val", "munster", "munster_000000_000019", np.full((2, 19), 7, np.uint8))
    dataset = Cityscapes("val", root=str(tmp_path))
    name, ids = dataset.server_file(0, np.arange(19, dtype=np.uint8)[None].repeat(2, axis=0))
    assert name == "munster_000000_000019_leftImg8bit.png"
    assert ids.dtype == np.uint8
    assert ids.tolist() == [IDS, IDS]


def test_test_images_can_be_read_without_labels(tmp_path):
    make(tmp_path, "test", "berlin", "berlin_000000_000019", np.full((2, 3), 7, np.uint8))
    dataset = Cityscapes.for_server(root=str(tmp_path), train_set="both")
    image, label, name = dataset[0]
    assert (image.shape, name) == ((2, 3, 3), "berlin_000000_000019")
    assert (label == 255).all()
    assert not dataset.labeled
    assert label.shape == (2, 3)
