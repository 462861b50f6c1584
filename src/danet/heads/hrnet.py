"""The head of HRNetV2: all resolutions, resized to the finest and joined.

Source: Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", TPAMI 2020, section 3.3.

Shapes: B images, H x W size of the finest feature map that is read, K classes.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.arguments import Probability
from danet.heads.parts import MMSEG_CLASSIFIER, ForeignKeys, classifier, conv
from danet.interfaces import Stage
from danet.registry import HEADS


@HEADS.register("hrnet")
class HRNetHead(nn.Module):
    """Concatenation, a 1x1 convolution, the classifier.

    Args:
        stages: the backbone's; those of stride 4 and more are read.
        num_classes: K.
        dropout: probability of dropping a channel before the classifier.
        align_corners: how feature maps and logits are resized.
    """

    foreign_keys: ClassVar[ForeignKeys] = {"mmseg": (MMSEG_CLASSIFIER,)}

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        /,
        *,
        dropout: Probability = 0.0,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes, self.align_corners = num_classes, align_corners
        self._read = [index for index, stage in enumerate(stages) if stage.stride >= 4]
        width = sum(stages[index].channels for index in self._read)
        self.convs = nn.Sequential(conv(width, width))
        self.classifier = classifier(width, num_classes, dropout)

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The stages -> {"main": (B, K, H, W)}."""
        read = [features[index] for index in self._read]
        size, align = read[0].shape[-2:], self.align_corners
        resized = [F.interpolate(x, size, mode="bilinear", align_corners=align) for x in read]
        return {"main": self.classifier(self.convs(torch.cat(resized, dim=1)))}
