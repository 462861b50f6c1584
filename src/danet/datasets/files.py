"""What data sets on disk share: listing a folder, pairing images with labels, a fingerprint, the data set itself."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from danet.datasets.images import read_image
from danet.interfaces import FilePair, Sample

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
SURROGATE = re.compile("[\udc80-\udcff]")  # how Python writes a byte of a file name that is not UTF-8


def sample_name(stem: str) -> str:
    """A file's name without suffix as it can be drawn, written and compared with another system's.

    Letters are composed (NFC; macOS decomposes them), and a byte that is not UTF-8 becomes %XX.
    """
    composed = unicodedata.normalize("NFC", stem)
    return SURROGATE.sub(lambda found: "".join(f"%{byte:02X}" for byte in os.fsencode(found[0])), composed)


def write_image(path: Path, height: int, width: int) -> None:
    """Write a picture of random pixels, for `tiny` data sets."""
    pixels = np.random.default_rng(len(path.name)).integers(256, size=(height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_pair(image: Path, label: Path, codes: np.ndarray) -> None:
    """Write a picture of random pixels and its label (H, W) of class numbers, for `tiny` data sets."""
    write_image(image, *codes.shape)
    label.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(codes.astype(np.uint8)).save(label)


def write_list(path: Path, names: Sequence[str]) -> None:
    """Write a list file, one name per line, for `tiny` data sets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def locate(root: Path, places: Sequence[str], marker: str) -> Path:
    """The first of some folders below `root` that has a file or folder `marker`; the first one where none has."""
    return next((root / place for place in places if (root / place / marker).exists()), root / places[0])


def read_list(path: Path) -> set[str]:
    """Sample names of a list file: the first path of each line without folders and suffix."""
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    return {sample_name(Path(line.split()[0]).stem) for line in lines if line.strip()}


def list_folder(folder: Path, ending: str = "", suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Image files of a folder by sample name: the file name without suffix and `ending`.

    Args:
        folder: may be absent, which gives an empty answer.
        ending: what the names end with before the suffix, for example "_L"; files without it are left out.
        suffixes: that count.

    Raises:
        ValueError: two files differ in their suffix or Unicode form only.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() in suffixes and path.stem.endswith(ending) and path.name[0] != ".":
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


class FileDataset:
    """A split of image and label files. A data set says how it finds them, and how it reads a label.

    Attributes:
        root: the folder that `fingerprint` takes paths from.
        files: the pairs.
        description: see interfaces.SegmentationDataset.
    """

    root: Path
    files: list[FilePair]
    description: str

    def __len__(self) -> int:
        """Number of images in the split."""
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`."""
        return Sample(self.read_image(index), self.read_label(index), self.files[index].name)

    def read_image(self, index: int, *, threads: bool = False) -> np.ndarray:
        """The image of the sample at `index` alone, (H, W, 3) uint8 RGB. `threads` as for images.read_image."""
        return read_image(self.files[index].image, threads=threads)

    def read_label(self, index: int) -> np.ndarray:
        """The label of the sample at `index` alone, (H, W) uint8 train ids."""
        raise NotImplementedError

    def deciding(self) -> Mapping[str, object]:
        """What else changes labels, by name, for the fingerprint."""
        return {"classes": self.description}

    def fingerprint(self) -> str:
        """A short hash that changes when the data behind the split, or its classes, change."""
        return fingerprint(self.root, self.files, self.deciding())
