"""From a model to scores for every pixel: the image whole or by windows, at several scales, flipped.

Three ways of combining what windows, scales and flips say are known; `combine` names them:

- "probabilities": softmax first; windows are averaged by their count, then scales and flips.
- "mmseg": as mmsegmentation does: windows are averaged as logits, scales and flips as probabilities.
- "official": as the DANet authors' test script does: exp(logits of the image + logits of its mirror image), averaged
  over windows, summed over scales. It is no probability, but orders the classes.

Shapes: B images, H x W image size, K classes.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from danet.model import Segmenter
from danet.sections import InferenceConfig

Size = tuple[int, int]  # height, width


@torch.inference_mode()
def class_scores(model: Segmenter, image: torch.Tensor, size: Size, config: InferenceConfig) -> torch.Tensor:
    """Scores of every class for every pixel, by which classes are compared.

    Args:
        model: in evaluation mode, on the image's device.
        image: (B, 3, H, W), values 0..255.
        size: of the answer, such as the label's.
        config: how to look at the image.

    Returns:
        (B, K, *size); probabilities, unless `config.combine` is "official".
    """
    total = None
    for scale in config.scales:
        scaled = _resized(image, scale, config)
        for mirrored in (False, True) if config.flip and config.combine != "official" else (False,):
            scores = _at_one_scale(model, scaled.flip(-1) if mirrored else scaled, config)
            if mirrored:
                scores = scores.flip(-1)
            if scores.shape[-2:] != size:
                scores = F.interpolate(scores, size, mode="bilinear", align_corners=model.align_corners)
            if config.combine == "mmseg":
                scores = scores.softmax(dim=1)
            total = scores if total is None else total.add_(scores)
    assert total is not None
    views = len(config.scales) * (1 + config.flip)
    return total if config.combine == "official" else total.div_(views)


def predict_labels(model: Segmenter, image: torch.Tensor, size: Size, config: InferenceConfig) -> torch.Tensor:
    """The likeliest class of each pixel: (B, 3, H, W) -> (B, *size) int64. Arguments as for `class_scores`."""
    one_look = config.mode == "whole" and config.long_side is None and tuple(config.scales) == (1.0,)
    if one_look and not config.flip and config.combine != "official":
        return model.segment(image, size)  # the order of logits is that of probabilities
    return class_scores(model, image, size, config).argmax(dim=1)


def _resized(image: torch.Tensor, scale: float, config: InferenceConfig) -> torch.Tensor:
    """The image at `scale`, in floating point."""
    height, width = image.shape[-2:]
    if config.long_side is not None:
        scale = math.ceil(config.long_side * scale) / max(height, width)
    size = (int(height * scale + 0.5), int(width * scale + 0.5))
    image = image.float()
    if size == (height, width):
        return image
    # The authors' script resizes the way it resizes logits; others as OpenCV, to whole numbers.
    if config.combine == "official":
        return F.interpolate(image, size, mode="bilinear", align_corners=True)
    return F.interpolate(image, size, mode="bilinear", align_corners=False).round()


def _at_one_scale(model: Segmenter, image: torch.Tensor, config: InferenceConfig) -> torch.Tensor:
    """(B, K, H, W) of the image as it is."""
    if config.mode == "whole":
        return _look(model, image, config)
    assert config.crop_size is not None
    height, width = image.shape[-2:]
    crop_height, crop_width = config.crop_size
    stride_height, stride_width = config.stride or (math.ceil(2 * crop_height / 3), math.ceil(2 * crop_width / 3))
    official = config.combine == "official"
    if official:  # an image smaller than a window is padded, with black
        image = _padded(image, crop_height, crop_width)
    total = count = None
    for top in _starts(image.shape[-2], crop_height, stride_height, clamp=not official):
        for left in _starts(image.shape[-1], crop_width, stride_width, clamp=not official):
            window = image[..., top : top + crop_height, left : left + crop_width]
            rows, columns = window.shape[-2:]
            if official:
                window = _padded(window, crop_height, crop_width)
            scores = _look(model, window, config)[..., :rows, :columns]
            if total is None or count is None:
                total = scores.new_zeros((*scores.shape[:2], *image.shape[-2:]))
                count = scores.new_zeros(image.shape[-2:])
            total[..., top : top + rows, left : left + columns] += scores
            count[top : top + rows, left : left + columns] += 1
    assert total is not None
    assert count is not None
    return total.div_(count)[..., :height, :width]


def _look(model: Segmenter, image: torch.Tensor, config: InferenceConfig) -> torch.Tensor:
    """(B, K, H, W) of what the model sees at once, in the form that windows are averaged in."""

    def logits(image: torch.Tensor) -> torch.Tensor:
        low = model(image)["main"].float()
        return F.interpolate(low, image.shape[-2:], mode="bilinear", align_corners=model.align_corners)

    if config.combine == "probabilities":
        return logits(image).softmax(dim=1)
    if config.combine == "mmseg":
        return logits(image)
    both = logits(image).double()  # float32 ends at exp(88), which sums of logits pass
    if config.flip:
        both += logits(image.flip(-1)).flip(-1)
    return both.exp_()


def _starts(length: int, crop: int, stride: int, *, clamp: bool) -> Iterator[int]:
    """Where windows begin. The last one ends at the border: by moving inwards (clamp), or by being shorter."""
    count = max(math.ceil((length - crop) / stride), 0) + 1
    for index in range(count):
        start = index * stride
        yield max(min(start, length - crop), 0) if clamp else start


def _padded(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The image with black below and on the right, at least height x width."""
    return F.pad(image, (0, max(width - image.shape[-1], 0), 0, max(height - image.shape[-2], 0)))
