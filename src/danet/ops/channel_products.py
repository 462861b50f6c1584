"""The products of all pairs of channels, with a gradient that is one product of the map's own type.

Written out, the gradient of X X^T is G X + (X^T G)^T: two products, in float32 where the products must be. As
(G + G^T) X it is one, which may be in bfloat16.

Shapes: B images, C channels, N positions.
"""

from typing import Any

import torch
from torch import Tensor


def channel_products(x: Tensor) -> Tensor:
    """X X^T in float32 at least: (B, C, N) -> (B, C, C). Fastest where `x` is a view of a channels_last tensor.

    A channel times itself sums N squares, on real maps more than float16's 65504.
    """
    return _Products.apply(x)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        with torch.autocast(x.device.type, enabled=False):
            exact = x.to(torch.promote_types(x.dtype, torch.float32))
            rows, half = exact.transpose(1, 2), exact.shape[1] // 2
            above = exact[:, :half] @ rows
            # The products are symmetric: a quarter need not be computed.
            beside = exact[:, half:] @ rows[:, :, half:]
            below = torch.cat([above[:, :, half:].transpose(1, 2), beside], dim=2)
            return torch.cat([above, below], dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            both = (gradient + gradient.transpose(1, 2)).to(x.dtype)
            return (x.transpose(1, 2) @ both).transpose(1, 2)
