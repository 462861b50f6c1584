"""Images and labels on disk: reading them exactly, or refusing them with a reason.

Plain files, as nearly all are, go to the fastest decoders: simplejpeg's for JPEG, kornia-rs's for PNG. All others, and
the damaged, go to Pillow: it raises on a truncated file and gives a palette image's indices.
Shapes: H, W image height and width in pixels.
"""

import contextlib
import errno
import hashlib
import io
import os
import re
import threading
import time
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from danet.interfaces import IGNORE, FilePair

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

# Formats whose values are not exact, whatever the file is called. WebP and TIFF have lossy and lossless forms.
LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "AVIF")
SURROGATE = re.compile("[\udc80-\udcff]")  # how Python writes a byte of a file name that is not UTF-8

MAX_PIXELS = 2**30  # OpenCV's limit, too
USUAL_PIXELS = 178_956_970  # Pillow's limit; a larger image must have bytes enough to be believed
PIXELS_PER_BYTE = 1100  # deflate's best, rounded up

# Reading again does not help; anything else may be a network disk that did not answer for once.
FINAL_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)
READING_WAITS = (0.1, 0.5)  # seconds before reading again


def _read(path: str | Path) -> bytes:
    for wait in (*READING_WAITS, None):
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            if os.path.islink(path) and not os.path.exists(path):
                text = f"{path}: is a broken link, to {os.readlink(path)}; add that file or remove the link"
                raise ValueError(text) from error
            if wait is None or error.errno in FINAL_ERRORS:
                raise _undecodable(path, error) from error
            time.sleep(wait)
    raise AssertionError


def _undecodable(path: str | Path, error: BaseException) -> ValueError:
    reason = "not a known image format" if isinstance(error, UnidentifiedImageError) else str(error)
    return ValueError(f"{path}: cannot be decoded ({reason or type(error).__name__}); restore or remove this file")


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


def _decode(path: str | Path, data: bytes, *, threads: bool = False) -> tuple[Image.Image, str]:
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
        if threads and image.format == "JPEG":
            _decode_jpeg(data, {"L": "GRAY", "CMYK": "CMYK"}.get(image.mode, "RGB"))
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise many types: OSError, SyntaxError, struct.error, zlib.error
        raise _undecodable(path, error) from error
    if orientation not in UPRIGHT:
        raise ValueError(f"{path}: EXIF orientation is {orientation}; turn the pixels and save it without EXIF")
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
    size = int.from_bytes(header["height"]), int.from_bytes(header["width"])
    # Both decoders make room for what the header claims, without a look at its checksum.
    if zlib.crc32(data[12:29]) != int.from_bytes(data[29:33]) or not _can_hold(data, *size, 1 if grey else 3):
        return None
    if threads:
        import cv2

        flag = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB
        with contextlib.suppress(cv2.error):  # the sides that it takes are limited
            return cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
        return None
    import kornia_rs

    try:
        pixels = kornia_rs.io.decode_image_png_u8(data, size, "mono" if grey else "rgb")
    except BaseException as error:  # it raises Exception itself, and a panic is no Exception
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            return None
        raise
    return pixels.reshape(size) if grey else pixels


def _can_hold(data: bytes, height: int, width: int, channels: int) -> bool:
    """Whether a PNG may have so many pixels: deflate makes 1032 bytes of one at most, and a row has one besides."""
    return height * (width * channels + 1) <= 1032 * len(data) and not size_problem(width, height, len(data))


def _png_chunks(data: bytes) -> set[bytes]:
    """Names of a PNG's chunks; an empty name is among them where the file does not end with the last."""
    names, position = set(), 8
    while position + 12 <= len(data):
        names.add(data[position + 4 : position + 8])
        position += 12 + int.from_bytes(data[position : position + 4])
    return names if position == len(data) else {b""}


def _plain_jpeg(data: bytes) -> np.ndarray | None:
    """The pixels of a JPEG of three channels without EXIF, (H, W, 3) as Pillow gives them; None for all other files.

    Raises:
        ValueError: pixels are missing.
    """
    if not data.startswith(b"\xff\xd8") or not data.endswith(b"\xff\xd9") or not _jpeg_segments(data) <= PLAIN_SEGMENTS:
        return None
    return _decode_jpeg(data, "RGB")


def _decode_jpeg(data: bytes, colors: str) -> np.ndarray | None:
    """The pixels of a JPEG; None where it cannot be decoded.

    Raises:
        ValueError: pixels are missing in a file that is complete to its last byte. Other decoders make them up.
    """
    import simplejpeg

    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        return None if size_problem(width, height, len(data)) else simplejpeg.decode_jpeg(data, colors)
    except (ValueError, MemoryError) as error:
        if any(gap in str(error) for gap in ("premature end of data", "bad Huffman code")):
            raise
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
    data = _read(path)
    try:
        plain = (_plain_jpeg(data), _plain_png(data, threads=threads))
    except ValueError as error:
        raise _undecodable(path, error) from error
    for pixels in plain:
        if pixels is not None and pixels.ndim == 3:
            return pixels
    image, _ = _decode(path, data, threads=threads)
    if image.mode not in ("RGB", "L", "P", "RGBA", "CMYK"):
        raise ValueError(f"{path}: image has mode {image.mode}; save it as 8-bit RGB")
    return np.asarray(image.convert("RGB"))


def read_label(path: str | Path, mode: LabelMode, train_ids: Mapping[int, int] | Mapping[Color, int]) -> np.ndarray:
    """The label as (H, W) uint8 train ids.

    Args:
        path: a losslessly stored image, without transparent pixels: for "index" 8-bit grey, palette (its indices
            count, not its colours), 16-bit grey, or RGB whose channels are all equal; for "rgb" RGB colours.
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
    elif pixels is not None and mode == "index":
        codes = _single(pixels, path)
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
    if image.format in LOSSY_FORMATS or _is_lossy(image, data):
        raise ValueError(f"{path}: label is a {image.format}, whose values are not exact; take the original PNG")
    if image.mode in ("L", "LA", "RGB", "RGBA") and ";" in stored_as:
        # Pillow stretches 2 and 4 bits to 0..255, where class 1 would become 85 or 17, and cuts 16-bit colours to 8.
        raise ValueError(f"{path}: label is {image.mode} stored as {stored_as}; save it as an 8-bit grey PNG")
    image = _opaque(image, path)
    if mode == "index":
        return _indices(image, path)
    if image.mode not in ("RGB", "P"):
        raise ValueError(f"{path}: label has mode {image.mode}, but RGB colours are declared; save it as an RGB PNG")
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
    """Class numbers, (H, W) uint8, never converted or cast."""
    if image.mode == "RGB":
        return _single(np.asarray(image), path)
    if image.mode not in ("L", "P", "I", "I;16", "I;16B"):
        raise ValueError(f"{path}: label has mode {image.mode}; save class numbers as an 8-bit grey PNG")
    values = np.asarray(image)
    if values.dtype != np.uint8:
        if values.min() < 0 or values.max() > 255:
            raise ValueError(f"{path}: label values go from {values.min()} to {values.max()}; class numbers end at 255")
        values = values.astype(np.uint8)
    return values


def _single(pixels: np.ndarray, path: str | Path) -> np.ndarray:
    """The one value that all channels hold, (H, W, 3) -> (H, W)."""
    colored = (pixels != pixels[..., :1]).any(axis=2)
    if colored.any():
        color = tuple(pixels[colored][0].tolist())
        raise ValueError(
            f"{path}: label holds RGB colours, but class numbers are expected here (it has {color}); save it as an "
            "8-bit grey PNG with a class number in each pixel"
        )
    return pixels[..., 0].copy()


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


def sample_name(stem: str) -> str:
    """A file's name without suffix as it can be drawn, written and compared with another system's.

    Letters are composed (NFC; macOS decomposes them), and a byte that is not UTF-8 becomes %XX.
    """
    composed = unicodedata.normalize("NFC", stem)
    return SURROGATE.sub(lambda found: "".join(f"%{byte:02X}" for byte in os.fsencode(found[0])), composed)


def write_pair(image: Path, label: Path, codes: np.ndarray) -> None:
    """Write a picture of random pixels and its label (H, W) of class numbers, for `tiny` data sets."""
    pixels = np.random.default_rng(len(str(image.name))).integers(256, size=(*codes.shape, 3), dtype=np.uint8)
    for file, array in ((image, pixels), (label, codes.astype(np.uint8))):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(file)


def list_folder(folder: Path, ending: str = "") -> dict[str, Path]:
    """Image files of a folder by sample name: the file name without suffix and `ending`.

    Args:
        folder: may be absent, which gives an empty answer.
        ending: what the names end with before the suffix, for example "_L"; files without it are left out.

    Raises:
        ValueError: two files differ in their suffix or Unicode form only.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.stem.endswith(ending) and path.name[0] != ".":
            name = sample_name(path.stem.removesuffix(ending))
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
