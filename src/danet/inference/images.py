"""Image files of any kind as RGB arrays.

Shapes: H x W image size.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from danet.datasets.reading import opened


def read_image(path: str | Path) -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB, turned as its EXIF says; H and W are those after turning.

    Grey, palette and CMYK images become RGB, transparency is dropped, and of several frames the first one counts.

    Raises:
        ValueError: the file is missing, damaged, or has more than 8 bits of grey.
        MemoryError: it is too large.
    """
    try:
        with opened(Path(path).read_bytes()) as file:
            return rgb(ImageOps.exif_transpose(file))
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise many types: OSError, SyntaxError, struct.error, zlib.error
        raise ValueError(f"{path}: cannot be read ({error})") from error


def rgb(image: Image.Image) -> np.ndarray:
    """A Pillow image as (H, W, 3) uint8 RGB.

    Raises:
        ValueError: it has more than 8 bits of grey.
    """
    if image.mode.startswith(("I", "F")):  # Pillow would cut values off at 255
        raise ValueError(f"image: has mode {image.mode}, more than 8 bits of grey; scale it to 0..255 first")
    # By way of RGBA, for palettes with transparency.
    return np.asarray((image.convert("RGBA") if image.mode == "P" else image).convert("RGB"))
