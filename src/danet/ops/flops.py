"""PyTorch's counter of operations, told of those that it does not know.

An operation is counted as products alone, two operations a multiply-add. Apart from the operators themselves, for the
counter imports Triton, which takes as long as a tenth of PyTorch.

Shapes: B images, N positions, D channels of query and key, C channels of value.
"""

import contextlib
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from danet.ops import blocked_attention  # noqa: F401  defines the operators

Shape = tuple[int, ...]


def flop_counter() -> FlopCounterMode:
    """A context that counts operations, with the blocked attention and the CPU's fused attention of timm's ViTs."""
    formulas = {
        torch.ops.danet.blocked_attention: _forward,
        torch.ops.danet.blocked_attention_backward: _backward,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused,
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


def fake_tensors() -> contextlib.AbstractContextManager[Any]:
    """A context whose tensors allocate nothing, like those on the device "meta", which lacks autocast."""
    return FakeTensorMode()


def _forward(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """(B, N, D), (B, N, D), (B, N, C)."""
    images, count, width = query
    return 2 * images * count**2 * (width + value[2])


def _backward(
    gradient: Shape, query: Shape, key: Shape, value: Shape, largest: Shape, kept: Shape, *_: Any, **__: Any
) -> int:
    """The energies of weights that were not kept are computed again."""
    images, count, width = query
    cells = images * count**2
    return 2 * cells * (2 * width + 2 * value[2]) + 2 * (cells - kept[0]) * width


def _fused(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))
