"""CamVid, 701 labelled frames from a car's window, with 11 or with 32 classes.

Source: Brostow, Fauqueur, Cipolla, "Semantic object classes in video: a high-definition ground truth
database", Pattern Recognition Letters 2009. The 11 classes and the split into 367, 101 and 233 frames are
SegNet's (Badrinarayanan, Kendall, Cipolla, PAMI 2017). The data set is passed around in five forms, called
layouts here; all of them are read.
"""

import logging
import os
import re
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from danet.arguments import Folder
from danet.datasets.download import DownloadError, fetch
from danet.datasets.files import (
    IMAGE_SUFFIXES,
    Color,
    LabelMode,
    fingerprint,
    label_file,
    list_folder,
    pair_up,
    read_image,
    read_label,
    sample_name,
    write_pair,
)
from danet.interfaces import IGNORE, FilePair, Sample
from danet.registry import DATASETS

log = logging.getLogger(__name__)

LayoutName = Literal["auto", "segnet", "original", "fastai", "kaggle", "article"]
Grouping = Literal["segnet", "colours"]

# The 32 classes by their number in index-coded labels (alphabetical), with their colour in RGB-coded ones.
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


class _Layout(NamedTuple):
    """One form of the data set: where it keeps a split's files and how it codes labels."""

    name: str
    title: str
    images: str  # folder; {split} stands for train, val or test
    labels: str
    ending: str  # of a label's name
    mode: LabelMode
    num_classes: int  # that its labels tell apart


_LAYOUTS = (
    _Layout("segnet", "SegNet", "{split}", "{split}annot", "", "index", 11),
    _Layout("kaggle", "Kaggle", "{split}", "{split}_labels", "_L", "rgb", 32),
    _Layout("article", "article", "{split}_images", "{split}_labels", "", "index", 32),
    _Layout("fastai", "fast.ai", "images", "labels", "_P", "index", 32),
    _Layout("original", "original", "701_StillsRaw_full", "LabeledApproved_full", "_L", "rgb", 32),
    _Layout("original", "original", "images", "labels", "_L", "rgb", 32),
)

# fast.ai's copy of the 701 frames; size and MD5 as published in fastai/fastai, fastai/data/checks.txt.
ARCHIVE_URL = "https://s3.amazonaws.com/fast-ai-imagelocal/camvid.tgz"
ARCHIVE_MD5 = "648371e4f3a833682afb39b08a3ce2aa"  # of 598,913,237 bytes


def official_split(name: str) -> str:
    """The split that a frame belongs to in SegNet's lists, which all published scores use.

    0006R0 is train; 0001TP is train up to frame 8520, then test; Seq05VD is test; 0016E5 is train except for
    the 101 frames from 7959 to 8159, which are val. So val lies amid train, and test gives the honest score.
    """
    match = re.fullmatch(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)", name)
    if not match:
        raise ValueError(
            f"{name!r} is not a frame name of CamVid; for frames of your own, put train.txt, val.txt and "
            "test.txt with one name a line into the data set's folder"
        )
    sequence, frame = match[1], int(match[2])
    if sequence == "Seq05VD" or (sequence == "0001TP" and frame > 8520):
        return "test"
    return "val" if sequence == "0016E5" and 7959 <= frame <= 8159 else "train"


def _read_list(path: Path) -> set[str]:
    """Sample names of a list file: the first path of each line without folders and suffix.

    SegNet's own lists begin every path with /SegNet/CamVid/, wherever the files are.
    """
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    return {sample_name(Path(line.split()[0]).stem) for line in lines if line.strip()}


def _wanted(root: Path, layout: _Layout, split: str, names: set[str]) -> set[str]:
    """Those of a folder's sample names that make up the split; list files in `root` win over any rule."""
    lists = {s: root / f"{s}.txt" for s in ("train", "val", "test")}
    if lists[split].exists():
        return _read_list(lists[split])
    if "{split}" in layout.images:
        return names
    if any(path.exists() for path in lists.values()):
        raise ValueError(
            f"{lists[split]} is missing, while another split has such a list; write it, or remove the others"
        )
    if layout.name == "fastai" and (root / "valid.txt").exists():
        val = _read_list(root / "valid.txt")
        if split == "val":
            return val
        return {name for name in names - val if (official_split(name) == "test") == (split == "test")}
    return {name for name in names if official_split(name) == split}


class _Place(NamedTuple):
    """Where one layout keeps one split, and the files found there by sample name."""

    layout: _Layout
    folder: Path  # of the images
    label_folder: Path
    images: dict[str, Path]
    labels: dict[str, Path]

    def wanted(self, root: Path) -> str:
        """What belongs there, in words."""
        images, labels = self.folder.relative_to(root), self.label_folder.relative_to(root)
        return f"  {self.layout.name}: {images}/NAME.png and {labels}/NAME{self.layout.ending}.png"


def _places(root: Path, split: str, layout_name: LayoutName) -> list[_Place]:
    places = []
    for layout in _LAYOUTS:
        if layout_name in ("auto", layout.name):
            word = "valid" if layout.name == "article" and split == "val" else split
            images, labels = layout.images.format(split=word), layout.labels.format(split=word)
            places.append(
                _Place(
                    layout,
                    root / images,
                    root / labels,
                    list_folder(root / images),
                    list_folder(root / labels, layout.ending),
                )
            )
    return places


def _hints(root: Path, split: str, places: list[_Place]) -> list[str]:
    """What lies where the split was looked for and not found, a line each."""
    hints: dict[Path, str] = {}
    for place in places:
        count, folder, ending = len(place.images), place.folder, place.layout.ending
        if count and split == "test":
            hint = f"{folder} has {count} images and no labels: python src/predict.py input={folder} predicts them"
        elif count and ending and list_folder(place.label_folder):
            hint = f"{folder} has {count} images, but no label in {place.label_folder} ends with {ending}"
        elif count:
            hint = f"{folder} has {count} images, but {place.label_folder} no labels for them"
        elif nested := _nested(folder):
            hint = f"{folder} has its images in subfolders, such as {nested}, which are not read; move them up"
        elif place.labels:
            hint = f"{place.label_folder} has {len(place.labels)} labels, but {folder} no images for them"
        else:
            continue
        hints.setdefault(folder, hint)
    own = [name for name in ("labelmap.txt", "class_dict.csv", "SegmentationClass") if (root / name).exists()]
    if own:
        hints[root] = (
            f"{root / own[0]} describes classes of its own, but camvid has CamVid's alone. For yours write a data set "
            "class (src/danet/interfaces.py says what it needs) and conf/dataset/NAME.yaml"
        )
    return list(hints.values())


def _nested(folder: Path) -> Path | None:
    """An image in a subfolder, if there is one."""
    found = (path for path in folder.glob("*/**/*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return next((path.relative_to(folder) for path in found), None)


def _find(root: Path, split: str, layout_name: LayoutName) -> tuple[_Layout, list[FilePair]]:
    """The layout in which the split lies under `root`, and its files."""
    places = _places(root, split, layout_name)
    found = [place for place in places if place.images and place.labels]
    if len(found) > 1:
        names = " and ".join(place.layout.name for place in found)
        raise ValueError(f"{root} holds CamVid's {split} split twice: {names}; name one in dataset.layout")
    files: list[FilePair] = []
    if found:
        layout, folder, _, images, labels = found[0]
        files = pair_up(_wanted(root, layout, split, images.keys() | labels.keys()), images, labels, folder)
        if nested := _nested(folder):
            log.warning("%s: subfolders are not read, such as %s", folder, nested)
    if not files:
        raise ValueError(
            f"CamVid's {split} split was not found in {root}. Looked for (png, jpg, bmp, tif or webp):\n"
            + "\n".join([*(place.wanted(root) for place in places), *_hints(root, split, places)])
            + "\nPut the files there or set dataset.root; where there is a network, "
            "`python src/prepare.py dataset=camvid` downloads them."
        )
    if layout.name == "kaggle":
        log.warning(
            "%s: Kaggle's copy of CamVid is split at random, so neighbouring frames are in train and test: "
            "its scores are far too high and not comparable with published ones",
            root,
        )
    if layout.name == "fastai" and (root / "codes.txt").exists():
        codes = (root / "codes.txt").read_text().split()
        if codes != list(COLORS):
            raise ValueError(f"{root / 'codes.txt'}: its classes are not the 32 of CamVid in alphabetical order")
    return layout, files


def _by_code(layout: _Layout, by_name: dict[str, int]) -> dict[int, int] | dict[Color, int]:
    """What `read_label` needs for a 32-class layout, from the train ids by class name."""
    if layout.mode == "rgb":
        return {COLORS[name]: train_id for name, train_id in by_name.items()}
    return {list(COLORS).index(name): train_id for name, train_id in by_name.items()} | {IGNORE: IGNORE}


def prepare(root: str) -> None:
    """Download CamVid (600 MB, fast.ai's layout) into `root`, unless some layout is already there.

    Raises:
        ValueError: the download failed, and the text says how to do it by hand; or `root` holds other files.
    """
    folder = Path(root).expanduser().resolve()
    for place in _places(folder, "train", "auto"):
        if place.images and place.labels:
            log.info("CamVid is already in %s (%s layout)", folder, place.layout.title)
            return
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty but holds no CamVid; empty it or set dataset.root")
    archive = folder.with_name(ARCHIVE_URL.rsplit("/", 1)[-1])
    try:
        fetch(ARCHIVE_URL, archive, md5=ARCHIVE_MD5)
    except DownloadError as error:
        raise ValueError(
            f"{error}\nOn a machine with a network download {ARCHIVE_URL}, copy it to {archive} and run "
            f"this again; or put any copy of CamVid into {folder} (train/, trainannot/, val/ and so on)."
        ) from error
    # Unpack beside the final place and move in one step: a run that is killed leaves no half data set.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".camvid-") as temporary:
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")  # refuses paths that lead outside
        if folder.exists():
            folder.rmdir()
        os.replace(Path(temporary) / "camvid", folder)
    archive.unlink()
    log.info("CamVid is in %s", folder)


class _Frames:
    """What both sets of classes have in common: a split's files, and how to read them."""

    prepare = staticmethod(prepare)
    _train_ids: dict[int, int] | dict[Color, int]  # by the value in a label's file
    description: str

    @staticmethod
    def tiny(folder: Path) -> dict[str, Any]:
        """Write two frames a split with labels of all 32 classes; see interfaces.SegmentationDataset."""
        for split, word in (("train", "train"), ("val", "valid"), ("test", "test")):
            for number in (1, 2):
                codes = np.arange(48 * 64).reshape(48, 64) // (29 * number) % len(COLORS)
                image, label = (folder / f"{word}_{kind}" / f"{split}{number}.png" for kind in ("images", "labels"))
                write_pair(image, label, codes)
        return {"root": str(folder)}

    def __init__(self, root: str, split: str, layout: LayoutName) -> None:
        self._root = Path(root).expanduser()
        self._layout, self.files = _find(self._root, split, layout)

    def __len__(self) -> int:
        """Number of images in the split."""
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`."""
        pair = self.files[index]
        return Sample(read_image(pair.image), self.read_label(index), pair.name)

    def read_label(self, index: int) -> np.ndarray:
        """The label of the sample at `index` alone, (H, W) uint8 train ids."""
        return read_label(label_file(self.files[index]), self._layout.mode, self._train_ids)

    def fingerprint(self) -> str:
        """A short hash that changes when the data behind the split, or its classes, change."""
        return fingerprint(self._root, self.files, {"classes": self.description})


@DATASETS.register("camvid")
class CamVid(_Frames):
    """CamVid with SegNet's 11 classes, void ignored.

    Args:
        split: "train" (367 images), "val" (101) or "test" (233).
        root: the folder with the files.
        layout: the form they have; "auto" looks which is there.
        grouping: how 32 classes become 11: "segnet" puts all but Void into one of the 11; "colours" (PIDNet,
            DDRNet) keeps 11 of them and ignores the other 21. Scores under the two are not comparable.

    Raises:
        ValueError: the split is not there, or its labels are grouped already and `grouping` is "colours".
    """

    class_names = tuple(GROUPS)
    palette = tuple(COLORS[members[0]] for members in GROUPS.values())

    def __init__(
        self, split: str, /, *, root: Folder, layout: LayoutName = "auto", grouping: Grouping = "segnet"
    ) -> None:
        super().__init__(root, split, layout)
        if self._layout.num_classes == 11:
            if grouping != "segnet":
                raise ValueError(
                    f"dataset.grouping: the labels in {self._root} ({self._layout.title} layout) are grouped as "
                    f"SegNet did; {grouping!r} needs labels with 32 classes"
                )
            void = len(GROUPS)
            self._train_ids = {i: i for i in range(void)} | {void: IGNORE, IGNORE: IGNORE}
        else:
            by_name = dict.fromkeys(COLORS, IGNORE)
            for train_id, members in enumerate(GROUPS.values()):
                by_name |= dict.fromkeys(members if grouping == "segnet" else members[:1], train_id)
            self._train_ids = _by_code(self._layout, by_name)
        self.description = f"camvid, {self._layout.title} layout, 11 classes ({grouping} grouping)"


@DATASETS.register("camvid32")
class CamVid32(_Frames):
    """CamVid with its 32 original classes, of which Void is ignored and never scored.

    Args:
        split: "train" (367 images), "val" (101) or "test" (233).
        root: the folder with the files.
        layout: the form they have; "auto" looks which is there. SegNet's has only 11 classes and is refused.

    Raises:
        ValueError: the split is not there, or has 11 classes.
    """

    class_names = tuple(COLORS)
    palette = tuple(COLORS.values())

    def __init__(self, split: str, /, *, root: Folder, layout: LayoutName = "auto") -> None:
        super().__init__(root, split, layout)
        if self._layout.num_classes != 32:
            raise ValueError(
                f"camvid32: the labels in {self._root} ({self._layout.title} layout) have {self._layout.num_classes} "
                "classes; take dataset=camvid, or get CamVid's original, fast.ai's or Kaggle's files"
            )
        by_name = {name: IGNORE if name == "Void" else index for index, name in enumerate(COLORS)}
        self._train_ids = _by_code(self._layout, by_name)
        self.description = f"camvid32, {self._layout.title} layout, 32 classes (Void ignored)"
