"""What is drawn into a mask, and how: shapes in an order, later ones over earlier ones.

The order is the file's for LabelMe, z_order and then the file's for CVAT, and from the largest area to the smallest for
COCO and YOLO, which know no order: so a small object on a large one stays visible.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageDraw

from danet.datasets.folder.matching import Entry
from danet.interfaces import IGNORE, FilePair
from danet.services.atomic_files import replacing

RULES = 1  # raise it when the same shapes give other masks
IGNORED = ("__ignore__",)  # LabelMe's word
BACKGROUND = ("_background_",)
FARTHEST = 100_000  # pixels from the left upper corner; the memory that pycocotools takes grows with them
TOO_FAR = f"a corner that is not a number or is more than {FARTHEST} pixels away"
Corners = tuple[tuple[float, float], ...]  # (x, y) in pixels from the left upper corner


class Shape(NamedTuple):
    """One shape.

    Attributes:
        name: of its class.
        polygons: their corners; together they are the shape.
        mask: instead of polygons, (h, w) bool, whose left upper pixel is at `at`.
        at: (x, y).
        box: whether it was a box, of which only the outline is known.
    """

    name: str
    polygons: tuple[Corners, ...] = ()
    mask: np.ndarray | None = None
    at: tuple[int, int] = (0, 0)
    box: bool = False


class Drawing(NamedTuple):
    """What one image's mask is made of.

    Attributes:
        size: (width, height) in pixels.
        shapes: in the order in which they are drawn.
    """

    size: tuple[int, int]
    shapes: Sequence[Shape]


class Source(Protocol):
    """The annotations of a folder in one format.

    Attributes:
        class_names: as the files list them; empty where they do not.
        entries: the images that have annotations.
    """

    class_names: list[str]
    entries: list[Entry]

    def drawing(self, pair: FilePair) -> Drawing:
        """What an image's mask is made of.

        Raises:
            ValueError: its annotations are damaged.
        """
        ...

    def number(self, names: list[str]) -> None:
        """Take the classes that numbers in the files stand for, for formats that have numbers only."""
        ...

    def deciding(self) -> object:
        """What, besides the sizes of the files, changes when annotations do."""
        ...


def rectangle(left: float, top: float, right: float, bottom: float) -> Corners:
    """The corners of a box."""
    return (left, top), (right, top), (right, bottom), (left, bottom)


def area(polygon: Corners) -> float:
    """The area of a polygon (shoelace formula)."""
    x, y = np.array(polygon, dtype=float).T
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


def far(numbers: Iterable[float]) -> bool:
    """Whether coordinates are no numbers or too far away for any image."""
    return not all(abs(number) <= FARTHEST for number in numbers)  # NaN is not


def draw(drawing: Drawing, values: Mapping[str, int], background: int, where: str) -> np.ndarray:
    """The mask, (H, W) uint8.

    Args:
        drawing: of the image.
        values: of the classes.
        background: value of pixels that no shape covers.
        where: the file, for errors.

    Raises:
        ValueError: a shape has a class that is not among `values`, too few corners, or one that cannot be meant.
    """
    width, height = drawing.size
    mask = Image.new("L", (width, height), background)
    pen = ImageDraw.Draw(mask)
    for shape in drawing.shapes:
        value = _value(shape.name, values, background, where)
        if shape.mask is not None:
            mask.paste(value, shape.at, Image.fromarray(shape.mask))
        for polygon in shape.polygons:
            if len(polygon) < 3:
                raise ValueError(f"{where}: a polygon of {shape.name!r} has {len(polygon)} corners; it needs 3 or more")
            if far(number for corner in polygon for number in corner):
                raise ValueError(f"{where}: a polygon of {shape.name!r} has {TOO_FAR}; correct it")
            pen.polygon(polygon, fill=value, outline=value)
    return np.array(mask)


def _value(name: str, values: Mapping[str, int], background: int, where: str) -> int:
    if name in values:
        return values[name]
    if name in IGNORED:
        return IGNORE
    if name in BACKGROUND:
        return background
    raise ValueError(
        f"{where}: has a shape of class {name!r}, which is not among the classes; add it to dataset.classes"
    )


class MaskStore:
    """Drawn masks in a folder, under a hash of all that decides them.

    Args:
        folder: of the masks; None takes one of the system's temporary folders.
        class_names: whose places are the values.
        background: the class of pixels that no shape covers; None ignores them.
    """

    def __init__(self, folder: str | None, class_names: Sequence[str], background: str | None) -> None:
        self._folder = Path(folder or Path(tempfile.gettempdir()) / "danet_masks")
        self._values = {name: place for place, name in enumerate(class_names)}
        self._background = IGNORE if background is None else self._values[background]

    def path(self, drawing: Drawing, where: str) -> Path:
        """The file of the mask, which is drawn if it is not there yet.

        Raises:
            ValueError: it cannot be drawn.
        """
        path = self._folder / f"{self._key(drawing)}.png"
        if not path.exists():
            mask = draw(drawing, self._values, self._background, where)
            try:
                with replacing(path) as temporary:
                    Image.fromarray(mask).save(temporary, "PNG")
            except OSError as error:
                raise ValueError(
                    f"dataset.drawn_masks: {self._folder} cannot be written ({error}); choose another"
                ) from error
        return path

    def _key(self, drawing: Drawing) -> str:
        parts = [
            (s.name, s.polygons, s.at, s.mask is not None and (s.mask.shape, np.packbits(s.mask).tobytes()))
            for s in drawing.shapes
        ]
        decides = (RULES, drawing.size, sorted(self._values.items()), self._background, parts)
        return hashlib.sha256(repr(decides).encode()).hexdigest()[:32]
