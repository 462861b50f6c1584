"""Cross entropy, and class weights that balance frequent and rare classes.

Losses of pixels are summed here rather than inside F.cross_entropy, whose own sum is not deterministic on a GPU.

Shapes: B images, K classes, H and W of the label.
"""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.arguments import NonNegativeFloat, Probability
from danet.interfaces import IGNORE, LossTerm
from danet.losses.criterion import Labels, in_float32
from danet.registry import LOSSES


def median_frequency_weights(labels: Iterable[np.ndarray], num_classes: int) -> list[float]:
    """Class weights that balance frequent and rare classes: median frequency / frequency of the class.

    Source: Eigen and Fergus (ICCV 2015); SegNet (Badrinarayanan et al., TPAMI 2017) uses it on CamVid. The
    frequency of a class is its number of pixels divided by the number of all pixels, ignored ones included,
    of the images in which it occurs. A class that never occurs has no frequency and gets weight 0: no pixel
    will ask for it.

    Args:
        labels: (H, W) uint8 arrays of train ids; other values (such as IGNORE) belong to no class.
        num_classes: K.

    Raises:
        ValueError: no class occurs at all.
    """
    class_pixels = np.zeros(num_classes)
    image_pixels = np.zeros(num_classes)
    for label in labels:
        pixels = np.bincount(label.ravel(), minlength=num_classes)[:num_classes]
        class_pixels += pixels
        image_pixels += label.size * (pixels > 0)
    occurs = class_pixels > 0
    if not occurs.any():
        raise ValueError("loss.class_weights=median_frequency: the training labels contain no class at all")
    frequency = class_pixels[occurs] / image_pixels[occurs]
    weights = np.zeros(num_classes)
    weights[occurs] = np.median(frequency) / frequency
    return weights.tolist()


@LOSSES.register("cross_entropy")
class CrossEntropy(nn.Module):
    """Mean cross entropy over the valid pixels, or their weighted mean.

    Args:
        num_classes: K.
        labels: reads the training labels; called only for `median_frequency`.
        class_weights: one weight per class, or the rule that derives them from the training labels. The count
            is then the sum of the pixels' weights, as in PyTorch's weighted mean.
        label_smoothing: the share of each pixel's target that is spread evenly over all classes.
    """

    weight: Tensor | None

    def __init__(
        self,
        num_classes: int,
        labels: Labels,
        /,
        *,
        class_weights: Literal["none", "median_frequency"] | list[NonNegativeFloat] = "none",
        label_smoothing: Probability = 0.0,
    ) -> None:
        super().__init__()
        if class_weights == "median_frequency":
            class_weights = median_frequency_weights(labels(), num_classes)
        if isinstance(class_weights, list) and len(class_weights) != num_classes:
            raise ValueError(
                f"loss.class_weights has {len(class_weights)} values for {num_classes} classes; give one each"
            )
        if lines := self.problems({"class_weights": class_weights}):
            raise ValueError(f"loss.{lines[0]}")
        weight = None if class_weights == "none" else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weight", weight, persistent=False)  # derived, so no business of a checkpoint
        self.label_smoothing = label_smoothing

    @staticmethod
    def problems(options: dict[str, Any]) -> list[str]:
        """What is wrong with a combination of options, a line each."""
        weights = options["class_weights"]
        return (
            ["class_weights: all are 0; nothing would train"] if isinstance(weights, list) and not any(weights) else []
        )

    @in_float32
    def forward(self, logits: Tensor, label: Tensor) -> LossTerm:
        """(B, K, H, W), (B, H, W) -> summed loss and number (or summed weight) of valid pixels."""
        losses = F.cross_entropy(
            logits,
            label,
            self.weight,
            ignore_index=IGNORE,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        valid = label != IGNORE
        if self.weight is None:
            return LossTerm(losses.sum(), valid.sum().float())
        pixel_weight = self.weight[label.where(valid, 0)]  # IGNORE itself is not a valid index
        return LossTerm(losses.sum(), (pixel_weight * valid).sum())
