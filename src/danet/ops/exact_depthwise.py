"""Dilated depthwise convolutions on a CPU in bfloat16: in float32, where their gradient is right.

PyTorch 2.14's gradient of such a convolution's weight, in bfloat16 on a CPU, differs from run to run by what memory
held before, and was infinite once in 200 steps. With dilation 1, in float32 and on other devices it is right.
"""

from typing import Any

import torch
from torch import Tensor, nn


def compute_exactly(net: nn.Module) -> None:
    """Let a network's dilated depthwise convolutions leave autocast on a CPU. Names and weights stay as they are."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.dilation) > 1:
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
