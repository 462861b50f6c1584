"""Segmentation scores from one confusion matrix over a whole split, and scores of the classes' boundaries.

Shapes: K classes, H x W image size. Rows of the matrix are the truth, columns the prediction.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from danet.interfaces import IGNORE

BOUNDARY = 0.02  # width of a boundary as a share of the image's diagonal


class ConfusionMatrix(Metric):
    """Scores of a whole split from its confusion matrix, as a torchmetrics Metric; ignored pixels do not count.

    Values that are not a class are counted too, in cells of their own, and reported by `compute`: dropped or wrapped
    around, they would change the score silently. `update` does not wait for the device.

        metric = ConfusionMatrix(num_classes).to(device)
        for image, label in loader:
            metric.update(model(image), label)
        print(metric.compute()["miou"])

    Args:
        num_classes: K, at most 255.
        options: of torchmetrics.Metric, such as sync_on_compute.

    Attributes:
        counts: (258, K + 2) int64, pixels by label + 1 and prediction + 1; the first and the last row and
            column hold all that is below or above.
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int, **options: Any) -> None:
        assert num_classes <= IGNORE, num_classes
        super().__init__(**options)
        self.num_classes = num_classes
        self.add_state("counts", torch.zeros(258, num_classes + 2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Add pixels: classes or logits, and labels, on the metric's device.

        Args:
            prediction: integers in the label's shape, or logits (B, K, H, W) of which the largest counts.
            label: integers, (B, H, W) or any other shape; 255 is ignored.
        """
        if prediction.is_floating_point():
            prediction = prediction.argmax(dim=1)
        assert prediction.shape == label.shape, (prediction.shape, label.shape)
        # One histogram of all values; what is not a class is separated on reading, as masks here cost far more.
        row = _clamped(label, IGNORE + 1).add_(1)
        column = _clamped(prediction, self.num_classes).add_(1)
        cell = row.mul_(self.counts.shape[1]).add_(column)
        self.counts += torch.bincount(cell.flatten(), minlength=self.counts.numel()).view_as(self.counts)

    @property
    def between_classes(self) -> Tensor:
        """(K, K) int64 of this process, on the device, rows truth, columns prediction; unchecked, see `matrix`."""
        return self.counts[1 : self.num_classes + 1, 1 : self.num_classes + 1]

    def compute(self) -> dict[str, Tensor]:
        """Scores over all processes, float64: miou, pixel_accuracy, mean_accuracy; iou and accuracy by class, (K,).

        See Scores for their definitions.

        Raises:
            ValueError: as `matrix`.
        """
        result = scores(self.matrix(), [str(index) for index in range(self.num_classes)])
        by_class = {"iou": list(result.iou.values()), "accuracy": list(result.accuracy.values())}
        means = {key: getattr(result, key) for key in ("miou", "pixel_accuracy", "mean_accuracy")}
        return {key: torch.tensor(value, dtype=torch.float64) for key, value in (means | by_class).items()}

    def matrix(self) -> Tensor:
        """(K, K) int64, on the CPU, rows truth, columns prediction; of all processes in `with metric.sync_context()`.

        Raises:
            ValueError: a label is neither a class nor 255, or a prediction is not a class.
        """
        counts = self.counts.cpu()
        classes = slice(1, self.num_classes + 1)
        last = self.num_classes - 1
        by_label = counts.sum(dim=1)
        bad_labels = by_label.sum() - by_label[classes].sum() - by_label[IGNORE + 1]
        if bad_labels > 0:
            raise ValueError(
                f"{bad_labels} pixels have a label that is neither in 0..{last} nor {IGNORE} (ignored);"
                " correct the dataset's mapping from mask values to train ids"
            )
        bad_predictions = counts.sum() - counts[:, classes].sum()
        if bad_predictions > 0:
            raise ValueError(
                f"{bad_predictions} pixels have a prediction outside 0..{last};"
                f" the model must predict the dataset's {self.num_classes} classes"
            )
        return counts[classes, classes]


def _clamped(values: Tensor, last: int) -> Tensor:
    """A copy in int32 (uint8 would overflow), for arithmetic in place; what is outside -1..last becomes the nearest."""
    if values.dtype == torch.int64:  # larger numbers would wrap
        return values.clamp(-1, last).to(torch.int32)
    return values.to(torch.int32, copy=True).clamp_(-1, last)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a split, as fractions. A value that is not defined is NaN and left out of the means.

    Attributes:
        iou: by class, right pixels / (pixels of the class + pixels predicted as it - right pixels); NaN where
            the class occurs in neither truth nor prediction, 0 where it is only predicted.
        miou: mean of `iou`.
        pixel_accuracy: share of all pixels that are right.
        accuracy: by class, share of the class's pixels that are right; NaN where the class does not occur.
        mean_accuracy: mean of `accuracy`.
        frequency_weighted_iou: mean of `iou` weighted by the number of pixels of each class.
        pixels: by class, number of true pixels.
    """

    iou: dict[str, float]
    miou: float
    pixel_accuracy: float
    accuracy: dict[str, float]
    mean_accuracy: float
    frequency_weighted_iou: float
    pixels: dict[str, int]


def scores(matrix: np.ndarray | Tensor, class_names: Sequence[str]) -> Scores:
    """Scores of a (K, K) confusion matrix, in float64."""
    counts = np.asarray(matrix, dtype=np.float64)
    assert counts.shape == (len(class_names), len(class_names)), (counts.shape, len(class_names))
    right, pixels, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that we want
        iou = right / (pixels + predicted - right)
        accuracy = right / pixels
        pixel_accuracy = right.sum() / pixels.sum()
        frequency_weighted_iou = np.nansum(pixels * iou) / pixels.sum()
    return Scores(
        iou=dict(zip(class_names, iou.tolist(), strict=True)),
        miou=defined_mean(iou),
        pixel_accuracy=float(pixel_accuracy),
        accuracy=dict(zip(class_names, accuracy.tolist(), strict=True)),
        mean_accuracy=defined_mean(accuracy),
        frequency_weighted_iou=float(frequency_weighted_iou),
        pixels=dict(zip(class_names, pixels.astype(np.int64).tolist(), strict=True)),
    )


def image_scores(matrix: np.ndarray) -> tuple[float, float]:
    """Pixel accuracy and mIoU of one image, from its (K, K) confusion matrix.

    The mean is over the classes that the image's truth contains; NaN where no pixel is labelled.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    right, pixels, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    present = pixels > 0
    iou = right[present] / (pixels + predicted - right)[present]
    return float(right.sum() / pixels.sum()) if present.any() else math.nan, defined_mean(iou)


def boundary_counts(prediction: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """What the boundary IoU of one image is made of; add the counts of the images, then take `boundary_iou`.

    Source: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021, applied to
    the mask of each class. A mask's boundary region is what of it lies within d pixels (steps to any of the eight
    neighbors) of a pixel outside the mask; beyond the image all is outside. d is 2 % of the image's diagonal, rounded,
    at least 1. Ignored pixels are treated as if they were beyond the image: they are in no mask, neither of the truth
    nor of the prediction.

    Args:
        prediction: (H, W) class ids.
        label: (H, W) class ids or 255.
        num_classes: K.

    Returns:
        (3, K) int64, pixels by class: in both regions, in the truth's, in the prediction's.
    """
    width = max(1, round(BOUNDARY * math.hypot(*label.shape)))
    prediction = np.where(label == IGNORE, IGNORE, prediction).astype(np.uint8)
    near_truth, near_prediction = _boundary(label, width), _boundary(prediction, width)
    both = near_truth & near_prediction & (label == prediction)
    regions = (label[both], label[near_truth], prediction[near_prediction])  # ignored pixels are there as class 255
    return np.stack([np.bincount(region, minlength=IGNORE + 1)[:num_classes] for region in regions])


def _boundary(labels: np.ndarray, width: int) -> np.ndarray:
    """(H, W) bool: whether a pixel of another value is within `width` pixels; 255 surrounds the image."""
    import cv2

    # In the square around a pixel another value is above or below its own: one maximum and one minimum for all classes.
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    surrounded = cv2.copyMakeBorder(labels, *4 * (width,), cv2.BORDER_CONSTANT, value=(IGNORE,))
    inner = slice(width, -width), slice(width, -width)
    above, below = cv2.dilate(surrounded, square)[inner], cv2.erode(surrounded, square)[inner]
    return (above != labels) | (below != labels)


def boundary_iou(counts: np.ndarray) -> np.ndarray:
    """Boundary IoU by class, (K,); NaN where a class is in neither truth nor prediction. Takes `boundary_counts`."""
    both, truth, prediction = counts.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return both / (truth + prediction - both)


def defined_mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN, without numpy's warning, where there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
