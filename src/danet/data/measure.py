"""What each image of a split holds, measured once: size, class pixels, channel sums, and a hash of how it looks.

N images, K classes, C channels; H, W image height and width in pixels.
"""

import hashlib
import io
import zipfile
import zlib
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from danet.data.check import data_key, in_threads
from danet.interfaces import IGNORE, SegmentationDataset
from danet.services import atomic_files
from danet.services.console import track

VERSION = 1  # of the stored arrays
THUMBNAIL, FREQUENCIES = 64, 16  # sides in pixels and in coefficients of the cosine transform
HASH_BITS = FREQUENCIES**2
BLOCK = 256  # images that are compared with all others at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurements:
    """What the images of a split hold; zeros where an image or label cannot be read.

    Attributes:
        readable: (N,) whether both can be read.
        sizes: (N, 2) height and width of the label in pixels.
        pixels: (N, K + 1) pixels of each class, and of none (ignored).
        sums: (N, C) the image's values added up, by channel, in units of the 0..255 scale.
        squares: (N, C) likewise of the squared values.
        counts: (N,) pixels of the image.
        hashes: (N, 32) bytes, see `perceptual_hash`.
        images: (N,) digest of the image's pixels.
        labels: (N,) digest of the label's.
    """

    readable: np.ndarray
    sizes: np.ndarray
    pixels: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    counts: np.ndarray
    hashes: np.ndarray
    images: np.ndarray
    labels: np.ndarray

    @property
    def class_pixels(self) -> np.ndarray:
        """(K,) of the whole split."""
        return self.pixels[:, :-1].sum(0)

    @property
    def presence(self) -> np.ndarray:
        """(N, K) whether the image has the class."""
        return self.pixels[:, :-1] > 0

    @property
    def mean(self) -> np.ndarray:
        """(C,) of all pixels of the split, in units of the 0..255 scale."""
        return self.sums.sum(0) / max(self.counts.sum(), 1)

    @property
    def std(self) -> np.ndarray:
        """(C,) likewise, the standard deviation."""
        variance = self.squares.sum(0) / max(self.counts.sum(), 1) - self.mean**2
        return np.sqrt(np.maximum(variance, 0))

    def normalization(self) -> dict[str, list[float]]:
        """Mean and deviation as `build_model` takes them.

        Raises:
            ValueError: a channel has one value everywhere.
        """
        if constant := np.flatnonzero(self.std == 0).tolist():
            remedy = "leave the band out in dataset.bands, or take normalization=backbone"
            raise ValueError(f"normalization = 'data': channel {constant[0]} has one value everywhere; {remedy}")
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}


def measure(dataset: SegmentationDataset, *, cache_dir: Path, workers: int, name: str = "") -> Measurements:
    """Open every image and label of a split once; later calls on unchanged data read the result.

    What cannot be read is left out: the check names it.

    Args:
        dataset: the split.
        cache_dir: where results are kept between runs.
        workers: number of decoding threads.
        name: name of the split, for the progress.
    """
    cache = cache_dir / f"measured-{data_key(dataset, VERSION)}.npz"
    try:
        with np.load(cache) as stored:
            return Measurements(**stored)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):  # none, or damaged
        pass
    with in_threads(partial(_measured, dataset), range(len(dataset)), workers) as rows:
        found = list(track(rows, len(dataset), f"measuring {name}".rstrip()))
    channels = max((len(row["sums"]) for row in found), default=3)
    for row in found:
        for key in ("sums", "squares"):
            row[key] = np.resize(row[key], channels) if row["readable"] else np.zeros(channels)
    result = Measurements(**{key: np.stack([row[key] for row in found]) for key in found[0]})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **asdict(result))
    atomic_files.write_bytes(cache, buffer.getvalue())
    return result


def _measured(dataset: SegmentationDataset, index: int) -> dict[str, Any]:
    """One image's row of each array."""
    num_classes = len(dataset.class_names)
    try:
        image, label = read_pair(dataset, index)
    except (OSError, ValueError):
        image, label = np.zeros((0, 0, 3), np.uint8), np.zeros((0, 0), np.uint8)
    values = np.arange(256, dtype=np.int64)
    histograms = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(image, 2, 0)])
    found = np.bincount(label.ravel(), minlength=256)
    return {
        "readable": np.bool_(label.size > 0),
        "sizes": np.array(label.shape),
        "pixels": np.append(found[:num_classes], found[IGNORE]),
        "sums": (histograms @ values).astype(float),
        "squares": (histograms @ values**2).astype(float),
        "counts": np.int64(image.shape[0] * image.shape[1]),
        "hashes": perceptual_hash(image) if image.size else np.zeros(HASH_BITS // 8, np.uint8),
        "images": _digest(image),
        "labels": _digest(label),
    }


def read_pair(dataset: SegmentationDataset, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, C) and label (H, W) of a sample; may be called by several threads.

    Raises:
        OSError: a file cannot be read.
        ValueError: likewise.
    """
    read_image: Any = getattr(dataset, "read_image", None)
    if read_image is None:
        return dataset[index][:2]
    return read_image(index, threads=True), dataset.read_label(index)


def _digest(pixels: np.ndarray) -> np.uint64:
    content = repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()
    return np.frombuffer(hashlib.blake2b(content, digest_size=8).digest(), np.uint64)[0]


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """A hash that differs in few bits between images that look alike: (H, W, C) uint8 -> (32,) bytes.

    pHash (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010): the signs of the lowest
    frequencies of a gray thumbnail against their median. With 16 x 16 of them, where 8 x 8 are usual: images with one
    background (such as the built-in scenes) differ in as few as 1/16 of those 64 bits. Resizing, JPEG's quality 30 and
    another exposure change up to 3 % of the 256 bits, a cut of 5 % up to 20 %; two images of different CamVid
    sequences differ in 31 % at least.
    """
    import cv2

    # cv2.INTER_AREA averages where it shrinks. A mean of the channels serves as gray for any number of them.
    small = cv2.resize(image.mean(axis=2, dtype=np.float32), (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small)[:FREQUENCIES, :FREQUENCIES].ravel()
    return np.packbits(low > np.median(low))


def nearest(hashes: np.ndarray, others: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """For each of N hashes, which of M others is nearest, and in which share of the bits they differ.

    Args:
        hashes: (N, 32) bytes.
        others: (M, 32) bytes, M > 0; None compares each of `hashes` with the rest of them.

    Returns:
        Indices (N,) and shares (N,) in [0, 1].
    """
    signs = np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1
    other_signs = signs if others is None else np.unpackbits(others, axis=1).astype(np.float32) * 2 - 1
    index, share = np.zeros(len(signs), int), np.zeros(len(signs))
    for first in range(0, len(signs), BLOCK):
        part = slice(first, first + BLOCK)
        agreement = signs[part] @ other_signs.T  # bits that agree less those that differ
        if others is None:
            np.fill_diagonal(agreement[:, first:], -HASH_BITS)
        index[part] = agreement.argmax(1)
        share[part] = (1 - agreement.max(1) / HASH_BITS) / 2
    return index, share
