"""Files that other code wrote: their tensors, and what they say about themselves.

Nothing in a file is executed, not even where PyTorch's own safe reading gives up.
"""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from danet.convert import mmseg_config, safe_pickle
from danet.convert.safe_pickle import Inert


@dataclass(frozen=True, kw_only=True)
class ForeignFile:
    """What was read.

    Attributes:
        tensors: by their names in the file, without the "module." of DataParallel.
        class_names: K names, where the file has them.
        palette: K colours, red, green and blue in 0..255, where the file has them.
        config: mmsegmentation's configuration, where the file has its text.
        skipped: what else is in the file, in words.
    """

    tensors: dict[str, torch.Tensor]
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    config: dict[str, Any]
    skipped: tuple[str, ...]


def read(path: Path) -> ForeignFile:
    """Read a state dict, alone or in a container under "state_dict".

    Raises:
        ValueError: it cannot be read without executing what is in it, or holds no state dict.
    """
    content = _load(path)
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: holds an object of type {_type_name(content)}, not a state dict. Where it was made, save "
            "model.state_dict() instead"
        )
    contained = isinstance(content.get("state_dict"), dict)
    state = content["state_dict"] if contained else content
    skipped = [f"{key!r}" for key in content if key not in ("state_dict", "meta")] if contained else []
    skipped += [f"objects of {name}, which were not made" for name in sorted(set(_inert_types(content)))]
    if strange := [key for key, value in state.items() if not isinstance(key, str) or not torch.is_tensor(value)]:
        raise ValueError(f"{path}: not a state dict; these are no tensors: {', '.join(map(str, strange))}")
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    meta = content.get("meta") if contained else None
    names, palette, config = _described(meta if isinstance(meta, dict) else {})
    return ForeignFile(
        tensors={key: value.detach() for key, value in state.items()},
        class_names=names,
        palette=palette,
        config=config,
        skipped=tuple(skipped),
    )


def _load(path: Path) -> Any:
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # it holds more than plain values
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=safe_pickle)
    except Exception as error:  # damaged pickles raise anything
        text = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {text})") from None


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__name__}"


def _inert_types(value: Any, depth: int = 0) -> Iterator[str]:
    """Names of the classes that were left out, anywhere in nested containers."""
    if isinstance(value, Inert):
        yield _type_name(value)
    elif isinstance(value, dict | list | tuple) and depth < 8:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _inert_types(item, depth + 1)


def _described(meta: dict[Any, Any]) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...], dict[str, Any]]:
    """Class names, colours and configuration from "meta", whose keys changed with version 1.0."""
    dataset = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, dict) else {}
    names = dataset.get("classes", meta.get("CLASSES"))
    palette = dataset.get("palette", meta.get("PALETTE"))
    text = meta.get("cfg", meta.get("config"))
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        names = ()
    try:
        colors = tuple((int(r), int(g), int(b)) for r, g, b in palette or ())
    except (TypeError, ValueError):  # an object that was not made
        colors = ()
    return tuple(names), colors, mmseg_config.parse(text) if isinstance(text, str) else {}
