"""Atomic file writes (a temporary file, renamed when complete), JSON files and locks."""

import contextlib
import errno
import functools
import json
import logging
import math
import os
import platform
import re
import shutil
import threading
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

log = logging.getLogger(__name__)

# What to do when a file cannot be written, by error number.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no other file can be written either
REMEDIES = {
    errno.ENOSPC: "free some space there, or choose another folder",
    errno.EDQUOT: "free some space there, or choose another folder",
    errno.EROFS: "choose another folder",
    errno.EEXIST: "it is a file where a folder is needed; choose another folder",
    errno.ENOTDIR: "there is a file where a folder is needed; choose another folder",
    errno.EACCES: "change its permissions, or choose another one",
    errno.EPERM: "change its permissions, or choose another one",
}


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, with null for NaN and infinities."""
    write_text(path, json_text(value, indent=2))


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON and a final newline, with null for NaN and infinities."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """`value` with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        ValueError: the file holds something else; the message names it.
    """
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}). Repair or delete it") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object. Repair or delete it")
    return value


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` at the end, or is removed after an error."""
    temporary = temporary_name(path, ".tmp")
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(path.parent)
            yield temporary
            temporary.replace(path)  # atomic, as both lie in one folder
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_name(path: Path, ending: str) -> Path:
    """A name beside `path` that tells who writes there: ".NAME.PLACE-PID" and an ending, .tmp or .part.

    Threads beside the main one have their number in it, too: several may write the same file.
    """
    thread = threading.current_thread()
    own = "" if thread is threading.main_thread() else f".{thread.native_id}"
    return path.with_name(f".{path.name}{own}.{_place()}-{os.getpid()}{ending}")


@functools.cache
def _place() -> str:
    """A short hash of where the numbers of processes belong to: the machine, and in it the container."""
    try:
        container = os.readlink("/proc/self/ns/pid")
    except OSError:  # only Linux has them
        container = ""
    return f"{zlib.crc32(f'{platform.node()} {container}'.encode()):08x}"


@functools.cache  # once a process: a listing for each of many files would take long
def remove_abandoned(folder: Path) -> None:
    """Remove what processes of this machine that live no more have left half-written in a folder."""
    for path in folder.glob(f".*.{_place()}-*"):
        owner = re.search(r"-(\d+)\.(?:tmp|part)$", path.name)
        if owner and not psutil.pid_exists(int(owner[1])):
            log.info("%s: removed; the process that wrote it was killed", path)
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make a write error name the file and the remedy, whichever library raises it.

    Args:
        path: the file; its temporary file is named `.NAME.` plus a suffix.

    Raises:
        OSError: replaces a write error; other errors pass unchanged.
    """
    try:
        yield
    except Exception as error:
        number, name = getattr(error, "errno", None), getattr(error, "filename", None)
        ours = name is None or f".{path.name}." in os.fsdecode(name)
        if not isinstance(error, OSError) or number is None:
            if told := re.search(r"\(os error (\d+)\)", str(error)):  # from safetensors, written in Rust
                number, ours = int(told[1]), True
            else:  # encoders and PyTorch do not say why a write failed
                number, ours = errno.ENOSPC, _is_full(path)
        if not ours:
            raise
        cause = "; ".join(filter(None, [os.strerror(number), REMEDIES.get(number)]))
        raise OSError(number, cause, str(path)) from error


def _is_full(path: Path) -> bool:
    """Whether the disk has less than 16 KiB free."""
    there = next((folder for folder in path.parents if folder.is_dir()), None)
    return there is not None and shutil.disk_usage(there).free < 2**14


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Lock a run folder against other processes; return False if another process has locked it.

    The lock is released however the process ends; loader processes do not inherit it. On systems without
    such locks (Windows) it is always granted.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def is_locked(folder: Path) -> bool:
    """Whether another process has locked the run folder. Nothing is written, so that it may be anybody's."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        file = (folder / ".lock").open("rb")
    except (FileNotFoundError, PermissionError):
        return False
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # as far as one may without writing
        except OSError:
            return True
        return False


def remove_unfinished(folder: Path) -> None:
    """Remove temporary files that killed processes left behind in a run folder."""
    for place in (folder, folder / "checkpoints", folder / "samples"):
        for file in place.glob("*.tmp"):
            file.unlink(missing_ok=True)
