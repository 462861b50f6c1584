"""Parts of heads: convolutions, the classifier, the frame around one context module, a decoder, pooling, blocks.

Modules are named as in mmsegmentation, so that its checkpoints fit with few changes of keys; each head's `foreign_keys`
lists those: pairs (how a key begins there, how it begins here), below "decode_head." there and below "head." here.

Shapes: B images, C channels, H x W size of the feature map, N = H * W positions, P of them looked at, M keys, D
channels of query and key, K classes.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.interfaces import Stage
from danet.ops.contiguous_conv import ManyChannelsConv2d
from danet.ops.position_attention import position_weights, softmax
from danet.services.exporting import is_exporting

ForeignKeys = dict[str, tuple[tuple[str, str], ...]]  # by code base

MMSEG_CLASSIFIER = ("conv_seg.", "classifier.1.")


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    *,
    padding: int | None = None,
    norm: bool = True,
    relu: bool = True,
) -> nn.Sequential:
    """A convolution that keeps the map's size (padding None), with batch norm (else a bias) and ReLU."""
    padding = kernel_size // 2 if padding is None else padding
    kind = ManyChannelsConv2d if norm and kernel_size == 3 and in_channels != out_channels else nn.Conv2d
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = kind(in_channels, out_channels, kernel_size, padding=padding, bias=not norm)
    if norm:
        layers["bn"] = nn.BatchNorm2d(out_channels)
    if relu:
        layers["activate"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def classifier(channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Dropout of whole channels, then a 1x1 convolution to the classes."""
    return nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, kernel_size=1))


def last_two(stages: Sequence[Stage]) -> tuple[Stage, Stage]:
    """The last two stages.

    Raises:
        ValueError: the backbone has one stage only.
    """
    if len(stages) < 2:
        raise ValueError("needs two stages of the backbone, which has one; use head=nonlocal")
    return stages[-2], stages[-1]


def zero(module: nn.Module) -> None:
    """Set a layer's parameters to 0: what it is the last of starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: compute in float32 at least, without autocast. Products over positions overflow float16."""

    @functools.wraps(function)
    def wrapped(*tensors: Tensor, **options: Any) -> Any:
        with torch.autocast(tensors[0].device.type, enabled=False):
            exact = [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]
            return function(*exact, **options)

    return wrapped


@in_float32
def over_positions(energies: Tensor) -> Tensor:
    """The softmax of each map over its positions: (B, M, H, W) -> (B, M, N)."""
    return softmax(energies.flatten(2))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention to M keys: (B, D, N), (B, D, M), (B, C, M) -> (B, C, N)."""
    weights = position_weights(query * query.shape[1] ** -0.5, key)  # (B, N, M)
    return value @ weights.transpose(1, 2).to(value.dtype)


class ContextHead(nn.Module):
    """The frame of mmsegmentation's FCNHead around one context module.

    3x3 convolution to C, the context module, 3x3 convolution; its output and the head's input are joined by another 3x3
    convolution and classified.

    Args:
        stages: the backbone's; the last one counts.
        num_classes: K.
        channels: C; None is a quarter of the last stage's.
        dropout: probability of dropping a channel before the classifier.
        align_corners: how the logits are to be resized.
    """

    foreign_keys: ClassVar[ForeignKeys] = {"mmseg": (MMSEG_CLASSIFIER,)}

    def __init__(
        self, stages: Sequence[Stage], num_classes: int, channels: int | None, dropout: float, align_corners: bool
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.align_corners = align_corners
        in_channels = stages[-1].channels
        self.channels = channels or in_channels // 4
        self.convs = nn.Sequential(conv(in_channels, self.channels, 3), conv(self.channels, self.channels, 3))
        self.conv_cat = conv(in_channels + self.channels, self.channels, 3)
        self.classifier = classifier(self.channels, num_classes, dropout)

    def context(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), each position informed about the others."""
        raise NotImplementedError

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The last is (B, in_channels, H, W) -> {"main": (B, K, H, W)}."""
        x = features[-1]
        y = self.convs[1](self.context(self.convs[0](x)))
        return {"main": self.classifier(self.conv_cat(torch.cat([x, y], dim=1)))}


class GatingDecoder(nn.Module):
    """DRANet's CLGD: a gate decides at each position how much of a fine stage joins the enlarged features.

    Args:
        low_channels: of the fine stage.
        channels: C.
        align_corners: how features are enlarged.
    """

    def __init__(self, low_channels: int, channels: int, align_corners: bool) -> None:
        super().__init__()
        skip = 32
        self.align_corners = align_corners
        self.conv_low = conv(low_channels, skip, 3)
        self.conv_att = conv(channels + skip, 1, norm=False, relu=False)
        self.conv_cat = conv(channels + skip, channels, 3)
        self.conv_out = conv(channels, channels, 3)
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """(B, low_channels, h, w), (B, C, H, W) -> (B, C, h, w)."""
        low = self.conv_low(low)
        high = F.interpolate(high, low.shape[2:], mode="bilinear", align_corners=self.align_corners)
        gate = torch.sigmoid(self.conv_att(torch.cat([low, high], dim=1)))
        return self.conv_out(self.conv_cat(torch.cat([self.gamma * gate * low, high], dim=1)))


# ---- means over the cells of size x size grids, as F.adaptive_avg_pool2d divides a map ------------------------------


def pool(x: Tensor, size: int) -> Tensor:
    """Means over the cells: (B, C, H, W) -> (B, C, size * size)."""
    # ONNX pools maps of one size only; on a GPU the layer's gradient is not deterministic, and PyTorch refuses it.
    refused = x.is_cuda and torch.are_deterministic_algorithms_enabled()
    if not refused and not is_exporting():
        return F.adaptive_avg_pool2d(x, size).flatten(2)
    rows, columns = (_cells(length, size, x) for length in x.shape[-2:])
    return torch.einsum("bchw,hr,ws->bcrs", x, rows, columns).flatten(2)


def pyramid(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Means over the cells of several grids: (B, C, H, W) -> (B, C, M)."""
    return torch.cat([pool(x, size) for size in sizes], dim=2)


def spread(weights: Tensor, sizes: Sequence[int], like: Tensor) -> Tensor:
    """Weights of a pyramid's cells as weights of the positions in them: (B, P, M), (B, C, H, W) -> (B, P, N)."""
    maps = []
    for size, part in zip(sizes, weights.split([size**2 for size in sizes], dim=2), strict=True):
        rows, columns = (_cells(length, size, part) for length in like.shape[-2:])
        maps.append(torch.einsum("bprs,hr,ws->bphw", part.unflatten(2, (size, size)), rows, columns).flatten(2))
    return torch.stack(maps).sum(dim=0)


def _cells(length: int, size: int, like: Tensor) -> Tensor:
    """The share of each position in each cell's mean, along one side: (length, size); columns sum to 1."""
    position = torch.arange(length, device=like.device).unsqueeze(1)
    cell = torch.arange(size, device=like.device)
    inside = (position >= cell * length // size) & (position < ((cell + 1) * length + size - 1) // size)
    return inside.to(like.dtype) / inside.sum(dim=0)


# ---- maps divided into h x w blocks of S x S positions, after padding with zeros, half of them above and to the left -


def interlace(x: Tensor, block: int) -> Tensor:
    """Maps of the positions with the same place in their blocks: (B, C, H, W) -> (B * S * S, C, h, w)."""
    x = F.pad(x, _padding(x.shape[2:], block))
    x = x.unflatten(3, (-1, block)).unflatten(2, (-1, block))  # (B, C, h, S, w, S)
    return x.permute(0, 3, 5, 1, 2, 4).flatten(0, 2)


def to_blocks(x: Tensor, block: int) -> Tensor:
    """Maps of the blocks, of what `interlace` gives: (B * S * S, C, h, w) -> (B * h * w, C, S, S)."""
    return x.unflatten(0, (-1, block, block)).permute(0, 4, 5, 3, 1, 2).flatten(0, 2)


def from_blocks(x: Tensor, size: torch.Size) -> Tensor:
    """The whole map without its padding, of size H x W: (B * h * w, C, S, S) -> (B, C, H, W)."""
    block = x.shape[2]
    rows, columns = ((side + block - 1) // block for side in size)
    maps = x.unflatten(0, (-1, rows, columns)).permute(0, 3, 1, 4, 2, 5)  # (B, C, h, S, w, S)
    # A slice would tie a graph with free sizes to those that divide as its example's.
    return F.pad(maps.flatten(4, 5).flatten(2, 3), [-zeros for zeros in _padding(size, block)])


def interlaced_order(size: torch.Size, block: int) -> Tensor:
    """Where `interlace` puts each position of an H x W map, as its place in the block * h * w + its block: (H * W,)."""
    count = size[0] * size[1]
    numbers = torch.arange(1, count + 1).view(1, 1, *size)  # the padding's is 0
    return interlace(numbers, block).flatten().argsort()[-count:]


def _padding(size: torch.Size, block: int) -> tuple[int, int, int, int]:
    """Zeros to the left, to the right, above and below, as F.pad takes them."""
    # Not as -side % block, so that a graph with free sizes knows the sums to be multiples of the block.
    down, right = ((side + block - 1) // block * block - side for side in size)
    return right // 2, right - right // 2, down // 2, down - down // 2
