"""Files that no reader ever sees half written: they are written under another name first and renamed at the end."""

import contextlib
import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# What to do where a file cannot be written.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # nor can any other
REMEDIES = {
    errno.ENOSPC: "free some space there, or name another folder",
    errno.EDQUOT: "free some space there, or name another folder",
    errno.EROFS: "name another folder",
    errno.EEXIST: "it is a file where a folder is needed; name another folder",
    errno.ENOTDIR: "there is a file where a folder is needed; name another folder",
    errno.EACCES: "change its permissions, or name another one",
    errno.EPERM: "change its permissions, or name another one",
}


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, with null for NaN and infinities."""
    write_text(path, json_text(value, indent=2))


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON with a newline behind it, with null for NaN and infinities."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """`value` without NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file holds something else; the text names it.
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
    """A temporary name beside `path`, to be written; it takes the place of `path` at the end, or goes on an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)  # atomic, as both lie in one folder
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error in writing name the file that is wanted and the remedy, whatever library meets it and how.

    Args:
        path: the file; one in work has its name with a dot before and more behind.

    Raises:
        OSError: in place of such an error; all others pass.
    """
    try:
        yield
    except Exception as error:
        number, name = getattr(error, "errno", None), getattr(error, "filename", None)
        ours = name is None or f".{path.name}." in os.fsdecode(name)
        if not isinstance(error, OSError) or number is None:
            if told := re.search(r"\(os error (\d+)\)", str(error)):  # by safetensors, written in Rust
                number, ours = int(told[1]), True
            else:  # encoders and PyTorch say that a write has failed, and not why
                number, ours = errno.ENOSPC, _is_full(path)
        if not ours:
            raise
        cause = "; ".join(filter(None, [os.strerror(number), REMEDIES.get(number)]))
        raise OSError(number, cause, str(path)) from error


def _is_full(path: Path) -> bool:
    """Whether the disk has no room for as much as a page."""
    there = next((folder for folder in path.parents if folder.is_dir()), None)
    return there is not None and shutil.disk_usage(there).free < 2**14


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Hold a run folder against other processes; gives False where one holds it already.

    The lock ends with the process, however that ends; loader processes that outlive it do not inherit it. Where the
    system has no such locks it is always given.
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
    """Whether another process holds the run folder."""
    with lock(folder) as free:
        return not free


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a run folder."""
    for place in (folder, folder / "checkpoints", folder / "samples"):
        for file in place.glob("*.tmp"):
            file.unlink(missing_ok=True)
