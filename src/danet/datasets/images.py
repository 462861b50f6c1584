"""Images as arrays: read exactly, or refused with a reason."""

from pathlib import Path

import numpy as np

from danet.datasets.fast_decoders import decode_jpeg, plain_jpeg, plain_png
from danet.datasets.reading import decode, read, undecodable


def read_image(path: str | Path, *, threads: bool = False) -> np.ndarray:
    """The image as (H, W, 3) uint8 RGB.

    Args:
        path: of the file.
        threads: several threads call this at once, as the check before training does, which also looks closer for
            damage.

    Raises:
        ValueError: the file is damaged, has no 8-bit colours, or asks by EXIF to be turned. (Some readers
            obey EXIF, some do not, and the label carries no such mark: image and label may not match.)
    """
    data = read(path)
    try:
        plain = (plain_jpeg(data), plain_png(data, threads=threads))
    except ValueError as error:
        raise undecodable(path, error) from error
    for pixels in plain:
        if pixels is not None and pixels.ndim == 3:
            return pixels
    image, _ = decode(path, data)
    if threads and image.format == "JPEG":
        try:
            decode_jpeg(data, {"L": "GRAY", "CMYK": "CMYK"}.get(image.mode, "RGB"))
        except ValueError as error:
            raise undecodable(path, error) from error
    if image.mode not in ("RGB", "L", "P", "RGBA", "CMYK"):
        raise ValueError(f"{path}: image has mode {image.mode}; save it as 8-bit RGB")
    return np.asarray(image.convert("RGB"))
