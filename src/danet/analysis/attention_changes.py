"""Run a model with attention modules switched off, or with positions hidden from them.

    with changed(attention_modules(model), off=["cam"], hidden=mask):
        labels = predictor.predict("photo.jpg")

Shapes: h x w size of the feature map, N = h * w positions, D channels of query and key.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HIDDEN = -1e4  # added to an energy, which is a few hundred at most; float16 ends at 65504

Compared = Callable[..., tuple[Tensor, Tensor]]


@contextlib.contextmanager
def changed(
    modules: Mapping[str, Any],
    *,
    off: Collection[str] = (),
    hidden: np.ndarray | None = None,
    readers: Sequence[int] = (),
) -> Iterator[None]:
    """Change attention modules inside the context; their `attention` and `compared` change, too.

    Args:
        modules: a head's modules by name.
        off: names of modules that return their input unchanged, as with gamma = 0.
        hidden: (N,) bool, positions that get no weight. Modules whose weights are not the softmax of query times key
            are left unchanged.
        readers: positions from which they are hidden; empty for all.

    Raises:
        ValueError: a name is unknown, every position is hidden, a reader lies outside, or no module can hide positions;
            and, when the model runs, if the number of positions differs or a module cannot be switched off.
    """
    if unknown := sorted(set(off) - set(modules)):
        raise ValueError(f"off: there is no attention {', '.join(unknown)}; the model has {', '.join(modules)}")
    hooks = [modules[name].register_forward_hook(_passed_on) for name in off]
    wrapped = []
    try:
        if hidden is not None and hidden.any():
            wrapped = [module for module in modules.values() if hasattr(module, "compared")]
            extra = _extra_channels(hidden, readers, bool(wrapped))
            for module in wrapped:
                module.compared = _hiding(module.compared, *extra)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in wrapped:
            module.__dict__.pop("compared", None)


def _passed_on(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    if inputs[0].shape != output.shape:
        raise ValueError(f"off: {type(module).__name__} changes its input's shape and cannot be switched off")
    return inputs[0]


def _extra_channels(hidden: np.ndarray, readers: Sequence[int], possible: bool) -> tuple[Tensor, Tensor]:
    """A channel (N,) to append to the query, 1 for readers, and to the key; the energies grow by their product."""
    if not possible:
        raise ValueError("hidden: no attention of this model is a softmax of query times key, so none can be masked")
    if hidden.all():
        raise ValueError("hidden: every position is hidden; leave some to read from")
    if wrong := [index for index in readers if not 0 <= index < len(hidden)]:
        raise ValueError(f"readers: {wrong} are not among the {len(hidden)} positions")
    query = torch.zeros(len(hidden)) if readers else torch.ones(len(hidden))
    query[list(readers)] = 1
    return query, HIDDEN * torch.from_numpy(hidden.astype(np.float32))


def _hiding(compared: Compared, extra_query: Tensor, extra_key: Tensor) -> Compared:
    """Wrap `compared` to append the channels."""

    def more(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        both = compared(*inputs)  # (B, D, N) each
        if both[1].shape[2] != len(extra_key):
            raise ValueError(f"hidden: has {len(extra_key)} positions, the feature map {both[1].shape[2]}")
        query, key = (
            torch.cat([part, extra.to(part).expand(len(part), 1, -1)], dim=1)
            for part, extra in zip(both, (extra_query, extra_key), strict=True)
        )
        return query, key

    return more
