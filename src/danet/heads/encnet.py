"""Context encoding: what kind of scene it is decides how much each channel counts.

Source: Zhang et al., "Context Encoding for Semantic Segmentation", CVPR 2018: e_k = sum_i softmax_k(-s_k |x_i - c_k|^2)
(x_i - c_k) with M codewords c and factors s (equation 1), their mean over k behind batch norm and ReLU, and a factor in
0..1 of each channel (section 3.1). The same encoding has to say which classes occur in the image: the semantic encoding
loss (SE loss) on the output "presence".

Shapes: B images, C channels, H x W size of the feature map, N = H * W positions, M codewords, K classes.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from danet.arguments import PositiveInt, Probability
from danet.heads.parts import MMSEG_CLASSIFIER, ForeignKeys, classifier, conv, in_float32
from danet.interfaces import Stage
from danet.registry import HEADS


class Encoding(nn.Module):
    """Residuals to the codewords, summed over all positions.

    Args:
        channels: C.
        num_codes: M.
    """

    def __init__(self, channels: int, num_codes: int) -> None:
        super().__init__()
        self.codewords = nn.Parameter(torch.empty(num_codes, channels))
        self.scale = nn.Parameter(torch.empty(num_codes))  # -s
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial values as the authors do."""
        bound = self.codewords.numel() ** -0.5
        nn.init.uniform_(self.codewords, -bound, bound)
        nn.init.uniform_(self.scale, -1, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Equation 1: (B, C, N) -> (B, M, C), without residuals of every position to every codeword."""
        return in_float32(self._encode)(x, self.codewords, self.scale).to(x.dtype)

    @staticmethod
    def _encode(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
        squares = x.square().sum(dim=1, keepdim=True) + codewords.square().sum(dim=1)[:, None]  # (B, M, N)
        shares = torch.softmax(scale[:, None] * (squares - 2 * codewords @ x), dim=1)
        return shares @ x.transpose(1, 2) - shares.sum(dim=2, keepdim=True) * codewords


class ContextEncoding(nn.Module):
    """The encoding of a map, and the map with its channels weighted by it.

    Args:
        channels: C.
        num_codes: M.
    """

    def __init__(self, channels: int, num_codes: int) -> None:
        super().__init__()
        self.encoding_project = conv(channels, channels)
        self.encoding = nn.Sequential(Encoding(channels, num_codes), nn.BatchNorm1d(num_codes), nn.ReLU(inplace=True))
        self.fc = nn.Sequential(nn.Linear(channels, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> (B, C), (B, C, H, W)."""
        encoded = self.encoding(self.encoding_project(x).flatten(2)).mean(dim=1)
        return encoded, torch.relu(x + x * self.fc(encoded)[:, :, None, None])


@HEADS.register("encnet")
class EncNetHead(nn.Module):
    """Context encoding behind a 3x3 convolution to C.

    Args:
        stages: the backbone's; the last one counts.
        num_classes: K.
        channels: C; None is a quarter of the last stage's.
        num_codes: M.
        presence_loss: whether the output "presence" is trained.
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
        num_codes: PositiveInt = 32,
        presence_loss: bool = True,
        dropout: Probability = 0.1,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.align_corners = align_corners
        channels = channels or stages[-1].channels // 4
        self.bottleneck = conv(stages[-1].channels, channels, 3)
        self.enc_module = ContextEncoding(channels, num_codes)
        self.classifier = classifier(channels, num_classes, dropout)
        self.se_layer = nn.Linear(channels, num_classes) if presence_loss else None

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The last is (B, in_channels, H, W) -> {"main": (B, K, H, W)}; in training "presence": (B, K), too."""
        encoded, x = self.enc_module(self.bottleneck(features[-1]))
        logits = {"main": self.classifier(x)}
        if self.training and self.se_layer is not None:
            logits["presence"] = self.se_layer(encoded)
        return logits
