"""Images as arrays: read exactly, or refused with a reason. H, W: height and width in pixels; C: bands."""

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from danet.datasets.fast_decoders import decode_jpeg, plain_jpeg, plain_png
from danet.datasets.reading import EXIF_ORIENTATION, decode, has_deep_colors, opened, read, refuse_turned, undecodable

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how such a file begins
PHOTOMETRIC = 262  # the tag that tells what a TIFF's values are; these are no brightness of a band
CONVERTED = {0: "gray values whose 0 is white", 3: "numbers of a palette", 5: "inks (CMYK)"}
PNG = b"\x89PNG"
PNG_EXIF = (b"eXIf", b"Raw profile type", b"tiff:Orientation")  # where a PNG may say how it is to be turned
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}
TO_RGB = {3: [2, 1, 0], 4: [2, 1, 0, 3]}  # OpenCV's order is blue, green, red


def read_image(path: str | Path, *, threads: bool = False) -> np.ndarray:
    """The image as (H, W, 3) uint8 RGB.

    Args:
        path: of the file.
        threads: several threads call this at once, as the check before training does, which also looks closer for
            damage.

    Raises:
        ValueError: the file is damaged, has no 8-bit colors, or asks by EXIF to be turned. (Some readers
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
    image, stored_as = decode(path, data)
    if threads and image.format == "JPEG":
        try:
            decode_jpeg(data, {"L": "GRAY", "CMYK": "CMYK"}.get(image.mode, "RGB"))
        except ValueError as error:
            raise undecodable(path, error) from error
    usual = image.mode in ("RGB", "L", "P", "RGBA", "CMYK")
    if not usual or has_deep_colors(stored_as):
        kind = "16-bit colors" if usual else f"mode {image.mode}"
        raise ValueError(f"{path}: image has {kind}; save it as 8-bit RGB, or set dataset.range of dataset=folder")
    return np.asarray(image.convert("RGB"))


def read_bands(
    path: str | Path, bands: Sequence[int] | None, value_range: Sequence[float] | None, *, turned: bool = False
) -> np.ndarray:
    """Chosen bands of an image of any depth as (H, W, C) uint8.

    Args:
        path: of the file: a TIFF with any number of bands, or what OpenCV reads.
        bands: places in the file's order (red, green, blue, alpha), from 0; one alone is repeated three times. None
            takes the first three, or the only one three times.
        value_range: the values that become 0 and 255; those between are scaled, those beyond cut. None takes 8-bit
            values as they are.
        turned: whether an image that asks by EXIF to be turned is, which has no label beside it. Others are refused.

    Raises:
        ValueError: the file is damaged or has not so many bands, its values need a range, or it is to be turned.
    """
    data = read(path)
    if bands is None and value_range is None and _are_colors(data):
        return read_image(path)
    pixels, orientation = _all_bands(path, data)
    if turned:
        pixels = TURNS.get(orientation, np.asarray)(pixels)
    else:
        refuse_turned(path, orientation)
    count = pixels.shape[2]
    if bands is None:
        if count not in (1, 2, 3, 4):
            raise ValueError(f"{path}: has {count} bands; choose some in dataset.bands, such as [2,1,0]")
        bands = (0, 1, 2) if count > 2 else (0,)
    if max(bands) >= count:
        raise ValueError(f"{path}: has {count} bands, but dataset.bands = {list(bands)} counts from 0 to {max(bands)}")
    chosen = pixels[..., list(bands) * (3 if len(bands) == 1 else 1)]
    if value_range is None:
        if chosen.dtype == np.uint8:
            return np.ascontiguousarray(chosen)
        found = f"{chosen.dtype} values from {np.nanmin(chosen):g} to {np.nanmax(chosen):g}"
        raise ValueError(f"{path}: has {found}; say which become 0 and 255, such as dataset.range=[0,4095]")
    low, high = value_range
    scaled = (np.nan_to_num(chosen.astype(np.float32), nan=low) - low) * (255 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _all_bands(path: str | Path, data: bytes) -> tuple[np.ndarray, int]:
    """(H, W, C) of the type in the file, in its order, and EXIF's orientation."""
    import cv2

    if data.startswith(TIFF) and (found_in_tiff := _tiff(path, data)) is not None:
        return found_in_tiff
    orientation = 1
    if not data.startswith(PNG) or any(word in data for word in PNG_EXIF):  # Pillow decodes all of a PNG for it
        with contextlib.suppress(Exception), opened(data) as image:  # what is damaged is told below
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    try:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise undecodable(path, error) from error
    if found is None:
        raise undecodable(path, ValueError("not an image format that is known"))
    pixels = found[..., None] if found.ndim == 2 else found
    order = TO_RGB.get(pixels.shape[2])
    return pixels if order is None else pixels[..., order], orientation


def _are_colors(data: bytes) -> bool:
    """Whether a TIFF's 8-bit values are to be converted: a palette's numbers, inks, or a gray whose 0 is white."""
    if not data.startswith(TIFF):
        return False
    try:
        with opened(data) as image:
            return image.mode in ("P", "CMYK", "L") and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) in CONVERTED
    except Exception:  # damaged files raise many types
        return False


def _tiff(path: str | Path, data: bytes) -> tuple[np.ndarray, int] | None:
    """A TIFF's bands and EXIF's orientation; None where OpenCV is to read it: tifffile is missing, or a compression.

    Raises:
        ValueError: it is damaged, or neither can read it.
    """
    try:
        import tifffile
    except ImportError:
        try:
            with opened(data) as image:
                pages = getattr(image, "n_frames", 1)
        except Exception as error:  # damaged files raise many types
            raise undecodable(path, error) from error
        if pages > 1:
            text = f"{path}: a TIFF with several pages needs tifffile: pip install 'danet[bands]'"
            raise ValueError(text) from None
        return None
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series: Any = file.series[0]
            page = series.pages[0]
            axes, simple = series.axes, len(series.pages) == 1 and page.samplesperpixel <= 4
            orientation = getattr(page.tags.get(EXIF_ORIENTATION), "value", 1)
            photometric = CONVERTED.get(getattr(page.tags.get(PHOTOMETRIC), "value", -1))
            pixels = series.asarray()
    except Exception as error:  # damaged files raise many types
        if "imagecodecs" in str(error) and simple:
            return None
        raise undecodable(path, error) from error
    if photometric:
        raise ValueError(
            f"{path}: holds {photometric}, which are no bands; save it as RGB, or as gray whose 0 is black"
        )
    if pixels.ndim == 3 and axes.index("X") == 2:  # bands, or pages, before rows and columns
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim not in (2, 3):
        raise ValueError(f"{path}: has the axes {axes}; save it as rows, columns and bands")
    return pixels if pixels.ndim == 3 else pixels[..., None], orientation
