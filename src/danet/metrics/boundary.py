"""Scores of the classes' boundaries.

Shapes: K classes, H x W image size.
"""

import math

import numpy as np

from danet.interfaces import IGNORE

BOUNDARY = 0.02  # width of a boundary as a share of the image's diagonal


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
