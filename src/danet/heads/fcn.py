"""The head without attention: DANet's baseline, and the auxiliary head on the backbone's third stage.

Source: the "Dilated FCN" of Fu et al., "Dual Attention Network for Scene Segmentation", CVPR 2019, table 2.

Shapes: B images, H x W size of the feature map, K classes.
"""

from collections.abc import Sequence

import torch
from torch import nn

from danet.arguments import Probability
from danet.interfaces import Stage
from danet.registry import HEADS


@HEADS.register("fcn")
class FCNHead(nn.Module):
    """One 3x3 convolution to in_channels / 4 and a 1x1 classifier.

    Args:
        stages: the backbone's; the last one counts.
        num_classes: K.
        dropout: probability of dropping a channel before the classifier.
        align_corners: how the logits are to be resized.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        /,
        *,
        dropout: Probability = 0.1,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.align_corners = align_corners
        in_channels = stages[-1].channels
        channels = in_channels // 4
        self.conv_in = nn.Sequential(
            nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, kernel_size=1))

    def forward(self, features: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The last is (B, in_channels, H, W) -> {"main": (B, K, H, W)}."""
        return {"main": self.classifier(self.conv_in(features[-1]))}
