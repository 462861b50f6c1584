"""The focal loss.

Shapes: B images, K classes, H and W of the label.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.arguments import NonNegativeFloat
from danet.interfaces import IGNORE, LossTerm
from danet.losses.criterion import Labels, in_float32
from danet.registry import LOSSES


@LOSSES.register("focal")
class Focal(nn.Module):
    """Cross entropy in which well classified pixels count less: (1 - p)^gamma * -log p, p of the true class.

    Source: Lin et al., Focal Loss (ICCV 2017), equation 4.

    Args:
        num_classes: K; not used.
        labels: not used.
        gamma: 0 gives the plain cross entropy.
    """

    def __init__(self, num_classes: int, labels: Labels, /, *, gamma: NonNegativeFloat = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    @in_float32
    def forward(self, logits: Tensor, label: Tensor) -> LossTerm:
        """(B, K, H, W), (B, H, W) -> summed loss and number of valid pixels."""
        losses = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")
        # The floor: below gamma 1 the power's slope is infinite at p = 1, where certain and ignored ones sit.
        missing = (1 - torch.exp(-losses)).clamp(min=1e-6)
        return LossTerm((missing**self.gamma * losses).sum(), (label != IGNORE).sum().float())
