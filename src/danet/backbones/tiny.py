"""A small ResNet for CPUs, teaching and tests.

Shapes: B images, H x W image size, C channels of the last stage.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from danet.arguments import ExistingFile, PositiveInt
from danet.backbones.freezing import Freezable, Freeze
from danet.backbones.pretrained import load_backbone, read_backbone
from danet.interfaces import IMAGENET_MEAN, IMAGENET_STD
from danet.ops.recompute import recomputed
from danet.registry import BACKBONES

Width = Annotated[int, Field(ge=4)]  # heads work with a quarter of the channels


@BACKBONES.register("resnet_tiny")
class TinyResNet(Freezable):
    """A 3x3 stem of stride 2 and four stages of one BasicBlock each.

    A position of the last stage sees 95 x 95 pixels, at either output stride. What lies farther away can only
    be known through the head: that is what attention is for.

        behind             stem   stage1  stage2  stage3  stage4
        stride             2      2       4       8       output_stride
        pixels seen        3      11      23      47      95

    Args:
        widths: channels of the four stages.
        output_stride: 16, or 8 by dilating the last stage instead of striding.
        multi_grid: absolute dilation of both 3x3 convolutions of the last stage, in a list of one since it has one
            block. None leaves 1, 2 at output stride 8. With [4] a position sees 175 x 175 pixels.
        pretrained: False or a file with weights, such as a checkpoint of a run with this backbone.
        freeze: see Freezable.
        freeze_batchnorm: see Freezable.

    Attributes:
        out_channels: channels of the four stages.
        strides: image pixels per step of each.
        in_channels, mean, std, recompute: see interfaces.Backbone.
        output_stride: as given.
    """

    def __init__(
        self,
        *,
        widths: Annotated[list[Width], Field(min_length=4, max_length=4)] = [16, 32, 64, 128],  # noqa: B006
        output_stride: Literal[8, 16] = 8,
        multi_grid: Annotated[list[PositiveInt], Field(min_length=1, max_length=1)] | None = None,
        pretrained: Literal[False] | ExistingFile = False,
        freeze: Freeze = 0,
        freeze_batchnorm: bool = False,
    ) -> None:
        super().__init__()
        from torchvision.models.resnet import BasicBlock  # takes seconds to import

        def stage(in_channels: int, channels: int, stride: int) -> BasicBlock:
            shortcut = None
            if stride != 1 or in_channels != channels:
                shortcut = nn.Sequential(
                    nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
                )
            return BasicBlock(in_channels, channels, stride, shortcut)

        self.out_channels = tuple(widths)
        self.output_stride = output_stride
        self.strides = (2, 4, 8, output_stride)
        self.in_channels, self.mean, self.std = 3, IMAGENET_MEAN, IMAGENET_STD
        self.recompute = False

        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        self.stage1 = stage(widths[0], widths[0], stride=1)
        self.stage2 = stage(widths[0], widths[1], stride=2)
        self.stage3 = stage(widths[1], widths[2], stride=2)
        self.stage4 = stage(widths[2], widths[3], stride=2 if output_stride == 16 else 1)
        if output_stride == 8:  # the convolution behind the missing stride keeps its reach by dilation
            self.stage4.conv2.dilation = self.stage4.conv2.padding = (2, 2)
        for dilation in multi_grid or []:
            for conv in (self.stage4.conv1, self.stage4.conv2):
                conv.dilation = conv.padding = (dilation, dilation)
        if pretrained:
            tensors = read_backbone(pretrained, landmark="stage1.conv1.weight")
            causes = {"": "weights of other widths"}
            load_backbone(self, tensors, pretrained, names="this backbone's", causes=causes)
        self.freeze(freeze, freeze_batchnorm)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Normalized images (B, 3, H, W) -> one feature map per stage.

        The last is (B, C, ceil(H / output_stride), ceil(W / output_stride)).
        """
        x = self.stem(image)
        features = []
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            x = recomputed(stage, x) if self.recompute else stage(x)
            features.append(x)
        return features

    def layer_groups(self) -> list[list[nn.Module]]:
        """The stem and the four stages."""
        return [[self.stem], [self.stage1], [self.stage2], [self.stage3], [self.stage4]]
