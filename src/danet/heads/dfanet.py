"""DFANet's decoder, on the stages of any backbone; the whole network with backbone=dfanet.

Source: Li et al., "DFANet: Deep Feature Aggregation for Real-Time Semantic Segmentation", CVPR 2019, section 3.3 and
figure 3.

Shapes: B images, C channels, H x W size of the finest feature map, K classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.arguments import PositiveInt
from danet.heads.parts import conv
from danet.interfaces import Stage
from danet.registry import HEADS


@HEADS.register("dfanet")
class DFANetHead(nn.Module):
    """The sum of the first half of the stages, convolved, then with the sum of the second half.

    Args:
        stages: the backbone's; all are read.
        num_classes: K.
        channels: C, to which each stage is reduced.
        align_corners: how feature maps and logits are resized.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        /,
        *,
        channels: PositiveInt = 32,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes, self.align_corners = num_classes, align_corners
        self.reductions = nn.ModuleList(conv(stage.channels, channels) for stage in stages)
        self.merge = conv(channels, channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The stages -> {"main": (B, K, H, W)}."""
        reduced = [reduction(x) for reduction, x in zip(self.reductions, features, strict=True)]
        size, align = features[0].shape[-2:], self.align_corners
        maps = [F.interpolate(x, size, mode="bilinear", align_corners=align) for x in reduced]
        half = (len(maps) + 1) // 2
        shallow = self.merge(torch.stack(maps[:half]).sum(dim=0))
        return {"main": self.classifier(torch.stack([shallow, *maps[half:]]).sum(dim=0))}
