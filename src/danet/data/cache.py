"""A disk cache of decoded images, so that a JPEG or PNG is decoded once instead of in every epoch.

An entry is one file: a header, H rows with the image's C * W bytes and the label's W, the sample's name. It is mapped
into memory, so a crop reads only its own rows. The checksum is verified before the first use of an entry; damaged
entries count as absent. Several processes may share a folder.

Shapes: H, W image height and width in pixels.
"""

import contextlib
import hashlib
import inspect
import logging
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch

from danet import datasets
from danet.interfaces import Sample, SegmentationDataset

log = logging.getLogger(__name__)

GIB = 2**30
FORMAT = 2  # increase it when entries are written otherwise, so that old ones are taken for others
HEADER = struct.Struct("<32sIIII16x")  # identity, H, W, C, checksum of the rest; 64 bytes
ATTRIBUTES = ("class_names", "palette", "description", "files", "labeled", "server_file")  # of a data set
READING = Path(str(datasets.__file__)).parent  # the code that turns files into images and labels
ENDING, UNFINISHED = ".sample", ".part"


def cached(dataset: SegmentationDataset, cache: str | None, gib: float, *, auto: Path) -> SegmentationDataset:
    """Wrap `dataset` in the configured cache.

    Args:
        dataset: the split.
        cache: a folder; "auto" for `auto`; None for no cache.
        gib: maximum size of the folder [GiB].
        auto: the default folder.

    Raises:
        ValueError: the folder cannot be written.
    """
    if cache is None:
        return dataset
    folder = auto if cache == "auto" else Path(cache)
    try:
        return cast(SegmentationDataset, DecodedCache(dataset, folder, int(gib * GIB)))
    except OSError as error:
        raise ValueError(f"runtime.cache: {folder} cannot be written ({error}); choose another folder") from error


class DecodedCache:
    """A data set whose samples are decoded once and then read from a folder, with the attributes of the wrapped one.

    A sample is decoded again if the size or time of its files, the data set's fingerprint or the code that reads it has
    changed, or if its entry is damaged.

    Args:
        dataset: the split.
        folder: folder of the entries; data sets and processes may share it.
        max_bytes: maximum size of the folder. Samples that do not fit are decoded every time.
    """

    def __init__(self, dataset: SegmentationDataset, folder: Path, max_bytes: int) -> None:
        self._dataset, self._store = dataset, _Store(folder, max_bytes)
        self._fingerprint = dataset.fingerprint()
        self._code = _code(dataset)
        for name in ATTRIBUTES:
            if hasattr(dataset, name):
                setattr(self, name, getattr(dataset, name))
        # For each index, the entry whose checksum was verified; shared by loader processes.
        self._verified = torch.zeros(len(dataset), dtype=torch.int64).share_memory_()

    def fingerprint(self) -> str:
        """The data set's."""
        return self._fingerprint

    def read_label(self, index: int) -> np.ndarray:
        """The data set's label at `index`, decoded."""
        return self._dataset.read_label(index)

    def __len__(self) -> int:
        """Number of images in the split."""
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`; its arrays are read-only when they come from the folder."""
        try:
            place, identity = self._entry(index)
        except OSError:  # a file is missing: the data set says so
            return self._dataset[index]
        mark = int.from_bytes(identity[:7])
        sample = self._store.read(place, identity, verified=bool(self._verified[index] == mark))
        if sample is None:
            sample = self._dataset[index]
            self._store.write(place, identity, sample)
        else:
            self._verified[index] = mark
        return sample

    def _entry(self, index: int) -> tuple[str, bytes]:
        """The sample's place in the cache, and its identity, which changes when the sample does."""
        kind = (type(self._dataset).__qualname__, self._dataset.description)
        if not hasattr(self._dataset, "files"):  # generated
            return _digest(kind, self._fingerprint, index).hex(), _digest(FORMAT, self._code)
        pair = self._dataset.files[index]
        stats = [path and os.stat(path) for path in (pair.image, pair.label)]
        times = [stat and (stat.st_size, stat.st_mtime_ns) for stat in stats]
        return _digest(kind, pair).hex(), _digest(FORMAT, self._code, self._fingerprint, times)


class _Store:
    """The cache folder: entries are complete or absent, and the total size is limited.

    Args:
        folder: folder of the entries.
        max_bytes: its maximum size.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes, self._full = folder, max_bytes, False
        folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            for unfinished in folder.glob(f"*{UNFINISHED}"):  # left by a killed process
                unfinished.unlink(missing_ok=True)
            used = sum(entry.stat().st_size for entry in os.scandir(folder) if entry.name.endswith(ENDING))
            self._count.write_text(str(used))
        log.info("decoded images are kept in %s, which holds %.1f of %.1f GiB", folder, used / GIB, max_bytes / GIB)
        if used > 0.99 * max_bytes:
            log.warning("%s is full: delete it, or raise runtime.cache_gib", folder)

    @property
    def _count(self) -> Path:
        return self._folder / "bytes"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the folder against other writing processes; not on systems without such locks (Windows)."""
        with (self._folder / ".lock").open("w") as file:
            with contextlib.suppress(ImportError):
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def read(self, place: str, identity: bytes, *, verified: bool) -> Sample | None:
        """The sample stored at `place`; None if there is none of this identity, or it is damaged."""
        try:
            with (self._folder / f"{place}{ENDING}").open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            recorded, height, width, channels, checksum = HEADER.unpack_from(mapped)
        except (OSError, ValueError, struct.error):  # absent, empty, shorter than a header
            return None
        end = HEADER.size + height * width * (channels + 1)
        if recorded != identity or len(mapped) <= end:
            return None
        content = np.frombuffer(mapped, np.uint8, offset=HEADER.size)
        if not verified and _checksum(height, width, channels, content) != checksum:
            log.warning("%s: damaged entry; it will be rewritten", self._folder / f"{place}{ENDING}")
            return None
        rows = content[: end - HEADER.size].reshape(height, width * (channels + 1))
        name = mapped[end:].decode(errors="surrogateescape")
        image = rows[:, : channels * width].reshape(height, width, channels)
        return Sample(image, rows[:, channels * width :], name)

    def write(self, place: str, identity: bytes, sample: Sample) -> None:
        """Store a sample if there is room for it."""
        if self._full:
            return
        assert sample.image.dtype == sample.label.dtype == np.uint8
        (height, width, channels), name = sample.image.shape, sample.name.encode(errors="surrogateescape")
        end = height * width * (channels + 1)
        content = np.empty(end + len(name), np.uint8)
        rows = content[:end].reshape(height, (channels + 1) * width)
        rows[:, : channels * width] = sample.image.reshape(height, channels * width)
        rows[:, channels * width :] = sample.label
        content[end:] = np.frombuffer(name, np.uint8)
        header = HEADER.pack(identity, height, width, channels, _checksum(height, width, channels, content))
        path, size = self._folder / f"{place}{ENDING}", HEADER.size + content.size
        try:
            with self._locked():
                if path.exists():  # of another identity, or damaged
                    self._add(-path.stat().st_size)
                    path.unlink()
                if self._add(size):
                    temporary = path.with_suffix(UNFINISHED)
                    with temporary.open("wb") as file:
                        file.write(header)
                        file.write(content.data)
                    os.replace(temporary, path)
                else:
                    self._full = True
        except (OSError, ValueError) as error:  # no space left, the folder was deleted, the count is not a number
            self._full = True
            log.warning("%s: caching of decoded images stopped (%s)", self._folder, error)

    def _add(self, size: int) -> bool:
        """Reserve bytes that are about to be written, unless they exceed the limit."""
        total = int(self._count.read_text()) + size
        if total > self._max_bytes:
            return False
        temporary = self._count.with_suffix(UNFINISHED)
        temporary.write_text(str(total))
        os.replace(temporary, self._count)
        return True


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def _checksum(height: int, width: int, channels: int, content: np.ndarray) -> int:
    return zlib.crc32(content.data, zlib.crc32(struct.pack("<III", height, width, channels)))


def _code(dataset: SegmentationDataset) -> bytes:
    """A hash of the code that reads the data set's files: of its class, and of all that data sets share."""
    texts = [file.read_bytes() for file in sorted(READING.rglob("*.py"))]
    for part in type(dataset).__mro__:
        with contextlib.suppress(OSError, TypeError):  # a class made in a notebook has no file
            texts.append(Path(inspect.getfile(part)).read_bytes())
    return _digest(*texts)
