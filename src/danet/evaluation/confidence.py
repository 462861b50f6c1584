"""An evaluation's results on the probabilities: their calibration and their temperature.

Shapes: B images, H x W image size, K classes.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from danet import metrics
from danet.evaluation.options import ScoringConfig
from danet.evaluation.share import Share
from danet.evaluation.temperature import TemperatureFit
from danet.inference import temperature as scaling
from danet.inference.predictor import Predictor
from danet.schema import ConfigError
from danet.services.calibration_figure import plot_calibration

log = logging.getLogger(__name__)

COVERAGES = tuple(round(0.05 * step, 2) for step in range(1, 21))  # at which result.json has the risk


class Confidence:
    """Takes the probabilities of a split batch by batch; of several processes, each takes its share.

    Args:
        num_classes: K.
        num_images: of all processes.
        device: of the probabilities.
        temperature: at which they are scored.
        scores: whether to score the probabilities.
        fits: whether to find the best temperature.
    """

    def __init__(
        self, num_classes: int, num_images: int, device: torch.device, *, temperature: float, scores: bool, fits: bool
    ) -> None:
        self.temperature = temperature
        self._device = torch.device("cpu") if device.type == "mps" else device  # which lacks float64
        self._metric = metrics.Calibration(num_classes).to(self._device) if scores else None
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
            for index, found, truth in zip(indices, probabilities, label, strict=True):
                self._fit.add(found, truth, index)
        if self._metric:
            at = scaling.calibrated(probabilities, self.temperature)
            self._metric.update(*(part.to(self._device) for part in (at, prediction, label)))

    def result(self, class_names: Sequence[str]) -> dict[str, Any]:
        """What result.json has over all processes, as plain values: "calibration" and "fitted_temperature"."""
        found = {"fitted_temperature": {**self._fit.fit(), "note": scaling.NOTE}} if self._fit else {}
        return found | ({"calibration": self._calibration(self._metric, class_names)} if self._metric else {})

    def _calibration(self, metric: metrics.Calibration, class_names: Sequence[str]) -> dict[str, Any]:
        with metric.sync_context():
            self._scores = found = metric.scores()
        return {
            "temperature": self.temperature,
            "pixels": found.pixels,
            "ece": found.ece,
            "ece_by_class": dict(zip(class_names, found.ece_by_class.tolist(), strict=True)),
            "brier": found.brier,
            "nll": found.nll,
            "reliability": {key: getattr(found, key).tolist() for key in ("confidence", "accuracy", "share")},
            "risk_coverage": {
                "area": found.risk_area,
                "coverage": list(COVERAGES),
                "risk": [found.risk_at(coverage) for coverage in COVERAGES],
            },
        }

    def keep_temperature(self, result: Mapping[str, Any]) -> None:
        """Write the temperature that was fitted beside the weights, with how it was found, out of result.json."""
        if "fitted_temperature" not in result:
            return
        fitted = result["fitted_temperature"]
        where = ("split", "dataset", "dataset_fingerprint", "inference", "max_images", "dtype")
        path = scaling.write(Path(result["checkpoint"]), fitted | {key: result[key] for key in where})
        text = "temperature %.4f: negative log-likelihood %.4f, before %.4f; labels do not change; kept in %s"
        log.info(text, fitted["temperature"], fitted["nll_after"], fitted["nll_before"], path)

    def draw(self, path: Path, title: str) -> None:
        """Draw the scores of `result`, where any pixel is labeled."""
        if self._scores is not None and self._scores.pixels:
            words = f"{title}; temperature {self.temperature:.3f}" if self.temperature != 1 else title
            plot_calibration(self._scores, path, words)


def wanted_confidence(scoring: ScoringConfig, predictor: Predictor, share: Share) -> Confidence | None:
    """The consumer of the probabilities; None if they are not needed.

    Raises:
        ConfigError: a temperature could not be written.
    """
    options = scoring.evaluate
    if not (options.calibration or options.fit_temperature):
        return None
    path = scaling.file_beside(Path(predictor.facts["checkpoint"]))
    if options.fit_temperature and not os.access(path.parent, os.W_OK):
        raise ConfigError(
            [f"evaluate.fit_temperature: {path} cannot be written; copy the weights to a folder that you can write to"]
        )
    return Confidence(
        predictor.model.num_classes,
        share.num_images,
        share.compute.device,
        temperature=1.0 if options.fit_temperature else predictor.temperature,
        scores=options.calibration,
        fits=options.fit_temperature,
    )
