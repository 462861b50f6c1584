"""The semantic encoding loss: which classes occur in an image, whatever their size.

Source: Zhang et al., "Context Encoding for Semantic Segmentation", CVPR 2018, section 3.2 (SE loss).

Shapes: B images, K classes, H and W of the label.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from danet.interfaces import IGNORE, LossTerm


def presence(label: Tensor, num_classes: int) -> Tensor:
    """Whether each class has a pixel in each image: (B, H, W) -> (B, K) bool."""
    flat = label.flatten(1).long()
    seen = torch.zeros(len(flat), num_classes + 1, dtype=torch.bool, device=label.device)
    return seen.scatter(1, flat.where(flat != IGNORE, num_classes), True)[:, :num_classes]  # the last: ignored pixels


def presence_loss(logits: Tensor, label: Tensor) -> LossTerm:
    """Binary cross entropy over all classes of the images with a valid pixel: (B, K), (B, H, W)."""
    with torch.autocast(logits.device.type, enabled=False):
        truth = presence(label, logits.shape[1])
        losses = F.binary_cross_entropy_with_logits(logits.float(), truth.float(), reduction="none")
        valid = truth.any(dim=1, keepdim=True).expand_as(truth)
        return LossTerm((losses * valid).sum(), valid.sum().float())
