"""The built-in data: generated scenes whose labels need context from far away in the image.

Every scene shows, on a noisy background, a lamp in one corner (red or blue), discs and squares anywhere, and *rings*
and *crosses* along the two sides of the image that are farthest from the lamp. Lamp, disc and square are recognised
by their looks. Rings and crosses are not: their class is (shape, colour of the lamp), and nothing near them tells the
colour. Their own colours, like every colour but the lamp's, are random.

Each pixel of a ring or cross is more than `REACH` of the image's side away from the lamp along an axis: 64 of 128
pixels. A convolutional network whose receptive field is smaller than twice that can only guess between the two (an
IoU of about 1/3 for each of the four classes, so a mean IoU of about 0.65 when all else is nearly perfect). Position
attention relates all positions, so one layer of it suffices. A pixel at an outline is labelled 255 (ignored), as in
PASCAL VOC.
"""

import hashlib
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from danet.data.sample import IGNORE, Sample
from danet.registry import DATASETS, NonNegativeInt, PositiveInt

VERSION = 1  # change it with anything that changes a pixel: it is part of the fingerprint
REACH = 0.5  # distance between the lamp and the shapes that depend on it, in image sides
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
        "lamp",
        "disc",
        "square",
        "ring_red",
        "ring_blue",
        "cross_red",
        "cross_blue",
    )
    palette: ClassVar[tuple[tuple[int, int, int], ...]] = (
        (70, 70, 70),
        (255, 215, 60),
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
        corner = rng.integers(2, size=2)  # (row, column) of the lamp's corner: 0 near, 1 far

        unit = self._size / 128
        canvas.draw("disc", (14 * unit, 14 * unit), 12 * unit, 1, corner, [(220, 40, 40), (40, 70, 220)][lamp])
        for _ in range(rng.integers(4, 7)):
            along, across = rng.uniform(16, 112) * unit, rng.uniform(108, 118) * unit
            centre = (along, across) if rng.random() < 0.5 else (across, along)
            shape = int(rng.integers(2))
            canvas.draw(("ring", "cross")[shape], centre, rng.uniform(13, 17) * unit, 4 + 2 * shape + lamp, corner)
        for _ in range(rng.integers(2, 5)):
            centre = (rng.uniform(16, 112) * unit, rng.uniform(16, 112) * unit)
            shape = int(rng.integers(2))
            canvas.draw(("disc", "square")[shape], centre, rng.uniform(10, 15) * unit, 2 + shape, corner)
        image = canvas.image + 8 * rng.standard_normal(canvas.image.shape, np.float32)
        return Sample(np.clip(image, 0, 255).astype(np.uint8), canvas.label, f"scene_{index:05d}")


class _Canvas:
    """An image and its label map; a shape is drawn only where it overlaps none that is there already."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self._rng = rng
        ramp = np.linspace(-0.5, 0.5, size)[:, None]
        tint = rng.uniform(95, 160) + rng.normal(0, 10, size=3)
        slopes = rng.normal(0, 20, size=(2, 3))
        self.image = tint + (ramp * slopes[0])[:, None] + (ramp * slopes[1])[None]
        self.label = np.zeros((size, size), np.uint8)

    def draw(
        self,
        shape: str,
        centre: tuple[float, float],
        radius: float,
        label: int,
        corner: np.ndarray,
        colour: tuple[int, int, int] | None = None,
    ) -> None:
        """Draw a shape whose centre (row, column) is measured from `corner`, in pixels.

        Without a colour, it is a tinted grey that differs from the background: only lamps are clearly red or blue.
        """
        size = len(self.label)
        row, column = (size - 1 - c if far else c for c, far in zip(centre, corner, strict=True))
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
        if colour is None:
            contrast = self._rng.uniform(45, 90) * self._rng.choice((-1, 1))
            colour = image.mean(axis=(0, 1)) + contrast + self._rng.normal(0, 12, size=3)
        image[region & (distance >= 0.45 * radius) if shape == "ring" else region] = colour
        drawn[region] = label
        drawn[abs(outside) <= 0.7] = IGNORE
