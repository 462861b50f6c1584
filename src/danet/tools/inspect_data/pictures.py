"""The page's pictures: a photo and, as a layer of its own, what its label says.

H, W image height and width in pixels.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from danet.interfaces import IGNORE
from danet.services import atomic_files
from danet.services.figures import Color, as_rgb

SIDE = 400  # pixels of a picture's longer side at most
SMALLEST_PART = 1 / 3  # of an image's side, that a close-up of a class shows
AROUND = 2.5  # sides of the region that a close-up shows, where that is more
GRAY = (128, 128, 128)


@dataclass(frozen=True)
class Picture:
    """A photo with a layer over it.

    Attributes:
        photo: (H, W, 3) uint8.
        layer: (H, W, 4) uint8, red, green, blue and opacity.
        name: of the sample.
        text: below the picture.
    """

    photo: np.ndarray
    layer: np.ndarray
    name: str
    text: str

    @property
    def photo_url(self) -> str:
        """The photo as a data URL."""
        return _url("jpeg", _encoded(Image.fromarray(self.photo), "JPEG", quality=82))

    @property
    def layer_url(self) -> str:
        """The layer as a data URL."""
        return _url("png", _encoded(Image.fromarray(self.layer), "PNG", compress_level=9))

    def save(self, path: Path) -> None:
        """Write photo and layer as one JPEG."""
        both = Image.alpha_composite(Image.fromarray(self.photo).convert("RGBA"), Image.fromarray(self.layer))
        atomic_files.write_bytes(path, _encoded(both.convert("RGB"), "JPEG", quality=88))


def labeled(image: np.ndarray, label: np.ndarray, palette: Sequence[Color], name: str, text: str) -> Picture:
    """An image (H, W, C) under the colors of its label; where that is ignored, under gray stripes."""
    image, label = _smaller(as_rgb(image), label)
    row, column = np.indices(label.shape)
    layer = np.zeros((*label.shape, 4), np.uint8)
    ids = np.minimum(label, len(palette))
    layer[..., :3] = np.array([*palette, GRAY], np.uint8)[ids]
    layer[..., 3] = np.where(label < len(palette), 128, np.where((row + column) % 8 < 3, 230, 60))
    return Picture(image, layer, name, text)


def spotlight(image: np.ndarray, label: np.ndarray, number: int, color: Color, name: str, text: str) -> Picture:
    """A close-up of a class: outlined where its label is, everything else dimmed."""
    import cv2

    rows, columns = _window(label == number)
    image, label = _smaller(as_rgb(image)[rows, columns], label[rows, columns])
    inside = (label == number).astype(np.uint8)
    outline = inside > cv2.erode(inside, np.ones((3, 3), np.uint8))
    layer = np.zeros((*label.shape, 4), np.uint8)
    layer[..., 3] = np.where(inside, 0, 128)
    layer[outline] = (*_bright(color), 255)
    return Picture(image, layer, name, text)


def _bright(color: Color) -> tuple[int, int, int]:
    """A color that shows on a dimmed photo, of the same hue."""
    largest = max(color)
    if largest < 40:
        return (255, 255, 255)
    red, green, blue = (round(value * 255 / largest) for value in color)
    return red, green, blue


def _window(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns around the mask's largest region."""
    import cv2

    _, _, regions, centers = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    largest = 1 + int(regions[1:, cv2.CC_STAT_AREA].argmax()) if len(regions) > 1 else 0
    height, width = mask.shape
    tall, wide = regions[largest, cv2.CC_STAT_HEIGHT] / height, regions[largest, cv2.CC_STAT_WIDTH] / width
    part = min(1, max(SMALLEST_PART, AROUND * max(tall, wide)))
    x, y = centers[largest]
    return _span(height, part, y), _span(width, part, x)


def _span(size: int, part: float, center: float) -> slice:
    length = max(1, round(size * part))
    first = min(max(0, round(center - length / 2)), size - length)
    return slice(first, first + length)


def _smaller(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both at the page's size: no more than SIDE pixels."""
    import cv2

    factor = min(1.0, SIDE / max(label.shape))
    size = tuple(max(1, round(side * factor)) for side in label.shape[::-1])
    if factor == 1 and image.shape[:2] == label.shape:
        return np.ascontiguousarray(image), label
    return (
        cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA),
        cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT),
    )


def ignored_share(label: np.ndarray) -> float:
    """The part of a label's pixels that is ignored."""
    return float((label == IGNORE).mean())


def _encoded(image: Image.Image, form: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
