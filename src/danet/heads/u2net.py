"""The side outputs of U2-Net and their fusion, on the stages of any backbone; the whole network with backbone=u2net.

Source: Qin et al., "U2-Net: Going Deeper with Nested U-Structure for Salient Object Detection", Pattern Recognition
2020, section 3.2. Parameters are named as in the authors' code.

Shapes: B images, H x W size of the finest feature map, K classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.interfaces import Stage
from danet.registry import HEADS


@HEADS.register("u2net")
class U2NetHead(nn.Module):
    """A 3x3 convolution to the classes for each stage, and a 1x1 convolution of all their logits.

    Args:
        stages: the backbone's; all are read.
        num_classes: K.
        align_corners: how logits are resized.
    """

    def __init__(self, stages: Sequence[Stage], num_classes: int, /, *, align_corners: bool = False) -> None:
        super().__init__()
        self.num_classes, self.align_corners = num_classes, align_corners
        self._sides = [f"side{index}" for index in range(1, len(stages) + 1)]
        for name, stage in zip(self._sides, stages, strict=True):
            self.add_module(name, nn.Conv2d(stage.channels, num_classes, 3, padding=1))
        self.outconv = nn.Conv2d(len(stages) * num_classes, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The stages -> {"main": (B, K, H, W)}; in training also "side1", ..., each at its stage's size."""
        sides = {name: self.get_submodule(name)(feature) for name, feature in zip(self._sides, features, strict=True)}
        size = features[0].shape[-2:]
        resized = [F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners) for x in sides.values()]
        main = self.outconv(torch.cat(resized, dim=1))
        return {"main": main, **(sides if self.training else {})}
