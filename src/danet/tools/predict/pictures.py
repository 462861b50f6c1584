"""Pictures of a prediction, and their files.

Shapes: H x W image size.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from danet.services.atomic_files import replacing

JPEG_SIDE = 65500  # pixels that libjpeg writes at most


def overlay(image: np.ndarray, colors: np.ndarray, opacity: float) -> np.ndarray:
    """Colors over an image, each (H, W, 3) uint8; opacity 0 is the image, 1 the colors.

    Where the color is black, as that of VOC's background, the image stays as it is, not darkened.
    """
    blended = np.asarray(Image.blend(Image.fromarray(image), Image.fromarray(colors), opacity))
    return np.where(colors.any(axis=2, keepdims=True), blended, image)


def save_image(path: Path, pixels: np.ndarray) -> None:
    """Write (H, W) or (H, W, 3) uint8 as a PNG or JPEG, whole or not at all.

    Raises:
        ValueError: it is too large for a JPEG.
        OSError: it cannot be written.
    """
    if path.suffix == ".jpg" and max(pixels.shape) > JPEG_SIDE:
        size = "x".join(map(str, pixels.shape[:2]))
        raise ValueError(f"{path.name}: {size} is too large for a JPEG ({JPEG_SIDE} a side); set write=[labels,color]")
    options: dict[str, Any] = {"quality": 92, "subsampling": 0} if path.suffix == ".jpg" else {}
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, "JPEG" if path.suffix == ".jpg" else "PNG", **options)
