"""The receptive field of backbones, beside where their gradients are."""

from typing import Any

import pytest
import torch
from torch import nn

from danet.analysis.receptive_field import measuring
from danet.registry import BACKBONES


def seen_rows(backbone: nn.Module, rows: int) -> int:
    """Rows of an image on which the middle position of the last feature map depends, all weights being positive."""
    for module in [*backbone.modules()]:
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):  # whose gradient goes to one of equal values
                setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
    image = torch.ones(1, 3, rows, 8, dtype=torch.float64, requires_grad=True)
    last = backbone(image)[-1]
    last[0, :, last.shape[2] // 2].sum().backward()
    assert image.grad is not None
    found = image.grad.abs().sum(dim=(0, 1, 3)).nonzero()
    assert 0 < found.min() <= found.max() < rows - 1  # none is cut off
    return int(found.max() - found.min()) + 1


@pytest.mark.parametrize(
    ("name", "options", "rows"),
    [
        ("resnet_tiny", {}, 256),
        ("resnet_tiny", {"widths": [4, 4, 8, 8]}, 256),
        ("resnet18", {"output_stride": 8, "pretrained": False}, 1024),
        ("resnet18", {"output_stride": 32, "pretrained": False}, 1024),
    ],
)
def test_the_field_is_where_gradients_are(name: str, options: dict[str, Any], rows: int) -> None:
    backbone: Any = BACKBONES[name](**options).double().eval()
    with measuring(backbone, (rows, 8)) as field, torch.no_grad():
        backbone(torch.ones(1, 3, rows, 8, dtype=torch.float64))
    assert field.side == seen_rows(backbone, rows)


@pytest.mark.parametrize("rows", [97, 321, 513, 577, 1025])
def test_the_field_does_not_depend_on_the_image(rows: int) -> None:
    backbone: Any = BACKBONES["resnet18"](output_stride=32, pretrained=False).eval()
    with measuring(backbone, (rows, 64)) as field, torch.no_grad():
        backbone(torch.ones(1, 3, rows, 64))
    assert field.side == 435


def test_a_backbone_that_sees_the_whole_image_has_none() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1))
    with measuring(backbone, (9, 9)) as field:
        backbone(torch.ones(1, 3, 9, 9))
    assert field.side is None
