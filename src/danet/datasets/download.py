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
from typing import Literal

from danet.services.console import Progress

CHUNK_SIZE = 1 << 20


class DownloadError(ValueError):
    """A download failed; the message says why."""


def file_checksum(path: Path, algorithm: Literal["md5", "sha256"]) -> str:
    """The file's checksum in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def fetch(url: str, path: Path, *, sha256: str | None = None, md5: str | None = None, timeout: float = 30) -> None:
    """Download `url` to `path`, unless a file with the right checksum is already there.

    Args:
        url: an http, https or file address.
        path: where the file goes; missing folders are created.
        sha256: the expected checksum. Exactly one of `sha256` and `md5` is given.
        md5: the expected checksum, if the source publishes no better one; it detects damage, not forgery.
        timeout: seconds to wait for an answer.

    Raises:
        DownloadError: no network, an HTTP error, a broken connection, or a wrong checksum.
    """
    assert (sha256 is None) != (md5 is None), "give one checksum"
    algorithm: Literal["md5", "sha256"] = "sha256" if sha256 else "md5"
    expected = sha256 or md5
    if path.exists() and file_checksum(path, algorithm) == expected:
        return
    new = list(itertools.takewhile(lambda folder: not folder.exists(), path.parents))
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        _download(url, Path(temporary), timeout)
        actual = file_checksum(Path(temporary), algorithm)
        if actual != expected:
            raise DownloadError(f"{url}: {algorithm} is {actual}, expected {expected}; the file was not kept")
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
