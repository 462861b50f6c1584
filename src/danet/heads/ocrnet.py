"""Object-contextual representations: each position aggregates the K regions of a first, coarse prediction.

Source: Yuan et al., "Object-Contextual Representations for Semantic Segmentation", ECCV 2020: f_k = sum_i softmax_i(
coarse_ki) x_i (the regions), y_i = rho(sum_k softmax_k(phi(x_i)^T psi(f_k)) delta(f_k)) (the object-contextual
representations). The square root of D, by which energies are divided besides, is in the authors' code, too.

Shapes: B images, C channels, H x W size of the feature map, N = H * W positions, P of them looked at, D = C / 2
channels of query and key, K classes.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.arguments import PositiveInt, Probability
from danet.heads.parts import ForeignKeys, attend, classifier, conv, last_two, over_positions
from danet.interfaces import Stage
from danet.ops.position_attention import position_weights
from danet.registry import HEADS


class ObjectAttention(nn.Module):
    """Attention from positions to regions, joined with the positions' own features.

    Args:
        channels: C.
        inner: D.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.query_project = nn.Sequential(conv(channels, inner), conv(inner, inner))
        self.key_project = nn.Sequential(conv(channels, inner), conv(inner, inner))
        self.value_project = conv(channels, inner)
        self.out_project = conv(inner, channels)
        self.bottleneck = conv(2 * channels, channels)

    def attention(self, x: Tensor, members: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """What positions take from positions by way of the regions: (B, N, N), or (B, P, N) of P positions."""
        query = self.query_project(x).flatten(2)
        chosen = query if positions is None else query[:, :, positions]
        key = self.key_project(self.regions(x, members)).flatten(2)
        return position_weights(chosen * chosen.shape[1] ** -0.5, key) @ members

    @staticmethod
    def regions(x: Tensor, members: Tensor) -> Tensor:
        """The regions' means of the features: (B, C, K, 1)."""
        return (x.flatten(2) @ members.to(x.dtype).transpose(1, 2)).unsqueeze(3)

    def forward(self, x: Tensor, members: Tensor) -> Tensor:
        """(B, C, H, W), each position's share in each region (B, K, N) -> (B, C, H, W)."""
        regions = self.regions(x, members)
        query, key, value = self.query_project(x), self.key_project(regions), self.value_project(regions)
        gathered = attend(query.flatten(2), key.flatten(2), value.flatten(2)).unflatten(2, x.shape[2:])
        return self.bottleneck(torch.cat([self.out_project(gathered), x], dim=1))


@HEADS.register("ocrnet")
class OCRNetHead(nn.Module):
    """A coarse prediction from the third stage, which trains as an output of its own, and the attention to its regions.

    Args:
        stages: the backbone's; the last two count.
        num_classes: K.
        channels: C; None is a quarter of the last stage's.
        dropout: probability of dropping a channel before a classifier.
        align_corners: how the logits are to be resized.

    Raises:
        ValueError: the backbone has one stage only.
    """

    foreign_keys: ClassVar[ForeignKeys] = {
        "mmseg": (
            ("0.convs.0.", "coarse."),  # decode_head.0 is mmsegmentation's FCNHead
            ("0.conv_seg.", "coarse_classifier.1."),
            ("1.conv_seg.", "classifier.1."),
            ("1.bottleneck.", "bottleneck."),
            ("1.object_context_block.", "object_context_block."),
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
        self.num_classes = num_classes
        self.align_corners = align_corners
        low, high = last_two(stages)
        self.same_size = low.stride == high.stride
        channels = channels or high.channels // 4
        coarse_channels = max(low.channels // 4, 1)
        self.coarse = conv(low.channels, coarse_channels, 3)
        self.coarse_classifier = classifier(coarse_channels, num_classes, dropout)
        self.bottleneck = conv(high.channels, channels, 3)
        self.object_context_block = ObjectAttention(channels, max(channels // 2, 1))
        self.classifier = classifier(channels, num_classes, dropout)

    def attention_modules(self) -> dict[str, nn.Module]:
        """The attention to the regions."""
        return {"ocr": self.object_context_block}

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The last two, of one size (B, _, H, W) or not -> {"main": (B, K, H, W)}; in training "coarse", too."""
        coarse, x = self.coarse_classifier(self.coarse(features[-2])), self.bottleneck(features[-1])
        scores = coarse
        if not self.same_size:
            scores = F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=self.align_corners)
        logits = {"main": self.classifier(self.object_context_block(x, over_positions(scores)))}
        return logits | {"coarse": coarse} if self.training else logits
