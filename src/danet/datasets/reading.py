"""An image file's bytes, and Pillow's image of them, fully decoded: or a reason why not.

Pillow raises on a truncated file and gives a palette image's indices.
"""

import contextlib
import errno
import io
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from danet.services.failures import first_line

EXIF_ORIENTATION = 0x0112
UPRIGHT = (0, 1)  # 0 is not defined, and every reader takes it as 1

MAX_PIXELS = 2**30  # OpenCV's limit, too
USUAL_PIXELS = 178_956_970  # Pillow's limit; a larger image must have bytes enough to be believed
PIXELS_PER_BYTE = 1100  # deflate's best, rounded up

# Reading again does not help; anything else may be a network disk that did not answer for once.
FINAL_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)
READING_WAITS = (0.1, 0.5)  # seconds before reading again


def read(path: str | Path) -> bytes:
    """A file's content; a disk that fails for a moment is asked again.

    Raises:
        ValueError: it cannot be read.
    """
    for wait in (*READING_WAITS, None):
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            if os.path.islink(path) and not os.path.exists(path):
                text = f"{path}: is a broken link, to {os.readlink(path)}; add that file or remove the link"
                raise ValueError(text) from error
            if wait is None or error.errno in FINAL_ERRORS:
                raise undecodable(path, error) from error
            time.sleep(wait)
    raise AssertionError


def undecodable(path: str | Path, error: BaseException) -> ValueError:
    """The error that names a damaged file and why it cannot be decoded."""
    return ValueError(f"{path}: cannot be decoded ({why_unreadable(error)}); restore or remove this file")


def why_unreadable(error: BaseException, formats: str = "an image in a known format") -> str:
    """Why a picture cannot be read, without the names of files and objects that the error's own text has."""
    if isinstance(error, UnidentifiedImageError):
        return f"not {formats}"
    return (isinstance(error, OSError) and error.strerror) or first_line(error)


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[ImageFile]:
    """The image in a file's content, not yet decoded, as large as it may be.

    Pillow refuses more than 178,956,970 pixels, as few bytes may claim so many. Here they are refused where they are
    more than the bytes could hold.

    Raises:
        ValueError: too many pixels.
        Exception: what Pillow raises on damaged files.
    """
    if not data:
        raise ValueError("the file is empty")
    with _PillowsLimit.lifted(), Image.open(io.BytesIO(data)) as image:  # it is looked at when pixels are decoded, too
        if problem := size_problem(*image.size, len(data)):
            raise ValueError(problem)
        yield image


class _PillowsLimit:
    """It is the process's, and comes back when the last of the threads that read images is done."""

    _lock, _readers = threading.Lock(), 0
    _limit: int | None = None

    @classmethod
    @contextlib.contextmanager
    def lifted(cls) -> Iterator[None]:
        """A context without it."""
        with cls._lock:
            if cls._readers == 0:
                cls._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            cls._readers += 1
        try:
            yield
        finally:
            with cls._lock:
                cls._readers -= 1
                if cls._readers == 0:
                    Image.MAX_IMAGE_PIXELS = cls._limit


def size_problem(width: int, height: int, num_bytes: int) -> str:
    """Why an image of a file of so many bytes is not decoded; empty where it is."""
    pixels = width * height
    if pixels > USUAL_PIXELS and pixels > num_bytes * PIXELS_PER_BYTE:
        return f"its header claims {width}x{height} pixels, which its {num_bytes} bytes cannot hold"
    if pixels > MAX_PIXELS:
        return f"{width}x{height} pixels are more than the {MAX_PIXELS} that can be read; cut it into tiles"
    return ""


def decode(path: str | Path, data: bytes) -> tuple[Image.Image, str]:
    """The fully decoded image, and Pillow's word for how the file stores a pixel ("L", "L;4", ...).

    `load` also finds the truncation that `open` and `verify` let pass.

    Raises:
        ValueError: the file is damaged, or asks by EXIF to be turned. (Some readers obey EXIF, some do not, and
            Pillow itself obeys a TIFF's: image and label may not match.)
        MemoryError: it is too large.
    """
    try:
        with opened(data) as image:
            stored_as = str(image.tile[0][3]) if image.tile else image.mode
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)  # before a TIFF is turned, which removes it
            image.load()
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise many types: OSError, SyntaxError, struct.error, zlib.error
        raise undecodable(path, error) from error
    refuse_turned(path, orientation)
    return image, stored_as


def has_deep_colors(stored_as: str) -> bool:
    """Whether Pillow, which cuts colors to 8 bits, reads colors of 16: by its word for how a pixel is stored."""
    return re.search(r"(RGB[AXa]?|LA|CMYK);16[LBN]", stored_as) is not None


def refuse_turned(path: str | Path, orientation: int) -> None:
    """Refuse an image that asks by EXIF to be turned.

    Raises:
        ValueError: it does.
    """
    if orientation not in UPRIGHT:
        raise ValueError(f"{path}: EXIF orientation is {orientation}; turn the pixels and save it without EXIF")
