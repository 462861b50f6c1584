"""The global context block: one set of weights for all positions, and a bottleneck in place of the non-local block's W.

Source: Cao et al., "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", ICCV workshops 2019, figure
4d: y_i = x_i + W_2 ReLU(LayerNorm(W_1 sum_j softmax_j(w^T x_j) x_j)).

Shapes: B images, C channels, H x W size of the feature map, N = H * W positions, P of them looked at, K classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from danet.arguments import PositiveInt, Probability
from danet.heads.parts import ContextHead, over_positions, zero
from danet.interfaces import Stage
from danet.registry import HEADS


class GlobalContext(nn.Module):
    """The block.

    Args:
        channels: C.
        reduction: the bottleneck has C / reduction channels.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inner = max(channels // reduction, 1)
        self.conv_mask = nn.Conv2d(channels, 1, kernel_size=1)
        self.channel_add_conv = nn.Sequential(
            nn.Conv2d(channels, inner, kernel_size=1),
            nn.LayerNorm([inner, 1, 1]),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, channels, kernel_size=1),
        )

    def init_weights(self) -> None:
        """Start as the identity."""
        zero(self.channel_add_conv[3])

    def attention(self, x: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """The weights, equal for all positions, each row summing to 1: (B, C, H, W) -> (B, N, N), or (B, P, N)."""
        count = x.shape[2] * x.shape[3] if positions is None else len(positions)
        return over_positions(self.conv_mask(x)).expand(-1, count, -1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        weights = over_positions(self.conv_mask(x)).to(x.dtype)  # (B, 1, N)
        context = torch.einsum("bcn,bmn->bcm", x.flatten(2), weights).unsqueeze(3)  # (B, C, 1, 1)
        return x + self.channel_add_conv(context)


@HEADS.register("gcnet")
class GCNetHead(ContextHead):
    """A global context block in the frame of ContextHead, which has the other arguments.

    Args:
        reduction: see GlobalContext.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        /,
        *,
        channels: PositiveInt | None = None,
        reduction: PositiveInt = 4,
        dropout: Probability = 0.1,
        align_corners: bool = True,
    ) -> None:
        super().__init__(stages, num_classes, channels, dropout, align_corners)
        self.gc_block = GlobalContext(self.channels, reduction)

    def init_weights(self) -> None:
        """Let the block start as the identity."""
        self.gc_block.init_weights()

    def context(self, x: Tensor) -> Tensor:
        """The block."""
        return self.gc_block(x)

    def attention_modules(self) -> dict[str, nn.Module]:
        """The block."""
        return {"context": self.gc_block}
