"""PASCAL Context (Mottaghi et al., CVPR 2014): VOC 2010's images with every pixel labeled; 59 classes, or 60.

The 59 are the most frequent of 459 classes. All the rest is background: a 60th class, which the paper's DANet is scored
with, or ignored. The two scores are not comparable; every result's description has the number.
"""

from pathlib import Path
from typing import Any

import numpy as np

from danet.arguments import Folder
from danet.datasets.download import install
from danet.datasets.files import list_folder, locate, write_list, write_pair
from danet.datasets.numbered import MATLAB, NumberedDataset, known_split
from danet.interfaces import IGNORE
from danet.registry import DATASETS
from danet.services.palettes import voc_palette
from danet.services.places import command

# Each class's number among the 459 (the data set's labels.txt). A converted PNG holds 0 for background, else the
# place in this order, from 1, as mmsegmentation's converter writes it. The PNGs of the data set's page
# (59_context_labels) have another order.
# fmt: off
NUMBERS = {
    "aeroplane": 2, "bag": 9, "bed": 18, "bedclothes": 19, "bench": 22, "bicycle": 23, "bird": 25, "boat": 31,
    "book": 33, "bottle": 34, "building": 44, "bus": 45, "cabinet": 46, "car": 59, "cat": 65, "ceiling": 68,
    "chair": 72, "cloth": 80, "computer": 85, "cow": 98, "cup": 104, "curtain": 105, "dog": 113, "door": 115,
    "fence": 144, "floor": 158, "flower": 159, "food": 162, "grass": 187, "ground": 189, "horse": 207,
    "keyboard": 220, "light": 232, "motorbike": 258, "mountain": 259, "mouse": 260, "person": 284, "plate": 295,
    "platform": 296, "pottedplant": 308, "road": 324, "rock": 326, "sheep": 347, "shelves": 349, "sidewalk": 354,
    "sign": 355, "sky": 360, "snow": 366, "sofa": 368, "table": 397, "track": 415, "train": 416, "tree": 420,
    "truck": 424, "tvmonitor": 427, "wall": 440, "water": 445, "window": 454, "wood": 458,
}
# fmt: on
NUM_LABELS = 459

# Address and MD5 as in torchvision.datasets.voc.
VOC = "https://thor.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar"
VOC_MD5 = "da459979d0c395079b5c75ee67908abb"

PLACES = ("", "VOC2010", "VOCdevkit/VOC2010")


class _Context(NumberedDataset):
    """What both sets of classes have in common.

    Attributes:
        class_names: "background" first where it is a class.
    """

    class_names: tuple[str, ...]
    how_to_get = (
        f"`{command('prepare')} dataset=pascal_context` downloads the images (1.3 GB); by hand: unpack "
        f"{VOC} in {{root}}, so that {{root}}/VOCdevkit/VOC2010/JPEGImages exists. Labels: put the .mat files of "
        "trainval.tar.gz (cs.stanford.edu/~roozbeh/pascal-context) into {root}/trainval, or PNGs converted by "
        "mmsegmentation into {root}/VOCdevkit/VOC2010/SegmentationClassContext"
    )
    _mat_field = "LabelMap"

    def __init__(self, split: str, /, *, root: Folder) -> None:
        known_split(split, "pascal_context", "the images that papers test on are those of val")
        self.root = Path(root).expanduser()
        folder = locate(self.root, PLACES, "JPEGImages")
        train_ids = {name: number for number, name in enumerate(self.class_names)}
        background = train_ids.get("background", IGNORE)
        labels_at = folder / "SegmentationClassContext"
        if labels_at.exists():
            labels = list_folder(labels_at)
            places = {place: train_ids[name] for place, name in enumerate(NUMBERS, start=1)}
            self._train_ids = {0: background} | places
        else:
            labels_at = next((at / "trainval" for at in (folder, self.root) if (at / "trainval").exists()), labels_at)
            labels = list_folder(labels_at, suffixes=[MATLAB])
            by_number = {number: train_ids[name] for name, number in NUMBERS.items()}
            self._train_ids = dict.fromkeys(range(NUM_LABELS + 1), background) | by_number
        lists = folder / "ImageSets"
        converted = lists / "SegmentationContext" / f"{split}.txt"
        names = self._names(converted if converted.exists() else lists / "Main" / f"{split}.txt")
        self._pair(folder / "JPEGImages", labels, labels_at, names)

    @staticmethod
    def tiny(folder: Path) -> dict[str, Any]:
        """Write two images a split with all numbers; see interfaces.SegmentationDataset."""
        voc = folder / "VOCdevkit" / "VOC2010"
        for split in ("train", "val"):
            names = [f"2008_{split}{number}" for number in (1, 2)]
            for name in names:
                codes = np.arange(48 * 64).reshape(48, 64) // 50 % (len(NUMBERS) + 1)
                write_pair(voc / "JPEGImages" / f"{name}.jpg", voc / "SegmentationClassContext" / f"{name}.png", codes)
            write_list(voc / "ImageSets" / "SegmentationContext" / f"{split}.txt", names)
        return {"root": str(folder)}

    @staticmethod
    def prepare(root: str) -> None:
        """Download VOC 2010 (1.3 GB) into `root`, unless it is there, and say where its labels are if they are missing.

        Raises:
            ValueError: a download failed, or labels are missing; the text says what to do by hand.
        """
        folder = Path(root).expanduser()
        if not (locate(folder, PLACES, "JPEGImages") / "JPEGImages").exists():
            install(VOC, folder, "VOCdevkit/VOC2010", md5=VOC_MD5)
        PascalContext("train", root=root)


@DATASETS.register("pascal_context")
class PascalContext(_Context):
    """PASCAL Context with 60 classes, one of them the background.

    Args:
        split: "train" (4998 images) or "val" (5105), which papers also call test.
        root: a folder that holds VOC2010 (or VOCdevkit/VOC2010, or is it). Labels are PNGs of 60 numbers in
            VOC2010/SegmentationClassContext, or the original MATLAB files of 459 numbers in trainval, in either folder.

    Raises:
        ValueError: files are not there.
    """

    class_names = ("background", *NUMBERS)
    palette = voc_palette(60)
    description = "pascal_context, 60 classes, background scored"


@DATASETS.register("pascal_context59")
class PascalContext59(_Context):
    """PASCAL Context with 59 classes, the background ignored; see PascalContext."""

    class_names = tuple(NUMBERS)
    palette = voc_palette(60)[1:]
    description = "pascal_context59, 59 classes, background ignored"
