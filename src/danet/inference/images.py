"""Image files of any kind as RGB arrays.

Shapes: H x W image size.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from danet.datasets.reading import has_deep_colors, opened, why_unreadable


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 RGB, rotated by its EXIF orientation; H and W are those after rotation.

    Gray, palette and CMYK images are converted to RGB, transparency is dropped, and only the first frame is read.

    Raises:
        ValueError: the file is missing, damaged, or a gray image of more than 8 bits.
        MemoryError: it is too large.
    """
    try:
        with opened(Path(path).read_bytes()) as file:
            if file.tile and has_deep_colors(str(file.tile[0][3])):
                raise ValueError("more than 8 bits of a color; scale it to 0..255 first")
            return rgb(ImageOps.exif_transpose(file))
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise many types: OSError, SyntaxError, struct.error, zlib.error
        raise ValueError(f"{path}: cannot be read ({why_unreadable(error)})") from error


def rgb(image: Image.Image) -> np.ndarray:
    """Convert a Pillow image to (H, W, 3) uint8 RGB.

    Raises:
        ValueError: it is a gray image of more than 8 bits.
    """
    if image.mode.startswith(("I", "F")):  # Pillow would clip values at 255
        raise ValueError(f"image: has mode {image.mode}, more than 8 bits of gray; scale it to 0..255 first")
    # Through RGBA, for palettes with transparency.
    return np.asarray((image.convert("RGBA") if image.mode == "P" else image).convert("RGB"))
