"""Checkpoints that survive a kill at any time and are only loaded after a checksum test.

A file is written under a temporary name in the same folder, flushed to the disk and renamed; a manifest beside it has
its size and SHA-256. So a file that matches its manifest is complete. It holds only tensors, plain numbers, strings and
containers of these: it loads with `weights_only=True`, and no pickled code ever runs.
"""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from danet.services.atomic_files import REMEDIES
from danet.services.places import command

log = logging.getLogger(__name__)

KEEP = 2  # number of checkpoints kept: the second is a fallback in case the newest is damaged


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` to `path` so that the file is either complete with its manifest, or not valid at all.

    Raises:
        OSError: the file cannot be written, for example on a full disk; no partial file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest = path.with_suffix(".json")
    halves = [file.with_name(f"{file.name}.tmp") for file in (path, manifest)]
    try:
        _write(halves[0], state)
        _write_manifest(halves[1], halves[0], path.name, state["step"])
        if path.exists():  # both are on the disk: renaming them needs no room
            manifest.unlink(missing_ok=True)  # the file is valid without one where it is read alone
            halves[0].replace(path)
            halves[1].replace(manifest)
        else:  # a kill in between must not leave a run's first checkpoint as one that is damaged
            halves[1].replace(manifest)
            halves[0].replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        for half in halves:
            half.unlink(missing_ok=True)
        raise _unwritten(path, error) from error


def _write_manifest(path: Path, checkpoint: Path, name: str, step: int) -> None:
    with checkpoint.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    text = json.dumps({"file": name, "size": checkpoint.stat().st_size, "sha256": digest, "step": step})
    with path.open("w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def _write(path: Path, state: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())


def _unwritten(path: Path, error: BaseException | None) -> OSError:
    """The operating system's error behind PyTorch's own, which does not mention it."""
    cause = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return OSError(errno.EIO, str(error).splitlines()[0], str(path))
    return OSError(cause.errno, "; ".join(filter(None, (cause.strerror, REMEDIES.get(cause.errno or 0)))), str(path))


def step_file(folder: Path, step: int) -> Path:
    """Where `save_step` saves the state after a step."""
    return folder / f"step_{step:08d}.pt"


def save_step(folder: Path, state: Mapping[str, Any]) -> Path:
    """Save `state` as step_<number>.pt and remove all but the newest `KEEP` of these."""
    path = step_file(folder, state["step"])
    save(path, state)
    for old in sorted(folder.glob("step_*.pt"))[:-KEEP]:
        old.with_suffix(".json").unlink(missing_ok=True)
        old.unlink()
    return path


def load(path: Path, *, trusting: bool = False) -> dict[str, Any]:
    """Read a checkpoint that matches its manifest.

    Args:
        path: the file.
        trusting: also accept a file without a manifest (copied alone), and do not require a model in it.

    Raises:
        ValueError: the file is missing, damaged, or not a checkpoint of this framework; the message says which.
    """
    alone = trusting and path.is_file() and not path.with_suffix(".json").exists()
    if problem := None if alone else damage(path):
        raise ValueError(f"{path}: {problem}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many types, from UnpicklingError to struct.error
        raise ValueError(f"{path}: the checkpoint cannot be loaded ({reason(error)})") from None
    if not isinstance(state, dict) or ("model" not in state and not trusting):
        raise ValueError(
            f"{path}: not a checkpoint of this framework (it has no 'model'); "
            f"{command('convert')} reads those of other code"
        )
    return state


def reason(error: Exception) -> str:
    """Why torch.load refused a file, in one sentence and without its advice to unpickle the file anyway."""
    text = (str(error).splitlines() or [""])[0]
    if text.startswith("Weights only load failed"):
        return "it is damaged, or holds Python objects, which are never loaded here"
    if "TorchScript" in text:
        return "it is a TorchScript program. Save model.state_dict() instead, in the code that made it"
    return f"{type(error).__name__}: {text}".rstrip(": ")


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest valid step checkpoint, or None if there are no checkpoints.

    A damaged or incomplete file is logged and the one before it is used.

    Raises:
        ValueError: there are checkpoints, but none of them is valid.
    """
    files = sorted(folder.glob("step_*.pt"), reverse=True)
    for path in files:
        try:
            state = load(path)
        except ValueError as error:
            log.warning("checkpoint skipped: %s", error)
            continue
        if path != files[0]:
            log.warning("resuming from the older %s", path.name)
        return state
    if files:
        raise ValueError(
            f"{folder}: none of {len(files)} checkpoints is valid; nothing was changed. Start a new run, or load "
            "only the weights with init_from=<folder>/best.pt"
        )
    return None


def damage(path: Path) -> str | None:
    """What is wrong with the file according to its manifest."""
    if not path.is_file():
        return "no such file"
    manifest = path.with_suffix(".json")
    try:
        expected = json.loads(manifest.read_text())
        size, digest = expected["size"], expected["sha256"]
    except FileNotFoundError:
        return f"{manifest.name} is missing beside it: the save was not completed, or the file was copied without it"
    except (ValueError, KeyError, TypeError):
        return f"{manifest.name} is damaged"
    if path.stat().st_size != size:
        return f"damaged: {path.stat().st_size} bytes instead of {size}"
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            return "damaged: its SHA-256 differs from the manifest's"
    return None


def _sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power failure (not supported on Windows)."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
