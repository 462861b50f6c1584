"""Read the weights of a trained DANet's two attention modules for one image.

    from danet.analysis.attention_maps import position_maps
    predictor = danet.load("outputs/DATE/RUN")
    maps = position_maps(predictor, "image.png", [[120, 200], [40, 310]])  # (2, h, w)

Only the requested rows of position attention are computed, so large images need little memory.

Shapes: H x W image size, h x w size of the feature map, N = h * w positions, P points, C channels of a branch, M
channels shown, K classes.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from danet.analysis.attention_points import MAX_CLASSES, Point, at_cells, cell_of, class_points, inside
from danet.config.sections import InferenceConfig
from danet.inference.predictor import ImageLike, Predictor
from danet.inference.views import predict_labels
from danet.model import Segmenter
from danet.services.figures import as_rgb
from danet.services.nonfinite import FiniteScores

MAX_CHANNELS = 5  # shown unless channels are given


@dataclass(frozen=True, kw_only=True)
class PositionMaps:
    """Position attention of some points."""

    weights: np.ndarray  # (P, h, w) float32; each map sums to 1, with isanet to less where its padding takes part
    class_shares: np.ndarray  # (P, K) float32; share of each map's weight on each predicted class
    gamma: float  # the module's learned scale


@dataclass(frozen=True, kw_only=True)
class ChannelMaps:
    """Weights of channel attention and some channels of its output."""

    weights: np.ndarray  # (C, C) float32; each row sums to 1
    channels: tuple[int, ...]  # M, of C
    maps: np.ndarray  # (M, h, w) float32
    classes: tuple[tuple[int, ...], ...]  # classes that each channel was chosen for; empty if it was given
    correlations: np.ndarray  # (M, K) float32, of each channel with each class mask; NaN for absent classes
    beta: float  # the module's learned scale


@dataclass(frozen=True, kw_only=True)
class AttentionMaps:
    """Position and channel attention for one image; None if the model lacks the module."""

    image: np.ndarray  # (H, W, 3) uint8
    prediction: np.ndarray  # (H, W) uint8
    points: tuple[Point, ...]  # P pixels
    cells: tuple[Point, ...]  # the points' P cells in the feature map
    size: tuple[int, int]  # size of the feature map, h and w
    align_corners: bool  # how to resize maps to the image
    position: PositionMaps | None
    channel: ChannelMaps | None


def position_maps(model: Predictor | Segmenter, image: ImageLike, points: Sequence[Sequence[int]]) -> np.ndarray:
    """Position attention weights of some points: (P, h, w) float32; each map sums to 1.

    Args:
        model: as `danet.load` gives it, or a bare one, which computes in float32 and is left in evaluation mode.
        image: as for `Predictor.predict`.
        points: [row, column] each, in pixels; each stands for the nearest cell of the feature map.

    Raises:
        ValueError: a point lies outside the image, or the model has no position attention.
    """
    if not position_module(attention_modules(as_predictor(model).model)):
        raise ValueError("the model has no position attention; use one with head=danet and head.pam=true")
    position = attention_maps(model, image, points).position
    assert position is not None
    return position.weights


def attention_maps(
    model: Predictor | Segmenter,
    image: ImageLike,
    points: Sequence[Sequence[int]] = (),
    *,
    every_class: bool = False,
    max_classes: int = MAX_CLASSES,
    channels: Sequence[int] | None = None,
) -> AttentionMaps:
    """Run the model on a whole image at its own size and read the weights of both attention modules.

    Args:
        model: as `danet.load` gives it, or a bare one, which computes in float32 and is left in evaluation mode.
        image: as for `Predictor.predict`.
        points: [row, column] each, in pixels.
        every_class: add a point for each predicted class, see `class_points`; the default if no points are given.
        max_classes: maximum number of classes to add; those with the largest regions take precedence.
        channels: output channels of channel attention to show. None: for each class at the points, the channel that
            correlates best with the class mask (the largest channel if the class covers the image), at most five.

    Raises:
        ValueError: a point lies outside the image, a channel does not exist, or the model has no attention.
        NonFiniteError: the model's scores are NaN or infinite.
    """
    predictor = as_predictor(model)
    segmenter, tensor = predictor.model, predictor.tensor(image)
    modules = attention_modules(segmenter)
    if not modules:
        raise ValueError(f"head {type(segmenter.head).__name__} has no attention to show; use a model with head=danet")
    size = (tensor.shape[-2], tensor.shape[-1])
    chosen = [inside(point, size) for point in points]
    with torch.inference_mode(), predictor.autocast():
        with recording(modules.values()) as seen:
            finite = FiniteScores()
            labels = predict_labels(segmenter, tensor, size, InferenceConfig(), finite)
        finite.require(segmenter)
        prediction = labels[0].to(torch.uint8).cpu().numpy()
        if every_class or not chosen:
            chosen += class_points(prediction, max_classes)
        (x, *_), _ = next(iter(seen.values()))
        height, width = x.shape[-2:]
        align = segmenter.align_corners
        cells = [cell_of(point, size, (height, width), align) for point in chosen]
        classes = at_cells(prediction, (height, width), align)
        position = channel = None
        if pam := position_module(modules):
            position = _read_position(pam, seen[pam][0], cells, classes, segmenter.num_classes)
        if cam := modules.get("cam"):
            at_points = [(cell, int(prediction[point])) for cell, point in zip(cells, chosen, strict=True)]
            channel = _read_channel(cam, *seen[cam], channels, classes, at_points, segmenter.num_classes)
        elif channels is not None:
            raise ValueError("channels: the model has no channel attention (head.cam=false)")
    return AttentionMaps(
        image=as_rgb(tensor[0].permute(1, 2, 0).to(torch.uint8).cpu().numpy()),
        prediction=prediction,
        points=tuple(chosen),
        cells=tuple(cells),
        size=(height, width),
        align_corners=align,
        position=position,
        channel=channel,
    )


def attention_modules(model: nn.Module) -> dict[str, Any]:
    """The attention modules of a model, by name; empty if its head has none."""
    head: Any = getattr(model, "head", model)
    return head.attention_modules() if hasattr(head, "attention_modules") else {}


def position_module(modules: dict[str, Any]) -> Any:
    """The first attention module that is not channel attention ("cam"); None if there is none."""
    return next((module for name, module in modules.items() if name != "cam"), None)


def _read_position(
    module: Any, inputs: tuple[torch.Tensor, ...], cells: Sequence[Point], classes: np.ndarray, num_classes: int
) -> PositionMaps:
    height, width = classes.shape
    positions = [row * width + column for row, column in cells]
    rows = module.attention(*inputs, positions)[0].float().cpu().numpy()  # (P, N)
    shares = [np.bincount(classes.ravel(), weights=row, minlength=num_classes) for row in rows]
    return PositionMaps(
        weights=rows.reshape(-1, height, width),
        class_shares=np.array(shares, np.float32).reshape(-1, num_classes),
        gamma=float(getattr(module, "gamma", 1.0)),
    )


def _read_channel(
    module: Any,
    inputs: tuple[torch.Tensor, ...],
    output: torch.Tensor,
    channels: Sequence[int] | None,
    classes: np.ndarray,
    at_points: list[tuple[Point, int]],
    num_classes: int,
) -> ChannelMaps:
    maps = output[0].float().cpu().numpy()  # (C, h, w)
    if wrong := [index for index in channels or () if not 0 <= index < len(maps)]:
        raise ValueError(f"channels: {wrong} do not exist; the branch has {len(maps)} channels, numbered from 0")
    correlations = np.full((len(maps), num_classes), np.nan, np.float32)
    for index in {*np.unique(classes).tolist(), *(at_point for _, at_point in at_points)}:
        where = classes == index
        for cell, at_point in at_points:  # a region may be too small to contain a cell's center
            where[cell] |= at_point == index
        correlations[:, index] = correlation(maps, where)
    chosen_for: dict[int, list[int]] = {index: [] for index in channels or ()}
    if channels is None:
        responses = {}
        for index in dict.fromkeys(at_point for _, at_point in at_points):
            known = np.isfinite(correlations[:, index])
            responses[index] = np.where(known, correlations[:, index], -1) if known.any() else maps.mean(axis=(1, 2))
        clearest = sorted(responses, key=lambda index: -responses[index].max())[:MAX_CHANNELS]
        for index in (index for index in responses if index in clearest):
            chosen_for.setdefault(int(responses[index].argmax()), []).append(index)
    shown = list(chosen_for)
    return ChannelMaps(
        weights=module.attention(*inputs)[0].float().cpu().numpy(),
        channels=tuple(shown),
        maps=maps[shown],
        classes=tuple(tuple(indices) for indices in chosen_for.values()),
        correlations=correlations[shown],
        beta=float(module.gamma),
    )


def correlation(maps: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Pearson correlation of each map (C, h, w) with a mask (h, w); NaN if one of them is constant."""
    values = maps.reshape(len(maps), -1)
    values = values - values.mean(axis=1, keepdims=True)
    mask = where.ravel() - where.mean()
    norms = np.linalg.norm(values, axis=1) * np.linalg.norm(mask)
    return np.divide(values @ mask, norms, out=np.full(len(maps), np.nan), where=norms > 1e-9)


@contextlib.contextmanager
def recording(modules: Any) -> Iterator[dict[nn.Module, tuple[tuple[torch.Tensor, ...], torch.Tensor]]]:
    """Record the inputs and the output of each module while the model runs."""
    seen: dict[nn.Module, tuple[tuple[torch.Tensor, ...], torch.Tensor]] = {}

    def record(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen[module] = (inputs, output)

    hooks = [module.register_forward_hook(record) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def as_predictor(model: Predictor | Segmenter) -> Predictor:
    """Wrap a bare model in a Predictor, in evaluation mode."""
    if isinstance(model, Predictor):
        return model
    device = model.mean.device
    nothing: dict[str, Any] = {"sections": {}, "facts": {}}
    return Predictor(model.eval(), (), (), **nothing, options=InferenceConfig(), device=device, dtype=torch.float32)
