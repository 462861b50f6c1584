"""U2-Net without its side outputs, which are head=u2net: a U-Net whose blocks are U-Nets.

Source: Qin et al., "U2-Net: Going Deeper with Nested U-Structure for Salient Object Detection", Pattern Recognition
2020, figures 2 and 5, table 1. Parameters are named as in the authors' code.

Shapes: B images, H x W image size, C channels.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.arguments import ExistingFile
from danet.backbones.pretrained import load_backbone, read_backbone
from danet.interfaces import IMAGENET_MEAN, IMAGENET_STD
from danet.ops.recompute import recomputed
from danet.registry import BACKBONES

HEIGHTS = (7, 6, 5, 4, 4, 4)  # of the six stages' blocks; the last two dilate instead of pooling
# Channels inside and out of the blocks of the encoder, then of the decoder, whose coarsest stage is the encoder's.
ENCODER = ((32, 64), (32, 128), (64, 256), (128, 512), (256, 512), (256, 512))
DECODER = ((16, 64), (32, 64), (64, 128), (128, 256), (256, 512))
WIDTHS = {"full": (ENCODER, DECODER), "small": (((16, 64),) * 6, ((16, 64),) * 5)}


@BACKBONES.register("u2net")
class U2Net(nn.Module):
    """Encoder and decoder; the feature maps are the decoder's.

    Args:
        size: "full" (U2-Net, 44 million parameters) or "small" (U2-Net-p, 1.1 million).
        pretrained: False or a file with weights in the authors' naming, such as their u2net.pth.

    Attributes:
        out_channels, strides, in_channels, mean, std, recompute: see interfaces.Backbone.
    """

    def __init__(
        self, *, size: Literal["full", "small"] = "full", pretrained: Literal[False] | ExistingFile = False
    ) -> None:
        super().__init__()
        encoder, decoder = WIDTHS[size]
        channels = 3
        for stage, (middle, out) in enumerate(encoder, start=1):
            self.add_module(f"stage{stage}", _stage(stage, channels, middle, out))
            channels = out
        for stage in (5, 4, 3, 2, 1):
            middle, out = decoder[stage - 1]
            self.add_module(f"stage{stage}d", _stage(stage, channels + encoder[stage - 1][1], middle, out))
            channels = out
        self.out_channels = (*(out for _, out in decoder), encoder[-1][1])
        self.strides = (1, 2, 4, 8, 16, 32)
        self.in_channels, self.mean, self.std = 3, IMAGENET_MEAN, IMAGENET_STD
        self.recompute = False
        if pretrained:
            tensors = read_backbone(pretrained, landmark="stage1.rebnconvin.conv_s1.weight")
            tensors = {key: value for key, value in tensors.items() if not key.startswith(("side", "outconv"))}
            load_backbone(self, tensors, pretrained, names="U2-Net's", causes={"": "weights of the other size"})

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalized images (B, 3, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)) each."""
        encoded, x = [], image
        for stage in range(1, 7):
            x = self._run(f"stage{stage}", x if stage == 1 else _halved(x))
            encoded.append(x)
        features = [encoded.pop()]
        for stage in (5, 4, 3, 2, 1):
            features.insert(0, self._run(f"stage{stage}d", _joined(features[0], encoded.pop())))
        return features

    def _run(self, name: str, x: Tensor) -> Tensor:
        block = self.get_submodule(name)
        return recomputed(block, x) if self.recompute else block(x)


class ResidualUBlock(nn.Module):
    """RSU-L: a U-Net of L levels, added to what it starts from.

    Args:
        height: L.
        in_channels: of the input.
        middle: channels of the levels.
        out_channels: of the output.
        dilated: whether level l dilates by 2^(l - 1) instead of pooling (RSU-4F).
    """

    def __init__(self, height: int, in_channels: int, middle: int, out_channels: int, *, dilated: bool) -> None:
        super().__init__()
        self.height, self.dilated = height, dilated
        self.rebnconvin = _convolution(in_channels, out_channels, 1)
        for level in range(1, height + 1):
            rate = 2 ** (level - 1) if dilated else 1 + (level == height)
            channels = out_channels if level == 1 else middle
            self.add_module(f"rebnconv{level}", _convolution(channels, middle, rate))
        for level in range(height - 1, 0, -1):
            rate = 2 ** (level - 1) if dilated else 1
            channels = out_channels if level == 1 else middle
            self.add_module(f"rebnconv{level}d", _convolution(2 * middle, channels, rate))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        x = start = self.rebnconvin(x)
        levels = []
        for level in range(1, self.height + 1):
            pools = not self.dilated and 1 < level < self.height
            x = self.get_submodule(f"rebnconv{level}")(_halved(x) if pools else x)
            levels.append(x)
        x = levels.pop()
        for level in range(self.height - 1, 0, -1):
            x = self.get_submodule(f"rebnconv{level}d")(_joined(x, levels.pop()))
        return x + start


def _stage(stage: int, in_channels: int, middle: int, out_channels: int) -> nn.Module:
    return ResidualUBlock(HEIGHTS[stage - 1], in_channels, middle, out_channels, dilated=stage > 4)


def _convolution(in_channels: int, out_channels: int, rate: int) -> nn.Module:
    block = nn.Sequential()
    block.add_module("conv_s1", nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate))
    block.add_module("bn_s1", nn.BatchNorm2d(out_channels))
    block.add_module("relu_s1", nn.ReLU(inplace=True))
    return block


def _halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, ceil_mode=True)


def _joined(coarse: Tensor, fine: Tensor) -> Tensor:
    """The channels of both at the size of the second."""
    if coarse.shape[-2:] != fine.shape[-2:]:
        coarse = F.interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([coarse, fine], dim=1)
