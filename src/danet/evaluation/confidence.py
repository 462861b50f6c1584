"""What an evaluation finds out about the probabilities: how well they are calibrated, and their temperature.

Shapes: B images, H x W image size, K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from danet import metrics
from danet.evaluation.temperature import TemperatureFit
from danet.inference.temperature import calibrated
from danet.services.calibration_figure import plot_calibration

COVERAGES = tuple(round(0.05 * step, 2) for step in range(1, 21))  # at which result.json has the risk


class Confidence:
    """Takes the probabilities of a split batch by batch; of several processes, each takes its share.

    Args:
        num_classes: K.
        num_images: of all processes.
        device: of the probabilities.
        temperature: at which they are scored.
        fits: whether to find the best temperature, too.
    """

    def __init__(
        self, num_classes: int, num_images: int, device: torch.device, *, temperature: float, fits: bool
    ) -> None:
        self.temperature = temperature
        self._device = torch.device("cpu") if device.type == "mps" else device  # which lacks float64
        self._metric = metrics.Calibration(num_classes).to(self._device)
        self._fit = TemperatureFit(num_classes, num_images) if fits else None
        self._scores: metrics.CalibrationScores | None = None

    def add(
        self, indices: Sequence[int], probabilities: torch.Tensor, prediction: torch.Tensor, label: torch.Tensor
    ) -> None:
        """Take a batch.

        Args:
            indices: of its images in the split.
            probabilities: (B, K, H, W) at temperature 1.
            prediction: (B, H, W) classes.
            label: (B, H, W) classes, or 255.
        """
        if self._fit:
            for index, *image in zip(indices, probabilities, label, strict=True):
                self._fit.add(*image, index)
        at = calibrated(probabilities, self.temperature)
        self._metric.update(*(part.to(self._device) for part in (at, prediction, label)))

    def fit(self) -> dict[str, Any] | None:
        """See TemperatureFit.fit; None where it is not wanted. For all processes at once, as `result`."""
        return self._fit.fit() if self._fit else None

    def result(self, class_names: Sequence[str]) -> dict[str, Any]:
        """The scores over all processes as plain values, as result.json has them."""
        with self._metric.sync_context():
            self._scores = found = self._metric.scores()
        return {
            "temperature": self.temperature,
            "pixels": found.pixels,
            "ece": found.ece,
            "ece_by_class": dict(zip(class_names, found.ece_by_class.tolist(), strict=False)),
            "brier": found.brier,
            "nll": found.nll,
            "reliability": {key: getattr(found, key).tolist() for key in ("confidence", "accuracy", "share")},
            "risk_coverage": {
                "area": found.risk_area,
                "coverage": list(COVERAGES),
                "risk": [found.risk_at(coverage) for coverage in COVERAGES],
            },
        }

    def draw(self, path: Path, title: str) -> None:
        """Draw the scores of `result`, where any pixel is labelled."""
        if self._scores is not None and self._scores.pixels:
            words = f"{title}; temperature {self.temperature:.3f}" if self.temperature != 1 else title
            plot_calibration(self._scores, path, words)
