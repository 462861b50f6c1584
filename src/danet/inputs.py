"""Which files an input means: an image, a video, a folder, a glob or a list of paths."""

import glob
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from danet.schema import ConfigError

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")


@dataclass(frozen=True)
class Item:
    """One input.

    Attributes:
        path: the image or video, absolute.
        name: for what is made of it: its path below the input's folder, without ending.
    """

    path: Path
    name: Path

    @property
    def is_video(self) -> bool:
        """As its ending says."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_inputs(given: str, output: Path, lines: Iterable[str] | None = None) -> list[Item]:
    """The files that an input means, sorted by their paths; a list keeps its own order.

    Where two inputs have the same name, as a.jpg and a.png, each keeps its ending in it.

    Args:
        given: path of an image, a video or a folder (with its subfolders), a glob, or "-" for a list of paths.
        output: an absolute folder. Below the input's folder, it holds no inputs of a folder or glob.
        lines: the list, a path a line; None is standard input.

    Raises:
        ConfigError: there is none, or a folder is its own output.
    """
    path = Path(given).expanduser()
    if given == "-":
        lines = [line.rstrip("\r\n") for line in (sys.stdin if lines is None else lines)]
        paths = [_absolute(Path(line).expanduser()) for line in lines if line.strip()]
        root = Path(os.path.commonpath([listed.parent for listed in paths])) if paths else path
    elif path.is_dir():
        if path.resolve() == output:
            raise ConfigError([f"output = {str(output)!r}: is the input, too; predictions need a folder of their own"])
        root = path
        paths = _media(_below(path), root, output)
    elif path.exists():
        root, paths = path.parent, [path]
    else:
        root = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
        found = [Path(file) for file in glob.glob(str(path), recursive=True)]
        if "**" in path.parts:
            found = [f for f in found if not any(_turns_back(p, root) for p in f.parents if root in p.parents)]
        paths = _media(found, root, output)
    if not paths:
        raise ConfigError([f"input = {given!r}: no image or video found ({', '.join(IMAGE_SUFFIXES)} ...)"])
    paths = list(dict.fromkeys(_absolute(path) for path in paths))
    return [Item(path, name) for path, name in zip(paths, _names(paths, _absolute(root)), strict=True)]


def _below(root: Path) -> Iterator[Path]:
    """All files of a folder and its subfolders, links to folders followed unless they lead back to where they lie."""
    for where, folders, names in os.walk(root, onerror=_unlisted, followlinks=True):
        folders[:] = [name for name in folders if not _turns_back(Path(where, name), root)]
        yield from (Path(where, name) for name in names)


def _unlisted(error: OSError) -> None:
    log.warning("%s: left out, for it cannot be listed (%s)", error.filename, error.strerror)


def _turns_back(folder: Path, root: Path) -> bool:
    """Whether a folder below the root is, by way of links, one that it lies in."""
    above = [folder.parent, *(parent for parent in folder.parent.parents if root in (parent, *parent.parents))]
    real = folder.resolve()
    return any(real == parent.resolve() for parent in above)


def settled(path: Path) -> Path:
    """The path with links in its folders followed, for comparing; the file itself may be a link."""
    return path.parent.resolve() / path.name


def _absolute(path: Path) -> Path:
    """Without "..", and links as they are."""
    return Path(os.path.abspath(path))


def _media(paths: Iterable[Path], root: Path, output: Path) -> list[Path]:
    """The images and videos among the files, but for hidden ones and those in an output folder below the root."""
    base = root.resolve()
    apart = output not in (base, *base.parents)
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
        and not path.name.startswith(".")
        and not (apart and output in settled(path).parents)
        and (path.is_file() or (path.is_symlink() and not path.exists()))  # a link to nothing is to be told of
    )


def _names(paths: list[Path], root: Path) -> list[Path]:
    """Unique, also where the file system does not tell capital letters from small ones."""
    whole = [path.relative_to(root) for path in paths]
    names = [name.with_suffix("") for name in whole]
    while True:
        counts = Counter(str(name).casefold() for name in names)
        fuller = [full if counts[str(name).casefold()] > 1 else name for name, full in zip(names, whole, strict=True)]
        if fuller == names:
            return names
        names = fuller
