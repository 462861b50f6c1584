"""Strided 1x1 convolutions of few channels, as slices: oneDNN writes past its memory in their backward pass.

That is so on a CPU in channels_last, where an input has fewer channels than a register holds numbers (16): the process
crashes, hangs or computes wrong gradients. oneDNN 3.14 in PyTorch 2.14, https://github.com/uxlfoundation/oneDNN/issues/6035.
"""

import functools

from torch import Tensor, nn

ENOUGH = 16  # channels


def stride_by_slices(net: nn.Module) -> None:
    """Let these convolutions of a network see only the positions that they use; names and results stay."""
    for module in net.modules():
        if (
            isinstance(module, nn.Conv2d)
            and module.kernel_size == (1, 1)
            and module.stride != (1, 1)
            and module.padding == (0, 0)
            and module.in_channels < ENOUGH
        ):
            rows, columns = module.stride
            module.register_forward_pre_hook(functools.partial(_sliced, rows, columns))
            module.stride = (1, 1)


def _sliced(rows: int, columns: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    (x,) = inputs
    return (x[:, :, ::rows, ::columns],)
