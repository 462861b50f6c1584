"""The Lovasz-Softmax loss.

Shapes: B images, K classes, H and W of the label, N = H * W pixels.
"""

import torch
from torch import Tensor, nn

from danet.interfaces import IGNORE, LossTerm
from danet.losses.criterion import Labels, in_float32, mean_over_present, one_hot
from danet.registry import LOSSES


@LOSSES.register("lovasz")
class LovaszSoftmax(nn.Module):
    """A convex surrogate of 1 - IoU, averaged over the classes that occur in an image, then over images.

    Source: Berman et al., The Lovasz-Softmax loss (CVPR 2018), section 3. The errors |truth - probability| of
    a class are sorted, largest first, and each is multiplied by the amount by which the Jaccard loss grows
    when its pixel joins the mispredicted ones.

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
        # Ignored pixels get error 0: they sort last and weigh nothing.
        errors = (truth.float() - logits.softmax(1).flatten(2)).abs() * valid
        return mean_over_present((errors * jaccard_growth(errors.detach(), truth)).sum(2), truth)


def jaccard_growth(errors: Tensor, truth: Tensor) -> Tensor:
    """How much the Jaccard loss grows when a pixel joins those with larger errors; all tensors are (..., N).

    After the first i pixels, intersection = pixels of the class not yet reached, union = pixels of the class
    plus others reached, and the loss is 1 - intersection / union. Its growth at pixel i is written out here,
    from integers: differences of neighboring values would drown in rounding on large images.
    """
    order = errors.argsort(dim=-1, descending=True)
    member = truth.gather(-1, order)
    size = truth.sum(-1, keepdim=True)
    intersection = size - member.cumsum(-1)
    union = size + (~member).cumsum(-1)
    grown = torch.where(member, 1 / union, intersection / (union * (union - 1)).clamp(min=1))
    return torch.empty_like(errors).scatter_(-1, order, grown)
