"""Segmentation scores from one confusion matrix over a whole split.

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

from danet.arguments import Void
from danet.interfaces import IGNORE


class ConfusionMatrix(Metric):
    """Scores of a whole split from its confusion matrix, as a torchmetrics Metric; ignored pixels do not count.

    Values that are not a class are counted too, in cells of their own, and reported by `compute`: dropped or wrapped
    around, they would change the score silently.

        metric = ConfusionMatrix(num_classes).to(device)
        for image, label in loader:
            metric.update(model(image), label)
        print(metric.compute()["miou"])

    Args:
        num_classes: K, at most 255.
        void: what pixels labeled 255 do: "ignore", nothing; "count", they are wrong pixels of the class predicted
            there, as ESPNet's evaluation counts them.
        predicts_void: whether the prediction may be K, which means void: right for no class.
        options: of torchmetrics.Metric, such as sync_on_compute.

    Attributes:
        counts: (258, K + 3) int64, pixels by label + 1 and prediction + 1; the first and the last row and
            column hold all that is below or above.
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int, *, void: Void = "ignore", predicts_void: bool = False, **options: Any) -> None:
        assert num_classes <= IGNORE, num_classes
        super().__init__(**options)
        self.num_classes, self.void, self.predicts_void = num_classes, void, predicts_void
        self.add_state("counts", torch.zeros(258, num_classes + 3, dtype=torch.int64), dist_reduce_fx="sum")

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
        column = _clamped(prediction, self.num_classes + 1).add_(1)
        cell = row.mul_(self.counts.shape[1]).add_(column)
        self.counts += torch.bincount(cell.flatten(), minlength=self.counts.numel()).view_as(self.counts)

    @property
    def between_classes(self) -> Tensor:
        """As `matrix`, of this process, on the device, and unchecked."""
        return self._between_classes(self.counts)

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

        Where void is counted or predicted, (K + 1, K + 1): the last row and column are void's.

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
        bad_predictions = counts.sum() - counts[:, 1 : self.num_classes + 1 + self.predicts_void].sum()
        if bad_predictions > 0:
            raise ValueError(
                f"{bad_predictions} pixels have a prediction outside 0..{last};"
                f" the model must predict the dataset's {self.num_classes} classes"
            )
        return self._between_classes(counts)

    def _between_classes(self, counts: Tensor) -> Tensor:
        classes = counts[1 : self.num_classes + 1]
        if self.void == "ignore" and not self.predicts_void:
            return classes[:, 1 : self.num_classes + 1]
        void = counts[IGNORE + 1 : IGNORE + 2] * (self.void == "count")
        return torch.cat([classes, void])[:, 1 : self.num_classes + 2]


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
    """Scores of a confusion matrix, in float64.

    Args:
        matrix: (K, K), or (K + 1, K + 1) with void last. Void is no class of the means; what was predicted on void
            pixels counts as predicted, but only labeled pixels count for accuracies.
        class_names: K names.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    assert counts.shape in [2 * (len(class_names) + void,) for void in (0, 1)], (counts.shape, len(class_names))
    right, pixels, predicted = _totals(counts, len(class_names))
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


def _totals(counts: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right, true and predicted pixels by class, (K,) each."""
    classes = slice(num_classes)
    return counts.diagonal()[classes], counts.sum(axis=1)[classes], counts.sum(axis=0)[classes]


def image_scores(matrix: np.ndarray, num_classes: int | None = None) -> tuple[float, float]:
    """Pixel accuracy and mIoU of one image, from its confusion matrix.

    The mean is over the classes that the image's truth contains; NaN where no pixel is labeled.

    Args:
        matrix: as for `scores`.
        num_classes: K; None: the matrix has no void.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    right, pixels, predicted = _totals(counts, num_classes or len(counts))
    present = pixels > 0
    iou = right[present] / (pixels + predicted - right)[present]
    return float(right.sum() / pixels.sum()) if present.any() else math.nan, defined_mean(iou)


def defined_mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN, without numpy's warning, where there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
