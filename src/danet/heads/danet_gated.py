"""DANet's head with a well-known channel gate in the place of its channel attention.

Sources: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018 (se: the sigmoid of two layers on the channels' means);
Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, equation 2 (cbam: the channel part, on means and
maxima); Wang et al., "ECA-Net: Efficient Channel Attention", CVPR 2020, equation 6 (eca: one convolution along the
channels' means). A gate weighs each channel by itself; DANet's module aggregates channels. The layers are timm's.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from danet.arguments import PositiveInt, Probability
from danet.heads.danet import DANetHead
from danet.interfaces import Stage
from danet.ops.position_attention import Form
from danet.registry import HEADS


def gate(kind: str, channels: int) -> nn.Module:
    """A gate of timm's with the paper's reduction, 16: (B, C, H, W) -> (B, C, H, W)."""
    from timm.layers import cbam, eca, squeeze_excite

    if kind == "eca":
        return eca.EcaModule(channels)
    kinds: dict[str, Any] = {"se": squeeze_excite.SEModule, "cbam": cbam.ChannelAttn}
    return kinds[kind](channels, rd_channels=max(channels // 16, 1))


@HEADS.register("danet_gated")
class GatedDANetHead(DANetHead):
    """DANetHead, which has the other arguments, with a gate as its CAM branch.

    Args:
        cam: which gate.

    Raises:
        ValueError: timm is not installed.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        /,
        *,
        pam: bool = True,
        cam: Literal["se", "cbam", "eca"] = "se",
        reduction: PositiveInt = 8,
        attention: Form = "auto",
        dropout: Probability = 0.1,
        aux_loss: bool = True,
        align_corners: bool = True,
    ) -> None:
        if lines := self.problems({"cam": cam}):
            raise ValueError("; ".join(lines))
        super().__init__(
            stages,
            num_classes,
            pam=pam,
            reduction=reduction,
            attention=attention,
            dropout=dropout,
            aux_loss=aux_loss,
            align_corners=align_corners,
        )
        self.branches["cam"].attention = gate(cam, stages[-1].channels // 4)

    @staticmethod
    def problems(options: dict[str, Any]) -> list[str]:
        """What is wrong with a combination of options, a line each."""
        if importlib.util.find_spec("timm"):
            return []
        return [f"cam = {options['cam']!r}: needs timm; pip install 'danet[models]'"]

    def attention_modules(self) -> dict[str, nn.Module]:
        """The position attention, if there is one; a gate has no map."""
        return {name: module for name, module in super().attention_modules().items() if name == "pam"}
