"""Read weights files of other code: tensors, class names and configuration.

Nothing in a file is executed, not even if PyTorch's own safe loading refuses the file.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from danet.services import state_dicts
from danet.services.safe_pickle import Inert


@dataclass(frozen=True, kw_only=True)
class ForeignFile:
    """The content of a file.

    Attributes:
        tensors: by name in the file, without prefixes such as DataParallel's "module.".
        class_names: K names, if the file has them.
        palette: K colors, red, green and blue in 0..255, if the file has them.
        config: mmsegmentation's configuration, if the file has its text.
        skipped: descriptions of the file's other content.
    """

    tensors: dict[str, torch.Tensor]
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    config: dict[str, Any]
    skipped: tuple[str, ...]


def read(path: Path) -> ForeignFile:
    """Read a state dict, bare or in a container.

    Raises:
        ValueError: the file cannot be read without executing code in it, or contains no state dict.
    """
    state = state_dicts.read(path)
    content, entry = state.content, state.entry
    skipped = [f"{key!r}" for key in content if key not in (entry.split(".")[0], "meta")] if entry else []
    skipped += [f"objects of {name}, which were not created" for name in sorted(set(_inert_types(content)))]
    meta = content.get("meta") if entry else None
    names, palette, config = _described(meta if isinstance(meta, dict) else {})
    return ForeignFile(tensors=state.tensors, class_names=names, palette=palette, config=config, skipped=tuple(skipped))


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__name__}"


def _inert_types(value: Any, depth: int = 0) -> Iterator[str]:
    """Class names of the objects, anywhere in nested containers, that were not created."""
    if isinstance(value, Inert):
        yield _type_name(value)
    elif isinstance(value, dict | list | tuple) and depth < 8:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _inert_types(item, depth + 1)


def _described(meta: dict[Any, Any]) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...], dict[str, Any]]:
    """Class names, palette and configuration from "meta", whose keys changed in version 1.0."""
    dataset = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, dict) else {}
    names = dataset.get("classes", meta.get("CLASSES"))
    palette = dataset.get("palette", meta.get("PALETTE"))
    text = meta.get("cfg", meta.get("config"))
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        names = ()
    try:
        colors = tuple((int(r), int(g), int(b)) for r, g, b in palette or ())
    except (TypeError, ValueError):  # a placeholder object
        colors = ()
    return tuple(names), colors, parsed(text) if isinstance(text, str) else {}


def parsed(text: str) -> dict[str, Any]:
    """Read an mmsegmentation configuration without executing it; {} if it is not valid Python.

    Supports literals, `dict(key=literal)` and lists of these; other values are skipped.
    """
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    targets = [(node.targets[0], node.value) for node in statements if isinstance(node, ast.Assign)]
    return _literals([(target.id, value) for target, value in targets if isinstance(target, ast.Name)])


def _literals(pairs: list[tuple[str, ast.expr]]) -> dict[str, Any]:
    values = {}
    for key, node in pairs:
        try:
            values[key] = _literal(node)
        except (ValueError, TypeError, RecursionError, MemoryError):
            continue
    return values


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return _literals([(keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg])
    return [_literal(item) for item in node.elts] if isinstance(node, ast.List) else ast.literal_eval(node)
