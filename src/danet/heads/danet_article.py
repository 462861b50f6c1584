"""DANet's head as a widely read tutorial article builds it; kept to compare with the authors' (head `danet`).

Where it differs from the authors' code:
- query and key keep all channels, and no projection has a bias;
- channel attention is a plain softmax, applied transposed;
- the branches are summed before one common convolution; there is no dropout;
- two 3x3 convolutions classify at the image's resolution, not a 1x1 at the feature map's: 63 against 0.013
  billion multiplications for 224 x 224 pixels and 33 classes;
- there is one output, so the branches have no losses of their own.

Shapes: B images, C channels, H x W size of the feature map, N = H * W positions, K classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from danet.interfaces import Stage
from danet.ops.position_attention import position_attention, position_weights, softmax
from danet.registry import HEADS

UPSAMPLING = 8  # the article's factor, whatever the backbone's output stride


class ArticlePositionAttention(nn.Module):
    """Position attention with full-width projections.

    Args:
        channels: C.
        shared_projection: the article's code applies one projection three times, contrary to its text. True
            does the same.
    """

    def __init__(self, channels: int, shared_projection: bool) -> None:
        super().__init__()

        def projection() -> nn.Module:
            return nn.Conv2d(channels, channels, kernel_size=1, bias=False)

        self.query = projection()
        self.key = self.query if shared_projection else projection()
        self.value = self.query if shared_projection else projection()
        self.gamma = nn.Parameter(torch.zeros(1))

    def compared(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Query and key, whose products are the energies: (B, D, N) each."""
        return self.query(x).flatten(2), self.key(x).flatten(2)

    def attention(self, x: torch.Tensor, positions: Sequence[int] | None = None) -> torch.Tensor:
        """The weights, each row summing to 1: (B, C, H, W) -> (B, N, N), or (B, P, N) of P positions."""
        query, key = self.compared(x)
        return position_weights(query if positions is None else query[:, :, positions], key)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        gathered = position_attention(*self.compared(x), self.value(x).flatten(2))
        return self.gamma * gathered.view_as(x) + x


class ArticleChannelAttention(nn.Module):
    """Channel attention with transposed weights, so that those of one output channel do not sum to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """The weights before they are transposed, each row summing to 1: (B, C, H, W) -> (B, C, C)."""
        with torch.autocast(x.device.type, enabled=False):  # the products overflow float16
            flat = x.flatten(2).to(torch.promote_types(x.dtype, torch.float32))  # (B, C, N)
            return softmax(flat @ flat.transpose(1, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        gathered = self.attention(x).transpose(1, 2).to(x.dtype) @ x.flatten(2)
        return self.gamma * gathered.view_as(x) + x


@HEADS.register("danet_article")
class DANetArticleHead(nn.Module):
    """Both attentions, summed, enlarged eight times and then classified.

    The logits have eight times the feature map's size. That is a little more than the image's where 8 does
    not divide it; losses and predictions resize logits to the label's size in any case.

    Args:
        stages: the backbone's; the last one counts.
        num_classes: K.
        shared_projection: see ArticlePositionAttention.
        align_corners: how the features are enlarged, and how the logits are to be resized.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        /,
        *,
        shared_projection: bool = False,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.align_corners = align_corners
        in_channels = stages[-1].channels
        channels = in_channels // 4

        def conv(in_channels: int, out_channels: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            )

        self.pam = nn.Sequential(conv(in_channels, channels), ArticlePositionAttention(channels, shared_projection))
        self.cam = nn.Sequential(conv(in_channels, channels), ArticleChannelAttention())
        self.fuse = conv(channels, channels)
        self.classifier = nn.Sequential(
            conv(channels, channels // 2),
            nn.Conv2d(channels // 2, num_classes, kernel_size=3, padding=1, bias=False),
        )

    def attention_modules(self) -> dict[str, nn.Module]:
        """The attention modules, by branch."""
        return {"pam": self.pam[1], "cam": self.cam[1]}

    def forward(self, features: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The last is (B, in_channels, H, W) -> {"main": (B, K, 8 * H, 8 * W)}."""
        x = features[-1]
        fused = self.fuse(self.pam(x) + self.cam(x))  # (B, C, H, W)
        size = (UPSAMPLING * x.shape[-2], UPSAMPLING * x.shape[-1])
        fused = F.interpolate(fused, size, mode="bilinear", align_corners=self.align_corners)
        return {"main": self.classifier(fused)}
