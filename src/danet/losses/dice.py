"""The Dice loss.

Shapes: B images, K classes, H and W of the label, N = H * W pixels.
"""

from torch import Tensor, nn

from danet.interfaces import IGNORE, LossTerm
from danet.losses.criterion import Labels, in_float32, mean_over_present, one_hot
from danet.registry import LOSSES


@LOSSES.register("dice")
class Dice(nn.Module):
    """1 - soft Dice, averaged over the classes that occur in an image, then over images.

    Source: Milletari et al., V-Net (3DV 2016), section 3, without the squares in the denominator: a class has
    2 * sum(p * g) / (sum(p) + sum(g)) with p the probability and g the truth (0 or 1) of the valid pixels.

    Args:
        num_classes: K.
        labels: not used.
    """

    def __init__(self, num_classes: int, labels: Labels, /) -> None:
        super().__init__()
        self.num_classes = num_classes

    @in_float32
    def forward(self, logits: Tensor, label: Tensor) -> LossTerm:
        """(B, K, H, W), (B, H, W) -> loss summed over images and number of images with valid pixels."""
        truth = one_hot(label, self.num_classes)  # (B, K, N)
        valid = (label != IGNORE).flatten(1).unsqueeze(1)  # (B, 1, N)
        probability = logits.softmax(1).flatten(2) * valid  # (B, K, N)
        dice = 2 * (probability * truth).sum(2) / (probability.sum(2) + truth.sum(2)).clamp(min=1)  # (B, K)
        return mean_over_present(1 - dice, truth)
