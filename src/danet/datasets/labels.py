"""Labels as arrays of train ids: values exactly as stored, or refused with a reason.

H, W: height and width in pixels.
"""

import io
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from danet.datasets.fast_decoders import plain_png
from danet.datasets.reading import decode, opened, read, undecodable
from danet.interfaces import IGNORE

Color = tuple[int, int, int]
LabelMode = Literal["index", "rgb"]

MOST_STRAYS = 64  # values or colors of a label without a class that are told apart
UNLISTED = 254  # marks, inside this file, a value or color that has no train id

# Formats whose values are not exact, whatever the file is called. WebP and TIFF have lossy and lossless forms.
LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "AVIF")


class Strays(NamedTuple):
    """Pixels of a label that stand for no class.

    Attributes:
        pixels: their number.
        found: pixels of each value or color, of the most frequent ones.
    """

    pixels: int = 0
    found: Mapping[str, int] = {}

    def __str__(self) -> str:
        """The first values or colors with their pixels."""
        shown = [f"{what} ({pixels} pixels)" for what, pixels in list(self.found.items())[:8]]
        return ", ".join(shown + (["..."] if len(self.found) > 8 else []))


def read_label(path: str | Path, mode: LabelMode, train_ids: Mapping[int, int] | Mapping[Color, int]) -> np.ndarray:
    """The label as (H, W) uint8 train ids. Arguments as for `read_loosely`.

    Raises:
        ValueError: the file is damaged or not of this mode, or holds what `train_ids` does not list.
    """
    return _without_strays(path, *read_loosely(path, mode, train_ids))


def read_mat_label(path: str | Path, field: str, train_ids: Mapping[int, int]) -> np.ndarray:
    """A label in a MATLAB file (up to version 7) as (H, W) uint8 train ids.

    Args:
        path: of the file.
        field: the variable that holds class numbers, followed by a structure's fields: "GTcls.Segmentation".
        train_ids: the train id (or IGNORE) of every class number that may occur.

    Raises:
        ValueError: the file is damaged, has no such field, or holds what `train_ids` does not list.
    """
    from scipy.io import loadmat

    data, (variable, *fields) = read(path), field.split(".")
    try:
        codes = loadmat(io.BytesIO(data), variable_names=[variable]).get(variable)
    except Exception as error:  # damaged files raise many types
        raise undecodable(path, error) from error
    for name in fields:
        codes = codes[name][0, 0] if codes is not None and name in (codes.dtype.names or ()) else None
    if codes is None:
        raise ValueError(f"{path}: has no variable {field}; is it of this dataset?")
    table = _table("index", tuple(train_ids.items()))
    numbers = codes.astype(np.uint16) if codes.ndim == 2 and codes.dtype.kind in "uif" else None
    if numbers is None or (numbers != codes).any() or numbers.max(initial=0) >= len(table):
        raise ValueError(f"{path}: {field} does not hold class numbers; is it of this dataset?")
    return _without_strays(path, *_train_ids(numbers, "index", table))


def _without_strays(path: str | Path, label: np.ndarray, strays: Strays) -> np.ndarray:
    if strays.pixels:
        raise ValueError(f"{path}: label has {strays}, which no class has; is it of this dataset and layout?")
    return label


def read_loosely(
    path: str | Path, mode: LabelMode, train_ids: Mapping[int, int] | Mapping[Color, int]
) -> tuple[np.ndarray, Strays]:
    """The label as (H, W) uint8 train ids, in which IGNORE stands for what `train_ids` does not list, and what that is.

    Args:
        path: a losslessly stored image, without transparent pixels: for "index" 8-bit gray, palette (its indices
            count, not its colors), 16-bit gray, 1-bit (whose white is 255 where 1 is not listed), or RGB whose
            channels are all equal; for "rgb" RGB colors.
        mode: what the file holds: class numbers or colors. It is declared, never guessed.
        train_ids: the train id (or IGNORE) of every class number or color that may occur.

    Raises:
        ValueError: the file is damaged or not of this mode.
    """
    listed: tuple[Any, ...] = tuple(train_ids.items())
    table = _table(mode, listed)
    data = read(path)
    pixels = plain_png(data)
    if pixels is not None and pixels.ndim == (2 if mode == "index" else 3):
        codes = pixels if mode == "index" else _packed(pixels)
    elif pixels is not None and mode == "index":
        codes = _single(pixels, path)
    else:
        codes = _codes(path, data, mode)
    if codes.dtype == bool:
        codes = codes * np.uint8(1 if table[1] != UNLISTED else 255)
    if mode == "index" and codes.dtype == np.uint8 and _are_train_ids(codes, listed):
        return np.require(codes, requirements="W"), Strays()
    return _train_ids(codes, mode, table)


def _train_ids(codes: np.ndarray, mode: LabelMode, table: np.ndarray) -> tuple[np.ndarray, Strays]:
    """Class numbers or packed colors (H, W) as train ids, IGNORE for those that are not listed, and what these are."""
    import cv2

    if codes.dtype == np.uint8:
        label = cv2.LUT(codes, table[:256])
    elif len(table) == 256:  # numbers beyond it are not listed
        label = np.where(codes < 256, table.take(codes, mode="clip"), UNLISTED)
    else:
        label = table.take(codes)
    unlisted = label == UNLISTED
    if not unlisted.any():
        return label, Strays()
    values, counts = np.unique(codes[unlisted], return_counts=True)
    largest = np.sort(np.argsort(-counts, kind="stable")[:MOST_STRAYS])
    label[unlisted] = IGNORE
    return label, Strays(int(counts.sum()), {_describe(int(values[i]), mode): int(counts[i]) for i in largest})


def peek(path: str | Path) -> str:
    """Pillow's mode of an image file, from its header: "L", "P", "RGB" ...

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with opened(read(path)) as image:
            return str(image.mode)
    except Exception as error:  # damaged files raise many types
        raise undecodable(path, error) from error


def stored_values(path: str | Path) -> tuple[LabelMode, np.ndarray, np.ndarray]:
    """What a label holds: values or colors (as 24-bit numbers), and the number of pixels of each, as it seems.

    Raises:
        ValueError: it cannot be read.
    """
    data = read(path)
    try:
        mode: LabelMode = "index"
        codes = _codes(path, data, mode)
    except ColorsError:
        mode = "rgb"
        codes = _codes(path, data, mode)
    codes = codes * np.uint8(255) if codes.dtype == bool else codes
    return mode, *np.unique(codes, return_counts=True)


class ColorsError(ValueError):
    """A label holds colors, where class numbers are expected."""


def _codes(path: str | Path, data: bytes, mode: LabelMode) -> np.ndarray:
    """Class numbers of any file, (H, W) uint8, bool or uint16, or colors as 24-bit numbers, (H, W) int32."""
    image, stored_as = decode(path, data)
    if image.format in LOSSY_FORMATS or _is_lossy(image, data):
        raise ValueError(f"{path}: label is a {image.format}, whose values are not exact; take the original PNG")
    if image.mode in ("L", "LA", "RGB", "RGBA") and ";" in stored_as:
        # Pillow stretches 2 and 4 bits to 0..255, where class 1 would become 85 or 17, and cuts 16-bit colors to 8.
        raise ValueError(f"{path}: label is {image.mode} stored as {stored_as}; save it as an 8-bit gray PNG")
    image = _opaque(image, path)
    if mode == "index":
        return _indices(image, path)
    if image.mode not in ("RGB", "P"):
        raise ValueError(f"{path}: label has mode {image.mode}, but RGB colors are declared; save it as an RGB PNG")
    return _packed(np.asarray(image.convert("RGB")))


def _is_lossy(image: Image.Image, data: bytes) -> bool:
    """Whether a WebP or TIFF has only nearly the values that were saved."""
    webp = image.format == "WEBP" and b"VP8 " in _riff_chunks(data)
    return webp or image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")


def _riff_chunks(data: bytes) -> set[bytes]:
    """Names of a WebP's chunks."""
    names, position = set(), 12
    while position + 8 <= len(data):
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        names.add(data[position : position + 4])
        position += 8 + size + size % 2
    return names


def _opaque(image: Image.Image, path: str | Path) -> Image.Image:
    """The image without its transparency, which must hide nothing."""
    if image.mode in ("RGB", "RGBA", "LA") and image.has_transparency_data:
        if np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
            raise ValueError(f"{path}: label has transparent pixels; save it without transparency, as an 8-bit PNG")
        return image.convert("L" if image.mode == "LA" else "RGB")
    return image


def _indices(image: Image.Image, path: str | Path) -> np.ndarray:
    """Class numbers, (H, W) uint8, never stretched or cut; bool if 1-bit, uint16 if one is above 255."""
    if image.mode == "RGB":
        return _single(np.asarray(image), path)
    if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise ValueError(f"{path}: label has mode {image.mode}; save class numbers as an 8-bit gray PNG")
    values = np.asarray(image)
    if values.dtype in (np.uint8, np.bool_):
        return values
    if values.min() < 0 or values.max() >= 1 << 16:
        raise ValueError(f"{path}: label values go from {values.min()} to {values.max()}; class numbers end at 65535")
    return values.astype(np.uint8 if values.max() < 256 else np.uint16)


def _single(pixels: np.ndarray, path: str | Path) -> np.ndarray:
    """The one value that all channels hold, (H, W, 3) -> (H, W)."""
    colored = (pixels != pixels[..., :1]).any(axis=2)
    if colored.any():
        color = tuple(pixels[colored][0].tolist())
        raise ColorsError(
            f"{path}: label holds RGB colors, but class numbers are expected here (it has {color}); save it as an "
            "8-bit gray PNG with a class number in each pixel"
        )
    return pixels[..., 0].copy()


def _packed(colors: np.ndarray) -> np.ndarray:
    """Colors (H, W, 3) as 24-bit numbers 0xRRGGBB, (H, W) int32."""
    codes = colors[..., 0].astype(np.int32)
    for channel in (1, 2):
        codes <<= 8
        codes |= colors[..., channel]
    return codes


def _describe(code: int, mode: LabelMode) -> str:
    return f"value {code}" if mode == "index" else f"color {(code >> 16, code >> 8 & 255, code & 255)}"


@lru_cache(maxsize=8)
def _table(mode: LabelMode, train_ids: tuple[tuple[int | Color, int], ...]) -> np.ndarray:
    """Train ids by class number (256 or 2**16 entries) or by packed color (2**24): one look-up a pixel, no search."""
    values = 256 if all(isinstance(code, int) and code < 256 for code, _ in train_ids) else 1 << 16
    table = np.full(values if mode == "index" else 1 << 24, UNLISTED, np.uint8)
    for code, train_id in train_ids:
        assert train_id == IGNORE or 0 <= train_id < UNLISTED
        table[code if isinstance(code, int) else code[0] << 16 | code[1] << 8 | code[2]] = train_id
    return table


def _are_train_ids(codes: np.ndarray, train_ids: tuple[tuple[int | Color, int], ...]) -> bool:
    """Whether the class numbers mean themselves, as far as two glances tell."""
    count, ignores = _unchanged(train_ids)
    return bool((codes + np.uint8(1)).max() <= count if ignores else codes.max() < count)  # 255 + 1 is 0


@lru_cache(maxsize=8)
def _unchanged(train_ids: tuple[tuple[int | Color, int], ...]) -> tuple[int, bool]:
    """The number of class numbers from 0 that are their own train ids, and whether 255 is."""
    table = _table("index", train_ids)
    return int(np.argmax(table[:256] != np.arange(256))), bool(table[IGNORE] == IGNORE)
