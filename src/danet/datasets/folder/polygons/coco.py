"""COCO's JSON, such as instances_train2017.json or _annotations.coco.json: polygons and run-length masks."""

import hashlib
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from danet.datasets.folder.listing import SPLITS, Found, described, walk
from danet.datasets.folder.matching import Entry
from danet.datasets.folder.polygons.drawing import TOO_FAR, Drawing, Shape, far
from danet.datasets.folder.polygons.files import Images, add, raise_missing, read_json
from danet.interfaces import FilePair
from danet.services.text import composed


def find(root: Path, images: list[Found]) -> "Coco | None":
    """The folder's annotations in this format; None where there are none.

    Raises:
        ValueError: a file is damaged, names a missing image, or pycocotools is not installed.
    """
    files = [path for path in walk(root, (".json",)) if _is_coco(path)]
    return Coco(root, files, images) if files else None


def _is_coco(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if b'"shapes"' in head:  # LabelMe
        return False
    # The three lists may come in any order, the first of them long.
    return any(key in head for key in (b'"images"', b'"annotations"', b'"categories"'))


def _split(root: Path, path: Path) -> str:
    words = re.split(r"[^a-z]+", path.stem.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), described(root, path)[1].split)


class Coco:
    """See drawing.Source; several files may be of different splits, or of different objects in the same images."""

    def __init__(self, root: Path, files: list[Path], images: list[Found]) -> None:
        try:
            import pycocotools.mask  # noqa: F401
        except ImportError as error:
            raise ValueError("COCO's annotations need pycocotools: pip install 'danet[coco]'") from error
        self.class_names: list[str] = []
        self._entries: dict[str, Entry] = {}
        found = Images(images)
        self._drawings: dict[str, tuple[tuple[int, int], list[tuple[str, dict[str, Any]]]]] = {}
        self._digest = hashlib.sha256()
        for file in files:
            self._digest.update(file.read_bytes())
            self._read(file, read_json(file), found, _split(root, file))
        self.entries = list(self._entries.values())

    def _read(self, file: Path, content: dict[str, Any], found: Images, split: str) -> None:
        try:
            names = {c["id"]: composed(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])}
            by_image = defaultdict(list)
            for annotation in content["annotations"]:
                by_image[annotation["image_id"]].append((names[annotation["category_id"]], annotation))
            records = [(i["id"], str(i["file_name"]), (int(i["width"]), int(i["height"]))) for i in content["images"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: lacks what COCO's format has ({error!r}); export it again") from error
        self.class_names += [name for name in names.values() if name not in self.class_names]
        missing = []
        for number, name, size in records:
            if image := found.find(name, split):
                path = add(self._entries, image, file, split)
                known, annotations = self._drawings.setdefault(path, (size, []))
                if known != size:
                    before = self._entries[path].pair.label
                    raise ValueError(f"{path}: has the size {known} in {before} and {size} in {file}; correct one")
                annotations += by_image[number]
            else:
                missing.append(name)
        raise_missing(file, missing, len(records))

    def drawing(self, pair: FilePair) -> Drawing:
        """See drawing.Source."""
        size, annotations = self._drawings[pair.image]
        shapes: list[tuple[int, Shape]] = []
        for name, annotation in annotations:
            try:
                mask = _mask(annotation, *size)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                number = annotation.get("id")
                raise ValueError(
                    f"{pair.label}: annotation {number} cannot be drawn ({error!r}); correct it"
                ) from error
            shapes.append((int(mask.sum()), Shape(name, mask=mask, box=not annotation.get("segmentation"))))
        # The sort is stable: of equal ones, the later in the file is on top.
        return Drawing(size, [shape for _, shape in sorted(shapes, key=lambda pair: -pair[0])])

    def number(self, names: list[str]) -> None:
        """Nothing: the files have names."""

    def deciding(self) -> object:
        """A hash of the files' content."""
        return self._digest.hexdigest()


def _mask(annotation: dict[str, Any], width: int, height: int) -> np.ndarray:
    """The (H, W) bool mask of an annotation: polygons, a run-length code, or else its box."""
    from pycocotools import mask as coco

    shape = annotation.get("segmentation")
    if not shape:
        left, top, box_width, box_height = annotation["bbox"]
        shape = [[left, top, left + box_width, top, left + box_width, top + box_height, left, top + box_height]]
    if isinstance(shape, list):
        for polygon in shape:
            if len(polygon) % 2 or far(polygon):
                raise ValueError("has a number without its pair" if len(polygon) % 2 else f"has {TOO_FAR}")
        code = coco.merge(coco.frPyObjects([polygon for polygon in shape if len(polygon) >= 6], height, width))
    else:
        code = coco.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
    pixels: np.ndarray = coco.decode(code)
    if pixels.shape != (height, width):
        raise ValueError(f"its mask is {pixels.shape[1]}x{pixels.shape[0]}, the image {width}x{height}")
    # What lies behind the last run is left as it was in memory.
    too_short = isinstance(shape, dict) and isinstance(shape["counts"], list) and sum(shape["counts"]) < pixels.size
    if too_short or pixels.sum(dtype=np.int64) != coco.area(code):
        raise ValueError("its run lengths end before the image does")
    return pixels.astype(bool)
