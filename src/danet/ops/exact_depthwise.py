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

STRIP = 8  # rows of a map that are taken as one kernel; with more, the code and its kernel leave the fast caches


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
    """A dilated depthwise convolution that keeps the map's size, in half of the time on a CPU.

    oneDNN's fast kernel computes no gradients of a dilated convolution, and takes no padding that is much wider than a
    few positions. So the map is padded beforehand, and the gradients are computed as the convolutions that they are:
    the input's of the output's gradient with the kernel turned by 180 degrees, the kernel's of the input with the
    output's gradient, in steps of the dilation.
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
        with torch.autocast("cpu", enabled=False):
            if ctx.needs_input_grad[0]:
                grad_x = _convolve(gradient, weight.flip(2, 3), padding, dilation)
            if ctx.needs_input_grad[1]:
                grad_weight = _kernel_gradient(gradient, x, weight, padding, dilation)
        return grad_x, grad_weight, None, None


def _convolve(x: Tensor, weight: Tensor, padding: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    return torch.conv2d(_padded(x, padding), weight, dilation=dilation, groups=len(weight))


def _kernel_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """(B, C, H, W) twice -> that of the weight (C, 1, h, w), summed over images and strips of rows."""
    exact, height = torch.promote_types(x.dtype, torch.float32), x.shape[2]
    x, gradient = _padded(x, padding).to(exact), gradient.to(exact)
    total = torch.zeros_like(weight.transpose(0, 1), dtype=exact)
    for image in range(len(x)):
        for row in range(0, height, STRIP):
            kernel = gradient[image, :, row : row + STRIP].unsqueeze(1)  # (C, 1, rows, W)
            seen = x[image : image + 1, :, row : row + kernel.shape[2] + 2 * padding[0]]
            total += torch.conv2d(seen, kernel, stride=dilation, groups=len(weight))
    return total.transpose(0, 1).to(weight.dtype)


def _padded(x: Tensor, padding: tuple[int, int]) -> Tensor:
    rows, columns = padding
    return F.pad(x, (columns, columns, rows, rows))
