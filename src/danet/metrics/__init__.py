"""Scores: of classes, of their boundaries, of images, of probabilities."""

from danet.interfaces import IGNORE
from danet.metrics.boundary import boundary_counts, boundary_iou
from danet.metrics.calibration import Calibration, CalibrationScores
from danet.metrics.confusion import ConfusionMatrix, Scores, defined_mean, image_scores, scores

__all__ = [
    "IGNORE",
    "Calibration",
    "CalibrationScores",
    "ConfusionMatrix",
    "Scores",
    "boundary_counts",
    "boundary_iou",
    "defined_mean",
    "image_scores",
    "scores",
]
