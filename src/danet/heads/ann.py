"""Asymmetric non-local attention: the keys are means over the cells of coarse grids, 110 in place of N.

Source: Zhu et al., "Asymmetric Non-local Neural Networks for Semantic Segmentation", ICCV 2019: a fusion block (AFNB,
section 3.3: queries of the last stage, keys of the one before) and a pyramid block (APNB, section 3.2: both of one map,
with one projection for query and key).

Shapes: B images, C channels, H x W size of the feature map, N = H * W positions, P of them looked at, M = 110 cells of
the grids, D channels of query and key, K classes.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from danet.arguments import PositiveInt, Probability
from danet.heads.parts import MMSEG_CLASSIFIER, ForeignKeys, attend, classifier, conv, last_two, pyramid, spread, zero
from danet.interfaces import Stage
from danet.ops.position_attention import position_weights
from danet.registry import HEADS

GRIDS = (1, 3, 6, 8)


class AsymmetricNonLocal(nn.Module):
    """Attention from every position of one map to the cells of another, or of its own.

    Args:
        in_channels: C, of the map that is asked from and of the result.
        channels: D, of the value, too.
        key_channels: of the map that is looked at; None where it is the same map, and query and key one projection.
        relu: whether the result is rectified.
    """

    def __init__(self, in_channels: int, channels: int, key_channels: int | None, *, relu: bool) -> None:
        super().__init__()
        self.query_project = None if key_channels is None else conv(in_channels, channels)
        self.key_project = conv(key_channels or in_channels, channels)
        self.value_project = nn.Conv2d(key_channels or in_channels, channels, kernel_size=1)
        self.out_project = nn.Conv2d(channels, in_channels, kernel_size=1)
        self.bottleneck = conv(2 * in_channels, in_channels, relu=relu)

    def _compared(self, x: Tensor, looked_at: Tensor) -> tuple[Tensor, Tensor]:
        """The positions' queries and the cells' keys: (B, D, N), (B, D, M)."""
        key = self.key_project(looked_at)
        query = key if self.query_project is None else self.query_project(x)
        return query.flatten(2), pyramid(key, GRIDS)

    def attention(self, x: Tensor, looked_at: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """The weights, each cell's spread over the positions looked at: (B, N, N), or (B, P, N) of P positions."""
        query, key = self._compared(x, looked_at)
        chosen = query if positions is None else query[:, :, positions]
        return spread(position_weights(chosen * chosen.shape[1] ** -0.5, key), GRIDS, looked_at)

    def forward(self, x: Tensor, looked_at: Tensor) -> Tensor:
        """(B, C, H, W), (B, key_channels, h, w) -> (B, C, H, W)."""
        (query, key), value = self._compared(x, looked_at), pyramid(self.value_project(looked_at), GRIDS)
        gathered = attend(query, key, value).unflatten(2, x.shape[2:])
        return self.bottleneck(torch.cat([self.out_project(gathered), x], dim=1))


@HEADS.register("ann")
class ANNHead(nn.Module):
    """The fusion block on the last two stages, a 3x3 convolution to C, the pyramid block.

    Args:
        stages: the backbone's; the last two count.
        num_classes: K.
        channels: C; None is a quarter of the last stage's. Attention has half of them.
        dropout: probability of dropping a channel behind the fusion block, and before the classifier.
        align_corners: how the logits are to be resized.

    Raises:
        ValueError: the backbone has one stage only.
    """

    foreign_keys: ClassVar[ForeignKeys] = {
        "mmseg": (
            MMSEG_CLASSIFIER,
            *((f"context.stages.0.{name}_project.", "context.key_project.") for name in ("query", "key")),  # shared
            *((f"{block}.bottleneck.", f"{block}.bottleneck.") for block in ("context", "fusion")),
            *((f"{block}.stages.0.", f"{block}.") for block in ("context", "fusion")),
        )
    }

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
        low, high = (stage.channels for stage in last_two(stages))
        channels = channels or high // 4
        inner = max(channels // 2, 1)
        self.fusion = AsymmetricNonLocal(high, inner, low, relu=False)
        self.dropout = nn.Dropout2d(dropout)
        self.bottleneck = conv(high, channels, 3)
        self.context = AsymmetricNonLocal(channels, inner, None, relu=True)
        self.classifier = classifier(channels, num_classes, dropout)

    def init_weights(self) -> None:
        """Let both blocks start without attention."""
        zero(self.fusion.out_project)
        zero(self.context.out_project)

    def attention_modules(self) -> dict[str, nn.Module]:
        """The pyramid block."""
        return {"pyramid": self.context}

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The last two are (B, low, h, w) and (B, high, H, W) -> {"main": (B, K, H, W)}."""
        x = self.bottleneck(self.dropout(self.fusion(features[-1], features[-2])))
        return {"main": self.classifier(self.context(x, x))}
