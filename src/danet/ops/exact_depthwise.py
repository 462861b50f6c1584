"""Depthwise convolutions on a CPU in bfloat16: in float32, where they are fast and their gradient is right.

In PyTorch 2.14 the gradient of such a convolution takes two to five times as long in bfloat16 as in float32. Where a
convolution by groups is dilated, the gradient of its weight differs from run to run by what memory held before, and was
infinite once in 200 steps.
"""

from typing import Any

import torch
from torch import Tensor, nn


def compute_exactly(net: nn.Module) -> None:
    """Let a network's depthwise convolutions, and dilated ones by groups, leave autocast on a CPU; names stay."""
    for module in net.modules():
        if not isinstance(module, nn.Conv2d) or module.groups == 1:
            continue
        if module.groups == module.in_channels or max(module.dilation) > 1:
            module.register_forward_pre_hook(_leave_autocast)
            module.register_forward_hook(_return_to_autocast, always_call=True)


def _leave_autocast(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor] | None:
    (x,) = inputs
    module.left_autocast = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if not module.left_autocast:
        return None
    torch.set_autocast_enabled("cpu", False)
    return (x.float(),)


def _return_to_autocast(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    if module.left_autocast:
        torch.set_autocast_enabled("cpu", True)
