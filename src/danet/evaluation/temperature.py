"""Fits the temperature of a model's probabilities on a split, by minimum negative log-likelihood.

Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; see inference/temperature.py.

Shapes: B images, H x W image size, K classes.
"""

import logging
import math
from typing import Any

import torch

from danet.inference.temperature import log_probabilities
from danet.interfaces import IGNORE
from danet.services import distributed

log = logging.getLogger(__name__)

CELLS = 2**25  # logarithms that all processes keep at most: 128 MiB
RANGE = (0.05, 20.0)  # of temperatures


class TemperatureFit:
    """Keeps labeled pixels of a split, equally many per image, and fits their temperature.

    Args:
        num_classes: K.
        num_images: of all processes.
    """

    def __init__(self, num_classes: int, num_images: int) -> None:
        self._limit = max(CELLS // num_classes // max(num_images, 1), 1)
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []  # logarithms (N, K) and labels (N,)
        self._seen = 0

    def add(self, probabilities: torch.Tensor, label: torch.Tensor, index: int) -> None:
        """Keep pixels of an image, drawn by its index where it has too many.

        Args:
            probabilities: (K, H, W) at temperature 1.
            label: (H, W) classes, or 255.
            index: of the image in the split.
        """
        places = (label != IGNORE).flatten().nonzero()[:, 0]
        self._seen += len(places)
        if len(places) > self._limit:
            order = torch.randperm(len(places), generator=torch.Generator().manual_seed(index))
            places = places[order[: self._limit].to(places.device)]
        logarithms = log_probabilities(probabilities.flatten(1)[:, places]).t()
        self._kept.append((logarithms.cpu(), label.flatten()[places].long().cpu()))

    def fit(self) -> dict[str, Any]:
        """The temperature with the negative log-likelihoods at 1 and at it, over the pixels of all processes.

        Raises:
            ValueError: no pixel is labeled.
        """
        from scipy.optimize import minimize_scalar

        counts = torch.tensor([sum(len(labels) for _, labels in self._kept), self._seen], dtype=torch.float64)
        used, seen = distributed.sum_over_processes(counts).tolist()
        if not used:
            raise ValueError("evaluate.fit_temperature: no pixel of the split is labeled")
        # Over the logarithm, since 1/2 is as far from 1 as 2. Every process takes the same steps.
        bounds = (math.log(RANGE[0]), math.log(RANGE[1]))
        found = minimize_scalar(
            lambda x: self._nll(math.exp(x), used), bounds=bounds, method="bounded", options={"xatol": 1e-6}
        )
        temperature, before = math.exp(found.x), self._nll(1.0, used)
        if found.fun >= before:  # by rounding
            temperature, found.fun = 1.0, before
        if min(abs(found.x - bound) for bound in bounds) < 1e-3:
            log.warning("the temperature lies at the end of its range, %g to %g: too few wrong pixels to tell", *RANGE)
        return {
            "temperature": temperature,
            "nll_before": before,
            "nll_after": float(found.fun),
            "pixels": int(used),
            "labeled_pixels": int(seen),
        }

    def _nll(self, temperature: float, used: float) -> float:
        """Mean of -ln(probability of the true class) over all processes, in float64."""
        total = torch.zeros((), dtype=torch.float64)
        for logarithms, labels in self._kept:
            scaled = logarithms.double() / temperature
            total += (scaled.logsumexp(dim=1) - scaled.gather(1, labels[:, None])[:, 0]).sum()
        return distributed.sum_over_processes(total).item() / used
