"""DFANet's three encoders, each fed with what the one before gave; its decoder is head=dfanet.

Source: Li et al., "DFANet: Deep Feature Aggregation for Real-Time Semantic Segmentation", CVPR 2019, figure 3 and table
1 (Xception A). There is no code by the authors; blocks are Xception's (Chollet, CVPR 2017): ReLU, separable
convolution, batch norm.

Shapes: B images, H x W size of the image or map, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.interfaces import IMAGENET_MEAN, IMAGENET_STD
from danet.ops.recompute import recomputed
from danet.registry import BACKBONES

WIDTHS, BLOCKS = (48, 96, 192), (4, 6, 4)  # of enc2, enc3, enc4


@BACKBONES.register("dfanet")
class DFANet(nn.Module):
    """Three passes through Xception A, at strides 4 to 16, 8 to 32 and 16 to 64.

    A pass starts from the finest map of the one before and its coarsest one, resized, and takes its other maps in on
    the way. The feature maps are the finest ones of the passes, then the coarsest ones.

    Attributes:
        out_channels, strides, in_channels, mean, std, recompute: see interfaces.Backbone.
    """

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        joined = coarse + fine, fine + middle, middle + coarse
        self.stage1, self.stage2, self.stage3 = map(_encoder, ((8, fine, middle), joined, joined))
        self.out_channels = (fine,) * 3 + (coarse,) * 3
        self.strides = (4, 8, 16, 16, 32, 64)
        self.in_channels, self.mean, self.std = 3, IMAGENET_MEAN, IMAGENET_STD
        self.recompute = False

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalized images (B, 3, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)) each."""
        x = self.stem(image)
        before: list[Tensor] = []
        fine, coarse = [], []
        for *encoder, gate in (self.stage1, self.stage2, self.stage3):
            maps: list[Tensor] = []
            for index, stage in enumerate(encoder):
                x = torch.cat([x, before[index - 1]], dim=1) if before and index else x
                x = recomputed(stage, x) if self.recompute else stage(x)
                maps.append(x)
            fine.append(maps[0])
            coarse.append(gate(maps[-1]))
            before = maps[1:]
            resized = F.interpolate(coarse[-1], maps[0].shape[-2:], mode="bilinear", align_corners=False)
            x = torch.cat([resized, maps[0]], dim=1)
        return fine + coarse


class XceptionBlock(nn.Module):
    """Three separable 3x3 convolutions, the last one four times as wide, beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        narrow = channels // 4
        self.convolutions = nn.Sequential(
            _separable(in_channels, narrow, 1), _separable(narrow, narrow, 1), _separable(narrow, channels, stride)
        )
        self.shortcut = nn.Sequential()
        if stride > 1:
            # A 1x1 convolution of stride 2 and few channels writes past its memory in PyTorch 2.14 (CPU, bfloat16,
            # channels_last); taking every second position first is the same.
            every = nn.MaxPool2d(1, stride)
            projection = nn.Conv2d(in_channels, channels, 1, bias=False)
            self.shortcut = nn.Sequential(every, projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, C, H / stride, W / stride)."""
        return self.convolutions(x) + self.shortcut(x)


class ChannelGate(nn.Module):
    """Fully connected attention: the pooled map, by 1000 features as of ImageNet's classes, weighs the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 1000, 1), nn.Conv2d(1000, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return x * self.weigh(x)


def _encoder(inputs: tuple[int, int, int]) -> nn.ModuleList:
    """enc2, enc3, enc4 and the attention at their end."""
    return nn.ModuleList([*map(_stage, inputs, WIDTHS, BLOCKS), ChannelGate(WIDTHS[-1])])


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    first = XceptionBlock(in_channels, channels, stride=2)
    return nn.Sequential(first, *(XceptionBlock(channels, channels, stride=1) for _ in range(blocks - 1)))


def _separable(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    depthwise = nn.Conv2d(in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False)
    pointwise = nn.Conv2d(in_channels, channels, 1, bias=False)
    return nn.Sequential(nn.ReLU(), depthwise, pointwise, nn.BatchNorm2d(channels))
