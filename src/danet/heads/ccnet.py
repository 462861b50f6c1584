"""Criss-cross attention: each position aggregates its row and its column; applied twice, it reaches every position.

Source: Huang et al., "CCNet: Criss-Cross Attention for Semantic Segmentation", ICCV 2019: equation 1 (affinities with
the H + W - 1 positions of row and column), equation 2 (aggregation). Both passes share their weights (section 3.3).

Shapes: B images, C channels, H x W size of the feature map, N = H * W positions, P of them looked at, D = C / 8
channels of query and key, K classes.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from danet.arguments import PositiveInt, Probability
from danet.heads.parts import MMSEG_CLASSIFIER, ContextHead, ForeignKeys, in_float32
from danet.interfaces import Stage
from danet.ops.position_attention import softmax
from danet.registry import HEADS


@in_float32
def criss_cross_weights(query: Tensor, key: Tensor) -> Tensor:
    """Equation 1: (B, D, H, W) each -> (B, H, W, H + W), for the column's positions, then the row's.

    Each position's weights sum to 1. It counts once, in its row.
    """
    height = query.shape[2]
    column = torch.einsum("bdhw,bdiw->bhwi", query, key)
    row = torch.einsum("bdhw,bdhj->bhwj", query, key)
    index = torch.arange(height, device=query.device)
    itself = index[:, None, None] == index  # (H, 1, H)
    return softmax(torch.cat([column.masked_fill(itself, float("-inf")), row], dim=3))


class CrissCrossAttention(nn.Module):
    """One pass.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 8, 1)
        self.query_conv = nn.Conv2d(channels, inner, kernel_size=1)
        self.key_conv = nn.Conv2d(channels, inner, kernel_size=1)
        self.value_conv = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(1))  # the module starts as the identity

    def attention(self, x: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """The weights of one pass, each row summing to 1: (B, C, H, W) -> (B, N, N), or (B, P, N) of P positions."""
        height, width = x.shape[2:]
        chosen = torch.arange(height * width) if positions is None else torch.as_tensor(positions)
        weights = criss_cross_weights(self.query_conv(x), self.key_conv(x)).flatten(1, 2)[:, chosen]  # (B, P, H + W)
        columns = torch.eye(width).to(weights)[chosen % width]  # (P, W)
        rows = torch.eye(height).to(weights)[chosen // width]  # (P, H)
        in_column = torch.einsum("bpi,pw->bpiw", weights[..., :height], columns)
        return (in_column + torch.einsum("bpj,ph->bphj", weights[..., height:], rows)).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        """Equation 2: (B, C, H, W) -> (B, C, H, W)."""
        height, value = x.shape[2], self.value_conv(x)
        weights = criss_cross_weights(self.query_conv(x), self.key_conv(x)).to(value.dtype)
        gathered = torch.einsum("bhwi,bciw->bchw", weights[..., :height], value)
        gathered = gathered + torch.einsum("bhwj,bchj->bchw", weights[..., height:], value)
        return self.gamma * gathered + x


@HEADS.register("ccnet")
class CCNetHead(ContextHead):
    """Criss-cross attention in the frame of ContextHead, which has the other arguments.

    Args:
        recurrence: number of passes.
    """

    foreign_keys: ClassVar[ForeignKeys] = {"mmseg": (MMSEG_CLASSIFIER, ("cca.gamma.scale", "cca.gamma"))}

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        /,
        *,
        channels: PositiveInt | None = None,
        recurrence: PositiveInt = 2,
        dropout: Probability = 0.1,
        align_corners: bool = True,
    ) -> None:
        super().__init__(stages, num_classes, channels, dropout, align_corners)
        self.recurrence = recurrence
        self.cca = CrissCrossAttention(self.channels)

    def context(self, x: Tensor) -> Tensor:
        """All passes."""
        for _ in range(self.recurrence):
            x = self.cca(x)
        return x

    def attention_modules(self) -> dict[str, nn.Module]:
        """The module of every pass."""
        return {"criss_cross": self.cca}
