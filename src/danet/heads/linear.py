"""Linear attention: position attention with a kernel in place of the softmax, so that no N x N weights are needed.

Source: Li et al., "Linear Attention Mechanism: An Efficient Attention for Semantic Segmentation", 2020, arXiv
2007.14902: the first-order Taylor expansion of the exponential, with query and key of length 1,

    y_i = x_i + gamma * (sum_j v_j + q_i^T sum_j k_j v_j^T) / (N + q_i^T sum_j k_j).

The authors' code exchanges query and key in the numerator, so that the weights of a position do not sum to 1; this
follows the paper.

Shapes: B images, C channels, H x W size of the feature map, N = H * W positions, D = C / reduction channels of query
and key, K classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.arguments import PositiveInt, Probability
from danet.heads.parts import ContextHead, in_float32
from danet.interfaces import Stage
from danet.registry import HEADS

LEAST = 1e-3  # mean similarity; with D = 1 it is 0 where a query is opposed to all keys


@in_float32
def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Means of all values with weights proportional to 1 + q^T k: (B, D, N), (B, D, N), (B, C, N) -> (B, C, N)."""
    query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
    products = value @ key.transpose(1, 2)  # (B, C, D)
    totals = value.sum(dim=2, keepdim=True) + products @ query
    return totals / value.shape[2] / (1 + key.mean(dim=2).unsqueeze(1) @ query).clamp(min=LEAST)


class LinearAttention(nn.Module):
    """The module.

    Args:
        channels: C.
        reduction: query and key have C / reduction channels.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inner = max(channels // reduction, 1)
        self.query_conv = nn.Conv2d(channels, inner, kernel_size=1)
        self.key_conv = nn.Conv2d(channels, inner, kernel_size=1)
        self.value_conv = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(1))  # the module starts as the identity

    def attention(self, x: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """The weights behind the output, each row summing to 1: (B, C, H, W) -> (B, N, N), or (B, P, N)."""
        query, key = (F.normalize(layer(x).flatten(2), dim=1) for layer in (self.query_conv, self.key_conv))
        if positions is not None:
            query = query[:, :, positions]
        similar = 1 + query.transpose(1, 2) @ key
        return similar / similar.shape[2] / similar.mean(dim=2, keepdim=True).clamp(min=LEAST)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        query, key, value = (layer(x).flatten(2) for layer in (self.query_conv, self.key_conv, self.value_conv))
        return x + self.gamma * linear_attention(query, key, value).to(x.dtype).view_as(x)


@HEADS.register("linear")
class LinearAttentionHead(ContextHead):
    """Linear attention in the frame of ContextHead, which has the other arguments.

    Args:
        reduction: see LinearAttention.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        /,
        *,
        channels: PositiveInt | None = None,
        reduction: PositiveInt = 8,
        dropout: Probability = 0.1,
        align_corners: bool = True,
    ) -> None:
        super().__init__(stages, num_classes, channels, dropout, align_corners)
        self.attention = LinearAttention(self.channels, reduction)

    def context(self, x: Tensor) -> Tensor:
        """The module."""
        return self.attention(x)

    def attention_modules(self) -> dict[str, nn.Module]:
        """The module."""
        return {"linear": self.attention}
