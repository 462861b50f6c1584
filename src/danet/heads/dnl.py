"""The disentangled non-local block: what two positions have in common, and what every position looks at.

Source: Yin et al., "Disentangled Non-Local Neural Networks", ECCV 2020: y_i = x_i + W sum_j (softmax_j((q_i - mean q)^T
(k_j - mean k) / tau) + softmax_j(m^T x_j)) g(x_j). The square root of D, by which energies are divided besides, is
mmsegmentation's.

Shapes: B images, C channels, H x W size of the feature map, N = H * W positions, D = C / reduction channels of query
and key, K classes.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from danet.arguments import PositiveFloat, PositiveInt, Probability
from danet.heads.non_local import NonLocal
from danet.heads.parts import ContextHead, over_positions
from danet.interfaces import Stage
from danet.registry import HEADS


class DisentangledNonLocal(NonLocal):
    """The block. Its `attention` is the whitened pairwise term alone.

    Args:
        channels: C.
        reduction: query, key and value have C / reduction channels.
        temperature: tau; the lower, the sharper the pairwise term.
    """

    def __init__(self, channels: int, reduction: int, temperature: float) -> None:
        super().__init__(channels, reduction)
        self.temperature = temperature
        self.conv_mask = nn.Conv2d(channels, 1, kernel_size=1)

    def compared(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Query and key around their means: (B, D, N) each."""
        query, key = super().compared(x)
        query, key = (tensor - tensor.mean(dim=2, keepdim=True) for tensor in (query, key))
        return query / self.temperature, key

    def gathered(self, x: Tensor, value: Tensor) -> Tensor:
        """The pairwise term's means and the unary term's, one for all positions: -> (B, D, N)."""
        unary = over_positions(self.conv_mask(x)).to(value.dtype)  # (B, 1, N)
        return super().gathered(x, value) + value @ unary.transpose(1, 2)


@HEADS.register("dnl")
class DNLHead(ContextHead):
    """A disentangled non-local block in the frame of ContextHead, which has the other arguments.

    Args:
        reduction: see DisentangledNonLocal.
        temperature: likewise.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        /,
        *,
        channels: PositiveInt | None = None,
        reduction: PositiveInt = 2,
        temperature: PositiveFloat = 0.05,
        dropout: Probability = 0.1,
        align_corners: bool = True,
    ) -> None:
        super().__init__(stages, num_classes, channels, dropout, align_corners)
        self.dnl_block = DisentangledNonLocal(self.channels, reduction, temperature)

    def init_weights(self) -> None:
        """Let the block start as the identity."""
        self.dnl_block.init_weights()

    def context(self, x: Tensor) -> Tensor:
        """The block."""
        return self.dnl_block(x)

    def attention_modules(self) -> dict[str, nn.Module]:
        """The block."""
        return {"dnl": self.dnl_block}
