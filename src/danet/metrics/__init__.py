"""Scores: of classes, of their boundaries, of images."""

from danet.interfaces import IGNORE
from danet.metrics.boundary import boundary_counts, boundary_iou
from danet.metrics.confusion import ConfusionMatrix, Scores, Void, defined_mean, image_scores, scores

__all__ = [
    "IGNORE",
    "ConfusionMatrix",
    "Scores",
    "Void",
    "boundary_counts",
    "boundary_iou",
    "defined_mean",
    "image_scores",
    "scores",
]
