"""YOLO's segmentation text: labels/NAME.txt for images/NAME.jpg, a shape a line: its class, then x y x y ... in 0..1.

Smaller shapes lie over larger ones. An image without a file has no object: all of it is background.
"""

import re
from pathlib import Path

from danet.datasets.files import label_file
from danet.datasets.folder.listing import Found, described, walk
from danet.datasets.folder.matching import match
from danet.datasets.folder.polygons.drawing import Drawing, Shape, area, rectangle
from danet.datasets.reading import opened, read, undecodable
from danet.interfaces import FilePair


def find(root: Path, images: list[Found]) -> "Yolo | None":
    """The folder's annotations in this format; None where there are none.

    Raises:
        ValueError: they are of key points.
    """
    texts = [found for kind, found in (described(root, path) for path in walk(root, (".txt",))) if kind == "label"]
    folders = {found.path.parent for found in texts if _is_yolo(found.path)}
    if not folders:
        return None
    data = root / "data.yaml"
    if data.is_file() and re.search(rb"(?m)^kpt_shape", data.read_bytes()):
        raise ValueError(f"{data}: kpt_shape: the labels are boxes with key points; export them as segmentation")
    return Yolo(images, [found for found in texts if found.path.parent in folders])


def _is_yolo(path: Path) -> bool:
    """Whether a text begins with a line of numbers, or is empty; that they are the right ones is checked later."""
    words = next((line.split() for line in _lines(path) if line.strip()), [])
    try:
        return not words or len([float(word) for word in words]) >= 5
    except ValueError:
        return False


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8-sig", errors="replace").splitlines()


class Yolo:
    """See drawing.Source; data.yaml or classes.txt has the classes, whose places the lines give."""

    def __init__(self, images: list[Found], files: list[Found]) -> None:
        self.class_names: list[str] = []
        known = {str(image.path) for image in images}
        # A text that is of no image may be no label, such as classes.txt.
        entries = [e for e in match(images, files) if e.pair.image in known or _is_yolo(Path(label_file(e.pair)))]
        folders = {str(Path(entry.pair.image).parent) for entry in entries if entry.pair.label}
        # An image beside others that have labels, but none itself, shows nothing but background.
        self.entries = [
            entry._replace(pair=entry.pair._replace(label=entry.pair.label or entry.pair.image))
            for entry in entries
            if entry.pair.label or str(Path(entry.pair.image).parent) in folders
        ]
        self._names: list[str] = []

    def drawing(self, pair: FilePair) -> Drawing:
        """See drawing.Source."""
        assert pair.label
        try:
            with opened(read(pair.image)) as image:
                size = image.size
        except Exception as error:  # damaged files raise many types
            raise undecodable(pair.image, error) from error
        lines = [] if pair.label == pair.image else _lines(Path(pair.label))
        shapes = [
            self._shape(line.split(), size, f"{pair.label}: line {n}")
            for n, line in enumerate(lines, 1)
            if line.strip()
        ]
        return Drawing(size, sorted(shapes, key=lambda shape: -area(shape.polygons[0])))

    def _shape(self, words: list[str], size: tuple[int, int], where: str) -> Shape:
        try:
            number, values = int(words[0]), [float(word) for word in words[1:]]
        except ValueError:
            text = " ".join(words)[:40]
            raise ValueError(
                f"{where}: {text!r}: must be a class number and then x y x y ...; correct or remove it"
            ) from None
        if 0 <= number < len(self._names) and not self._names[number]:
            raise ValueError(f"{where}: has class {number}, which data.yaml does not name; name it there")
        if not 0 <= number < len(self._names):
            raise ValueError(
                f"{where}: has class {number}, but there are {len(self._names)} classes; add it to data.yaml"
            )
        if any(not -0.01 <= value <= 1.01 for value in values) or len(values) % 2 or len(values) < 4:
            raise ValueError(
                f"{where}: must be x y pairs in 0..1; is this YOLO's segmentation format? Correct or remove it"
            )
        points = [(x * size[0], y * size[1]) for x, y in zip(values[::2], values[1::2], strict=True)]
        if len(points) == 2:  # a box: its center and size
            (x, y), (width, height) = points
            corners = rectangle(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            return Shape(self._names[number], (corners,), box=True)
        return Shape(self._names[number], (tuple(points),))

    def number(self, names: list[str]) -> None:
        """See drawing.Source."""
        self._names = names

    def deciding(self) -> object:
        """Nothing but the files' sizes."""
        return None
