"""The heads of torchvision's segmentation networks on our backbones.

Its fcn_resnet50 and deeplabv3_resnet50 are backbone=resnet50 with output_stride=8 and one of these heads,
lraspp_mobilenet_v3_large is backbone=mobilenetv3 with output_stride=16.

Shapes: B images, K classes.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from danet.interfaces import Stage
from danet.registry import HEADS


@HEADS.register("torchvision")
class TorchvisionHead(nn.Module):
    """torchvision's FCNHead, DeepLabHead or LRASPPHead, with its own defaults.

    Args:
        stages: the backbone's. All heads read the last one, lraspp also the last of stride 8 before it.
        num_classes: K.
        decoder: which.
        align_corners: how the logits are to be resized.

    Raises:
        ValueError: lraspp on a backbone without another stage of stride 8.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        /,
        *,
        decoder: Literal["fcn", "deeplabv3", "lraspp"] = "deeplabv3",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        from torchvision.models import segmentation  # takes seconds to import

        self.num_classes, self.align_corners = num_classes, align_corners
        channels = stages[-1].channels
        self._low: int | None = None
        if decoder == "fcn":
            self.classifier: nn.Module = segmentation.fcn.FCNHead(channels, num_classes)
        elif decoder == "deeplabv3":
            self.classifier = segmentation.deeplabv3.DeepLabHead(channels, num_classes)
        else:
            fine = [index for index, stage in enumerate(stages[:-1]) if stage.stride == 8]
            if not fine:
                strides = ", ".join(str(stage.stride) for stage in stages)
                raise ValueError(f"decoder=lraspp needs a stage of stride 8 before the last; the strides are {strides}")
            self._low = fine[-1]
            low = stages[self._low].channels
            self.classifier = segmentation.lraspp.LRASPPHead(low, channels, num_classes, inter_channels=128)

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The stages -> {"main": (B, K, h, w)}, at the last stage's size; of lraspp at stride 8."""
        if self._low is None:
            return {"main": self.classifier(features[-1])}
        return {"main": self.classifier({"low": features[self._low], "high": features[-1]})}
