"""What the attention page shows, read from one look of a model at an image and made into JSON.

Arrays are stored with zlib and base64, see `packed`. Shapes: H x W image size, h x w size of the feature map, N = h * w
positions, D channels of query and key, C channels of channel attention's branch, K classes.
"""

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from danet.analysis.attention_maps import attention_modules, correlation, recording
from danet.analysis.attention_points import at_cells, class_points
from danet.analysis.receptive_field import measuring
from danet.config.sections import InferenceConfig
from danet.inference import temperature
from danet.inference.predictor import Predictor
from danet.inference.views import labels_and_probabilities
from danet.services.nonfinite import FiniteScores

TOLERANCE = 5e-4  # of a weight; where half precision is off by more, single precision is stored
COMPARED_ROWS = 4096  # at most, to find that out
BLOCK = 2**24  # weights at a time: 64 MiB
MOST_POSITIONS = 3072  # of N x N stored weights: 18 MiB
CHANNEL_MAP_BYTES = 2**22  # of all of them; larger maps are stored at a lower resolution


def packed(array: np.ndarray) -> dict[str, Any]:
    """An array as the page unpacks it: {"type", "shape", "data"}, little-endian bytes by zlib, in base64."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    data = base64.b64encode(zlib.compress(little.tobytes(), 6)).decode()
    return {"type": array.dtype.name, "shape": list(array.shape), "data": data}


def read(predictor: Predictor, tensor: Tensor, label: np.ndarray | None, limit: float) -> dict[str, Any]:
    """Let the model look at the whole image (1, 3, H, W) once, and gather what the page needs.

    What cannot be shown is named in "missing": the head has no attention, or its data would exceed the limit.

    Args:
        predictor: the model.
        tensor: the image, as `Predictor.tensor` gives it.
        label: the truth, (H, W) train ids with 255 for ignored.
        limit: megabytes that position attention may take in the page.

    Raises:
        NonFiniteError: the model's scores are NaN or infinite.
    """
    segmenter, finite = predictor.model, FiniteScores()
    size = (tensor.shape[-2], tensor.shape[-1])
    modules = attention_modules(segmenter)
    with torch.inference_mode(), predictor.autocast():
        with recording(modules.values()) as seen, measuring(segmenter.backbone, size) as field:
            labels, found = labels_and_probabilities(segmenter, tensor, size, InferenceConfig(), finite)
        finite.require(segmenter)
        prediction = labels[0].to(torch.uint8).cpu().numpy()
        layers = {"prediction": prediction} | ({} if label is None else {"truth": label.astype(np.uint8)})
        place = {"align_corners": segmenter.align_corners}
        without = f"{type(segmenter.head).__name__} has no attention to show; take a model with head=danet"
        refused = [] if modules else [without]
        position = []
        for name, module in modules.items():
            if name != "cam":
                inputs = seen[module][0]
                cells = _cells(layers, (inputs[0].shape[-2], inputs[0].shape[-1]), segmenter.align_corners)
                try:
                    position.append({"name": name} | cells | _position(name, module, inputs, limit))
                except ValueError as error:
                    refused.append(str(error))
        channel = None
        if cam := modules.get("cam"):
            channel = _channel(cam, *seen[cam], prediction, segmenter.align_corners, segmenter.num_classes)
    sure = _certainty(temperature.calibrated(found.float(), predictor.temperature)[0])
    layers |= dict(zip(("confidence", "entropy"), sure, strict=True))
    return place | {
        "size": list(size),
        "layers": {name: packed(layer) for name, layer in layers.items()},
        "start": list(class_points(prediction, 1)[0]),
        "receptive_field": field.side,
        "position": position,
        "channel": channel,
        "missing": refused,
    }


def _cells(layers: dict[str, np.ndarray], size: tuple[int, int], align_corners: bool) -> dict[str, Any]:
    """The feature map's size, and each cell's predicted and true class (N), by name."""
    classes = {name: packed(at_cells(layer, size, align_corners).ravel()) for name, layer in layers.items()}
    return {"size": list(size), "classes": classes}


def _certainty(probabilities: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Largest probability, and entropy / ln(K), of each pixel in 0..255: (K, H, W) -> (H, W) uint8 each."""
    entropy = torch.special.entr(probabilities).sum(dim=0) / np.log(max(len(probabilities), 2))
    both = (255 * torch.stack([probabilities.amax(dim=0), entropy])).round().clamp(0, 255).to(torch.uint8)
    confidence, spread = both.cpu().numpy()
    return confidence, spread


# ---- position attention ----------------------------------------------------------------------------------------------


def _position(name: str, module: Any, inputs: Sequence[Tensor], limit: float) -> dict[str, Any]:
    """What the page needs for any row and column of one module's weights."""
    gamma = float(module.gamma) if hasattr(module, "gamma") else None
    count = inputs[0].shape[-2] * inputs[0].shape[-1]
    if not hasattr(module, "compared"):
        if count > MOST_POSITIONS:
            raise ValueError(
                f"{name}: its weights are not the softmax of query times key, so all {count} x {count} must be stored, "
                f"for which at most {MOST_POSITIONS} positions are allowed; take a smaller image"
            )
        weights = module.attention(*inputs)[0].float().cpu().numpy()
        return {"kind": "weights", "gamma": gamma, "weights": packed((weights * count).astype(np.float16))}
    query, key = (part[0].float().T.cpu().contiguous() for part in module.compared(*inputs))  # (N, D)
    if (needed := _megabytes(query, 2)) > limit:
        raise ValueError(
            f"page: query and key of {name} take {needed:.0f} MB for {count} positions, more than attention.page_size="
            f"{limit:g}; take a smaller image, or raise it"
        )
    with torch.autocast("cpu", enabled=False):  # energies reach hundreds, as position_weights says
        query, key, log_sums, error = _stored(query, key, single=_megabytes(query, 4) <= limit)
    parts = {"query": packed(query), "key": packed(key), "log_sums": packed(log_sums)}
    return {"kind": "query_key", "gamma": gamma, "type": query.dtype.name, "error": error} | parts


def _megabytes(query: Tensor, bytes_each: int) -> float:
    """What query and key take in the page, in base64."""
    return 2 * query.numel() * bytes_each * 4 / 3 / 1e6


def _stored(query: Tensor, key: Tensor, single: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Query and key (N, D) in half precision, or single if that is needed; each row's ln(sum of exp), largest error."""
    centered = key - key.mean(dim=0)  # changes all energies of a row alike, and rounds better
    for dtype in (torch.float16, torch.float32) if single else (torch.float16,):
        rounded, rounded_key = query.to(dtype), centered.to(dtype)
        error = _largest_error(query, key, rounded.float(), rounded_key.float())
        if error <= TOLERANCE:
            break
    step = max(1, BLOCK // len(key))
    sums = [(rows @ rounded_key.float().T).logsumexp(dim=1) for rows in rounded.float().split(step)]
    return rounded.numpy(), rounded_key.numpy(), torch.cat(sums).numpy(), error


def _largest_error(query: Tensor, key: Tensor, rounded: Tensor, rounded_key: Tensor) -> float:
    """The largest difference between a weight of the rounded query and key and the exact one; infinite for NaN."""
    rows = torch.linspace(0, len(query) - 1, min(len(query), COMPARED_ROWS)).round().long()
    largest = 0.0
    for some in rows.split(max(1, BLOCK // len(key))):
        exact, other = (query[some] @ key.T).softmax(dim=1), (rounded[some] @ rounded_key.T).softmax(dim=1)
        largest = max(largest, float((exact - other).abs().nan_to_num(torch.inf).max()))
    return largest


# ---- channel attention -----------------------------------------------------------------------------------------------


def _channel(
    module: Any, inputs: tuple[Tensor, ...], output: Tensor, prediction: np.ndarray, align_corners: bool, classes: int
) -> dict[str, Any]:
    """Weights (C, C), the maps of the output in 0..255, and their correlations (C, K) with the predicted classes."""
    import cv2

    maps = output[0].float().cpu().numpy()  # (C, h, w)
    weights = module.attention(*inputs)[0].float().cpu().numpy()
    at = at_cells(prediction, (maps.shape[1], maps.shape[2]), align_corners)
    correlations = np.full((len(maps), classes), np.nan, np.float32)
    for index in np.unique(at):
        correlations[:, index] = correlation(maps, at == index)
    if (shrink := (CHANNEL_MAP_BYTES / maps.size) ** 0.5) < 1:
        size = tuple(max(1, int(length * shrink)) for length in maps.shape[:0:-1])  # width, height
        maps = np.stack([cv2.resize(each, size, interpolation=cv2.INTER_AREA) for each in maps])
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    shades = (255 * (maps - low) / np.maximum(high - low, 1e-12)).round().astype(np.uint8)
    return {
        "beta": float(module.gamma),
        "energy": getattr(module, "energy", "plain"),
        "weights": packed((weights * len(weights)).astype(np.float16)),
        "maps": packed(shades),
        "map_size": list(shades.shape[1:]),
        "low": [round(float(value), 4) for value in low.ravel()],
        "high": [round(float(value), 4) for value in high.ravel()],
        "correlations": packed(correlations),
    }
