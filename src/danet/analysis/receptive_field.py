"""How far a backbone sees: the theoretical receptive field of a position of its last feature map."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

# What adds nothing to it. A backbone with other parts, such as attention or pooling over the image, has no known field.
POINTWISE = (nn.modules.batchnorm._BatchNorm, nn.ReLU, nn.ReLU6, nn.PReLU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish)
LOCAL = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)


class ReceptiveField:
    """The field's side in pixels, once the backbone has run; None where it is not known.

    Each convolution and pooling adds (size - 1) * dilation steps of its input's stride. Parallel paths are added up
    too, so that the side is exact where they hold no more than a 1x1 convolution, as in ResNets, and else too large.
    """

    def __init__(self) -> None:
        """Nothing has run."""
        self.side: int | None = 1

    def add(self, module: nn.Module, inputs: tuple[Tensor, ...], pixels: tuple[int, int]) -> None:
        """Count a module."""
        if self.side is not None:
            stride = round(max(length / part for length, part in zip(pixels, inputs[0].shape[-2:], strict=True)))
            sizes: Any = module.kernel_size
            dilations: Any = getattr(module, "dilation", 1)
            size, dilation = (max(value) if isinstance(value, tuple) else value for value in (sizes, dilations))
            self.side += (size - 1) * dilation * stride


@contextlib.contextmanager
def measuring(backbone: nn.Module, pixels: tuple[int, int]) -> Iterator[ReceptiveField]:
    """Measure the receptive field of a backbone that runs once, on an image of so many rows and columns."""
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
