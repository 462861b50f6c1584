"""Images and labels on disk: reading them exactly, or refusing them with a reason.

Plain files, as nearly all are, go to the fastest decoders: simplejpeg's for JPEG, kornia-rs's for PNG. All others, and
the damaged, go to Pillow: it raises on a truncated file and gives a palette image's indices.
Shapes: H, W image height and width in pixels.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from danet.data.sample import IGNORE, FilePair

Color = tuple[int, int, int]
LabelMode = Literal["index", "rgb"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
EXIF_ORIENTATION = 0x0112
UPRIGHT = (0, 1)  # 0 is not defined, and every reader takes it as 1
# Eight bits a pixel or channel, grey or RGB, not interlaced.
PNG_HEADER = re.compile(
    rb"\x89PNG\r\n\x1a\n\0\0\0\rIHDR(?P<width>.{4})(?P<height>.{4})\x08(?P<colour>[\0\x02])\0\0\0", re.DOTALL
)
# What else a plain PNG may have: neither transparency nor anything that may hold an orientation.
PLAIN_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"pHYs", b"tIME", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"bKGD"}
# What a plain JPEG may have before its pixels: JFIF's header, a comment, tables, one frame (baseline or progressive) of
# three channels. EXIF, an orientation's place, would be APP1.
PLAIN_SEGMENTS = {
    b"\xff" + kind for kind in (b"\xe0", b"\xfe", b"\xdb", b"\xc4", b"\xdd", b"\xc0\3", b"\xc2\3", b"\xda")
}
UNLISTED = 254  # marks, inside this file, a value or colour that has no train id


def _read(path: str | Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise _undecodable(path, error) from error


def _undecodable(path: str | Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: cannot be decoded ({error}); restore or remove this file")


def _decode(path: str | Path, data: bytes) -> tuple[Image.Image, str]:
    """The fully decoded image, and Pillow's word for how the file stores a pixel ("L", "L;4", ...).

    `load` also finds the truncation that `open` and `verify` let pass.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            stored_as = str(image.tile[0][3]) if image.tile else image.mode
            image.load()
    except Exception as error:  # damaged files raise many types: OSError, SyntaxError, struct.error, zlib.error
        raise _undecodable(path, error) from error
    return image, stored_as


def _plain_png(data: bytes, *, threads: bool = False) -> np.ndarray | None:
    """The pixels of a PNG that is 8-bit grey, (H, W), or RGB, (H, W, 3), and nothing else; None for all others.

    Damaged files are none, too: Pillow says what is wrong with them.

    Args:
        data: of the file.
        threads: others decode at the same time. The faster decoder would let them wait.
    """
    header = PNG_HEADER.match(data)
    if header is None or not _png_chunks(data) <= PLAIN_CHUNKS:
        return None
    grey = header["colour"] == b"\0"
    if threads:
        import cv2

        flag = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB
        return cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    import kornia_rs

    size = int.from_bytes(header["height"]), int.from_bytes(header["width"])
    try:
        pixels = kornia_rs.io.decode_image_png_u8(data, size, "mono" if grey else "rgb")
    except Exception:  # it raises Exception itself
        return None
    return pixels.reshape(size) if grey else pixels


def _png_chunks(data: bytes) -> set[bytes]:
    """Names of a PNG's chunks; an empty name is among them where the file does not end with the last."""
    names, position = set(), 8
    while position + 12 <= len(data):
        names.add(data[position + 4 : position + 8])
        position += 12 + int.from_bytes(data[position : position + 4])
    return names if position == len(data) else {b""}


def _plain_jpeg(data: bytes) -> np.ndarray | None:
    """The pixels of a JPEG of three channels without EXIF, (H, W, 3) as Pillow gives them; None for all other files."""
    import simplejpeg

    if not data.startswith(b"\xff\xd8") or not data.endswith(b"\xff\xd9") or not _jpeg_segments(data) <= PLAIN_SEGMENTS:
        return None
    try:
        return simplejpeg.decode_jpeg(data)
    except ValueError:  # damaged
        return None


def _jpeg_segments(data: bytes) -> set[bytes]:
    """A JPEG's segments before the pixels: each one's marker, for a frame's header with the number of channels."""
    segments, position = set(), 2
    while position + 10 <= len(data) and b"\xff\xda" not in segments:
        marker = data[position : position + 2]
        is_frame = marker in (b"\xff\xc0", b"\xff\xc2")
        segments.add(marker + data[position + 9 : position + 10] if is_frame else marker)
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return segments


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(EXIF_ORIENTATION, 1)


def read_image(path: str | Path, *, threads: bool = False) -> np.ndarray:
    """The image as (H, W, 3) uint8 RGB.

    Args:
        path: of the file.
        threads: this is called by several threads at once.

    Raises:
        ValueError: the file is damaged, has no 8-bit colours, or asks by EXIF to be turned. (Some readers
            obey EXIF, some do not, and the label carries no such mark: image and label may not match.)
    """
    data = _read(path)
    for pixels in (_plain_jpeg(data), _plain_png(data, threads=threads)):
        if pixels is not None and pixels.ndim == 3:
            return pixels
    image, _ = _decode(path, data)
    if image.mode not in ("RGB", "L", "P", "RGBA", "CMYK"):
        raise ValueError(f"{path}: image has mode {image.mode}; save it as 8-bit RGB")
    if (orientation := _orientation(image)) not in UPRIGHT:
        raise ValueError(f"{path}: EXIF orientation is {orientation}; turn the pixels and save it without EXIF")
    return np.asarray(image.convert("RGB"))


def read_label(path: str | Path, mode: LabelMode, train_ids: Mapping[int, int] | Mapping[Color, int]) -> np.ndarray:
    """The label as (H, W) uint8 train ids.

    Args:
        path: a losslessly stored image: 8-bit grey, palette (its indices count, not its colours) or 16-bit
            grey for "index", RGB colours for "rgb".
        mode: what the file holds: class numbers or colours. It is declared, never guessed.
        train_ids: the train id (or IGNORE) of every class number or colour that may occur.

    Raises:
        ValueError: the file is damaged or not of this mode, or holds what `train_ids` does not list.
    """
    import cv2

    data = _read(path)
    pixels = _plain_png(data)
    if pixels is not None and pixels.ndim == (2 if mode == "index" else 3):
        codes = pixels if mode == "index" else _packed(pixels)
    else:
        codes = _codes(path, data, mode)
    listed: tuple[Any, ...] = tuple(train_ids.items())
    if mode == "index" and _are_train_ids(codes, listed):
        return np.require(codes, requirements="W")
    table = _table(mode, listed)
    label = cv2.LUT(codes, table) if mode == "index" else table.take(codes)
    unlisted = label == UNLISTED
    if unlisted.any():
        values, counts = np.unique(codes[unlisted], return_counts=True)
        found = [
            f"{_describe(int(value), mode)} ({count} pixels)"
            for value, count in zip(values[:8], counts[:8], strict=True)
        ]
        more = ["..."] if len(values) > 8 else []
        what = ", ".join(found + more)
        raise ValueError(f"{path}: label has {what}, which no class has; is it of this dataset and layout?")
    return label


def _codes(path: str | Path, data: bytes, mode: LabelMode) -> np.ndarray:
    """A label's class numbers, (H, W) uint8, or colours as 24-bit numbers, (H, W) int32, of any file."""
    image, stored_as = _decode(path, data)
    if image.format == "JPEG":
        raise ValueError(f"{path}: label is a JPEG, whose values are not exact; take the original PNG")
    if image.mode == "L" and ";" in stored_as:
        # Pillow stretches 2 and 4 bits to 0..255: class 1 would become 85 or 17.
        raise ValueError(f"{path}: label is grey stored as {stored_as}; save it as an 8-bit grey PNG")
    if mode == "index":
        return _indices(image, path)
    if image.mode not in ("RGB", "P"):
        raise ValueError(f"{path}: label has mode {image.mode}, but RGB colours are declared")
    return _packed(np.asarray(image.convert("RGB")))


def _indices(image: Image.Image, path: str | Path) -> np.ndarray:
    """Class numbers, (H, W) uint8, never converted or cast."""
    if image.mode in ("RGB", "RGBA"):
        raise ValueError(f"{path}: label holds RGB colours, but class numbers (8-bit grey or palette) are declared")
    if image.mode not in ("L", "P", "I", "I;16", "I;16B"):
        raise ValueError(f"{path}: label has mode {image.mode}; save class numbers as an 8-bit grey PNG")
    values = np.asarray(image)
    if values.dtype != np.uint8:
        if values.min() < 0 or values.max() > 255:
            raise ValueError(f"{path}: label values go from {values.min()} to {values.max()}; class numbers end at 255")
        values = values.astype(np.uint8)
    return values


def _packed(colors: np.ndarray) -> np.ndarray:
    """Colours (H, W, 3) as 24-bit numbers 0xRRGGBB, (H, W) int32."""
    codes = colors[..., 0].astype(np.int32)
    for channel in (1, 2):
        codes <<= 8
        codes |= colors[..., channel]
    return codes


def _describe(code: int, mode: LabelMode) -> str:
    return f"value {code}" if mode == "index" else f"colour {(code >> 16, code >> 8 & 255, code & 255)}"


@lru_cache(maxsize=8)
def _table(mode: LabelMode, train_ids: tuple[tuple[int | Color, int], ...]) -> np.ndarray:
    """Train ids by class number (256 entries) or by packed colour (2**24: one look-up a pixel, no search)."""
    table = np.full(256 if mode == "index" else 1 << 24, UNLISTED, np.uint8)
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
    return int(np.argmax(table != np.arange(256))), bool(table[IGNORE] == IGNORE)


def list_folder(folder: Path, ending: str = "") -> dict[str, Path]:
    """Image files of a folder by sample name: the file name without suffix and `ending`.

    Args:
        folder: may be absent, which gives an empty answer.
        ending: what the names end with before the suffix, for example "_L"; files without it are left out.

    Raises:
        ValueError: two files differ in their suffix only.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.stem.endswith(ending) and path.name[0] != ".":
            name = path.stem.removesuffix(ending)
            if name in found:
                raise ValueError(f"{found[name]} and {path.name} have the same name; remove one of them")
            found[name] = path
    return found


def pair_up(names: Iterable[str], images: dict[str, Path], labels: dict[str, Path], folder: Path) -> list[FilePair]:
    """Pairs in the order of their names. The check reports the halves that are missing.

    Args:
        names: the samples wanted.
        images: image files by sample name.
        labels: label files by sample name.
        folder: the images' folder, to say where a missing one is expected.
    """
    return [
        FilePair(
            image=str(images.get(name, folder / f"{name}.*")),
            label=str(labels[name]) if name in labels else None,
            name=name,
        )
        for name in sorted(names)
    ]


def label_file(pair: FilePair) -> str:
    """The pair's label file.

    Raises:
        ValueError: it is missing.
    """
    if pair.label is None:
        raise ValueError(f"{pair.image}: has no label; add it or remove the image")
    return pair.label


def fingerprint(root: Path, files: list[FilePair], options: Mapping[str, object]) -> str:
    """A short hash of the files' names and sizes and of the options that change labels.

    Times stay out, so that a copy on another machine has the same one.
    """
    digest = hashlib.sha256(repr(sorted(options.items())).encode())
    for path in (path for pair in files for path in (pair.image, pair.label)):
        size = os.path.getsize(path) if path and os.path.exists(path) else None
        digest.update(repr((path and Path(path).relative_to(root).as_posix(), size)).encode())
    return digest.hexdigest()[:16]
