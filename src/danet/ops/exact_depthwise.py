"""Depthwise convolutions on a CPU: in float32, where they are fast and their gradient is right, and faster if dilated.

In PyTorch 2.14 the gradient of such a convolution takes two to five times as long in bfloat16 as in float32. Where a
convolution by groups is dilated, the gradient of its weight differs from run to run by what memory held before, and was
infinite once in 200 steps.

Shapes: B images, C channels, H x W size of the map.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def compute_exactly(net: nn.Module) -> None:
    """Let a network's depthwise convolutions, and dilated ones by groups, leave autocast on a CPU; names stay."""
    arranged: dict[nn.Module, nn.Module] = {}
    for name, module in list(net.named_modules(remove_duplicate=False)):  # a convolution may have several names
        if not isinstance(module, nn.Conv2d) or module.groups == 1:
            continue
        if module.groups < module.in_channels and max(module.dilation) == 1:
            continue
        if module not in arranged:
            arranged[module] = DilatedDepthwiseConv2d(module) if name and _is_dilated_depthwise(module) else module
            arranged[module].register_forward_pre_hook(_leave_autocast)
            arranged[module].register_forward_hook(_return_to_autocast, always_call=True)
        if arranged[module] is not module:
            net.set_submodule(name, arranged[module])


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


def _is_dilated_depthwise(module: nn.Conv2d) -> bool:
    """Whether it is one that keeps the map's size."""
    kept = [(size % 2, d * (size // 2)) for size, d in zip(module.kernel_size, module.dilation, strict=True)]
    return (
        type(module) is nn.Conv2d  # a subclass may pad in its own way
        and module.groups == module.in_channels == module.out_channels
        and module.stride == (1, 1)
        and max(module.dilation) > 1
        and all(odd for odd, _ in kept)
        and module.padding == tuple(padding for _, padding in kept)
        and module.padding_mode == "zeros"
        and module.bias is None
    )


class DilatedDepthwiseConv2d(nn.Conv2d):
    """A dilated depthwise convolution that keeps the map's size, in half to two thirds of the time on a CPU.

    oneDNN's fast kernel computes no gradient of a dilated convolution's input, and takes no padding that is much wider
    than a few positions. So the map is padded beforehand, and that gradient is computed as what it is: the convolution
    of the output's gradient with the kernel turned by 180 degrees.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        options = {"padding": conv.padding, "dilation": conv.dilation, "groups": conv.groups, "bias": False}
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, device="meta", **options)  # type: ignore[arg-type]
        self.weight = conv.weight
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        if x.device.type != "cpu" or x.dim() != 4 or self.bias is not None or torch.compiler.is_compiling():
            return super().forward(x)
        return _Convolution.apply(x, self.weight, self.padding, self.dilation)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = padding, dilation
        return _convolve(x, weight, padding, dilation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (x, weight), (padding, dilation) = ctx.saved_tensors, ctx.options
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            with torch.autocast("cpu", enabled=False):
                grad_x = _convolve(gradient, weight.flip(2, 3), padding, dilation)
        options = ((1, 1), padding, dilation, False, (0, 0), len(weight), (False, True, False))
        if ctx.needs_input_grad[1]:
            _, grad_weight, _ = torch.ops.aten.convolution_backward(gradient, x, weight, None, *options)
        return grad_x, grad_weight, None, None


def _convolve(x: Tensor, weight: Tensor, padding: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    rows, columns = padding
    return torch.conv2d(F.pad(x, (columns, columns, rows, rows)), weight, dilation=dilation, groups=len(weight))
