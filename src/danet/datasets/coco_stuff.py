"""COCO-Stuff with its 171 classes (Caesar et al., CVPR 2018), 10,000 or 164,000 images; scores on the two differ.

The data set numbers 182 classes, of which 11 occur in no label. The 171 others are numbered here from 0, in its order.
"""

from pathlib import Path
from typing import Any

import numpy as np

from danet.arguments import Folder
from danet.datasets.files import list_folder, locate, write_image, write_list, write_pair
from danet.datasets.numbered import MATLAB, NumberedDataset, known_split
from danet.interfaces import IGNORE
from danet.registry import DATASETS
from danet.services.palettes import voc_palette

CLASSES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, "
    "mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, "
    "teddy bear, hair drier, toothbrush, banner, blanket, branch, bridge, building-other, bush, cabinet, cage, "
    "cardboard, carpet, ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, "
    "dirt, door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, "
    "fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, "
    "mountain, mud, napkin, net, paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing, "
    "railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, "
    "stairs, stone, straw, structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, "
    "wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, "
    "window-other, wood"
).split(", ")

# Of the numbers 1 to 182 in the data set's labels.txt: street sign, hat, shoe, eye glasses, plate, mirror, window,
# desk, door, blender and hair brush, which occur in no label.
ABSENT = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
NUMBERS = [number for number in range(1, 183) if number not in ABSENT]

TRAIN_IDS = "_labelTrainIds"  # ending of labels that mmsegmentation's converters write


class _CocoStuff(NumberedDataset):
    """What both have in common."""

    class_names = tuple(CLASSES)
    palette = voc_palette(len(CLASSES))

    @classmethod
    def prepare(cls, root: str) -> None:
        """Say how to get the files, unless they are there.

        Raises:
            ValueError: they are not; the text says what to do.
        """
        for split in ("train", "val"):
            cls(split, root=root)  # type: ignore[call-arg]


@DATASETS.register("coco_stuff10k")
class CocoStuff10k(_CocoStuff):
    """COCO-Stuff 10k, version 1.1, 171 classes; unlabeled pixels are ignored.

    Args:
        split: "train" (9000 images) or "val" (1000), which papers call test.
        root: a folder with the original files (images, annotations/*.mat, imageLists) or with mmsegmentation's
            (images/train2014, annotations/train2014/*_labelTrainIds.png, and test2014).

    Raises:
        ValueError: files are not there.
    """

    how_to_get = (
        "Unpack http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/cocostuff-10k-v1.1.zip (2 GB) in "
        "{root}, so that {root}/imageLists/train.txt, {root}/images and {root}/annotations exist"
    )
    description = "coco_stuff10k, 171 classes, unlabeled pixels ignored"
    _mat_field = "S"

    def __init__(self, split: str, /, *, root: Folder) -> None:
        known_split(split, "coco_stuff10k", "the images that papers test on are those of val")
        self.root = Path(root).expanduser()
        word = "train" if split == "train" else "test"
        images, labels_at = self.root / "images", self.root / "annotations"
        if (labels_at / f"{word}2014").exists():
            labels_at /= f"{word}2014"
            self._train_ids = {0: IGNORE} | {number + 1: number for number in range(len(CLASSES))}
            self._pair(images / f"{word}2014", list_folder(labels_at, TRAIN_IDS), labels_at)
        else:
            self._train_ids = {0: IGNORE} | {number: train_id for train_id, number in enumerate(NUMBERS)}
            names = self._names(self.root / "imageLists" / f"{word}.txt")
            self._pair(images, list_folder(labels_at, suffixes=[MATLAB]), labels_at, names)

    @staticmethod
    def tiny(folder: Path) -> dict[str, Any]:
        """Write two images a split with all numbers, as the original files are; see interfaces.SegmentationDataset."""
        from scipy.io import savemat

        numbers = np.array([0, *NUMBERS], np.uint8)
        for word in ("train", "test"):
            names = [f"COCO_train2014_{word}{number}" for number in (1, 2)]
            write_list(folder / "imageLists" / f"{word}.txt", names)
            for name in names:
                write_image(folder / "images" / f"{name}.jpg", 48, 64)
                (folder / "annotations").mkdir(exist_ok=True)
                codes = numbers[np.arange(48 * 64).reshape(48, 64) // 17 % len(numbers)]
                savemat(folder / "annotations" / f"{name}.mat", {"S": codes})
        return {"root": str(folder)}


@DATASETS.register("coco_stuff164k")
class CocoStuff164k(_CocoStuff):
    """COCO-Stuff 164k, 171 classes; unlabeled pixels are ignored.

    Args:
        split: "train" (118,287 images of COCO's train2017) or "val" (5000); the labels of test are not public.
        root: a folder with images/train2017 or train2017, and annotations/train2017, stuffthingmaps/train2017 or
            stuffthingmaps_trainval2017/train2017, and the same for val2017. Labels are the original NAME.png, or
            mmsegmentation's NAME_labelTrainIds.png; the original ones are taken where both are there.

    Raises:
        ValueError: files are not there, or the split is "test".
    """

    how_to_get = (
        "Unpack http://images.cocodataset.org/zips/train2017.zip (18 GB) and val2017.zip in {root}/images, and "
        "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip in "
        "{root}/annotations, so that {root}/images/train2017 and {root}/annotations/train2017 exist"
    )
    description = "coco_stuff164k, 171 classes, unlabeled pixels ignored"

    def __init__(self, split: str, /, *, root: Folder) -> None:
        known_split(split, "coco_stuff164k")
        self.root = Path(root).expanduser()
        word = f"{split}2017"
        images = locate(self.root, ("images", ""), word) / word
        labels_at = locate(self.root, ("annotations", "stuffthingmaps", "stuffthingmaps_trainval2017"), word) / word
        labels = {name: path for name, path in list_folder(labels_at).items() if not name.endswith(TRAIN_IDS)}
        if labels:
            self._train_ids = {number - 1: train_id for train_id, number in enumerate(NUMBERS)} | {IGNORE: IGNORE}
        else:
            labels = list_folder(labels_at, TRAIN_IDS)
            self._train_ids = {number: number for number in range(len(CLASSES))} | {IGNORE: IGNORE}
        self._pair(images, labels, labels_at)

    @staticmethod
    def tiny(folder: Path) -> dict[str, Any]:
        """Write two images a split with all numbers; see interfaces.SegmentationDataset."""
        numbers = np.array([IGNORE, *(number - 1 for number in NUMBERS)])
        for word in ("train2017", "val2017"):
            for number in (1, 2):
                name = f"{word[:-4]}{number:09d}"
                codes = numbers[np.arange(48 * 64).reshape(48, 64) // (9 * number) % len(numbers)]
                image, label = folder / "images" / word / f"{name}.jpg", folder / "annotations" / word / f"{name}.png"
                write_pair(image, label, codes)
        return {"root": str(folder)}
