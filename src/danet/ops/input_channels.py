"""Backbones for images with another number of channels than red, green and blue."""

from typing import Any

from torch import nn


def take_channels(backbone: Any, count: int) -> None:
    """Let a backbone for RGB take images of `count` channels, with its weights, pretrained or not.

    The kernels of its first convolutions (more than one where a stem has branches) for red, green and blue are repeated
    in turn over the channels, times 3 / count, as timm does: for six channels that repeat an RGB image the answer stays
    the same. For one channel they are added up. The mean and deviation that normalize the image are repeated in turn,
    too; for one channel they are averaged.

    Args:
        backbone: see interfaces.Backbone; changed in place.
        count: of the channels.

    Raises:
        ValueError: it has no convolution that takes three channels.
    """
    first = [m for m in backbone.modules() if isinstance(m, nn.Conv2d) and (m.in_channels, m.groups) == (3, 1)]
    if not first:
        raise ValueError("has no convolution of three channels; take images with three (dataset.bands)")
    turns = [channel % 3 for channel in range(count)]
    for convolution in first:
        weight = convolution.weight
        kernels = weight.sum(dim=1, keepdim=True) if count == 1 else weight[:, turns] * (3 / count)
        convolution.weight = nn.Parameter(kernels.detach().clone(), requires_grad=weight.requires_grad)
        convolution.in_channels = count
    backbone.in_channels = count
    for name in ("mean", "std"):
        values = getattr(backbone, name)
        own = (sum(values) / 3,) if count == 1 else tuple(values[turn] for turn in turns)
        setattr(backbone, name, own)
