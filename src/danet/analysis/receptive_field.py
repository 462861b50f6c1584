"""The theoretical receptive field of a backbone: how far a position of its last feature map sees."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

# Modules that do not enlarge it. With others, such as attention or global pooling, it is not known.
POINTWISE = (nn.modules.batchnorm._BatchNorm, nn.ReLU, nn.ReLU6, nn.PReLU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish)
LOCAL = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)


class ReceptiveField:
    """The field's side in pixels after the backbone has run; None if it is not known.

    Each convolution and pooling adds (size - 1) * dilation times its input's stride. Parallel paths are added up, too:
    the side is exact if they hold only 1x1 convolutions, as in ResNets, and otherwise an upper bound.
    """

    def __init__(self) -> None:
        """Start with a single pixel."""
        self.side: int | None = 1

    def add(self, module: nn.Module, inputs: tuple[Tensor, ...], pixels: tuple[int, int]) -> None:
        """Add a convolution or pooling."""
        if self.side is not None:
            # Sizes are rounded up or down; strides are powers of 2.
            quotient = max(length / part for length, part in zip(pixels, inputs[0].shape[-2:], strict=True))
            stride = 2 ** round(math.log2(quotient))
            sizes: Any = module.kernel_size
            dilations: Any = getattr(module, "dilation", 1)
            size, dilation = (max(value) if isinstance(value, tuple) else value for value in (sizes, dilations))
            self.side += (size - 1) * dilation * stride


@contextlib.contextmanager
def measuring(backbone: nn.Module, pixels: tuple[int, int]) -> Iterator[ReceptiveField]:
    """Measure the receptive field while the backbone runs once on an image of `pixels` rows and columns."""
    field = ReceptiveField()
    leaves = [module for module in backbone.modules() if not any(module.children())]
    if not all(isinstance(leaf, POINTWISE + LOCAL + NOTHING) for leaf in leaves):
        field.side = None
    hooks = [
        leaf.register_forward_pre_hook(lambda module, inputs: field.add(module, inputs, pixels))
        for leaf in leaves
        if isinstance(leaf, LOCAL)
    ]
    try:
        yield field
    finally:
        for hook in hooks:
            hook.remove()
