"""YOLO's segmentation text: labels/NAME.txt for images/NAME.jpg, a shape a line: its class, then x y x y ... in 0..1.

Smaller shapes lie over larger ones. An image without a file has no object: all of it is background.
"""

from pathlib import Path

from danet.datasets.folder.listing import Found, described, walk
from danet.datasets.folder.matching import match
from danet.datasets.folder.polygons.drawing import Drawing, Shape, area, rectangle
from danet.datasets.reading import opened, read, undecodable
from danet.interfaces import FilePair


def find(root: Path, images: list[Found]) -> "Yolo | None":
    """The folder's annotations in this format; None where there are none."""
    texts = [(path, *described(root, path)) for path in walk(root, (".txt",))]
    files = [found for path, kind, found in texts if kind == "label" and _is_yolo(path)]
    return Yolo(images, files) if files else None


def _is_yolo(path: Path) -> bool:
    words = path.read_text(errors="replace").split("\n", 1)[0].split()
    return not words or (words[0].isdecimal() and len(words) >= 5)


class Yolo:
    """See drawing.Source; data.yaml or classes.txt has the classes, whose places the lines give."""

    def __init__(self, images: list[Found], files: list[Found]) -> None:
        self.class_names: list[str] = []
        entries = match(images, files)
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
        lines = [] if pair.label == pair.image else Path(pair.label).read_text().splitlines()
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
            raise ValueError(f"{where}: must be numbers, a class and then x y x y ...") from None
        if 0 <= number < len(self._names) and not self._names[number]:
            raise ValueError(f"{where}: has class {number}, which data.yaml does not name; name it there")
        if not 0 <= number < len(self._names):
            raise ValueError(
                f"{where}: has class {number}, but there are {len(self._names)} classes; add it to data.yaml"
            )
        if any(not -0.01 <= value <= 1.01 for value in values) or len(values) % 2 or len(values) < 4:
            raise ValueError(f"{where}: must be x y pairs in 0..1; is this YOLO's segmentation format?")
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
