"""CamVid, 701 labeled frames from a car's window, with 11 or with 32 classes.

Source: Brostow, Fauqueur, Cipolla, "Semantic object classes in video: a high-definition ground truth
database", Pattern Recognition Letters 2009. The 11 classes and the split into 367, 101 and 233 frames are
SegNet's (Badrinarayanan, Kendall, Cipolla, PAMI 2017). The data set is passed around in five forms, called
layouts here; all of them are read.
"""

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np

from danet.arguments import Folder
from danet.datasets.camvid_files import Layout, LayoutName, find, prepare
from danet.datasets.files import FileDataset, label_file, write_pair
from danet.datasets.labels import Color, read_label
from danet.interfaces import IGNORE
from danet.registry import DATASETS

Grouping = Literal["segnet", "colors", "colours"]  # the last is "colors" in older runs
TrainSet = Literal["train", "trainval"]

log = logging.getLogger(__name__)

# The 32 classes by their number in index-coded labels (alphabetical), with their color in RGB-coded ones.
COLORS: dict[str, Color] = {
    "Animal": (64, 128, 64),
    "Archway": (192, 0, 128),
    "Bicyclist": (0, 128, 192),
    "Bridge": (0, 128, 64),
    "Building": (128, 0, 0),
    "Car": (64, 0, 128),
    "CartLuggagePram": (64, 0, 192),
    "Child": (192, 128, 64),
    "Column_Pole": (192, 192, 128),
    "Fence": (64, 64, 128),
    "LaneMkgsDriv": (128, 0, 192),
    "LaneMkgsNonDriv": (192, 0, 64),
    "Misc_Text": (128, 128, 64),
    "MotorcycleScooter": (192, 0, 192),
    "OtherMoving": (128, 64, 64),
    "ParkingBlock": (64, 192, 128),
    "Pedestrian": (64, 64, 0),
    "Road": (128, 64, 128),
    "RoadShoulder": (128, 128, 192),
    "Sidewalk": (0, 0, 192),
    "SignSymbol": (192, 128, 128),
    "Sky": (128, 128, 128),
    "SUVPickupTruck": (64, 128, 192),
    "TrafficCone": (0, 0, 64),
    "TrafficLight": (0, 64, 64),
    "Train": (192, 64, 128),
    "Tree": (128, 128, 0),
    "Truck_Bus": (192, 128, 192),
    "Tunnel": (64, 0, 64),
    "VegetationMisc": (192, 192, 0),
    "Void": (0, 0, 0),
    "Wall": (64, 192, 0),
}

# SegNet's 11 classes in its order, and which of the 32 each takes in. The first of each is the only one that
# the rival rule (PIDNet, DDRNet) takes, which leaves the other 21 out of training and scoring.
GROUPS: dict[str, tuple[str, ...]] = {
    "Sky": ("Sky",),
    "Building": ("Building", "Archway", "Bridge", "Tunnel", "Wall"),
    "Pole": ("Column_Pole", "TrafficCone"),
    "Road": ("Road", "LaneMkgsDriv", "LaneMkgsNonDriv"),
    "Pavement": ("Sidewalk", "ParkingBlock", "RoadShoulder"),
    "Tree": ("Tree", "VegetationMisc"),
    "SignSymbol": ("SignSymbol", "Misc_Text", "TrafficLight"),
    "Fence": ("Fence",),
    "Car": ("Car", "OtherMoving", "SUVPickupTruck", "Train", "Truck_Bus"),
    "Pedestrian": ("Pedestrian", "Animal", "CartLuggagePram", "Child"),
    "Bicyclist": ("Bicyclist", "MotorcycleScooter"),
}


def _by_code(layout: Layout, by_name: dict[str, int]) -> dict[int, int] | dict[Color, int]:
    """What `read_label` needs for a 32-class layout, from the train ids by class name."""
    if layout.mode == "rgb":
        return {COLORS[name]: train_id for name, train_id in by_name.items()}
    return {list(COLORS).index(name): train_id for name, train_id in by_name.items()} | {IGNORE: IGNORE}


class _Frames(FileDataset):
    """What both sets of classes have in common: a split's files, and how to read them."""

    prepare = staticmethod(prepare)
    _train_ids: dict[int, int] | dict[Color, int]  # by the value in a label's file

    @staticmethod
    def tiny(folder: Path) -> dict[str, Any]:
        """Write two frames a split with labels of all 32 classes; see interfaces.SegmentationDataset."""
        for split, word in (("train", "train"), ("val", "valid"), ("test", "test")):
            for number in (1, 2):
                codes = np.arange(48 * 64).reshape(48, 64) // (29 * number) % len(COLORS)
                image, label = (folder / f"{word}_{kind}" / f"{split}{number}.png" for kind in ("images", "labels"))
                write_pair(image, label, codes)
        return {"root": str(folder)}

    def __init__(self, root: str, split: str, layout: LayoutName, train_set: TrainSet) -> None:
        self.root = Path(root).expanduser()
        self._layout, self.files = find(self.root, split, layout)
        self._trained_on = ""  # for the description
        if split == "train" and train_set == "trainval":
            self.files += find(self.root, "val", self._layout.name)[1]
            self._trained_on = ", train and val"
            log.warning(
                "dataset.train_set=trainval: val is trained on. Its scores, by which best.pt is chosen, say nothing of "
                "unseen images; train.eval_every as large as train.steps keeps the last weights alone"
            )
        codes = self.root / "codes.txt"
        if self._layout.name == "fastai" and codes.exists() and codes.read_text().split() != list(COLORS):
            raise ValueError(f"{codes}: its classes are not the 32 of CamVid in alphabetical order")

    def read_label(self, index: int) -> np.ndarray:
        """The label of the sample at `index` alone, (H, W) uint8 train ids."""
        return read_label(label_file(self.files[index]), self._layout.mode, self._train_ids)


@DATASETS.register("camvid")
class CamVid(_Frames):
    """CamVid with SegNet's 11 classes, void ignored.

    Args:
        split: "train" (367 images), "val" (101) or "test" (233).
        root: the folder with the files.
        layout: the form they have; "auto" looks which is there.
        train_set: what "train" is: "train", or "trainval" with the 101 images of val as well, as in many papers that
            report the test split. The scores on val, which choose best.pt, are then of images trained on.
        grouping: how 32 classes become 11: "segnet" puts all but Void into one of the 11; "colors" (PIDNet,
            DDRNet) keeps 11 of them and ignores the other 21. Scores under the two are not comparable.

    Raises:
        ValueError: the split is not there, or its labels are grouped already and `grouping` is "colors".
    """

    class_names = tuple(GROUPS)
    palette = tuple(COLORS[members[0]] for members in GROUPS.values())

    def __init__(
        self,
        split: str,
        /,
        *,
        root: Folder,
        layout: LayoutName = "auto",
        train_set: TrainSet = "train",
        grouping: Grouping = "segnet",
    ) -> None:
        super().__init__(root, split, layout, train_set)
        if self._layout.num_classes == 11:
            if grouping != "segnet":
                raise ValueError(
                    f"dataset.grouping: the labels in {self.root} ({self._layout.title} layout) are grouped as "
                    f"SegNet did; {grouping!r} needs labels with 32 classes"
                )
            void = len(GROUPS)
            self._train_ids = {i: i for i in range(void)} | {void: IGNORE, IGNORE: IGNORE}
        else:
            by_name = dict.fromkeys(COLORS, IGNORE)
            for train_id, members in enumerate(GROUPS.values()):
                by_name |= dict.fromkeys(members if grouping == "segnet" else members[:1], train_id)
            self._train_ids = _by_code(self._layout, by_name)
        self.description = f"camvid, {self._layout.title} layout, 11 classes ({grouping} grouping){self._trained_on}"


@DATASETS.register("camvid32")
class CamVid32(_Frames):
    """CamVid with its 32 original classes, of which Void is ignored and never scored.

    Args:
        split: "train" (367 images), "val" (101) or "test" (233).
        root: the folder with the files.
        layout: the form they have; "auto" looks which is there. SegNet's has only 11 classes and is refused.
        train_set: as in CamVid.

    Raises:
        ValueError: the split is not there, or has 11 classes.
    """

    class_names = tuple(COLORS)
    palette = tuple(COLORS.values())

    def __init__(
        self, split: str, /, *, root: Folder, layout: LayoutName = "auto", train_set: TrainSet = "train"
    ) -> None:
        super().__init__(root, split, layout, train_set)
        if self._layout.num_classes != 32:
            raise ValueError(
                f"camvid32: the labels in {self.root} ({self._layout.title} layout) have {self._layout.num_classes} "
                "classes; take dataset=camvid, or get CamVid's original, fast.ai's or Kaggle's files"
            )
        by_name = {name: IGNORE if name == "Void" else index for index, name in enumerate(COLORS)}
        self._train_ids = _by_code(self._layout, by_name)
        self.description = f"camvid32, {self._layout.title} layout, 32 classes (Void ignored){self._trained_on}"
