"""Interlaced sparse self-attention: first among positions far apart, then inside of blocks; together they reach all.

Source: Huang et al., "Interlaced Sparse Self-Attention for Semantic Segmentation", 2019, arXiv 1907.12273, section 3.2.
The map is divided into blocks of S x S positions. Long-range attention joins the positions that have the same place in
their blocks, short-range attention those of one block. The map is padded with zeros to whole blocks, which take part.

Shapes: B images, C channels, H x W size of the feature map, N = H * W positions, P of them looked at, S positions along
a block's side, h x w blocks, K classes.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.arguments import PositiveInt, Probability
from danet.heads.parts import MMSEG_CLASSIFIER, ForeignKeys, attend, classifier, conv
from danet.interfaces import Stage
from danet.ops.position_attention import position_weights
from danet.registry import HEADS


class SelfAttention(nn.Module):
    """Dense attention within small maps.

    Args:
        channels: C.
        inner: channels of query and key.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.query_project = nn.Sequential(conv(channels, inner), conv(inner, inner))
        self.key_project = nn.Sequential(conv(channels, inner), conv(inner, inner))
        self.value_project = nn.Conv2d(channels, channels, kernel_size=1)
        self.output_project = conv(channels, channels)

    def weights(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, N), each row summing to 1."""
        query, key = self.query_project(x).flatten(2), self.key_project(x).flatten(2)
        return position_weights(query * query.shape[1] ** -0.5, key)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        query, key, value = (
            layer(x).flatten(2) for layer in (self.query_project, self.key_project, self.value_project)
        )
        return self.output_project(attend(query, key, value).view_as(x))


class InterlacedAttention(nn.Module):
    """Long-range, then short-range attention.

    Args:
        channels: C.
        inner: channels of query and key.
        block: S.
    """

    def __init__(self, channels: int, inner: int, block: int) -> None:
        super().__init__()
        self.block = block
        self.global_relation = SelfAttention(channels, inner)
        self.local_relation = SelfAttention(channels, inner)

    def _padding(self, x: Tensor) -> tuple[int, int]:
        """Zeros above and to the left of the map; below and to the right there may be one more."""
        height, width = x.shape[2:]
        return -height % self.block // 2, -width % self.block // 2

    def _interlace(self, x: Tensor) -> Tensor:
        """Maps of the positions with the same place in their blocks: (B, C, H, W) -> (B * S * S, C, h, w)."""
        (top, left), (height, width) = self._padding(x), x.shape[2:]
        x = F.pad(x, (left, -width % self.block - left, top, -height % self.block - top))
        x = x.unflatten(3, (-1, self.block)).unflatten(2, (-1, self.block))  # (B, C, h, S, w, S)
        return x.permute(0, 3, 5, 1, 2, 4).flatten(0, 2)

    def _blocks(self, x: Tensor) -> Tensor:
        """Maps of the blocks: (B * S * S, C, h, w) -> (B * h * w, C, S, S)."""
        return x.unflatten(0, (-1, self.block, self.block)).permute(0, 4, 5, 3, 1, 2).flatten(0, 2)

    def attention(self, x: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """The product of both weights, without the layers between: (B, C, H, W) -> (B, N, N), or (B, P, N).

        What falls on the padding is missing in a row's sum.
        """
        (top, left), (height, width), size = self._padding(x), x.shape[2:], self.block
        interlaced = self._interlace(x)
        count = interlaced.shape[2] * interlaced.shape[3]  # of blocks
        far = self.global_relation.weights(interlaced).unflatten(0, (-1, size**2))  # (B, S * S, h * w, h * w)
        near = self.local_relation.weights(self._blocks(self.global_relation(interlaced)))
        chosen = torch.arange(height * width) if positions is None else torch.as_tensor(positions)
        row, column = chosen // width + top, chosen % width + left
        block = row // size * interlaced.shape[3] + column // size
        near = near.unflatten(0, (-1, count))[:, block, row % size * size + column % size]  # (B, P, S * S)
        product = torch.einsum("bps,bspm->bpsm", near, far[:, :, block])
        maps = product.unflatten(3, (-1, interlaced.shape[3])).unflatten(2, (size, size))  # (B, P, S, S, h, w)
        maps = maps.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
        return maps[:, :, top : top + height, left : left + width].flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        (top, left), (height, width) = self._padding(x), x.shape[2:]
        far = self.global_relation(self._interlace(x))  # (B * S * S, C, h, w)
        near = self.local_relation(self._blocks(far))  # (B * h * w, C, S, S)
        maps = near.unflatten(0, (-1, *far.shape[2:])).permute(0, 3, 1, 4, 2, 5)  # (B, C, h, S, w, S)
        return maps.flatten(4, 5).flatten(2, 3)[:, :, top : top + height, left : left + width]


@HEADS.register("isanet")
class ISANetHead(nn.Module):
    """Interlaced attention behind a 3x3 convolution to C; its output and its input are joined.

    Args:
        stages: the backbone's; the last one counts.
        num_classes: K.
        channels: C; None is a quarter of the last stage's. Query and key have half of them.
        block: S.
        dropout: probability of dropping a channel before the classifier.
        align_corners: how the logits are to be resized.
    """

    foreign_keys: ClassVar[ForeignKeys] = {
        "mmseg": (
            MMSEG_CLASSIFIER,
            ("global_relation.", "interlaced.global_relation."),
            ("local_relation.", "interlaced.local_relation."),
        )
    }

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        /,
        *,
        channels: PositiveInt | None = None,
        block: PositiveInt = 8,
        dropout: Probability = 0.1,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.align_corners = align_corners
        channels = channels or stages[-1].channels // 4
        self.in_conv = conv(stages[-1].channels, channels, 3)
        self.interlaced = InterlacedAttention(channels, max(channels // 2, 1), block)
        self.out_conv = conv(2 * channels, channels)
        self.classifier = classifier(channels, num_classes, dropout)

    def attention_modules(self) -> dict[str, nn.Module]:
        """The module with both attentions."""
        return {"interlaced": self.interlaced}

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The last is (B, in_channels, H, W) -> {"main": (B, K, H, W)}."""
        x = self.in_conv(features[-1])
        return {"main": self.classifier(self.out_conv(torch.cat([self.interlaced(x), x], dim=1)))}
