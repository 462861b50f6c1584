"""State dicts in files of any origin: read without running any code in them, found under any key."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from danet.services import checkpoint, safe_pickle

# Keys under which training code stores the model; if a file has several, the first one counts.
ENTRIES = ("state_dict", "model_state_dict", "model", "net", "network", "weights")

# Prefixes that DataParallel, torch.compile and training frameworks add to every key.
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")


@dataclass(frozen=True, kw_only=True)
class StateDict:
    """What was found in a file.

    Attributes:
        tensors: tensors by name, without the prefixes of wrappers.
        entry: the entry that holds them, such as "state_dict"; empty if they are the whole file.
        content: everything in the file.
    """

    tensors: dict[str, torch.Tensor]
    entry: str
    content: dict[Any, Any]


def read(path: Path) -> StateDict:
    """Read the state dict in a .safetensors file or a file written by torch.save.

    It may be the whole file or one of its entries. Other objects in the file are skipped, not created.

    Raises:
        ValueError: the file is damaged, or holds no state dict or several of them.
    """
    content = _load(path)
    if not isinstance(content, dict):
        kind = f"{type(content).__module__}.{type(content).__name__}"
        raise ValueError(
            f"{path}: holds an object of type {kind}, not a state dict. In the code that made it, "
            "save model.state_dict() instead"
        )
    return find(content, path)


def find(content: dict[Any, Any], path: Path) -> StateDict:
    """Find the state dict in the content of `path`; errors as for `read`."""
    entry = _entry(content, path)
    state: Any = content
    for name in entry.split(".") if entry else ():
        state = state[name]
    strange = [key for key, value in state.items() if not isinstance(key, str) or not torch.is_tensor(value)]
    if strange:
        objects = any(isinstance(value, safe_pickle.Inert) for value in state.values())
        remedy = ". In the code that made it, save model.state_dict()" if objects else ""
        raise ValueError(f"{path}: not a state dict; these are not tensors: {', '.join(map(str, strange))}{remedy}")
    return StateDict(tensors=unwrapped(state), entry=entry, content=content)


def unwrapped(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without the prefixes that wrappers add to every name."""
    tensors = {key: value.detach() for key, value in tensors.items()}
    while prefix := next((p for p in WRAPPERS if tensors and all(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def nonfinite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors with NaN or infinite values."""
    return [key for key, value in tensors.items() if value.is_floating_point() and not _is_finite(value)]


def nonfinite_in_words(tensors: Mapping[str, torch.Tensor]) -> str:
    """Which tensors have NaN or infinite values, and what to do about it; empty if all are finite."""
    names = nonfinite(tensors)
    if not names:
        return ""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return (
        f"{len(names)} of {len(tensors)} tensors have values that are NaN or infinite ({', '.join(names[:4])}{more}). "
        "Training diverged: use an earlier checkpoint, or train again with a lower optimizer.lr or "
        "train.max_grad_norm=1"
    )


def refuse_nonfinite(tensors: Mapping[str, torch.Tensor], source: object) -> None:
    """Reject weights that are not finite.

    Args:
        tensors: tensors by name.
        source: their file, for the error message.

    Raises:
        ValueError: a tensor is not finite; names the first of them.
    """
    if words := nonfinite_in_words(tensors):
        raise ValueError(f"{source}: {words}")


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """The metadata and the tensors of a .safetensors file.

    Raises:
        ValueError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load

    try:
        if not any("\udc80" <= letter <= "\udcff" for letter in str(path)):
            with safe_open(path, framework="pt") as file:
                return dict(file.metadata() or {}), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        content = path.read_bytes()  # since safetensors cannot open a path that is not UTF-8
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return header.get("__metadata__", {}), load(content)
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read as safetensors ({error})") from None


def _is_finite(tensor: torch.Tensor) -> bool:
    if tensor.is_meta or not tensor.numel():
        return True
    if tensor.itemsize < 2:  # float8 has no arithmetic
        tensor = tensor.float()
    return bool(tensor.amin().isfinite() & tensor.amax().isfinite())  # much faster than isfinite on all values


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return read_safetensors(path)[1]
    if _has_own_manifest(path) and (problem := checkpoint.damage(path)):
        raise ValueError(f"{path}: cannot be read ({problem})")
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # it holds more than plain values
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=safe_pickle)
    except Exception as error:  # damaged pickles raise any exception
        reason = checkpoint.reason(error)
        raise ValueError(f"{path}: cannot be read: not a file of plain tensors from torch.save ({reason})") from None


def _has_own_manifest(path: Path) -> bool:
    """Whether this framework saved the file, with its checksum beside it."""
    try:
        return json.loads(path.with_suffix(".json").read_text())["file"] == path.name
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _entry(content: dict[Any, Any], path: Path) -> str:
    """The dotted key of the weights in a file."""
    found = _state_dicts(content)
    models = [place for place, state in found.items() if any(value.ndim > 1 for value in state.values())] or [*found]
    if {"model", "ema"} <= set(models) and found["model"].keys() == found["ema"].keys():
        return "ema"  # ours: the averaged weights are the ones that were scored
    known = [name for name in ENTRIES if _has_tensors(content.get(name))]
    if "" in models or known:
        return "" if "" in models else known[0]
    if len(models) > 1:
        places = ", ".join(map(repr, models))
        raise ValueError(f"{path}: has several state dicts, under {places}; save the one to load in a file of its own")
    return models[0] if models else ""


def _state_dicts(content: Any, depth: int = 2) -> dict[str, dict[str, torch.Tensor]]:
    """State dicts in nested dictionaries, by dotted key."""
    if not isinstance(content, dict):
        return {}
    tensors = [value for value in content.values() if torch.is_tensor(value)]
    if any(value.is_floating_point() for value in tensors) and len(tensors) == len(content):
        return {"": content} if all(isinstance(key, str) for key in content) else {}
    inner = {key: _state_dicts(value, depth - 1) for key, value in content.items() if depth and isinstance(key, str)}
    return {f"{key}.{place}".rstrip("."): state for key, found in inner.items() for place, state in found.items()}


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(torch.is_tensor(tensor) for tensor in value.values())
