"""The built-in data: generated scenes whose labels need context from far away in the image.

Every scene shows, on a noisy background, a lamp (a red or blue band along one side of the image), discs and squares
anywhere, and *rings* and *crosses*. Lamps, discs and squares are recognized by their looks. Rings and crosses are not:
their class is (shape, color of the lamp). Their own colors, like every color but the lamp's, are tinted grays drawn
without regard to it.

A quarter of the rings and crosses stand beside the lamp, the others near the opposite side: these are more than half
of the image's side away from it, 64 of 128 pixels. A convolutional network whose receptive field is smaller than twice
that learns from the near ones what the lamp means, but can only guess at the far ones. Position attention relates all
positions, so one layer of it suffices. A pixel at an outline is labeled 255 (ignored), as in PASCAL VOC.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from danet.arguments import NonNegativeInt, PositiveInt
from danet.interfaces import IGNORE, Sample
from danet.registry import DATASETS

VERSION = 2  # change it with anything that changes a pixel: it is part of the fingerprint
SPLITS = {"train": 0, "val": 1, "test": 2}


@DATASETS.register("shapes")
class Shapes:
    """Scenes drawn from (seed, split, index), so that they need no files and no memory.

    Args:
        split: "train", "val" or "test"; no scene is in two of them.
        size: height and width in pixels, at least 64.
        train_images: number of training scenes.
        val_images: number of validation scenes, and of test scenes.
        scene_seed: another seed draws other scenes; it is apart from the run's seed, which must not change the data.
    """

    class_names: ClassVar[tuple[str, ...]] = (
        "background",
        "lamp_red",
        "lamp_blue",
        "disc",
        "square",
        "ring_red",
        "ring_blue",
        "cross_red",
        "cross_blue",
    )
    palette: ClassVar[tuple[tuple[int, int, int], ...]] = (
        (70, 70, 70),
        (255, 200, 190),
        (190, 225, 255),
        (0, 158, 115),
        (204, 121, 167),
        (213, 60, 40),
        (40, 100, 215),
        (245, 150, 110),
        (120, 190, 255),
    )

    def __init__(
        self,
        split: str,
        /,
        *,
        size: Annotated[int, Field(ge=64)] = 128,
        train_images: PositiveInt = 1000,
        val_images: PositiveInt = 100,
        scene_seed: NonNegativeInt = 0,
    ) -> None:
        self._key = (scene_seed, SPLITS[split])
        self._size = size
        self._length = train_images if split == "train" else val_images
        self.description = f"shapes, {size}x{size}, generated"

    def __len__(self) -> int:
        """Number of scenes in the split."""
        return self._length

    @staticmethod
    def tiny(folder: Path) -> dict[str, Any]:
        """Options of two small scenes a split; see interfaces.SegmentationDataset."""
        return {"size": 64, "train_images": 2, "val_images": 2}

    def fingerprint(self) -> str:
        """A hash of all that decides the pixels."""
        decides = (VERSION, *self._key, self._size, self._length)
        return hashlib.sha256(repr(decides).encode()).hexdigest()[:16]

    def read_label(self, index: int) -> np.ndarray:
        """The label map (H, W) of one scene."""
        return self[index].label

    def __getitem__(self, index: int) -> Sample:
        """The scene at `index`, the same at every call."""
        if not 0 <= index < self._length:
            raise IndexError(index)
        rng = np.random.default_rng([*self._key, index])
        canvas = _Canvas(self._size, rng)
        lamp = int(rng.integers(2))  # 0 red, 1 blue
        unit = self._size / 128
        canvas.light(lamp, round(24 * unit))
        for _ in range(rng.integers(4, 7)):
            shape = int(rng.integers(2))
            column = rng.uniform(42, 52) if rng.random() < 0.25 else rng.uniform(108, 118)
            center = (rng.uniform(16, 112) * unit, column * unit)
            canvas.draw(("ring", "cross")[shape], center, rng.uniform(13, 17) * unit, 5 + 2 * shape + lamp)
        for _ in range(rng.integers(2, 5)):
            shape = int(rng.integers(2))
            center = (rng.uniform(16, 112) * unit, rng.uniform(44, 112) * unit)
            canvas.draw(("disc", "square")[shape], center, rng.uniform(10, 15) * unit, 3 + shape)
        image, label = canvas.turned(int(rng.integers(4)))
        image = image + 8 * rng.standard_normal(image.shape, np.float32)
        return Sample(np.clip(image, 0, 255).astype(np.uint8), label, f"scene_{index:05d}")


class _Canvas:
    """An image and its label map; a shape is drawn only where it overlaps none that is there already."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self._rng = rng
        ramp = np.linspace(-0.5, 0.5, size)[:, None]
        tint = rng.uniform(95, 160) + rng.normal(0, 10, size=3)
        slopes = rng.normal(0, 20, size=(2, 3))
        self.image = tint + (ramp * slopes[0])[:, None] + (ramp * slopes[1])[None]
        self.label = np.zeros((size, size), np.uint8)

    def light(self, lamp: int, width: int) -> None:
        """Paint the lamp, 0 red or 1 blue, along the left side."""
        self.image[:, :width] = [(220, 40, 40), (40, 70, 220)][lamp]
        self.label[:, :width] = 1 + lamp
        self.label[:, width] = IGNORE

    def turned(self, quarters: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and label map, turned by so many quarters."""
        return np.rot90(self.image, quarters), np.ascontiguousarray(np.rot90(self.label, quarters))

    def draw(self, shape: str, center: tuple[float, float], radius: float, label: int) -> None:
        """Draw a shape, a tinted gray that differs from the background; center (row, column) and radius in pixels."""
        size, (row, column) = len(self.label), center
        rows, columns = (slice(max(int(c - radius) - 4, 0), int(c + radius) + 6) for c in (row, column))
        image, drawn = self.image[rows, columns], self.label[rows, columns]
        dy = np.arange(size)[rows, None] - row
        dx = np.arange(size)[None, columns] - column
        distance = np.hypot(dy, dx)
        outside = {  # signed distance to the outline of the shape's region, in pixels
            "disc": distance - radius,
            "ring": distance - radius,
            "square": np.maximum(abs(dy), abs(dx)) - 0.85 * radius,
            "cross": np.minimum(
                np.maximum(abs(dy) - radius, abs(dx) - 0.4 * radius),
                np.maximum(abs(dx) - radius, abs(dy) - 0.4 * radius),
            ),
        }[shape]
        region = outside <= 0
        if drawn[outside <= 3].any():
            return
        contrast = self._rng.uniform(45, 90) * self._rng.choice((-1, 1))
        color = image.mean(axis=(0, 1)) + contrast + self._rng.normal(0, 12, size=3)
        image[region & (distance >= 0.45 * radius) if shape == "ring" else region] = color
        drawn[region] = label
        drawn[abs(outside) <= 0.7] = IGNORE
