"""Point-wise spatial attention: weights are predicted by a convolution from each position's own features.

Source: Zhao et al., "PSANet: Point-wise Spatial Attention Network for Scene Parsing", ECCV 2018. Each position predicts
a weight for every offset in a window: in `collect` for what it takes from the position there, in `distribute` for what
it gives to it. As in the authors' code the attention works on a map of half the size, and an offset beyond the window
has energy 0, not weight 0. The 1x1 convolution that is padded by 1 is mmsegmentation's, whose weights are trained so.

Shapes: B images, C channels, H x W size of the feature map, h x w = half of it, N = h * w positions, S x S offsets in
the window, P positions looked at, K classes.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.arguments import PositiveInt, Probability
from danet.heads.parts import MMSEG_CLASSIFIER, ForeignKeys, classifier, conv
from danet.interfaces import Stage
from danet.ops.position_attention import softmax
from danet.registry import HEADS


def to_positions(energies: Tensor) -> Tensor:
    """Energies of offsets as energies of positions: (B, S * S, h, w) -> (B, N, N), row i those that i predicts."""
    side, (height, width) = round(energies.shape[1] ** 0.5), energies.shape[2:]
    row = torch.arange(height, device=energies.device).unsqueeze(1).expand(height, width).flatten()
    column = torch.arange(width, device=energies.device).expand(height, width).flatten()
    down, right = (place - place.unsqueeze(1) + side // 2 for place in (row, column))  # (N, N) each
    inside = (down >= 0) & (down < side) & (right >= 0) & (right < side)
    offset = torch.where(inside, down * side + right, 0)
    rows = energies.flatten(2).transpose(1, 2)  # (B, N, S * S)
    return rows.gather(2, offset.expand(rows.shape[0], -1, -1)) * inside


class PointwiseAttention(nn.Sequential):
    """Weights predicted from each position's features, and the features that they gather.

    Args:
        channels: C.
        window: S.
        distribute: whether a position predicts what it gives, instead of what it takes.
    """

    def __init__(self, channels: int, window: int, distribute: bool) -> None:
        super().__init__(conv(channels, channels), nn.Conv2d(channels, window**2, kernel_size=1, bias=False))
        self.distribute = distribute

    def attention(self, x: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """What each position takes: (B, C, h, w) -> (B, N, N), rows sum to 1; or (B, P, N) of P positions."""
        energies = to_positions(super().forward(x))
        weights = softmax(energies.transpose(1, 2) if self.distribute else energies)
        return weights if positions is None else weights[:, positions]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return (x.flatten(2) @ self.attention(x).to(x.dtype).transpose(1, 2)).view_as(x)


@HEADS.register("psanet")
class PSANetHead(nn.Module):
    """Collected and distributed features, joined with the head's input.

    Args:
        stages: the backbone's; the last one counts.
        num_classes: K.
        channels: C; None is a quarter of the last stage's.
        window: S, odd; 97 covers a map of 49 x 49, half of a 769 x 769 image's at stride 8.
        dropout: probability of dropping a channel before the classifier.
        align_corners: how the logits are to be resized.
    """

    foreign_keys: ClassVar[ForeignKeys] = {"mmseg": (MMSEG_CLASSIFIER,)}

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        /,
        *,
        channels: PositiveInt | None = None,
        window: PositiveInt = 97,
        dropout: Probability = 0.1,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        if lines := self.problems({"window": window}):
            raise ValueError("; ".join(lines))
        self.num_classes = num_classes
        self.align_corners = align_corners
        in_channels = stages[-1].channels
        channels = channels or in_channels // 4

        self.reduce, self.attention = conv(in_channels, channels), PointwiseAttention(channels, window, False)
        self.reduce_p, self.attention_p = conv(in_channels, channels), PointwiseAttention(channels, window, True)
        self.proj = conv(2 * channels, in_channels, padding=1)
        self.bottleneck = conv(2 * in_channels, channels, 3)
        self.classifier = classifier(channels, num_classes, dropout)

    @staticmethod
    def problems(options: dict[str, int]) -> list[str]:
        """What is wrong with a combination of options, a line each."""
        return [] if options["window"] % 2 else [f"window = {options['window']}: must be odd, to have a center"]

    def attention_modules(self) -> dict[str, nn.Module]:
        """What is collected, and what is distributed, on a map of half the size."""
        return {"collect": self.attention, "distribute": self.attention_p}

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The last is (B, in_channels, H, W) -> {"main": (B, K, H, W)}."""
        x = features[-1]
        half = tuple((side + 1) // 2 for side in x.shape[2:])
        resized = partial(F.interpolate, mode="bilinear", align_corners=True)
        collected = self.attention(resized(self.reduce(x), half))
        distributed = self.attention_p(resized(self.reduce_p(x), half))
        y = resized(self.proj(torch.cat([collected, distributed], dim=1)), x.shape[2:])
        return {"main": self.classifier(self.bottleneck(torch.cat([x, y], dim=1)))}
