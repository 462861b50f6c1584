"""Map points of an image to cells of the feature map.

A pixel belongs to the nearest cell when the feature map is resized to the image in the same way as the logits: with
`align_corners`, corner cells lie on corner pixels; otherwise each cell covers an equal rectangle.

Shapes: H x W image size, h x w size of the feature map.
"""

from collections.abc import Sequence

import numpy as np

Point = tuple[int, int]  # row and column of a pixel or cell, from the upper left
Size = tuple[int, int]  # rows and columns
MAX_CLASSES = 12  # more maps are not legible on one sheet


def class_points(prediction: np.ndarray, max_classes: int = MAX_CLASSES) -> list[Point]:
    """A point well inside each predicted class: the pixel of its largest region farthest from the region's border.

    Args:
        prediction: (H, W) uint8.
        max_classes: maximum number of points; classes with the largest regions take precedence.

    Returns:
        The points in the order of the class ids.
    """
    import cv2

    deepest: list[tuple[int, int, Point]] = []  # area, class, point
    for index in np.unique(prediction).tolist():
        mask = np.pad((prediction == index).astype(np.uint8), 1)  # the image border counts as a border
        _, regions, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        areas = stats[1:, cv2.CC_STAT_AREA]
        largest = (regions == 1 + areas.argmax()).astype(np.uint8)
        depth = cv2.distanceTransform(largest, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        deepest.append((int(areas.max()), index, (int(row) - 1, int(column) - 1)))
    kept = sorted(deepest, reverse=True)[:max_classes]
    return [point for _, _, point in sorted(kept, key=lambda entry: entry[1])]


def inside(point: Sequence[int], size: Size) -> Point:
    """Check that a point lies inside an image of this size and return it.

    Raises:
        ValueError: the point lies outside.
    """
    row, column = point
    if not (0 <= row < size[0] and 0 <= column < size[1]):
        raise ValueError(
            f"point [{row}, {column}] lies outside the image with {size[0]} rows and {size[1]} columns; points are "
            "[row, column], from 0"
        )
    return int(row), int(column)


def cell_of(point: Point, size: Size, cells: Size, align_corners: bool) -> Point:
    """The cell that a pixel belongs to in a feature map with `cells` rows and columns."""

    def along(pixel: int, pixels: int, count: int) -> int:
        if align_corners:
            return int(pixel * (count - 1) / max(pixels - 1, 1) + 0.5)
        return int((pixel + 0.5) * count / pixels)

    row, column = (along(*lengths) for lengths in zip(point, size, cells, strict=True))
    return row, column


def at_cells(image: np.ndarray, cells: Size, align_corners: bool) -> np.ndarray:
    """The values of an (H, W) image at the center of each cell: (h, w)."""

    def along(count: int, pixels: int) -> np.ndarray:
        index = np.arange(count)
        if align_corners:
            return (index * (pixels - 1) / max(count - 1, 1) + 0.5).astype(int)
        return ((index + 0.5) * pixels / count).astype(int)

    rows, columns = (along(*lengths) for lengths in zip(cells, image.shape, strict=True))
    return image[rows][:, columns]
