"""ResNets for dense prediction: torchvision's networks with dilation in place of the late strides.

Parameter names and shapes are torchvision's (without `fc`), which dilation does not change, so its ImageNet
weights load as they are.

Sources: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; dilation and multi-grid as in
Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017, section 3.

Shapes: B images, H x W image size, C channels of the last stage.
"""

from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import nn

from danet.arguments import ExistingFile, PositiveInt
from danet.backbones.freezing import Freezable, Freeze
from danet.backbones.pretrained import load_backbone, read_backbone
from danet.interfaces import IMAGENET_MEAN, IMAGENET_STD
from danet.ops.recompute import recomputed
from danet.registry import BACKBONES

LAYER4_BLOCKS = {"resnet18": 2, "resnet34": 3, "resnet50": 3, "resnet101": 3, "resnet152": 3}

# Widths of the three 3x3 convolutions that replace the 7x7 one; layer1 reads the last of them.
DEEP_STEMS = {
    "deep": (32, 32, 64),  # ResNet-C, mmsegmentation's ResNetV1c
    "deep_wide": (64, 64, 128),  # the official DANet code's
}

# Modules of the deep stem by their names in mmsegmentation's ResNetV1c, whose other names are torchvision's.
MMSEG_STEM = {f"stem.{index}": f"conv1.{index}" for index in (0, 1, 3, 4, 6)} | {"stem.7": "bn1"}

# Why a file of weights does not fit, by the keys that show it.
CAUSES = {"conv1.": "weights of another stem", "": "weights of a ResNet of another depth"}


class ResNet(Freezable):
    """A torchvision ResNet that gives the features of its four stages.

    Args:
        name: resnet18, 34, 50, 101 or 152.
        output_stride: how many image pixels one step on the last feature map spans. At 16 the stride of
            layer4 gives way to dilation, at 8 that of layer3 too.
        multi_grid: dilations of layer4's 3x3 convolutions, one per block (both in a BasicBlock); absolute, so
            multiplied by nothing. None leaves the plain pattern, 2, 4, 4 at output stride 8.
        stem: "conv7" is one 7x7 convolution; "deep" and "deep_wide" are three 3x3 (see DEEP_STEMS).

    Attributes:
        out_channels: channels of the four stages.
        strides: image pixels per step of each.
        in_channels, mean, std, recompute: see interfaces.Backbone.
        output_stride: as given.
    """

    def __init__(
        self,
        name: str,
        output_stride: Literal[8, 16, 32] = 8,
        multi_grid: list[int] | None = None,
        stem: Literal["conv7", "deep", "deep_wide"] = "conv7",
    ) -> None:
        super().__init__()
        from torchvision.models import get_model  # takes seconds to import

        net = get_model(name, weights=None)
        block = type(net.layer1[0])
        self.out_channels = tuple(width * block.expansion for width in (64, 128, 256, 512))
        self.output_stride = output_stride
        self.strides = tuple(min(stride, output_stride) for stride in (4, 8, 16, 32))
        self.in_channels, self.mean, self.std = 3, IMAGENET_MEAN, IMAGENET_STD
        self.recompute = False

        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        if stem != "conv7":
            width = DEEP_STEMS[stem][-1]
            self.conv1, self.bn1 = _deep_stem(*DEEP_STEMS[stem]), nn.BatchNorm2d(width)
            if width != 64:  # which torchvision's layer1 reads
                channels = self.out_channels[0]
                shortcut = nn.Sequential(nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels))
                self.layer1[0] = block(width, 64, downsample=shortcut)
            for conv in _convolutions(self.conv1) + _convolutions(self.layer1[0]):  # as torchvision's others
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

        if output_stride == 8:
            _replace_stride(self.layer3, dilation=1)
            _replace_stride(self.layer4, dilation=2)
        elif output_stride == 16:
            _replace_stride(self.layer4, dilation=1)
        if multi_grid is not None:
            for stage_block, dilation in zip(self.layer4, multi_grid, strict=True):
                for conv in _convolutions(stage_block):
                    if conv.kernel_size == (3, 3):
                        conv.dilation = conv.padding = (dilation, dilation)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Normalized images (B, 3, H, W) -> one feature map per stage.

        The last is (B, C, ceil(H / output_stride), ceil(W / output_stride)).
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = recomputed(block, x) if self.recompute else block(x)
            features.append(x)
        return features

    def layer_groups(self) -> list[list[nn.Module]]:
        """The stem and the four stages."""
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [conv for conv in module.modules() if isinstance(conv, nn.Conv2d)]


def _deep_stem(first: int, second: int, last: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, first, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(inplace=True),
        nn.Conv2d(first, second, 3, padding=1, bias=False),
        nn.BatchNorm2d(second),
        nn.ReLU(inplace=True),
        nn.Conv2d(second, last, 3, padding=1, bias=False),
    )


def _replace_stride(stage: nn.Module, dilation: int) -> None:
    """Replace a stage's stride of 2 by dilation: the same values, computed at every position.

    The 3x3 convolution that had the stride still reads the grid before it, whose step is `dilation`; those
    behind it read a grid twice as coarse. In a Bottleneck it is the first block's only 3x3 convolution, so
    the blocks of layer4 get 2, 4, 4; in a BasicBlock it is the first of two, so they get (2, 4), (4, 4).
    """
    for conv in _convolutions(stage):
        if conv.kernel_size == (3, 3):
            reach = dilation if conv.stride == (2, 2) else 2 * dilation
            conv.dilation = conv.padding = (reach, reach)
        conv.stride = (1, 1)


def _register(name: str) -> None:
    """Register the ResNet called `name`; the keyword parameters of `build` are the keys of its YAML."""

    def problems(options: dict[str, Any]) -> list[str]:
        lines = []
        multi_grid, blocks = options["multi_grid"], LAYER4_BLOCKS[name]
        if multi_grid is not None and len(multi_grid) != blocks:
            lines.append(f"multi_grid={multi_grid}: layer4 of {name} has {blocks} blocks; give {blocks} dilations")
        if options["pretrained"] == "imagenet" and options["stem"] != "conv7":
            lines.append(
                f"pretrained=imagenet: torchvision has none for stem={options['stem']}; use stem=conv7, "
                "or a file of weights with this stem"
            )
        return lines

    @BACKBONES.register(name)
    def build(
        *,
        output_stride: Literal[8, 16, 32] = 8,
        multi_grid: list[PositiveInt] | None = None,
        stem: Literal["conv7", "deep", "deep_wide"] = "conv7",
        pretrained: Literal[False, "imagenet"] | ExistingFile = False,
        freeze: Freeze = 0,
        freeze_batchnorm: bool = False,
    ) -> ResNet:
        """A ResNet, random or pretrained.

        Args:
            output_stride: see ResNet.
            multi_grid: see ResNet.
            stem: see ResNet.
            pretrained: False, "imagenet" (torchvision's IMAGENET1K_V1, trained by the classic recipe, as were
                those that DANet started from), or a file: a backbone alone or a whole model, such as a
                checkpoint of a run, in torchvision's naming; a deep stem may have mmsegmentation's.
            freeze: see Freezable.
            freeze_batchnorm: see Freezable.

        Raises:
            ValueError: options that contradict each other, or weights that cannot be had or do not fit.
        """
        if lines := problems({"multi_grid": multi_grid, "stem": stem, "pretrained": pretrained}):
            raise ValueError("; ".join(lines))
        model = ResNet(name, output_stride, multi_grid, stem)
        if pretrained == "imagenet":
            _load(model, _imagenet_weights(name), source="torchvision's weights")
        elif pretrained:
            weights = read_backbone(pretrained, landmark="layer1.0.conv1.weight")
            _load(model, weights, source=pretrained)
        model.freeze(freeze, freeze_batchnorm)
        return model

    build.problems = problems


for _name in LAYER4_BLOCKS:
    _register(_name)


def _imagenet_weights(name: str) -> dict[str, Any]:
    from torchvision.models import get_model_weights

    weights = get_model_weights(name)["IMAGENET1K_V1"]
    try:
        return dict(weights.get_state_dict(check_hash=True))
    except OSError as error:
        raise ValueError(
            f"pretrained=imagenet: cannot download {weights.url} ({error}). Without a network, fetch it "
            f"elsewhere and set pretrained to the file, or copy it to {torch.hub.get_dir()}/checkpoints/"
        ) from error


def _load(model: nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    """Load everything or raises; only the classifier `fc` is left out."""
    absent = model.state_dict().keys() - weights.keys()
    weights = {_own_name(key, absent): value for key, value in weights.items() if not key.startswith("fc.")}
    load_backbone(model, weights, source, names="torchvision's", causes=CAUSES)


def _own_name(key: str, absent: Collection[str]) -> str:
    """A stored key; where it is mmsegmentation's for one of our keys that are absent from the file, that one."""
    module, _, tensor = key.rpartition(".")
    renamed = f"{MMSEG_STEM.get(module, module)}.{tensor}"
    return renamed if renamed in absent else key
