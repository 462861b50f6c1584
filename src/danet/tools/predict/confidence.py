"""Files that say how sure a model is of each pixel.

NAME_probabilities.npz has "probabilities", (K, H, W) float16, and "class_names", (K,). NAME_entropy.png and
NAME_margin.png are 16-bit gray: 65535 is the entropy of K equal probabilities, ln K, and a margin of 1 between the two
likeliest classes.

Shapes: H x W image size, K classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from danet.services.atomic_files import replacing

ENDINGS = {"probabilities": "_probabilities.npz", "entropy": "_entropy.png", "margin": "_margin.png"}
WHITE = 65535
ENTROPY_SCALE = "entropy / ln(number of classes) = gray / 65535"
MARGIN_SCALE = "probability of the likeliest class - that of the second = gray / 65535"


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy of each pixel's probabilities (K, H, W) as a share of the largest one, ln K: (H, W), 0 to 1."""
    logarithms = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return np.clip(-(probabilities * logarithms).sum(axis=0) / np.log(max(len(probabilities), 2)), 0, 1)


def margin(probabilities: np.ndarray) -> np.ndarray:
    """Difference of each pixel's two largest probabilities (K, H, W): (H, W), 0 to 1."""
    if len(probabilities) == 1:
        return probabilities[0]
    second, first = np.partition(probabilities, -2, axis=0)[-2:]
    return first - second


def save(kind: str, path: Path, probabilities: np.ndarray, class_names: Sequence[str]) -> None:
    """Write one of the files, whole or not at all.

    Args:
        kind: a key of ENDINGS.
        path: the file.
        probabilities: (K, H, W) float32.
        class_names: K names.
    """
    with replacing(path) as temporary:
        if kind == "probabilities":
            with temporary.open("wb") as file:
                halves = probabilities.astype(np.float16)
                np.savez_compressed(file, probabilities=halves, class_names=np.array(class_names))
        else:
            shares = entropy(probabilities) if kind == "entropy" else margin(probabilities)
            Image.fromarray((WHITE * shares).round().astype(np.uint16)).save(temporary, "PNG")
