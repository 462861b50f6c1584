"""Unpickling that runs no code: for `torch.load(..., pickle_module=safe_pickle)`.

A pickle can call any function or class by name. Here only the few that build tensors are called; any other name, such
as `os.system` or a training framework's logger, becomes an inert class, and what the pickle does with it has no effect.
 So checkpoints that hold such objects beside their tensors can be read.
"""

import collections
import pickle
from typing import IO, Any

import torch
from torch._utils import _rebuild_parameter, _rebuild_tensor, _rebuild_tensor_v2

# Everything a state dict consists of; torch.load handles the storages. `torch.storage._load_from_bytes` stays out: it
# unpickles anew, without these limits.
ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): torch.Size,
}


class Inert:
    """Placeholder for an object that was not created: accepts whatever a pickle passes to it and stores nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        """An instance, whatever the arguments."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Nothing."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Nothing."""

    def append(self, value: Any) -> None:
        """Nothing."""

    def extend(self, values: Any) -> None:
        """Nothing."""

    def add(self, value: Any) -> None:
        """Nothing."""


class Unpickler(pickle.Unpickler):
    """Creates tensors and containers; everything else is inert."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Resolve a name in the pickle, without importing anything."""
        try:
            return ALLOWED[module_name, global_name]
        except KeyError:
            return type(global_name, (Inert,), {"__module__": module_name})


def load(file: IO[bytes], **options: Any) -> Any:
    """Same as `pickle.load`."""
    return Unpickler(file, **options).load()
