"""DANet with the cross-level gating decoder of its authors' follow-up, for backbones whose last map is coarse.

Sources: DANet as in danet.py; the decoder from Fu et al., "Scene Segmentation With Dual Relation-Aware Attention
Network", IEEE TNNLS 2021, section III-D, in parts.py. The attention stays at the last stage's resolution, where it
is cheap; the gate adds edges and thin things from a fine stage.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from danet.arguments import PositiveInt, Probability
from danet.heads.danet import DANetHead
from danet.heads.parts import GatingDecoder
from danet.interfaces import Stage
from danet.ops.position_attention import Form
from danet.registry import HEADS

FINE = 4  # the stride whose stage the decoder adds: that of the first stage of a ResNet, as in the paper


@HEADS.register("danet_clgd")
class DecodedDANetHead(DANetHead):
    """DANetHead, which has the arguments, with its sum decoded at a fine stage's resolution and classified there.

    The branches are classified at the last stage's resolution, as in DANet.

    Args:
        stages: the last one is attended to; the first one of stride 4 or more joins in the decoder.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        /,
        *,
        pam: bool = True,
        cam: bool = True,
        reduction: PositiveInt = 8,
        attention: Form = "auto",
        cam_energy: Literal["max_minus", "plain"] = "max_minus",
        dropout: Probability = 0.1,
        aux_loss: bool = True,
        align_corners: bool = True,
    ) -> None:
        super().__init__(
            stages,
            num_classes,
            pam=pam,
            cam=cam,
            reduction=reduction,
            attention=attention,
            cam_energy=cam_energy,
            dropout=dropout,
            aux_loss=aux_loss,
            align_corners=align_corners,
        )
        fine = [index for index, stage in enumerate(stages) if stage.stride >= FINE]
        self._fine = fine[0] if fine else -1
        self.decoder = GatingDecoder(stages[self._fine].channels, stages[-1].channels // 4, align_corners)

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The fine one is (B, _, h, w), the last (B, in_channels, H, W) -> {"main": (B, K, h, w)}.

        In training with `aux_loss` "pam" and "cam", (B, K, H, W) each, too.
        """
        outputs = {name: branch(features[-1]) for name, branch in self.branches.items()}
        logits = {"main": self.classifier(self.decoder(features[self._fine], sum(outputs.values())))}
        if self.training:
            logits |= {name: classify(outputs[name]) for name, classify in self.aux_classifiers.items()}
        return logits
