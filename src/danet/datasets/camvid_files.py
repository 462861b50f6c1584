"""Where CamVid's files are: its five layouts, its split, its download."""

import logging
import re
from pathlib import Path
from typing import Literal, NamedTuple

from danet.datasets.download import DownloadError, install
from danet.datasets.files import IMAGE_SUFFIXES, list_folder, pair_up, read_list
from danet.datasets.labels import LabelMode
from danet.interfaces import FilePair
from danet.services.places import command

log = logging.getLogger(__name__)

LayoutName = Literal["auto", "segnet", "original", "fastai", "kaggle", "article"]


class Layout(NamedTuple):
    """One form of the data set: where it keeps a split's files and how it codes labels."""

    name: LayoutName
    title: str
    images: str  # folder; {split} stands for train, val or test
    labels: str
    ending: str  # of a label's name
    mode: LabelMode
    num_classes: int  # that its labels tell apart


_LAYOUTS = (
    Layout("segnet", "SegNet", "{split}", "{split}annot", "", "index", 11),
    Layout("kaggle", "Kaggle", "{split}", "{split}_labels", "_L", "rgb", 32),
    Layout("article", "article", "{split}_images", "{split}_labels", "", "index", 32),
    Layout("fastai", "fast.ai", "images", "labels", "_P", "index", 32),
    Layout("original", "original", "701_StillsRaw_full", "LabeledApproved_full", "_L", "rgb", 32),
    Layout("original", "original", "images", "labels", "_L", "rgb", 32),
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


def _wanted(root: Path, layout: Layout, split: str, names: set[str]) -> set[str]:
    """Those of a folder's sample names that make up the split; list files in `root` win over any rule."""
    # SegNet's own lists begin every path with /SegNet/CamVid/, wherever the files are.
    lists = {s: root / f"{s}.txt" for s in ("train", "val", "test")}
    if lists[split].exists():
        return read_list(lists[split])
    if "{split}" in layout.images:
        return names
    if any(path.exists() for path in lists.values()):
        raise ValueError(
            f"{lists[split]} is missing, while another split has such a list; write it, or remove the others"
        )
    if layout.name == "fastai" and (root / "valid.txt").exists():
        val = read_list(root / "valid.txt")
        if split == "val":
            return val
        return {name for name in names - val if (official_split(name) == "test") == (split == "test")}
    return {name for name in names if official_split(name) == split}


class _Place(NamedTuple):
    """Where one layout keeps one split, and the files found there by sample name."""

    layout: Layout
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
            hint = f"{folder} has {count} images and no labels: {command('predict')} input={folder} predicts them"
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
        hints[root] = f"{root / own[0]} describes classes of its own, which camvid has not; take dataset=folder"
    return list(hints.values())


def _nested(folder: Path) -> Path | None:
    """An image in a subfolder, if there is one."""
    found = (path for path in folder.glob("*/**/*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return next((path.relative_to(folder) for path in found), None)


def find(root: Path, split: str, layout_name: LayoutName) -> tuple[Layout, list[FilePair]]:
    """The layout in which the split lies under `root`, and its files.

    Raises:
        ValueError: there is none, or there are two; the text says what was looked for.
    """
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
            f"`{command('prepare')} dataset=camvid` downloads them."
        )
    if layout.name == "kaggle":
        log.warning(
            "%s: Kaggle's copy of CamVid is split at random, so neighboring frames are in train and test: "
            "its scores are far too high and not comparable with published ones",
            root,
        )
    return layout, files


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
    try:
        install(ARCHIVE_URL, folder.parent, "camvid", md5=ARCHIVE_MD5, folder=folder)
    except DownloadError as error:
        raise ValueError(
            f"{error}; or put any copy of CamVid into {folder} (train/, trainannot/, val/ and so on)."
        ) from error
    log.info("CamVid is in %s", folder)
