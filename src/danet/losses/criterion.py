"""What the losses share: float32, one-hot labels, means over classes and images.

Shapes: B images, K classes, H and W of the label, N = H * W pixels.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from danet.interfaces import LossTerm

Labels = Callable[[], Iterable[np.ndarray]]  # reads the label arrays of the training split


def in_float32(
    forward: Callable[[Any, Tensor, Tensor], LossTerm],
) -> Callable[[Any, Tensor, Tensor], LossTerm]:
    """Decorator for a criterion's forward: float32 logits, int64 labels, no autocast."""

    @functools.wraps(forward)
    def wrapped(self: Any, logits: Tensor, label: Tensor) -> LossTerm:
        with torch.autocast(logits.device.type, enabled=False):
            return forward(self, logits.float(), label.long())

    return wrapped


def one_hot(label: Tensor, num_classes: int) -> Tensor:
    """(B, H, W) -> (B, K, N) bool; an ignored pixel belongs to no class."""
    classes = torch.arange(num_classes, device=label.device)
    return label.flatten(1).unsqueeze(1) == classes.unsqueeze(1)


def mean_over_present(losses: Tensor, truth: Tensor) -> LossTerm:
    """(B, K), (B, K, N) -> the mean loss over the classes that occur in an image, summed over images."""
    present = truth.any(2)  # (B, K)
    per_image = (losses * present).sum(1) / present.sum(1).clamp(min=1)
    return LossTerm(per_image.sum(), present.any(1).sum().float())
