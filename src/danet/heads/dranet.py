"""DRANet, the follow-up of DANet's authors: both attentions on few gathering centers, and a gate for fine features.

Source: Fu et al., "Scene Segmentation With Dual Relation-Aware Attention Network", IEEE TNNLS 2021. The compact
position attention module (CPAM) has 50 centers, the means over the cells of coarse grids; the compact channel attention
module (CCAM) has C / 16 channels made by a convolution; the cross-level gating decoder (CLGD) adds the first stage. All
as in the authors' code (github.com/junfu1115/DANet, dran_att.py).

Shapes: B images, C channels, H x W size of the feature map, N = H * W positions, P of them looked at, M centers, K
classes.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.arguments import PositiveInt, Probability
from danet.heads.parts import ForeignKeys, classifier, conv, in_float32, pool, spread
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
    """CCAM: y_c = x_c + gamma * sum_m softmax_m(max - x_c^T z_m) z_m over C / 16 channels z.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = conv(channels, max(channels // 16, 1))
        self.gamma = nn.Parameter(torch.zeros(1))

    @staticmethod
    @in_float32
    def weights(x: Tensor, centers: Tensor) -> Tensor:
        """(B, C, N), (B, M, N) -> (B, C, M), rows sum to 1; as in DANet's code the least similar weighs most."""
        energy = x @ centers.transpose(1, 2)
        return softmax(energy.amax(dim=2, keepdim=True) - energy)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        centers = self.reduce(x).flatten(2)
        gathered = self.weights(x.flatten(2), centers).to(x.dtype) @ centers
        return x + self.gamma * gathered.view_as(x)


class GatingDecoder(nn.Module):
    """CLGD: a gate decides at each position how much of the first stage joins the enlarged features.

    Args:
        low_channels: of the first stage.
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


# Convolutions with batch norm, there and here.
BLOCKS = {
    **{name: name for name in ("conv_cpam_b", "conv_cpam_e", "conv_ccam_b", "conv_ccam_e", "conv_cat")},
    **{name: name for name in ("clgd.conv_low", "clgd.conv_cat", "clgd.conv_out")},
    **{f"cpam_enc.conv{index + 1}": f"cpam.centers.{index}" for index in range(4)},
    "ccam_enc": "ccam.reduce",
}
OFFICIAL_KEYS = (
    ("cls_seg.", "classifier."),
    ("clgd.conv_att.0.", "clgd.conv_att.conv."),
    *((f"cpam_dec.conv_{name}.", f"cpam.{name}.") for name in ("query", "key", "value")),
    *((f"{name}_dec.scale", f"{name}.gamma") for name in ("cpam", "ccam")),
    *((f"{theirs}.0.", f"{ours}.conv.") for theirs, ours in BLOCKS.items()),
    *((f"{theirs}.1.", f"{ours}.bn.") for theirs, ours in BLOCKS.items()),
)


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

    foreign_keys: ClassVar[ForeignKeys] = {"official": OFFICIAL_KEYS}

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
        self.num_classes = num_classes
        self.align_corners = align_corners
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
