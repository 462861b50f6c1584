"""The non-local block, of which DANet's position attention is a form.

Source: Wang et al., "Non-local Neural Networks", CVPR 2018: the embedded Gaussian (equations 1 and 3) in the residual
block (equation 6), y_i = x_i + W sum_j softmax_j(theta(x_i)^T phi(x_j) / sqrt(D)) g(x_j). The paper divides by nothing;
the square root of D is mmsegmentation's.

Shapes: B images, C channels, H x W size of the feature map, N = H * W positions, D = C / reduction channels of query
and key, K classes.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from danet.arguments import PositiveInt, Probability
from danet.heads.parts import ContextHead, conv, zero
from danet.interfaces import Stage
from danet.ops.position_attention import position_attention, position_weights
from danet.registry import HEADS


class NonLocal(nn.Module):
    """The block: each position aggregates all positions.

    Args:
        channels: C.
        reduction: query, key and value have C / reduction channels.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inner = max(channels // reduction, 1)
        self.theta = conv(channels, inner, norm=False, relu=False)
        self.phi = conv(channels, inner, norm=False, relu=False)
        self.g = conv(channels, inner, norm=False, relu=False)
        self.conv_out = conv(inner, channels, relu=False)

    def init_weights(self) -> None:
        """Start as the identity."""
        zero(self.conv_out.get_submodule("bn"))

    def compared(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Query and key, whose products are the energies: (B, D, N) each."""
        query, key = self.theta(x).flatten(2), self.phi(x).flatten(2)
        return query * query.shape[1] ** -0.5, key

    def attention(self, x: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """The weights, each row summing to 1: (B, C, H, W) -> (B, N, N), or (B, P, N) of P positions."""
        query, key = self.compared(x)
        return position_weights(query if positions is None else query[:, :, positions], key)

    def gathered(self, x: Tensor, value: Tensor) -> Tensor:
        """The weighted means of all values: (B, C, H, W), (B, D, N) -> (B, D, N)."""
        return position_attention(*self.compared(x), value)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        gathered = self.gathered(x, self.g(x).flatten(2))
        return x + self.conv_out(gathered.unflatten(2, x.shape[2:]))


@HEADS.register("nonlocal")
class NonLocalHead(ContextHead):
    """A non-local block in the frame of ContextHead, which has the other arguments.

    Args:
        reduction: see NonLocal.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        /,
        *,
        channels: PositiveInt | None = None,
        reduction: PositiveInt = 2,
        dropout: Probability = 0.1,
        align_corners: bool = True,
    ) -> None:
        super().__init__(stages, num_classes, channels, dropout, align_corners)
        self.nl_block = NonLocal(self.channels, reduction)

    def init_weights(self) -> None:
        """Let the block start as the identity."""
        self.nl_block.init_weights()

    def context(self, x: Tensor) -> Tensor:
        """The block."""
        return self.nl_block(x)

    def attention_modules(self) -> dict[str, nn.Module]:
        """The block."""
        return {"nonlocal": self.nl_block}
