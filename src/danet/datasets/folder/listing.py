"""Which files of a folder are images, which are labels, what they are called and which split their folders name.

A file's key is its path without suffix and without the folders that say what it is: images/train/a/x.png and
masks/train/a/x.png both have the key a/x and the split train.
"""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from danet.datasets.files import IMAGE_SUFFIXES, sample_name

Kind = Literal["image", "label", ""]

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "img_dir", "jpegimages", "leftimg8bit", "photos", "pictures")
LABEL_FOLDERS = (
    "masks mask labels label annotations annotation annot annots ann ann_dir gt gtfine groundtruth ground_truth "
    "segmentationclass segmentation segmentations labelids"
).split()
LEFT_OUT = ("segmentationobject", "__macosx")  # instances; macOS's shadows in zip files
LABEL_ENDINGS = tuple(
    (
        "_gtFine_labelIds,_labelIds,_labels,_label,_masks,_mask,_segmentation,_seg,_annotation,_groundtruth,_gt,_GT,_L,"
        "_P,-mask,-label,-gt,.mask, mask"
    ).split(",")
)
IMAGE_ENDINGS = ("_leftImg8bit", "_image", "_img", "_photo", "_sat", "_rgb", "-image")


class Found(NamedTuple):
    """A file of the folder.

    Attributes:
        path: of the file.
        key: see the module.
        split: that its folders name, or empty.
    """

    path: Path
    key: str
    split: str = ""


class Template(NamedTuple):
    """A path below the root with {split}, {name} and * in it, see `template`."""

    text: str
    pattern: re.Pattern[str]


def template(text: str) -> Template:
    """The files that `text` means: {split} is a split's name, {name} a sample's (it may have folders), * any letters.

    Raises:
        ValueError: it has no {name}, or other words in braces.
    """
    words = {"{name}": "(?P<name>.+)", "{split}": f"(?P<split>{'|'.join(SPLITS)})", "*": "[^/]*"}
    parts = re.split(r"(\{.*?\}|\*)", text)
    if unknown := [part for part in parts if part.startswith("{") and part not in words]:
        raise ValueError(f"{unknown[0]} is unknown; a template has {{name}}, {{split}} and *")
    if parts.count("{name}") != 1 or parts.count("{split}") > 1:
        raise ValueError("a template has {name} once and {split} at most once, such as '{split}/img/{name}.jpg'")
    return Template(text, re.compile("".join(words.get(part, re.escape(part)) for part in parts)))


def walk(root: Path, suffixes: Collection[str]) -> list[Path]:
    """Files below a folder with one of the suffixes, sorted; links are followed, and none of them twice."""
    return sorted(path for path in _all_files(root) if path.suffix.lower() in suffixes)


def _all_files(root: Path) -> Iterator[Path]:
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else [f for f in folders if f[0] != "." and f.lower() not in LEFT_OUT]
        if real not in seen:
            yield from (Path(folder, name) for name in names if name[0] != ".")
        seen.add(real)


def images_and_labels(root: Path, images: str | None, labels: str | None) -> tuple[list[Found], list[Found]]:
    """The images and the labels below a folder.

    Args:
        root: the folder.
        images: a template, or None for the usual layouts.
        labels: likewise.

    Raises:
        ValueError: a template is none.
    """
    pictures = walk(root, IMAGE_SUFFIXES)
    sorted_images, sorted_labels = _by_folder(root, pictures)
    if images:
        sorted_images = _by_template(root, pictures, template(images))
    if labels:
        sorted_labels = _by_template(root, pictures, template(labels))
        taken = {found.path for found in sorted_labels}
        sorted_images = [found for found in sorted_images if found.path not in taken]
    if images and not labels:
        taken = {found.path for found in sorted_images}
        sorted_labels = [found for found in sorted_labels if found.path not in taken]
    return sorted_images, sorted_labels


def _by_template(root: Path, files: list[Path], wanted: Template) -> list[Found]:
    found = []
    for path in files:
        if match := wanted.pattern.fullmatch(path.relative_to(root).as_posix()):
            split = match["split"] if "split" in wanted.pattern.groupindex else ""
            name = match["name"]
            key = name[: -len(path.suffix)] if name.endswith(path.suffix) else name
            found.append(Found(path, sample_name(key), SPLITS.get(split, "")))
    return found


def _by_folder(root: Path, pictures: list[Path]) -> tuple[list[Found], list[Found]]:
    """Images and labels by the names of their folders, or of the files where these say nothing."""
    read = [described(root, path) for path in pictures]
    images, labels, unclear = ([found for kind, found in read if kind == wanted] for wanted in ("image", "label", ""))
    beside = _labels_beside(images if images and not labels else unclear) if not labels else []
    if beside:
        taken = {found.path for found in beside}
        return [found for found in [*images, *unclear] if found.path not in taken], beside
    return images or unclear, labels or (unclear if images else [])


def _labels_beside(pictures: list[Found]) -> list[Found]:
    """Those of one folder's pictures that are labels of others: x_mask.png of x.jpg, x.png of x.jpg."""
    keys = {(found.path.parent, found.key) for found in pictures}
    by_ending = [
        found
        for found in pictures
        if any((found.path.parent, stem) in keys for stem in _without(found.key, LABEL_ENDINGS))
    ]
    photos = {(f.path.parent, f.key) for f in pictures if f.path.suffix.lower() in (".jpg", ".jpeg")}
    by_suffix = [f for f in pictures if f.path.suffix.lower() == ".png" and (f.path.parent, f.key) in photos]
    return by_ending or by_suffix


def described(root: Path, path: Path) -> tuple[Kind, Found]:
    """What a file's folders say that it is, and its key and split."""
    kind: Kind = ""
    split, rest = "", []
    for folder in path.relative_to(root).parts[:-1]:
        word, named = _folder_words(folder)
        kind, split = word or kind, named or split
        if not word and not named:
            rest.append(folder)
    return kind, Found(path, sample_name("/".join([*rest, path.stem])), split)


def _folder_words(folder: str) -> tuple[Kind, str]:
    """The kind and the split that a folder's name says: trainannot is ("label", "train"), images ("image", "")."""
    name = folder.lower()
    for word, split in {"": "", **SPLITS}.items():
        beginning = re.fullmatch(rf"{word}\d*[_-]?(.*)", name) if word else re.match("(.*)", name)
        ending = re.fullmatch(rf"(.*?)[_-]?{word}\d*", name) if word else None
        for match in (beginning, ending):
            if match and match[1] in IMAGE_FOLDERS:
                return "image", split
            if match and match[1] in LABEL_FOLDERS:
                return "label", split
            if match and word and not match[1]:
                return "", split
    return "", ""


def _without(key: str, endings: Collection[str]) -> list[str]:
    """A key without each of the endings that it has."""
    return [key[: -len(ending)] for ending in endings if key.endswith(ending) and len(key) > len(ending)]


def stems(key: str, endings: Collection[str]) -> list[str]:
    """A key, and what it is without an ending, the longest ending first."""
    return [key, *sorted(_without(key, endings), key=len)]
