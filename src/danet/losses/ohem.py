"""Cross entropy over the hard pixels.

Shapes: B images, K classes, H and W of the label, N = H * W pixels.
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from danet.arguments import Fraction
from danet.interfaces import IGNORE, LossTerm
from danet.losses.criterion import Labels, in_float32
from danet.registry import LOSSES


@LOSSES.register("ohem")
class OnlineHardExamples(nn.Module):
    """Cross entropy over the hard pixels only (online hard example mining).

    Source: Shrivastava et al. (CVPR 2016), carried over to pixels. A pixel is hard where the model gives its
    true class a probability below `threshold`. Of every image at least the hardest `min_kept` are kept, and
    never fewer than one pixel. Each image's choice is its own, whatever else is in the batch.

    Args:
        num_classes: K; not used.
        labels: not used.
        threshold: probability of the true class below which a pixel counts as hard.
        min_kept: fraction of an image's valid pixels.
    """

    def __init__(
        self,
        num_classes: int,
        labels: Labels,
        /,
        *,
        threshold: Annotated[float, Field(gt=0, le=1)] = 0.7,
        min_kept: Fraction = 0.0625,
    ) -> None:
        super().__init__()
        self.easiest_loss = -math.log(threshold)
        self.min_kept = min_kept

    @in_float32
    def forward(self, logits: Tensor, label: Tensor) -> LossTerm:
        """(B, K, H, W), (B, H, W) -> summed loss and number of kept pixels."""
        losses = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none").flatten(1)  # (B, N)
        with torch.no_grad():
            valid = (label != IGNORE).flatten(1)
            hardest_first = losses.masked_fill(~valid, -1.0).sort(dim=1, descending=True).values
            num_kept = (self.min_kept * valid.sum(1, keepdim=True)).ceil().long().clamp(min=1)  # (B, 1)
            least_hard = hardest_first.gather(1, num_kept - 1)
            kept = valid & ((losses > self.easiest_loss) | (losses >= least_hard)) & (losses > 0)
            # Of pixels whose loss is 0 in float32 only the quota counts: as ties, all would divide the loss.
            count = torch.maximum(kept.sum(1), num_kept.squeeze(1)) * valid.any(1)
        return LossTerm((losses * kept).sum(), count.sum().float())
