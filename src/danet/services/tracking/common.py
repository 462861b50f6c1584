"""What all mirrors share."""

import secrets
import string
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class ScoredImage(NamedTuple):
    """A validation image as it is mirrored."""

    name: str
    image: np.ndarray  # (H, W, 3) uint8
    label: np.ndarray  # (H, W) uint8
    prediction: np.ndarray  # (H, W) uint8
    iou: Sequence[float]  # of each of the K classes; NaN where undefined
    miou: float
    error_pixels: int  # labeled pixels whose prediction is wrong


def new_id() -> str:
    """A random id of a run, in W&B's form."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))
