"""Cityscapes with its 19 evaluation classes (Cordts et al., CVPR 2016), read from the official folders."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from danet.arguments import Folder
from danet.datasets.files import FileDataset, label_file, list_folder, pair_up, write_pair
from danet.datasets.labels import Color, read_label
from danet.interfaces import IGNORE, FilePair
from danet.registry import DATASETS

# Class name: (id in the labelIds files, display color); the train id is the position.
CLASSES: dict[str, tuple[int, Color]] = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
NUM_IDS = 34  # ids 0..33 occur; those that are no evaluation class are ignored

TRAIN_SETS = {  # folders of images and kinds of labels
    "fine": (("train", "gtFine"),),
    "coarse": (("train_extra", "gtCoarse"),),
    "both": (("train", "gtFine"), ("train_extra", "gtCoarse")),
}
ARCHIVES = {
    "gtFine": "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip",
    "gtCoarse": "leftImg8bit_trainextra.zip and gtCoarse.zip",
}


@DATASETS.register("cityscapes")
class Cityscapes(FileDataset):
    """Cityscapes, images of 2048x1024 pixels, 19 classes.

    Args:
        split: "train" (2975 images) or "val" (500); the labels of "test" are not public.
        root: the folder that holds leftImg8bit and gtFine.
        train_set: "fine", "coarse" (train_extra, 19,998 images with coarse labels, in gtCoarse) or "both".

    Raises:
        ValueError: the files are not there, or the split is "test".
    """

    class_names = tuple(CLASSES)
    palette = tuple(color for _, color in CLASSES.values())

    def __init__(self, split: str, /, *, root: Folder, train_set: Literal["fine", "coarse", "both"] = "fine") -> None:
        if split == "test":
            raise ValueError(
                "cityscapes: the labels of the test split are not public; evaluate on val, or write the files that the "
                "benchmark's server scores (evaluate.save_predictions=true)"
            )
        folders = TRAIN_SETS[train_set] if split == "train" else ((split, "gtFine"),)
        self._list(Path(root).expanduser(), folders)

    @staticmethod
    def tiny(folder: Path) -> dict[str, Any]:
        """Write two frames a split with all ids; see interfaces.SegmentationDataset."""
        for split in ("train", "val"):
            for number in (1, 2):
                name = f"city_00000{number}_000019"
                image = folder / "leftImg8bit" / split / "city" / f"{name}_leftImg8bit.png"
                label = folder / "gtFine" / split / "city" / f"{name}_gtFine_labelIds.png"
                write_pair(image, label, np.arange(48 * 64).reshape(48, 64) // (31 * number) % NUM_IDS)
        return {"root": str(folder)}

    def _list(self, root: Path, folders: tuple[tuple[str, str], ...], *, labeled: bool = True) -> None:
        self.root, self.labeled, self.files = root, labeled, []
        for folder, kind in folders:
            pairs = self._pairs(root / "leftImg8bit" / folder, root / kind / folder, f"_{kind}_labelIds")
            if not pairs:
                raise ValueError(
                    f"no {root}/leftImg8bit/{folder}/CITY/*_leftImg8bit.png and "
                    f"{root}/{kind}/{folder}/CITY/*_{kind}_labelIds.png. Cityscapes is given to registered users only: "
                    f"log in at www.cityscapes-dataset.com, download {ARCHIVES[kind]} and unpack both in {root}, so "
                    f"that {root}/leftImg8bit/{folder} and {root}/{kind}/{folder} exist."
                )
            self.files += pairs
        evaluated = {label_id: train_id for train_id, (label_id, _) in enumerate(CLASSES.values())}
        self._train_ids = dict.fromkeys((*range(NUM_IDS), IGNORE), IGNORE) | evaluated
        kinds = " and ".join(kind if kind == "gtFine" else f"{kind} of {folder}" for folder, kind in folders)
        self.description = f"cityscapes, {kinds}, 19 classes"

    def _pairs(self, image_folder: Path, label_folder: Path, ending: str) -> list[FilePair]:
        pairs: list[FilePair] = []
        for city in sorted({path.name for folder in (image_folder, label_folder) for path in folder.glob("*/")}):
            images = list_folder(image_folder / city, "_leftImg8bit")
            labels = list_folder(label_folder / city, ending) if self.labeled else {}
            pairs += pair_up(images.keys() | labels.keys(), images, labels, image_folder / city)
        return pairs

    @staticmethod
    def for_server(*, root: str, **_: object) -> "Cityscapes":
        """The test images, all of whose pixels are ignored: to predict for the benchmark's server."""
        return _TestImages(root)

    def server_file(self, index: int, prediction: np.ndarray) -> tuple[str, np.ndarray]:
        """What the benchmark's server takes for the image at `index`: the image's file name, and ids by pixel.

        Args:
            index: of the image.
            prediction: (H, W) train ids.
        """
        ids = np.array([label_id for label_id, _ in CLASSES.values()], np.uint8)
        return Path(self.files[index].image).name, ids[prediction]

    @staticmethod
    def prepare(root: str) -> None:
        """Say how to get the files, unless they are there.

        Raises:
            ValueError: they are not; the text says what to do.
        """
        for split in ("train", "val"):
            Cityscapes(split, root=root)

    def read_label(self, index: int) -> np.ndarray:
        """The label of the sample at `index` alone, (H, W) uint8 train ids."""
        if not self.labeled:
            with Image.open(self.files[index].image) as image:
                return np.full(image.size[::-1], IGNORE, np.uint8)
        return read_label(label_file(self.files[index]), "index", self._train_ids)

    def deciding(self) -> dict[str, object]:
        """Nothing else changes labels."""
        return {}


class _TestImages(Cityscapes):
    """The test split, whose labels are not public.

    Args:
        root: see Cityscapes.
    """

    def __init__(self, root: str) -> None:
        self._list(Path(root).expanduser(), (("test", "gtFine"),), labeled=False)
