"""Which label belongs to which image, by their keys (listing.py)."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from danet.datasets.files import sample_name
from danet.datasets.folder.listing import IMAGE_ENDINGS, LABEL_ENDINGS, Found, stems
from danet.interfaces import FilePair

MAX_LINES = 5


class Entry(NamedTuple):
    """An image with its label, or one of both alone.

    Attributes:
        pair: the files.
        key: of the image; see listing.py.
        split: that its folders name, or empty.
    """

    pair: FilePair
    key: str
    split: str


Keys = Callable[[Found], list[tuple[str, str]]]  # under which an image looks, or a label is found, in turn


def match(images: list[Found], labels: list[Found]) -> list[Entry]:
    """All images with their labels, then the labels without an image, each in the order of their names.

    A label belongs to the image of the same split and key; else of the same key but for a usual ending; else of the
    same file name, where it is the only one.

    Raises:
        ValueError: an image has several labels, or two images one name.
    """
    partners: dict[Path, Found] = {}
    left, problems = list(images), []
    for strict, of_image, of_label in _ways():
        free = defaultdict(list)
        taken = {label.path for label in partners.values()}
        for label in labels:
            if label.path not in taken:
                for key in of_label(label):
                    free[key].append(label)
        for image in left:
            found = {label.path: label for key in of_image(image) for label in free[key]}
            if len(found) == 1:
                partners[image.path] = next(iter(found.values()))
            elif strict and len(found) > 1:
                problems.append(f"{image.path} has {len(found)} labels: {' and '.join(path.name for path in found)}")
        left = [image for image in left if image.path not in partners]
    if problems:
        more = f"\n  ... and {len(problems) - MAX_LINES} more images" if len(problems) > MAX_LINES else ""
        text = "\n  ".join(problems[:MAX_LINES])
        raise ValueError(f"{text}{more}\n  say which in dataset.labels, such as '{{name}}_mask.png' (docs/own_data.md)")
    return _entries(images, labels, partners)


def _ways() -> Iterator[tuple[bool, Keys, Keys]]:
    """Whether several labels are an error, and the keys of images and labels that are compared, way by way."""

    def exact(found: Found) -> list[tuple[str, str]]:
        return [(found.split, found.key)]

    def shortened(endings: tuple[str, ...], *, split: bool) -> Keys:
        return lambda found: [(found.split if split else "", key) for key in stems(found.key, endings)]

    def last(endings: tuple[str, ...]) -> Keys:
        return lambda found: [("", key.rpartition("/")[2]) for key in stems(found.key, endings)]

    yield True, exact, exact
    yield True, shortened(IMAGE_ENDINGS, split=True), shortened(LABEL_ENDINGS, split=True)
    yield True, shortened(IMAGE_ENDINGS, split=False), shortened(LABEL_ENDINGS, split=False)
    yield False, last(IMAGE_ENDINGS), last(LABEL_ENDINGS)


def _entries(images: list[Found], labels: list[Found], partners: dict[Path, Found]) -> list[Entry]:
    entries, used = [], {label.path for label in partners.values()}
    for image in images:
        label = partners.get(image.path)
        pair = FilePair(str(image.path), str(label.path) if label else None, _name(image.key))
        entries.append(Entry(pair, image.key, image.split or (label.split if label else "")))
    alone = [
        Entry(
            FilePair(f"{label.path.parent / label.path.stem}.*", str(label.path), _name(label.key)),
            label.key,
            label.split,
        )
        for label in labels
        if label.path not in used
    ]
    names: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        other = names.setdefault((entry.split, entry.pair.name), entry)
        if other is not entry:
            raise ValueError(
                f"{other.pair.image} and {entry.pair.image} have the same name; remove or rename one of them"
            )
    return sorted(entries, key=lambda entry: entry.pair.name) + sorted(alone, key=lambda entry: entry.pair.name)


def _name(key: str) -> str:
    return sample_name(key.replace("/", "_"))
