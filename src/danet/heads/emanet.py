"""Expectation-maximization attention: K bases take the place of all positions as keys and values.

Source: Li et al., "Expectation-Maximization Attention Networks for Semantic Segmentation", ICCV 2019, section 3.2: T
times z = softmax_k(x mu) (E step) and mu = x^T z / sum z (M step), then y = z mu^T. The bases that an image starts from
are a running mean over training, not trained by gradients (section 3.3). As in the authors' code, the steps have no
gradient, so that the convolution in front of them never trains: it is a fixed random projection.

Shapes: B images, C channels, H x W size of the feature map, N = H * W positions, M bases, K classes.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.arguments import Fraction, PositiveInt, Probability
from danet.heads.parts import MMSEG_CLASSIFIER, ForeignKeys, classifier, conv, in_float32
from danet.interfaces import Stage
from danet.registry import HEADS
from danet.services.distributed import sum_over_processes


class ExpectationMaximization(nn.Module):
    """T iterations from the running mean of the M bases, each with C channels."""

    def __init__(self, channels: int, num_bases: int, iterations: int, momentum: float) -> None:
        super().__init__()
        self.iterations, self.momentum = iterations, momentum
        self.bases = nn.Buffer(torch.empty(1, channels, num_bases))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw bases of length 1."""
        self.bases.copy_(F.normalize(nn.init.normal_(self.bases, std=(2 / self.bases.shape[2]) ** 0.5), dim=1))

    @torch.no_grad()
    def steps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, N) -> the bases (B, C, M) and each position's shares in them (B, N, M)."""
        bases = self.bases.to(x.dtype).expand(x.shape[0], -1, -1)
        for _ in range(self.iterations):
            shares = torch.softmax(x.transpose(1, 2) @ bases, dim=2)
            bases = F.normalize(x @ F.normalize(shares, p=1, dim=1), dim=1)
        return bases, shares

    def attention(self, x: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """How much of each position reaches others through the bases: (B, C, H, W) -> (B, N, N), or (B, P, N)."""
        _, shares = in_float32(self.steps)(x.flatten(2))
        chosen = shares if positions is None else shares[:, positions]
        return chosen @ F.normalize(shares, p=1, dim=1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), made of the bases."""
        bases, shares = in_float32(self.steps)(x.flatten(2))
        if self.training:
            mean = sum_over_processes(bases.mean(dim=0, keepdim=True))  # its length does not matter
            self.bases.lerp_(F.normalize(mean, dim=1).to(self.bases.dtype), self.momentum)
        return (bases @ shares.transpose(1, 2)).to(x.dtype).view_as(x)


@HEADS.register("emanet")
class EMANetHead(nn.Module):
    """Expectation-maximization attention between convolutions; its output and the head's input are joined.

    Args:
        stages: the backbone's; the last one counts.
        num_classes: K.
        channels: C; None is a quarter of the last stage's. The classifier sees half of them.
        num_bases: M.
        iterations: T.
        momentum: the share of a batch's bases in the running mean.
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
        num_bases: PositiveInt = 64,
        iterations: PositiveInt = 3,
        momentum: Fraction = 0.1,
        dropout: Probability = 0.1,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes, self.align_corners = num_classes, align_corners
        in_channels = stages[-1].channels
        channels = channels or in_channels // 4
        out_channels = max(channels // 2, 1)
        self.ema_module = ExpectationMaximization(channels, num_bases, iterations, momentum)
        self.ema_in_conv = conv(in_channels, channels, 3)
        self.ema_mid_conv = conv(channels, channels, norm=False, relu=False).requires_grad_(False)
        self.ema_out_conv = conv(channels, channels, relu=False)
        self.bottleneck = conv(channels, out_channels, 3)
        self.conv_cat = conv(in_channels + out_channels, out_channels, 3)
        self.classifier = classifier(out_channels, num_classes, dropout)

    def init_weights(self) -> None:
        """Draw the fixed projection so that it keeps the features' variance."""
        nn.init.kaiming_normal_(self.ema_mid_conv.get_parameter("conv.weight"), mode="fan_out")
        nn.init.zeros_(self.ema_mid_conv.get_parameter("conv.bias"))

    def attention_modules(self) -> dict[str, nn.Module]:
        """The module with the iterations."""
        return {"bases": self.ema_module}

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The last is (B, in_channels, H, W) -> {"main": (B, K, H, W)}."""
        x = self.ema_in_conv(features[-1])
        made = self.ema_out_conv(torch.relu(self.ema_module(self.ema_mid_conv(x))))
        y = self.bottleneck(torch.relu(x + made))
        return {"main": self.classifier(self.conv_cat(torch.cat([features[-1], y], dim=1)))}
