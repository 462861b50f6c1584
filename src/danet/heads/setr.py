"""SETR's decoders for a ViT: naive, progressive upsampling (PUP), multi-level aggregation (MLA).

Source: Zheng et al., "Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers", CVPR
2021, section 3.2. As mmsegmentation's SETRUPHead, and its MLANeck with SETRMLAHead.

Shapes: B images, H x W size of the feature maps, K classes.
"""

import itertools
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from danet.arguments import PositiveInt, Probability
from danet.heads.parts import MMSEG_CLASSIFIER, ForeignKeys, classifier, conv
from danet.interfaces import Stage
from danet.registry import HEADS


@HEADS.register("setr")
class SETRHead(nn.Module):
    """Convolutions and bilinear upsampling; naive and PUP read the last stage, MLA the last four.

    Args:
        stages: the backbone's, of one stride.
        num_classes: K.
        decoder: "naive" is a 1x1 convolution and 4x upsampling, "pup" four 3x3 convolutions with 2x upsampling each,
            "mla" sums each stage with all later ones; two 3x3 convolutions and 4x upsampling of each sum, joined.
        channels: of the convolutions; of MLA for all stages together, and half of it where stages are summed.
        dropout: probability of dropping a channel before the classifier.
        align_corners: how feature maps and logits are resized.

    Raises:
        ValueError: MLA on stages of different strides.
    """

    foreign_keys: ClassVar[ForeignKeys] = {"mmseg": (MMSEG_CLASSIFIER,)}

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        /,
        *,
        decoder: Literal["naive", "pup", "mla"] = "pup",
        channels: PositiveInt = 256,
        dropout: Probability = 0.0,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes, self.align_corners = num_classes, align_corners
        last = stages[-1].channels

        def larger(factor: int) -> nn.Module:
            return nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=align_corners)

        self._taps = [len(stages) - 1]
        if decoder == "mla":
            self._taps = list(range(len(stages)))[-4:]
            if len({stages[index].stride for index in self._taps}) > 1:
                raise ValueError("decoder=mla needs stages of one stride, such as those of backbone=vit_small")
            width, added = channels // len(self._taps), channels // 2
            self.neck = MultiLevelAggregation([stages[index].channels for index in self._taps], added)
            steps = [nn.Sequential(conv(added, width, 3), conv(width, width, 3), larger(4)) for _ in self._taps]
        elif decoder == "pup":
            steps = [nn.Sequential(conv(channels if index else last, channels, 3), larger(2)) for index in range(4)]
        else:
            steps = [nn.Sequential(conv(last, channels), larger(4))]
        self.norm = None if decoder == "mla" else nn.LayerNorm(last, eps=1e-6)
        self.up_convs = nn.ModuleList(steps)
        joined = channels if decoder != "mla" else width * len(self._taps)
        self.classifier = classifier(joined, num_classes, dropout)

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The stages -> {"main": (B, K, 4 H, 4 W)}, of PUP (B, K, 16 H, 16 W)."""
        if self.norm is None:
            sums = self.neck([features[index] for index in self._taps])
            maps = [step(x) for step, x in zip(self.up_convs, sums, strict=True)]
            return {"main": self.classifier(torch.cat(maps, dim=1))}
        x = _over_channels(self.norm, features[-1])
        for step in self.up_convs:
            x = step(x)
        return {"main": self.classifier(x)}


class MultiLevelAggregation(nn.Module):
    """Normalize and project stages of one size, and sum each with all later ones: (B, C_i, H, W) -> (B, C, H, W) each.

    Args:
        in_channels: C_i.
        channels: C.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for width in in_channels)
        self.projections = nn.ModuleList(conv(width, channels) for width in in_channels)
        self.convs = nn.ModuleList(conv(channels, channels, 3) for _ in in_channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The sums, that of the last stage alone first."""
        levels = zip(self.norms, self.projections, features, strict=True)
        projected = [project(_over_channels(norm, x)) for norm, project, x in levels]
        sums = itertools.accumulate(reversed(projected))
        return [convolve(x) for convolve, x in zip(self.convs, sums, strict=True)]


def _over_channels(norm: nn.Module, x: Tensor) -> Tensor:
    """Normalize the channels of each position: (B, C, H, W) -> (B, C, H, W)."""
    normalized: Tensor = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return normalized
