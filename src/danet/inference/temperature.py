"""Temperature scaling: calibrate the probabilities by one number that is fitted on a split.

Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. The logits are divided by the temperature
before the softmax. Here the probabilities that windows, scales and flips have been combined to are raised to
1 / temperature and normalized, which is equivalent for a single view. So their order never changes, and labels are
those of the uncalibrated model.

The number is stored beside the weights, in FILE.temperature.json for FILE.pt, with the SHA-256 of the weights; exported
files have it in their metadata.
"""

import hashlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from danet.services import atomic_files

log = logging.getLogger(__name__)

NOTE = "Divides the logits before the softmax: probabilities change, predicted classes never do."


def log_probabilities(probabilities: torch.Tensor) -> torch.Tensor:
    """Logarithms of probabilities, of any shape; 0 counts as the smallest normal number."""
    return probabilities.float().clamp_min(torch.finfo(torch.float32).tiny).log_()


def calibrated(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """Probabilities (B, K, H, W) at a temperature; above 1 they are less confident, at 1 unchanged."""
    if temperature == 1:
        return probabilities
    return log_probabilities(probabilities).div_(temperature).softmax(dim=1)


def file_beside(weights: Path) -> Path:
    """The file with the temperature of a weights file."""
    return weights.with_suffix(".temperature.json")


def write(weights: Path, facts: Mapping[str, Any]) -> Path:
    """Write the temperature of a weights file beside it; `facts` has "temperature" and how it was found."""
    path = file_beside(weights)
    atomic_files.write_json(path, {**facts, "note": NOTE, "weights_sha256": sha256(weights)})
    return path


def choose(weights: Path, facts: Mapping[str, Any], wanted: Literal["auto"] | float) -> float:
    """The temperature to apply.

    Args:
        weights: the weights file.
        facts: metadata of the file.
        wanted: a number, or "auto": the one beside the file, else the one in its metadata, else 1.

    Raises:
        ValueError: the value, given or stored, is not a temperature.
    """
    if wanted != "auto":
        if not isinstance(wanted, int | float) or not 0 < wanted < math.inf:
            raise ValueError(f"temperature={wanted}: must be a number above 0")
        return float(wanted)
    path, source = file_beside(weights), weights
    value: Any = facts.get("temperature")
    if path.is_file():
        stored, source = atomic_files.read_json(path), path
        if stored.get("weights_sha256") != sha256(weights):
            log.warning("%s was fitted to other weights than %s has now; not applied. Fit it again", path, weights.name)
        else:
            value = stored.get("temperature")
    if value is None:
        return 1.0
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(
            f"{source}: temperature = {value!r}: must be a number above 0; delete it, or set temperature=1"
        )
    return float(value)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
