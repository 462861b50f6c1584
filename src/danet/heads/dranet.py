"""DRANet, the follow-up of DANet's authors: both attentions on few gathering centers, and a gate for fine features.

Source: Fu et al., "Scene Segmentation With Dual Relation-Aware Attention Network", IEEE TNNLS 2021. The compact
position attention module (CPAM) has 50 centers, the means over the cells of coarse grids; the compact channel attention
module (CCAM) has C / 16 channels made by a convolution; the cross-level gating decoder (CLGD) adds the first stage. All
as in the authors' code (github.com/junfu1115/DANet, dran_att.py).

Shapes: B images, C channels, H x W feature map, N = H * W positions, P of them looked at, M centers, K classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from danet.arguments import PositiveInt, Probability
from danet.heads.parts import GatingDecoder, classifier, conv, in_float32, pool, spread
from danet.interfaces import Stage
from danet.ops.position_attention import position_weights, softmax
from danet.registry import HEADS

GRIDS = (1, 2, 3, 6)


class CompactPositionAttention(nn.Module):
    """CPAM: y_i = x_i + gamma * sum_m softmax_m(q_i^T k_m) v_m over M centers.

    Args:
        channels: C; query and key have a quarter of them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 4, 1)
        self.centers = nn.ModuleList(conv(channels, channels) for _ in GRIDS)
        self.query = nn.Conv2d(channels, inner, kernel_size=1)
        self.key = nn.Linear(channels, inner)
        self.value = nn.Linear(channels, channels)
        self.gamma = nn.Parameter(torch.zeros(1))  # the module starts as the identity

    def gathered(self, x: Tensor) -> Tensor:
        """The centers: (B, C, H, W) -> (B, M, C)."""
        cells = (layer(pool(x, size).unsqueeze(3)) for layer, size in zip(self.centers, GRIDS, strict=True))
        return torch.cat([part.flatten(2) for part in cells], dim=2).transpose(1, 2)

    def attention(self, x: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """The weights, each center's spread over its cell: (B, C, H, W) -> (B, N, N), or (B, P, N) of P positions."""
        query = self.query(x).flatten(2)
        chosen = query if positions is None else query[:, :, positions]
        return spread(position_weights(chosen, self.key(self.gathered(x)).transpose(1, 2)), GRIDS, x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        centers = self.gathered(x)
        weights = position_weights(self.query(x).flatten(2), self.key(centers).transpose(1, 2))  # (B, N, M)
        gathered = self.value(centers).transpose(1, 2) @ weights.to(x.dtype).transpose(1, 2)
        return x + self.gamma * gathered.view_as(x)


class CompactChannelAttention(nn.Module):
    """CCAM: y_c = x_c + gamma * sum_m softmax_m(max - x_c^T z_m) z_m over C / 16 channels z."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = conv(channels, max(channels // 16, 1))
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        centers = self.reduce(x).flatten(2)  # (B, M, N)
        energy = in_float32(torch.matmul)(x.flatten(2), centers.transpose(1, 2))  # (B, C, M)
        weights = softmax(energy.amax(dim=2, keepdim=True) - energy)  # the least similar weighs most, as in DANet
        return x + self.gamma * (weights.to(x.dtype) @ centers).view_as(x)


@HEADS.register("dranet")
class DRANetHead(nn.Module):
    """Both compact attentions side by side, joined, decoded and classified at the first stage's resolution.

    Args:
        stages: the backbone's; the first and the last one count.
        num_classes: K.
        channels: C of the branches; None is a quarter of the last stage's. The decoder has half of them.
        dropout: probability of dropping a channel before the classifier.
        align_corners: how features are enlarged and logits are to be resized.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        /,
        *,
        channels: PositiveInt | None = None,
        dropout: Probability = 0.1,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes, self.align_corners = num_classes, align_corners
        in_channels = stages[-1].channels
        channels = channels or in_channels // 4
        decoded = max(channels // 2, 1)
        self.conv_cpam_b, self.conv_cpam_e = conv(in_channels, channels, 3), conv(channels, channels, 3)
        self.conv_ccam_b, self.conv_ccam_e = conv(in_channels, channels, 3), conv(channels, channels, 3)
        self.cpam = CompactPositionAttention(channels)
        self.ccam = CompactChannelAttention(channels)
        self.conv_cat = conv(2 * channels, decoded, 3)
        self.clgd = GatingDecoder(stages[0].channels, decoded, align_corners)
        self.classifier = classifier(decoded, num_classes, dropout)

    def attention_modules(self) -> dict[str, nn.Module]:
        """The compact position attention."""
        return {"cpam": self.cpam}

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The first is (B, _, h, w), the last (B, in_channels, H, W) -> {"main": (B, K, h, w)}."""
        cpam = self.conv_cpam_e(self.cpam(self.conv_cpam_b(features[-1])))
        ccam = self.conv_ccam_e(self.ccam(self.conv_ccam_b(features[-1])))
        joined = self.conv_cat(torch.cat([cpam, ccam], dim=1))
        return {"main": self.classifier(self.clgd(features[0], joined))}
