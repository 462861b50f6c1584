"""The fastest decoders for plain PNG and JPEG, as nearly all files are: kornia-rs's and simplejpeg's.

All other files, and the damaged, go to Pillow (reading.py), which gives the same pixels.
"""

import contextlib
import re
import zlib

import numpy as np

from danet.datasets.reading import size_problem

# Eight bits a pixel or channel, gray or RGB, not interlaced.
PNG_HEADER = re.compile(
    rb"\x89PNG\r\n\x1a\n\0\0\0\rIHDR(?P<width>.{4})(?P<height>.{4})\x08(?P<color>[\0\x02])\0\0\0", re.DOTALL
)
# What else a plain PNG may have: neither transparency nor anything that may hold an orientation.
PLAIN_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"pHYs", b"tIME", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"bKGD"}
# What a plain JPEG may have before its pixels: JFIF's header, a comment, tables, one frame (baseline or progressive) of
# three channels. EXIF, an orientation's place, would be APP1.
PLAIN_SEGMENTS = {
    b"\xff" + kind for kind in (b"\xe0", b"\xfe", b"\xdb", b"\xc4", b"\xdd", b"\xc0\3", b"\xc2\3", b"\xda")
}


def plain_png(data: bytes, *, threads: bool = False) -> np.ndarray | None:
    """The pixels of a PNG that is 8-bit gray, (H, W), or RGB, (H, W, 3), and nothing else; None for all others.

    Damaged files are none, too: Pillow says what is wrong with them.

    Args:
        data: of the file.
        threads: others decode at the same time. The faster decoder would let them wait.
    """
    header = PNG_HEADER.match(data)
    if header is None or not _png_chunks(data) <= PLAIN_CHUNKS:
        return None
    gray = header["color"] == b"\0"
    size = int.from_bytes(header["height"]), int.from_bytes(header["width"])
    # Both decoders make room for what the header claims, without a look at its checksum.
    if zlib.crc32(data[12:29]) != int.from_bytes(data[29:33]) or not _can_hold(data, *size, 1 if gray else 3):
        return None
    if threads:
        import cv2

        flag = cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR_RGB
        with contextlib.suppress(cv2.error):  # the sides that it takes are limited
            return cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
        return None
    import kornia_rs

    try:
        pixels = kornia_rs.io.decode_image_png_u8(data, size, "mono" if gray else "rgb")
    except BaseException as error:  # it raises Exception itself, and a panic is no Exception
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            return None
        raise
    return pixels.reshape(size) if gray else pixels


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


def plain_jpeg(data: bytes) -> np.ndarray | None:
    """The pixels of a JPEG of three channels without EXIF, (H, W, 3) as Pillow gives them; None for all other files.

    Raises:
        ValueError: pixels are missing.
    """
    if not data.startswith(b"\xff\xd8") or not data.endswith(b"\xff\xd9") or not _jpeg_segments(data) <= PLAIN_SEGMENTS:
        return None
    return decode_jpeg(data, "RGB")


def decode_jpeg(data: bytes, colors: str) -> np.ndarray | None:
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
