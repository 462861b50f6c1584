"""Other code for the same work: mmsegmentation, the official formulas written plainly, and models of two libraries.

mmsegmentation is imported without the compiled operations that its package asks for. DANet needs none of them: where
other heads import them, something stands in.

Shapes: B images, C channels, H x W size of what comes in, h x w size of the feature map, N = H * W positions of an
attention, K classes.
"""

import contextlib
import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What mmseg imports and DANet does not use: compiled operations, the text encoders' libraries.
STAND_INS = ("mmcv.ops", "regex", "ftfy")
OTHERS = ("segmentation_models_pytorch", "torchvision.models", "torchmetrics.classification")

BATCH_NORM = {"type": "BN", "requires_grad": True}


class Idle:
    """Takes any arguments and does nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass


class StandIn(ModuleType):
    """A module from which any name can be imported; each is a class without behavior."""

    def __getattr__(self, name: str) -> Any:
        """A class of that name."""
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Idle,), {})


def mmseg_module(name: str = "mmseg.models") -> ModuleType:
    """A module of mmsegmentation.

    Raises:
        ImportError: mmsegmentation, mmcv-lite or mmengine is not installed.
    """
    added = [stand_in for stand_in in STAND_INS if stand_in not in sys.modules]
    for stand_in in added:
        sys.modules[stand_in] = StandIn(stand_in)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    finally:
        for stand_in in added:
            del sys.modules[stand_in]


def mmseg_settings(
    num_classes: int, *, depth: int = 50, backbone: Any = None, auxiliary: bool = True, align_corners: bool = False
) -> dict[str, Any]:
    """The "model" section of mmsegmentation's danet_r50-d8.

    Args:
        num_classes: K.
        depth: of the ResNetV1c.
        backbone: further options of the backbone, such as {"multi_grid": (4, 8, 16)} or {"type": "ResNet"}.
        auxiliary: whether there is the FCN head on the third stage.
        align_corners: of both heads.
    """
    width = 512 if depth < 50 else 2048
    common = {"num_classes": num_classes, "norm_cfg": BATCH_NORM, "align_corners": align_corners}
    settings: dict[str, Any] = {
        "backbone": {
            "type": "ResNetV1c",
            "depth": depth,
            "num_stages": 4,
            "out_indices": (0, 1, 2, 3),
            "dilations": (1, 1, 2, 4),
            "strides": (1, 2, 1, 1),
            "norm_cfg": BATCH_NORM,
            "style": "pytorch",
            "contract_dilation": True,
            **(backbone or {}),
        },
        "decode_head": {
            "type": "DAHead",
            "in_channels": width,
            "in_index": 3,
            "channels": width // 4,
            "pam_channels": width // 32,
            **common,
        },
        "test_cfg": {"mode": "whole"},
    }
    if auxiliary:
        settings["auxiliary_head"] = {
            "type": "FCNHead",
            "in_channels": width // 2,
            "in_index": 2,
            "channels": width // 8,
            "num_convs": 1,
            "concat_input": False,
            "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 0.4},
            **common,
        }
    return settings


def build_mmseg(kind: type[nn.Module], settings: dict[str, Any]) -> nn.Module:
    """A model or part of mmsegmentation, without the warnings about its own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(**settings)


def mmseg_segmentor(num_classes: int, **options: Any) -> nn.Module:
    """Mmsegmentation's EncoderDecoder with the random weights it starts from; arguments of `mmseg_settings`."""
    return build_mmseg(mmseg_module().EncoderDecoder, mmseg_settings(num_classes, **options))


def preload() -> None:
    """Import all peers that are installed, so that no contestant's time and memory is that of its import."""
    for name in ("mmseg.models", "mmseg.evaluation", *OTHERS):
        with contextlib.suppress(Exception):  # the contestant will say it
            mmseg_module(name)


class OfficialPositionAttention(nn.Module):
    """The formulas of the official code's PAM_Module, written plainly.

    Source: github.com/junfu1115/DANet, encoding/nn/da_att.py.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, kernel_size=1)
        self.key = nn.Conv2d(channels, channels // 8, kernel_size=1)
        self.value = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        images, channels, height, width = x.shape
        query = self.query(x).view(images, -1, height * width).permute(0, 2, 1)
        key = self.key(x).view(images, -1, height * width)
        weights = torch.softmax(torch.bmm(query, key), dim=-1)  # (B, N, N)
        value = self.value(x).view(images, -1, height * width)
        gathered = torch.bmm(value, weights.permute(0, 2, 1)).view(images, channels, height, width)
        return self.gamma * gathered + x


class OfficialChannelAttention(nn.Module):
    """The formulas of the official code's CAM_Module, written plainly."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        images, channels, height, width = x.shape
        rows = x.view(images, channels, -1)
        energy = torch.bmm(rows, rows.permute(0, 2, 1))  # (B, C, C)
        inverted = energy.max(dim=-1, keepdim=True)[0].expand_as(energy) - energy
        gathered = torch.bmm(torch.softmax(inverted, dim=-1), rows).view(images, channels, height, width)
        return self.gamma * gathered + x


class OfficialHead(nn.Module):
    """The official head: both attentions side by side, three classifiers.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()

        def conv(in_channels: int) -> nn.Module:
            layer = nn.Conv2d(in_channels, 512, kernel_size=3, padding=1, bias=False)
            return nn.Sequential(layer, nn.BatchNorm2d(512), nn.ReLU())

        def classifier() -> nn.Module:
            return nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(512, num_classes, kernel_size=1))

        self.pam = nn.Sequential(conv(2048), OfficialPositionAttention(512), conv(512))
        self.cam = nn.Sequential(conv(2048), OfficialChannelAttention(), conv(512))
        self.classifiers = nn.ModuleList(classifier() for _ in range(3))

    def forward(self, features: Tensor) -> list[Tensor]:
        """(B, 2048, h, w) -> three logits (B, K, h, w): of the sum, of position, of channel attention."""
        pam, cam = self.pam(features), self.cam(features)
        return [classify(x) for classify, x in zip(self.classifiers, (pam + cam, pam, cam), strict=True)]


class OfficialDANet(nn.Module):
    """The official network: its head on torchvision's dilated ResNet.

    Args:
        depth: of the ResNet; torchvision dilates 50, 101 and 152.
        num_classes: K.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        from torchvision.models import get_model

        net = get_model(f"resnet{depth}", weights=None, replace_stride_with_dilation=[False, True, True])
        self.backbone = nn.Sequential(*list(net.children())[:-2])
        self.head = OfficialHead(num_classes)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalized images (B, 3, H, W) -> three logits (B, K, H, W)."""
        logits = self.head(self.backbone(image))
        return [F.interpolate(x, image.shape[2:], mode="bilinear", align_corners=True) for x in logits]
