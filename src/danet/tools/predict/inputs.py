"""Which files an input means: an image, a video, a folder, a glob or a list of paths."""

import contextlib
import difflib
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
            raise ConfigError([f"output = {str(output)!r}: is also the input; predictions need their own folder"])
        root = path
        files = (Path(where, name) for where, _, names in _walk(path) for name in names)
        paths = _media(files, root, output)
    elif path.exists():
        root, paths = path.parent, [path]
    else:
        root = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
        paths = _media(_matching(path), root, output)
    if not paths:
        raise ConfigError([f"input = {given!r}: {_why_nothing(given, path)}"])
    paths = list(dict.fromkeys(_absolute(path) for path in paths))
    return [Item(path, name) for path, name in zip(paths, _names(paths, _absolute(root)), strict=True)]


def _why_nothing(given: str, path: Path) -> str:
    """Why an input gives no image or video."""
    if given == "-":
        return "no paths on standard input; give one a line"
    if "://" in given:
        return "addresses are not fetched; download the file and give its path"
    if path.exists() or glob.has_magic(str(path)):
        return f"no image or video found ({', '.join(IMAGE_SUFFIXES)} ...)"
    missing, near = next(place for place in (path, *path.parents) if place.parent.is_dir()), []
    with contextlib.suppress(OSError):
        near = difflib.get_close_matches(missing.name, os.listdir(missing.parent), n=1)
    return f"no such file or folder{f'; did you mean {str(missing.with_name(near[0]))!r}?' if near else ''}"


def _matching(pattern: Path) -> Iterator[Path]:
    """What a glob means. glob.glob would follow "**" round and round where a link leads back."""
    if "**" not in pattern.parts:
        yield from map(Path, glob.glob(str(pattern)))
        return
    place = pattern.parts.index("**")
    start, rest = Path(*pattern.parts[:place]), pattern.parts[place + 1 :]
    for top in glob.glob(str(start)) if place else ["."]:
        for where, folders, names in _walk(Path(top)):
            folders[:] = [name for name in folders if not name.startswith(".")]  # as glob.glob
            if rest:
                yield from _matching(Path(glob.escape(where), *rest))
            else:
                yield from (Path(where, name) for name in names)


def _walk(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk; links to folders are followed unless they lead back to a folder that they lie in."""
    for where, folders, names in os.walk(root, onerror=_unlisted, followlinks=True):
        folders[:] = [name for name in folders if not _turns_back(Path(where, name), root)]
        yield where, folders, names


def _unlisted(error: OSError) -> None:
    log.warning("%s: skipped: it cannot be listed (%s)", error.filename, error.strerror)


def _turns_back(folder: Path, root: Path) -> bool:
    """Whether a folder below the root is a link to one that it lies in; the log tells of it."""
    if not folder.is_symlink():
        return False
    real = folder.resolve()
    above = [parent.resolve() for parent in folder.parents if root in (parent, *parent.parents)]
    if back := any(real in (parent, *parent.parents) for parent in above):
        log.warning("%s: skipped: it is a link to a folder that contains it", folder)
    return back


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
