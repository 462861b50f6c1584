"""Scores for every pixel: from the whole image or sliding windows, at several scales, flipped.

`combine` names one of three ways to combine windows, scales and flips:

- "probabilities": softmax first; windows are averaged by their count, then scales and flips.
- "mmseg": as mmsegmentation 1.2.2 does: windows are averaged as logits, scales and flips as probabilities.
- "official": as the DANet authors' test script does: exp(logits of the image + logits of its mirror image), averaged
  over windows, summed over scales. It is not a probability, but orders the classes.

conf/protocol/ has the other settings of the two projects.

Shapes: B images, H x W image size, K classes.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from danet.config.sections import InferenceConfig
from danet.model import Segmenter

Size = tuple[int, int]  # height, width
Watch = Callable[[torch.Tensor], None]  # receives the scores of every view, (B, ...)


@torch.inference_mode()
def class_scores(
    model: Segmenter,
    image: torch.Tensor,
    size: Size,
    config: InferenceConfig,
    *,
    only_order: bool = False,
    watch: Watch | None = None,
) -> torch.Tensor:
    """Scores of every class for every pixel.

    Args:
        model: model in evaluation mode, on the image's device.
        image: (B, 3, H, W), values 0..255.
        size: height and width of the result, such as the label's.
        config: inference options.
        only_order: allow other values of the same order if they are cheaper.
        watch: called with the model's logits at its own resolution.

    Returns:
        (B, K, *size); probabilities, unless `config.combine` is "official".
    """
    views = len(config.scales) * (1 + config.flip)
    softmax_last = config.combine == "mmseg" and not (only_order and views == 1)
    total = None
    for scale in config.scales:
        scaled = _resized(model, image, scale, config)
        for mirrored in (False, True) if config.flip and config.combine != "official" else (False,):
            scores = _at_one_scale(model, scaled.flip(-1) if mirrored else scaled, config, watch)
            if mirrored:
                scores = scores.flip(-1)
            if scores.shape[-2:] != size:
                scores = F.interpolate(scores, size, mode="bilinear", align_corners=model.align_corners)
            if softmax_last:
                scores = scores.softmax(dim=1)
            total = scores if total is None else total.add_(scores)
    assert total is not None
    return total if config.combine == "official" else total.div_(views)


@torch.inference_mode()
def predict_labels(
    model: Segmenter, image: torch.Tensor, size: Size, config: InferenceConfig, watch: Watch | None = None
) -> torch.Tensor:
    """The most likely class of each pixel: (B, 3, H, W) -> (B, *size) int64. Arguments as for `class_scores`."""
    one_look = _is_one_look(config)
    if one_look and config.mode == "whole":  # scores, however combined, have the order of the logits
        logits = _logits(model, image, watch)
        return F.interpolate(logits, size, mode="bilinear", align_corners=model.align_corners).argmax(dim=1)
    if one_look and size == image.shape[-2:]:  # without the scores of all pixels at once, which are K times an image
        return torch.cat([band.argmax(dim=1) for band in _bands(model, image, config, watch)], dim=1)
    return class_scores(model, image, size, config, only_order=True, watch=watch).argmax(dim=1)


@torch.inference_mode()
def labels_and_probabilities(
    model: Segmenter, image: torch.Tensor, size: Size, config: InferenceConfig, watch: Watch | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels as from `predict_labels`, and probabilities: (B, *size) int64 and (B, K, *size) float32.

    Arguments as for `class_scores`; `config.combine` must not be "official", whose scores are not probabilities.
    """
    assert config.combine != "official"
    if _is_one_look(config) and config.mode == "whole":  # logits, since softmax may round two to one number
        logits = F.interpolate(_logits(model, image, watch), size, mode="bilinear", align_corners=model.align_corners)
        return logits.argmax(dim=1), logits.softmax(dim=1)
    scores = class_scores(model, image, size, config, only_order=True, watch=watch)
    softmax_left = config.combine == "mmseg" and len(config.scales) * (1 + config.flip) == 1
    return scores.argmax(dim=1), scores.softmax(dim=1) if softmax_left else scores


def _is_one_look(config: InferenceConfig) -> bool:
    """Whether there is a single view: one scale, the image's own size, no flip."""
    return tuple(config.scales) == (1.0,) and not (config.flip or config.long_side or config.short_side)


def _resized(model: Segmenter, image: torch.Tensor, scale: float, config: InferenceConfig) -> torch.Tensor:
    """The image at `scale`."""
    size = _scaled_size((image.shape[-2], image.shape[-1]), scale, config)
    if size == image.shape[-2:]:
        return image
    if config.combine == "official":  # resizes images the way it resizes logits
        return F.interpolate(image.float(), size, mode="bilinear", align_corners=model.align_corners)
    # As in mmsegmentation and the augmentation: OpenCV, whose uint8 arithmetic PyTorch lacks.
    import cv2

    arrays = image.permute(0, 2, 3, 1).cpu().numpy()
    resized = np.stack([cv2.resize(array, size[::-1], interpolation=cv2.INTER_LINEAR) for array in arrays])
    resized = resized.reshape(*resized.shape[:3], -1)  # it drops the axis of an only channel
    return torch.from_numpy(resized).permute(0, 3, 1, 2).to(image.device)


def _scaled_size(size: Size, scale: float, config: InferenceConfig) -> Size:
    """Height and width of the image at `scale`, rounded as in the project that `combine` follows."""
    height, width = size
    long, short = max(size), min(size)
    if config.combine == "official" and config.long_side:
        target = math.ceil(config.long_side * scale)
        return max(1, int(height * target / long + 0.5)), max(1, int(width * target / long + 0.5))
    if config.long_side or config.short_side:
        limits = (config.long_side or math.inf) * scale, (config.short_side or math.inf) * scale
    else:
        limits = max(1, int(long * scale + 0.5)), max(1, int(short * scale + 0.5))
    factor = min(limits[0] / long, limits[1] / short)
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def _at_one_scale(model: Segmenter, image: torch.Tensor, config: InferenceConfig, watch: Watch | None) -> torch.Tensor:
    """Scores (B, K, H, W) of the image at its given size."""
    if config.mode == "whole":
        return _look(model, image, config, watch)
    total, top = None, 0
    for band in _bands(model, image, config, watch):
        if total is None:
            total = band.new_empty((*band.shape[:2], *image.shape[-2:]))
        total[:, :, top : top + band.shape[2]] = band
        top += band.shape[2]
    assert total is not None
    return total


def _bands(
    model: Segmenter, image: torch.Tensor, config: InferenceConfig, watch: Watch | None
) -> Iterator[torch.Tensor]:
    """Sliding-window scores (B, K, rows, W), one band of rows at a time, once all windows that cover it are done."""
    assert config.crop_size is not None
    height, width = image.shape[-2:]
    crop_height, crop_width = config.crop_size
    stride_height, stride_width = config.stride or (max(2 * crop_height // 3, 1), max(2 * crop_width // 3, 1))
    official = config.combine == "official"
    if official:  # an image smaller than a window is padded with black
        image = _padded(image, crop_height, crop_width)
    tops = list(_starts(image.shape[-2], crop_height, stride_height, clamp=not official))
    total = count = None
    for top, next_top in zip(tops, [*tops[1:], height], strict=True):
        for left in _starts(image.shape[-1], crop_width, stride_width, clamp=not official):
            window = image[..., top : top + crop_height, left : left + crop_width]
            rows, columns = window.shape[-2:]
            if official:
                window = _padded(window, crop_height, crop_width)
            scores = _look(model, window, config, watch)[..., :rows, :columns]
            if total is None or count is None:
                high, wide = min(crop_height, image.shape[-2]), image.shape[-1]
                total, count = scores.new_zeros((*scores.shape[:2], high, wide)), scores.new_zeros((high, wide))
            total[:, :, :rows, left : left + columns] += scores
            count[:rows, left : left + columns] += 1
        assert total is not None
        assert count is not None
        done = next_top - top
        yield total[:, :, :done].div(count[:done])[..., :width]
        total, count = (F.pad(x[..., done:, :], (0, 0, 0, done)) for x in (total, count))


def _look(model: Segmenter, image: torch.Tensor, config: InferenceConfig, watch: Watch | None) -> torch.Tensor:
    """Scores (B, K, H, W) of one forward pass, in the form in which windows are averaged."""

    def logits(image: torch.Tensor) -> torch.Tensor:
        low = _logits(model, image, watch)
        return F.interpolate(low, image.shape[-2:], mode="bilinear", align_corners=model.align_corners)

    if config.combine == "probabilities":
        return logits(image).softmax(dim=1)
    if config.combine == "mmseg":
        return logits(image)
    both = logits(image).double()  # float32 ends at exp(88), which sums of logits pass
    if config.flip:
        both += logits(image.flip(-1)).flip(-1)
    both.exp_()
    if watch is not None:  # float64 ends at exp(709)
        watch(both)
    return both


def _logits(model: Segmenter, image: torch.Tensor, watch: Watch | None) -> torch.Tensor:
    """Logits (B, K, h, w) at the model's own resolution."""
    logits = model(image)["main"].float()
    if watch is not None:
        watch(logits)
    return logits


def _starts(length: int, crop: int, stride: int, *, clamp: bool) -> Iterator[int]:
    """Start positions of the windows. The last one ends at the border: it is moved inwards (clamp) or cut short."""
    count = max(-(-(length - crop) // stride), 0) + 1
    for index in range(count):
        start = index * stride
        yield max(min(start, length - crop), 0) if clamp else start


def _padded(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pad the image with black at the bottom and right to at least height x width."""
    return F.pad(image, (0, max(width - image.shape[-1], 0), 0, max(height - image.shape[-2], 0)))
