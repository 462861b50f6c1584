"""Polygons and boxes of annotation tools instead of masks: COCO, LabelMe, CVAT and YOLO, drawn once and kept."""

import importlib
from pathlib import Path
from typing import Literal

from danet.datasets.folder.listing import Found
from danet.datasets.folder.polygons.drawing import Source

PolygonFormat = Literal["coco", "labelme", "cvat", "yolo"]
FORMATS: tuple[PolygonFormat, ...] = ("coco", "labelme", "cvat", "yolo")


def find(name: str, root: Path, images: list[Found]) -> Source | None:
    """The annotations below a folder.

    Args:
        name: a format, or "auto" for the first that there is.
        root: the folder.
        images: its images.

    Raises:
        ValueError: a file is damaged, or names an image that is not there.
    """
    for candidate in FORMATS if name == "auto" else (name,):
        module = importlib.import_module(f"danet.datasets.folder.polygons.{candidate}")
        found: Source | None = module.find(root, images)
        if found is not None:
            return found
    return None
