"""Maps divided into blocks of S x S positions: those with one place in their blocks together, or those of one block.

Shapes: B images, C channels, H x W size of the map, h x w blocks after padding with zeros, half of them above and to
the left.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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
    left, _, top, _ = _padding(size, block)
    return maps.flatten(4, 5).flatten(2, 3)[:, :, top : top + size[0], left : left + size[1]]


def interlaced_order(size: torch.Size, block: int) -> Tensor:
    """Where `interlace` puts each position of an H x W map, as its place in the block * h * w + its block: (H * W,)."""
    count = size[0] * size[1]
    numbers = torch.arange(1, count + 1).view(1, 1, *size)  # the padding's is 0
    return interlace(numbers, block).flatten().argsort()[-count:]


def _padding(size: torch.Size, block: int) -> tuple[int, int, int, int]:
    """Zeros to the left, to the right, above and below, as F.pad takes them."""
    down, right = (-side % block for side in size)
    return right // 2, right - right // 2, down // 2, down - down // 2
