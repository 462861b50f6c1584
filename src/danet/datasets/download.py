"""Downloads: a file gets its name only when it is complete and its checksum is correct."""

import contextlib
import hashlib
import http.client
import itertools
import os
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from danet.services.console import Progress

CHUNK_SIZE = 1 << 20


class DownloadError(ValueError):
    """A download failed; the message says why."""


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def fetch(url: str, path: Path, *, md5: str, timeout: float = 30) -> None:
    """Download `url` to `path`, unless a file with the right checksum is already there.

    Args:
        url: an http, https or file address.
        path: where the file goes; missing folders are created.
        md5: the expected checksum, which is what the sources publish; it detects damage, not forgery.
        timeout: seconds to wait for an answer.

    Raises:
        DownloadError: no network, an HTTP error, a broken connection, or a wrong checksum.
    """
    if path.exists() and _md5(path) == md5:
        return
    new = list(itertools.takewhile(lambda folder: not folder.exists(), path.parents))
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        _download(url, Path(temporary), timeout)
        actual = _md5(Path(temporary))
        if actual != md5:
            raise DownloadError(f"{url}: md5 is {actual}, expected {md5}; the file was not kept")
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the first that is not empty, such as with the file
            for folder in new:
                folder.rmdir()


def install(url: str, root: Path, inside: str, *, md5: str, folder: Path | None = None) -> None:
    """Download an archive and move one of its folders into place.

    Args:
        url: of a tar or zip file.
        root: the folder that the archive is downloaded to; it is removed after unpacking.
        inside: the folder in the archive.
        md5: of the archive.
        folder: where `inside` goes; what is there stays. None for the same place below `root`.

    Raises:
        DownloadError: the download failed; the message says how to do it by hand.
    """
    archive, folder = root / url.rsplit("/", 1)[-1], folder or root / inside
    try:
        fetch(url, archive, md5=md5)
    except DownloadError as error:
        raise DownloadError(
            f"{error}\nOn a machine with a network download {url}, copy it to {archive} and run this again"
        ) from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Unpack beside the final place and move in one step: a run that is killed leaves no half data set.
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpacked-") as temporary:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(temporary)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")  # refuses paths that lead outside
        _move(Path(temporary) / inside, folder)
    archive.unlink()


def _move(source: Path, target: Path) -> None:
    """Move a folder into place, or into one that is there what that lacks, such as beside labels put there by hand."""
    if not target.exists():
        os.replace(source, target)
    elif source.is_dir() and target.is_dir():
        for entry in sorted(source.iterdir()):
            _move(entry, target / entry.name)


def _download(url: str, path: Path, timeout: float) -> None:
    """Stream `url` into `path` with a progress bar."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer, path.open("wb") as file:
            length = answer.headers.get("Content-Length", "")
            size = int(length) if length.isdecimal() else 0  # some servers do not say
            with Progress(size or None, task=url.rsplit("/", 1)[-1], transient=True, in_bytes=True) as progress:
                while chunk := answer.read(CHUNK_SIZE):
                    file.write(chunk)
                    progress.update(file.tell())
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{url}: the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise DownloadError(f"{url}: no connection ({error.reason})") from error
    except TimeoutError as error:
        raise DownloadError(f"{url}: no answer for {timeout:g} seconds") from error
    except (ConnectionError, http.client.HTTPException) as error:
        raise DownloadError(f"{url}: the connection broke off ({error})") from error
    if size and path.stat().st_size != size:
        raise DownloadError(f"{url}: broke off after {path.stat().st_size} of {size} bytes")
