"""Whether probabilities are as high as they are right: calibration error, Brier score, likelihood, risk by coverage.

Shapes: B images, H x W image size, K classes, M = 15 bins of confidence, the probability of the predicted class.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from danet.interfaces import IGNORE

BINS = 15  # of equal width, as in Guo et al., "On Calibration of Modern Neural Networks", ICML 2017
UNCERTAINTIES = 0x3F80 + 1  # values of the upper 16 bits of a float32 in 0..1, which are in its order


@dataclass(frozen=True, kw_only=True)
class CalibrationScores:
    """How good probabilities are, over all labeled pixels. A value that is not defined is NaN.

    Attributes:
        pixels: their number.
        ece: expected calibration error: mean over bins, weighted by pixels, of |accuracy - mean confidence|.
        ece_by_class: (K,) the same over the pixels that are predicted as the class.
        brier: mean of the squared distance between the probabilities and the truth as 0 and 1, from 0 to 2.
        nll: mean of -ln(probability of the true class).
        confidence: (M,) mean confidence of each bin.
        accuracy: (M,) share of its pixels that are right.
        share: (M,) its share of all pixels.
        coverage: rising shares of the pixels, the surest ones.
        risk: share of wrong ones among them.
        risk_area: area under the risk over the coverage from 0 to 1.
    """

    pixels: int
    ece: float
    ece_by_class: np.ndarray
    brier: float
    nll: float
    confidence: np.ndarray
    accuracy: np.ndarray
    share: np.ndarray
    coverage: np.ndarray
    risk: np.ndarray
    risk_area: float

    def risk_at(self, coverage: float) -> float:
        """Share of wrong pixels among the surest ones that make up `coverage`."""
        return float(np.interp(coverage, self.coverage, self.risk)) if len(self.risk) else float("nan")


class Calibration(Metric):
    """Calibration of a whole split, pixel by pixel, in memory that does not grow with it; ignored pixels do not count.

    Sums are kept by class and bin; for the risk by coverage, counts of right and wrong pixels by 1 - confidence, whose
    upper 16 bits are the bin: each is less than 0.8 % wide, so that the surest pixels stay apart.

    Args:
        num_classes: K.
        options: of torchmetrics.Metric.

    Attributes:
        bins: (3, K * M) float64: pixels, confidence and right pixels.
        uncertain: (2 * UNCERTAINTIES,) int64: right and wrong pixels.
        sums: (2,) float64, of the squared distances and the logarithms.
    """

    is_differentiable = False
    full_state_update = False
    bins: Tensor
    uncertain: Tensor
    sums: Tensor

    def __init__(self, num_classes: int, **options: Any) -> None:
        super().__init__(**options)
        self.num_classes = num_classes
        self.add_state("bins", torch.zeros(3, num_classes * BINS, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("uncertain", torch.zeros(2 * UNCERTAINTIES, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, prediction: Tensor, label: Tensor) -> None:
        """Add pixels.

        Args:
            probabilities: (B, K, H, W).
            prediction: (B, H, W) classes, the likeliest.
            label: (B, H, W) classes, or 255.
        """
        counts = label != IGNORE
        prediction, truth = prediction.long(), label.long()
        p = probabilities.float()
        confidence = p.gather(1, prediction[:, None])[:, 0][counts]
        of_truth = p.gather(1, truth.where(counts, 0)[:, None])[:, 0][counts]
        squares = p.square().sum(dim=1)[counts]
        prediction, right = prediction[counts], (prediction == truth)[counts]

        self.sums[0] += (squares - 2 * of_truth + 1).double().sum()
        self.sums[1] -= of_truth.clamp_min(torch.finfo(torch.float32).tiny).log().double().sum()
        upper = torch.linspace(0, 1, BINS + 1, device=p.device)[1:-1]
        cell = prediction * BINS + torch.bucketize(confidence, upper)
        for row, values in enumerate((torch.ones_like(confidence), confidence, right)):
            self.bins[row].index_add_(0, cell, values.double())
        order = (1 - confidence).nan_to_num(1.0).clamp(0, 1).view(torch.int32) >> 16  # NaN is refused after this
        self.uncertain += torch.bincount(2 * order + ~right, minlength=2 * UNCERTAINTIES)

    def compute(self) -> dict[str, Tensor]:
        """Scores over all processes, float64: ece, brier, nll and risk_area; see CalibrationScores."""
        found = self.scores()
        return {
            key: torch.tensor(getattr(found, key), dtype=torch.float64) for key in ("ece", "brier", "nll", "risk_area")
        }

    def scores(self) -> CalibrationScores:
        """All scores, of this process; of all in `with metric.sync_context()`."""
        by_class = self.bins.cpu().numpy().reshape(3, self.num_classes, BINS)
        pixels, confidence, right = by_class.sum(axis=1)
        brier, nll = self.sums.tolist()
        with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is the NaN that we want
            total = pixels.sum()
            gaps = np.abs(by_class[2] - by_class[1]).sum(axis=1) / by_class[0].sum(axis=1)
            coverage, risk, area = self._risk()
            return CalibrationScores(
                pixels=int(total),
                ece=float(np.abs(right - confidence).sum() / total),
                ece_by_class=gaps,
                brier=float(np.divide(brier, total)),
                nll=float(np.divide(nll, total)),
                confidence=confidence / pixels,
                accuracy=right / pixels,
                share=pixels / total,
                coverage=coverage,
                risk=risk,
                risk_area=area,
            )

    def _risk(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Coverages, the risk at each, and the area below; see CalibrationScores."""
        counts = self.uncertain.cpu().numpy().reshape(-1, 2)
        counts = counts[counts.any(axis=1)]
        if not len(counts):
            return np.empty(0), np.empty(0), float("nan")
        seen = counts.sum(axis=1).cumsum()
        coverage, risk = seen / seen[-1], counts[:, 1].cumsum() / seen
        curve = torch.trapezoid(torch.from_numpy(risk), torch.from_numpy(coverage))
        area = risk[0] * coverage[0] + curve.item()  # within the surest bin there is no order
        return coverage, risk, float(area)
