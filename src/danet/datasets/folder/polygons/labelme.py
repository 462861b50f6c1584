"""LabelMe's JSON: a file for each image, of its name. Later shapes lie over earlier ones, as LabelMe draws them."""

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np

from danet.datasets.folder.listing import Found, described, walk
from danet.datasets.folder.matching import match
from danet.datasets.folder.polygons.drawing import BACKGROUND, IGNORED, Drawing, Shape, rectangle
from danet.datasets.folder.polygons.files import read_json
from danet.datasets.reading import opened
from danet.interfaces import FilePair
from danet.services.text import composed


def find(root: Path, images: list[Found]) -> "LabelMe | None":
    """The folder's annotations in this format; None where there are none."""
    files = [path for path in walk(root, (".json",)) if _is_labelme(path)]
    return LabelMe(images, [described(root, path)[1] for path in files]) if files else None


def _is_labelme(path: Path) -> bool:
    with path.open("rb") as file:
        return b'"shapes"' in file.read(1 << 16)


class LabelMe:
    """See drawing.Source; the classes are in no list."""

    def __init__(self, images: list[Found], files: list[Found]) -> None:
        self.class_names: list[str] = []
        self.entries = [entry for entry in match(images, files) if entry.pair.label]

    def drawing(self, pair: FilePair) -> Drawing:
        """See drawing.Source."""
        assert pair.label
        content = read_json(Path(pair.label))
        try:
            size = int(content["imageWidth"]), int(content["imageHeight"])
            return Drawing(size, [_shape(shape) for shape in content["shapes"]])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{pair.label}: {error if isinstance(error, ValueError) else repr(error)}") from error

    def found_names(self) -> list[str]:
        """The classes of all shapes, which takes reading all files."""
        names = {shape.name for entry in self.entries for shape in self.drawing(entry.pair).shapes}
        return sorted(names - {*IGNORED, *BACKGROUND})

    def number(self, names: list[str]) -> None:
        """Nothing: the files have names."""

    def deciding(self) -> object:
        """Nothing but the files' sizes."""
        return None


def _shape(shape: dict[str, Any]) -> Shape:
    name, kind = composed(shape["label"]), shape.get("shape_type") or "polygon"
    points = tuple((float(x), float(y)) for x, y in shape["points"])
    if kind == "polygon":
        return Shape(name, (points,))
    if kind == "rectangle":
        (left, top), (right, bottom) = points[0], points[-1] if len(points) == 2 else points[2]
        return Shape(name, (rectangle(left, top, right, bottom),), box=True)
    if kind == "circle":  # its center, and a point on it
        (x, y), edge = points
        radius, steps = math.dist((x, y), edge), [2 * math.pi * k / 90 for k in range(90)]
        return Shape(name, (tuple((x + radius * math.cos(a), y + radius * math.sin(a)) for a in steps),))
    if kind in ("oriented_rectangle", "rotation"):  # X-AnyLabeling calls it so
        return Shape(name, (points,), box=True)
    if kind == "mask":  # a picture of it, whose left upper pixel is at the first point
        (x, y), _ = points
        return Shape(name, mask=_mask(name, shape["mask"]), at=(round(x), round(y)))
    raise ValueError(
        f"a shape of {name!r} is a {kind}, which has no area; make it a polygon, rectangle, circle or mask"
    )


def _mask(name: str, text: str) -> np.ndarray:
    """The (h, w) bool mask in the base64 of a PNG."""
    try:
        with opened(base64.b64decode(text)) as image:
            mask = np.asarray(image).astype(bool)
    except Exception as error:  # damaged pictures raise many types
        raise ValueError(f"the mask of a shape of {name!r} is no picture ({error}); draw it again") from error
    if mask.ndim != 2:
        raise ValueError(f"the mask of a shape of {name!r} has colors; draw it again")
    return mask
