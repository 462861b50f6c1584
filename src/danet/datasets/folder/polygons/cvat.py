"""CVAT's XML, "CVAT for images 1.1": polygons, boxes, ellipses and masks, in the order of z_order, then of the file."""

import hashlib
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from danet.datasets.folder.listing import SPLITS, Found, walk
from danet.datasets.folder.matching import Entry
from danet.datasets.folder.polygons.drawing import Corners, Drawing, Shape, rectangle
from danet.datasets.folder.polygons.files import Images, add, raise_missing
from danet.interfaces import FilePair
from danet.services.text import composed


def find(root: Path, images: list[Found]) -> "Cvat | None":
    """The folder's annotations in this format; None where there are none.

    Raises:
        ValueError: a file is damaged, or names a missing image.
    """
    files = [path for path in walk(root, (".xml",)) if b"<annotations" in path.open("rb").read(4096)]
    return Cvat(files, images) if files else None


class Cvat:
    """See drawing.Source."""

    def __init__(self, files: list[Path], images: list[Found]) -> None:
        self.class_names: list[str] = []
        self._entries: dict[str, Entry] = {}
        found = Images(images)
        self._images: dict[str, list[Element]] = {}
        self._digest = hashlib.sha256()
        for file in files:
            content = file.read_bytes()
            self._digest.update(content)
            if b'rotation="' in content:
                self._digest.update(b"turned")  # unlike the masks of versions that drew these shapes upright
            try:
                tree = ElementTree.fromstring(content)
            except ElementTree.ParseError as error:
                raise ValueError(f"{file}: is no XML ({error}); export it again") from error
            if tree.find("track") is not None:
                raise ValueError(f"{file}: has tracks of a video; export it as 'CVAT for images 1.1'")
            self._read(file, tree, found)
        self.entries = list(self._entries.values())

    def _read(self, file: Path, tree: Element, found: Images) -> None:
        names = [composed(label.findtext("name", "")) for label in tree.iter("label")]
        self.class_names += [name for name in dict.fromkeys(names) if name and name not in self.class_names]
        missing, elements = [], tree.findall("image")
        for element in elements:
            split = SPLITS.get(element.get("subset", "").lower(), "")
            if image := found.find(element.get("name", ""), split):
                self._images.setdefault(add(self._entries, image, file, split), []).append(element)
            else:
                missing.append(element.get("name", ""))
        raise_missing(file, missing, len(elements))

    def drawing(self, pair: FilePair) -> Drawing:
        """See drawing.Source."""
        elements = self._images[pair.image]
        try:
            sizes = {(int(element.attrib["width"]), int(element.attrib["height"])) for element in elements}
            if len(sizes) > 1:
                raise ValueError(f"has the sizes {sorted(sizes)} in several files")
            # A tag is of the image as a whole.
            shapes = [s for element in elements for s in element if "label" in s.attrib and s.tag != "tag"]
            shapes.sort(key=lambda shape: int(shape.get("z_order", "0")))
            return Drawing(sizes.pop(), [_shape(shape) for shape in shapes])
        except (KeyError, TypeError, ValueError) as error:
            name = elements[0].get("name")
            reason = error if isinstance(error, ValueError) else repr(error)
            raise ValueError(f"{pair.label}: image {name!r}: {reason}") from error

    def number(self, names: list[str]) -> None:
        """Nothing: the files have names."""

    def deciding(self) -> object:
        """A hash of the files' content."""
        return self._digest.hexdigest()


def _shape(element: Element) -> Shape:
    name = composed(element.attrib["label"])

    def numbers(*keys: str) -> list[float]:
        return [float(element.attrib[key]) for key in keys]

    if element.tag == "polygon":
        points = (point.split(",") for point in element.attrib["points"].split(";") if point)
        return Shape(name, (tuple((float(x), float(y)) for x, y in points),))
    if element.tag == "box":
        left, top, right, bottom = numbers("xtl", "ytl", "xbr", "ybr")
        corners = rectangle(left, top, right, bottom)
        return Shape(name, (_turned(element, corners, (left + right) / 2, (top + bottom) / 2),), box=True)
    if element.tag == "ellipse":
        x, y, rx, ry = numbers("cx", "cy", "rx", "ry")
        steps = [2 * math.pi * k / 90 for k in range(90)]
        outline = tuple((x + rx * math.cos(a), y + ry * math.sin(a)) for a in steps)
        return Shape(name, (_turned(element, outline, x, y),))
    if element.tag == "mask":
        left, top, width, height = (int(value) for value in numbers("left", "top", "width", "height"))
        lengths = [
            int(length) for length in element.attrib["rle"].split(",")
        ]  # outside, inside, outside ... row by row
        flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
        return Shape(name, mask=flat.reshape(height, width), at=(left, top))
    raise ValueError(f"a shape of {name!r} is a {element.tag}, which has no area; make it a polygon, box or mask")


def _turned(element: Element, corners: Corners, x: float, y: float) -> Corners:
    """Corners turned about (x, y) by the element's `rotation`: degrees, clockwise as one sees the image."""
    angle = math.radians(float(element.get("rotation", "0")))
    if not angle:
        return corners
    cos, sin = math.cos(angle), math.sin(angle)
    return tuple((x + cos * (u - x) - sin * (v - y), y + sin * (u - x) + cos * (v - y)) for u, v in corners)
