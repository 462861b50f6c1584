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
from torch import Tensor, nn

from danet.arguments import PositiveInt, Probability
from danet.heads import parts
from danet.heads.parts import MMSEG_CLASSIFIER, ForeignKeys, classifier, conv
from danet.interfaces import Stage
from danet.ops.position_attention import position_weights
from danet.registry import HEADS


class SelfAttention(nn.Module):
    """Dense attention within small maps; query and key have half of the C channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
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
        weights, value = self.weights(x), self.value_project(x).flatten(2)
        return self.output_project((value @ weights.transpose(1, 2).to(value.dtype)).view_as(x))


class InterlacedAttention(nn.Module):
    """Long-range, then short-range attention, among C channels and in blocks of side S."""

    def __init__(self, channels: int, block: int) -> None:
        super().__init__()
        self.block = block
        self.global_relation = SelfAttention(channels)
        self.local_relation = SelfAttention(channels)

    def attention(self, x: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """The product of both weights, without the layers between: (B, C, H, W) -> (B, N, N), or (B, P, N).

        What falls on the padding is missing in a row's sum.
        """
        interlaced, order = parts.interlace(x, self.block), parts.interlaced_order(x.shape[2:], self.block)
        far = self.global_relation.weights(interlaced).unflatten(0, (len(x), -1))  # (B, S * S, h * w, h * w)
        near = self.local_relation.weights(parts.to_blocks(self.global_relation(interlaced), self.block))
        chosen = order if positions is None else order[positions]
        place, block = chosen // far.shape[2], chosen % far.shape[2]  # (P,) each
        near = near.unflatten(0, (len(x), -1))[:, block, place]  # (B, P, S * S)
        return torch.einsum("bps,bspm->bpsm", near, far[:, :, block]).flatten(2)[:, :, order]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        far = self.global_relation(parts.interlace(x, self.block))  # (B * S * S, C, h, w)
        near = self.local_relation(parts.to_blocks(far, self.block))  # (B * h * w, C, S, S)
        return parts.from_blocks(near, x.shape[2:])


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
        "mmseg": (MMSEG_CLASSIFIER, *((name, f"interlaced.{name}") for name in ("global_relation.", "local_relation.")))
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
        self.interlaced = InterlacedAttention(channels, block)
        self.out_conv = conv(2 * channels, channels)
        self.classifier = classifier(channels, num_classes, dropout)

    def attention_modules(self) -> dict[str, nn.Module]:
        """The module with both attentions."""
        return {"interlaced": self.interlaced}

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The last is (B, in_channels, H, W) -> {"main": (B, K, H, W)}."""
        x = self.in_conv(features[-1])
        return {"main": self.classifier(self.out_conv(torch.cat([self.interlaced(x), x], dim=1)))}
