"""Losses over logits and labels; one is chosen by name and applied to every output of the model.

A loss is given as a total and a count; its value is total / count (`mean_loss`). Totals and counts are summed over
processes before the division, so the value does not depend on how a batch is divided among them. Over the
parts of accumulate_steps the loop averages values: a part with few valid pixels counts as much as the others.
A batch in which every pixel is ignored has count 0 and loss 0, with zero gradients.

Logits are enlarged to the label's size a few images at a time, and these images' gradient is taken at once: full-size
tensors of the whole batch never exist. That is exact, since a total is a sum over images.

Everything is computed in float32, whatever autocast is active. Losses of pixels are summed here rather than
inside F.cross_entropy, whose own sum is not deterministic on a GPU.

Shapes: B images, K classes, H and W of the label, N = H * W pixels.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from danet.interfaces import IGNORE, LossTerm
from danet.registry import LOSSES, Fraction, NonNegativeFloat, Probability, keyword_parameters

PART_ELEMENTS = 2**24  # of enlarged logits that exist at a time, but for one image's: 64 MiB in float32

Labels = Callable[[], Iterable[np.ndarray]]  # reads the label arrays of the training split

# Official DANet gives its three outputs equal weight; 0.4 for the stage-3 output is mmsegmentation's.
OUTPUT_WEIGHTS = {"main": 1.0, "pam": 1.0, "cam": 1.0, "aux": 0.4}


def mean_loss(total: Tensor, count: Tensor) -> Tensor:
    """A loss's value: its total over the count, 0 where nothing counts. A count of weights may be far below 1."""
    return total / count.where(count > 0, 1.0)


@LOSSES.common
class SegmentationLoss(nn.Module):
    """Applies one criterion to every output of the model.

    Args:
        criterion: a registered loss.
        weights: the factor of each output in the sum that is minimised. The caller applies it; here an output
            of weight 0 is left out.
    """

    def __init__(self, criterion: nn.Module, /, *, weights: dict[str, NonNegativeFloat] = OUTPUT_WEIGHTS) -> None:
        super().__init__()
        self.criterion = criterion
        self.weights = dict(weights)

    def forward(self, outputs: dict[str, Tensor], label: Tensor, *, align_corners: bool) -> dict[str, LossTerm]:
        """{name: (B, K, h, w)}, (B, H, W) -> {name: term}; logits are brought to the label's size.

        Raises:
            ValueError: the model has an output for which no weight is configured.
        """
        terms = {}
        for name, logits in outputs.items():
            if name not in self.weights:
                raise ValueError(
                    f"loss.weights has no entry for the model's output {name!r};"
                    f" add `{name}: 1.0`, or 0 to leave it out"
                )
            if self.weights[name] > 0:
                terms[name] = _enlarged_loss(logits, label, self.criterion, align_corners)
        return terms


def _enlarged_loss(logits: Tensor, label: Tensor, criterion: nn.Module, align_corners: bool) -> LossTerm:
    try:
        return LossTerm(*_EnlargedLoss.apply(logits, label, criterion, align_corners))
    except RuntimeError as error:
        if "setup_context" not in str(error):  # what torch.func asks of an autograd.Function
            raise
        raise NotImplementedError(f"torch.func's transforms cannot pass through this loss, {DIRECTLY}") from None


DIRECTLY = (
    "which computes its gradient in the forward pass; resize the logits to the label's size and call its "
    "`criterion(logits, label)`"
)


class _EnlargedLoss(torch.autograd.Function):
    """A criterion on logits that are brought to the label's size, part by part."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, label: Tensor, criterion: nn.Module, align_corners: bool
    ) -> tuple[Tensor, Tensor]:
        """(B, K, h, w), (B, H, W) -> the criterion's total and count."""
        height, width = label.shape[-2:]
        num_images = max(1, PART_ELEMENTS // (logits.shape[1] * height * width))
        ctx.dtype, wanted = logits.dtype, ctx.needs_input_grad[0]
        terms, gradients = [], []
        for low, truth in zip(logits.detach().float().split(num_images), label.split(num_images), strict=True):
            with torch.set_grad_enabled(wanted):
                # Resizing is fastest with a pixel's values side by side, a loss with a class's values side by side.
                low = low.contiguous(memory_format=torch.channels_last).requires_grad_(wanted)
                enlarged = F.interpolate(low, (height, width), mode="bilinear", align_corners=align_corners)
                planes = enlarged.contiguous()
                term = criterion(planes, truth)
            if wanted:
                (of_planes,) = torch.autograd.grad(term.total, planes)
                of_enlarged = of_planes.contiguous(memory_format=torch.channels_last)
                gradients += torch.autograd.grad(enlarged, low, of_enlarged)
            terms.append(torch.stack([term.total.detach(), term.count]))
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        total, count = torch.stack(terms).sum(dim=0)
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """The logits' gradient, known already for a total that counts once."""
        if torch.is_grad_enabled():  # create_graph=True; the known gradient is a constant to autograd
            raise NotImplementedError(f"second derivatives cannot pass through this loss, {DIRECTLY}")
        (of_logits,) = ctx.saved_tensors
        return (of_logits * gradients[0]).to(ctx.dtype), None, None, None


def build_loss(section: dict[str, Any], num_classes: int, labels: Labels) -> SegmentationLoss:
    """The loss that a configuration section (name, its options, weights) describes."""
    options = dict(section)
    criterion = LOSSES[options.pop("name")]
    common = {key: options.pop(key) for key in keyword_parameters(SegmentationLoss) if key in options}
    return SegmentationLoss(criterion(num_classes, labels, **options), **common)


def in_float32(
    forward: Callable[[Any, Tensor, Tensor], LossTerm],
) -> Callable[[Any, Tensor, Tensor], LossTerm]:
    """Decorator for a criterion's forward: float32 logits, int64 labels, no autocast."""

    @functools.wraps(forward)
    def wrapped(self: Any, logits: Tensor, label: Tensor) -> LossTerm:
        with torch.autocast(logits.device.type, enabled=False):
            return forward(self, logits.float(), label.long())

    return wrapped


def median_frequency_weights(labels: Iterable[np.ndarray], num_classes: int) -> list[float]:
    """Class weights that balance frequent and rare classes: median frequency / frequency of the class.

    Source: Eigen and Fergus (ICCV 2015); SegNet (Badrinarayanan et al., TPAMI 2017) uses it on CamVid. The
    frequency of a class is its number of pixels divided by the number of all pixels, ignored ones included,
    of the images in which it occurs. A class that never occurs has no frequency and gets weight 0: no pixel
    will ask for it.

    Args:
        labels: (H, W) uint8 arrays of train ids; other values (such as IGNORE) belong to no class.
        num_classes: K.

    Raises:
        ValueError: no class occurs at all.
    """
    class_pixels = np.zeros(num_classes)
    image_pixels = np.zeros(num_classes)
    for label in labels:
        pixels = np.bincount(label.ravel(), minlength=num_classes)[:num_classes]
        class_pixels += pixels
        image_pixels += label.size * (pixels > 0)
    occurs = class_pixels > 0
    if not occurs.any():
        raise ValueError("loss.class_weights=median_frequency: the training labels contain no class at all")
    frequency = class_pixels[occurs] / image_pixels[occurs]
    weights = np.zeros(num_classes)
    weights[occurs] = np.median(frequency) / frequency
    return weights.tolist()


@LOSSES.register("cross_entropy")
class CrossEntropy(nn.Module):
    """Mean cross entropy over the valid pixels, or their weighted mean.

    Args:
        num_classes: K.
        labels: reads the training labels; called only for `median_frequency`.
        class_weights: one weight per class, or the rule that derives them from the training labels. The count
            is then the sum of the pixels' weights, as in PyTorch's weighted mean.
        label_smoothing: the share of each pixel's target that is spread evenly over all classes.
    """

    weight: Tensor | None

    def __init__(
        self,
        num_classes: int,
        labels: Labels,
        /,
        *,
        class_weights: Literal["none", "median_frequency"] | list[NonNegativeFloat] = "none",
        label_smoothing: Probability = 0.0,
    ) -> None:
        super().__init__()
        if class_weights == "median_frequency":
            class_weights = median_frequency_weights(labels(), num_classes)
        if isinstance(class_weights, list) and len(class_weights) != num_classes:
            raise ValueError(
                f"loss.class_weights has {len(class_weights)} values for {num_classes} classes; give one each"
            )
        if lines := self.problems({"class_weights": class_weights}):
            raise ValueError(f"loss.{lines[0]}")
        weight = None if class_weights == "none" else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weight", weight, persistent=False)  # derived, so no business of a checkpoint
        self.label_smoothing = label_smoothing

    @staticmethod
    def problems(options: dict[str, Any]) -> list[str]:
        """What is wrong with a combination of options, a line each."""
        weights = options["class_weights"]
        return (
            ["class_weights: all are 0; nothing would train"] if isinstance(weights, list) and not any(weights) else []
        )

    @in_float32
    def forward(self, logits: Tensor, label: Tensor) -> LossTerm:
        """(B, K, H, W), (B, H, W) -> summed loss and number (or summed weight) of valid pixels."""
        losses = F.cross_entropy(
            logits,
            label,
            self.weight,
            ignore_index=IGNORE,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        valid = label != IGNORE
        if self.weight is None:
            return LossTerm(losses.sum(), valid.sum().float())
        pixel_weight = self.weight[label.where(valid, 0)]  # IGNORE itself is no valid index
        return LossTerm(losses.sum(), (pixel_weight * valid).sum())


@LOSSES.register("ohem")
class OnlineHardExamples(nn.Module):
    """Cross entropy over the hard pixels only (online hard example mining).

    Source: Shrivastava et al. (CVPR 2016), carried over to pixels. A pixel is hard where the model gives its
    true class a probability below `threshold`. Of every image at least the hardest `min_kept` are kept, and
    never fewer than one pixel. Each image's choice is its own, whatever else is in the batch.

    Args:
        num_classes: K; not used.
        labels: not used.
        threshold: probability of the true class below which a pixel counts as hard.
        min_kept: fraction of an image's valid pixels.
    """

    def __init__(
        self,
        num_classes: int,
        labels: Labels,
        /,
        *,
        threshold: Annotated[float, Field(gt=0, le=1)] = 0.7,
        min_kept: Fraction = 0.0625,
    ) -> None:
        super().__init__()
        self.easiest_loss = -math.log(threshold)
        self.min_kept = min_kept

    @in_float32
    def forward(self, logits: Tensor, label: Tensor) -> LossTerm:
        """(B, K, H, W), (B, H, W) -> summed loss and number of kept pixels."""
        losses = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none").flatten(1)  # (B, N)
        with torch.no_grad():
            valid = (label != IGNORE).flatten(1)
            hardest_first = losses.masked_fill(~valid, -1.0).sort(dim=1, descending=True).values
            num_kept = (self.min_kept * valid.sum(1, keepdim=True)).ceil().long().clamp(min=1)  # (B, 1)
            least_hard = hardest_first.gather(1, num_kept - 1)
            kept = valid & ((losses > self.easiest_loss) | (losses >= least_hard))
        return LossTerm((losses * kept).sum(), kept.sum().float())


@LOSSES.register("focal")
class Focal(nn.Module):
    """Cross entropy in which well classified pixels count less: (1 - p)^gamma * -log p, p of the true class.

    Source: Lin et al., Focal Loss (ICCV 2017), equation 4.

    Args:
        num_classes: K; not used.
        labels: not used.
        gamma: 0 gives the plain cross entropy.
    """

    def __init__(self, num_classes: int, labels: Labels, /, *, gamma: NonNegativeFloat = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    @in_float32
    def forward(self, logits: Tensor, label: Tensor) -> LossTerm:
        """(B, K, H, W), (B, H, W) -> summed loss and number of valid pixels."""
        losses = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")
        # The floor: below gamma 1 the power's slope is infinite at p = 1, where certain and ignored ones sit.
        missing = (1 - torch.exp(-losses)).clamp(min=1e-6)
        return LossTerm((missing**self.gamma * losses).sum(), (label != IGNORE).sum().float())


@LOSSES.register("dice")
class Dice(nn.Module):
    """1 - soft Dice, averaged over the classes that occur in an image, then over images.

    Source: Milletari et al., V-Net (3DV 2016), section 3, without the squares in the denominator: a class has
    2 * sum(p * g) / (sum(p) + sum(g)) with p the probability and g the truth (0 or 1) of the valid pixels.

    Args:
        num_classes: K.
        labels: not used.
    """

    def __init__(self, num_classes: int, labels: Labels, /) -> None:
        super().__init__()
        self.num_classes = num_classes

    @in_float32
    def forward(self, logits: Tensor, label: Tensor) -> LossTerm:
        """(B, K, H, W), (B, H, W) -> loss summed over images and number of images with valid pixels."""
        truth = one_hot(label, self.num_classes)  # (B, K, N)
        valid = (label != IGNORE).flatten(1).unsqueeze(1)  # (B, 1, N)
        probability = logits.softmax(1).flatten(2) * valid  # (B, K, N)
        dice = 2 * (probability * truth).sum(2) / (probability.sum(2) + truth.sum(2)).clamp(min=1)  # (B, K)
        return mean_over_present(1 - dice, truth)


@LOSSES.register("lovasz")
class LovaszSoftmax(nn.Module):
    """A convex surrogate of 1 - IoU, averaged over the classes that occur in an image, then over images.

    Source: Berman et al., The Lovasz-Softmax loss (CVPR 2018), section 3. The errors |truth - probability| of
    a class are sorted, largest first, and each is multiplied by the amount by which the Jaccard loss grows
    when its pixel joins the mispredicted ones.

    Args:
        num_classes: K.
        labels: not used.
    """

    def __init__(self, num_classes: int, labels: Labels, /) -> None:
        super().__init__()
        self.num_classes = num_classes

    @in_float32
    def forward(self, logits: Tensor, label: Tensor) -> LossTerm:
        """(B, K, H, W), (B, H, W) -> loss summed over images and number of images with valid pixels."""
        truth = one_hot(label, self.num_classes)  # (B, K, N)
        valid = (label != IGNORE).flatten(1).unsqueeze(1)  # (B, 1, N)
        # Ignored pixels get error 0: they sort last and weigh nothing.
        errors = (truth.float() - logits.softmax(1).flatten(2)).abs() * valid
        return mean_over_present((errors * jaccard_growth(errors.detach(), truth)).sum(2), truth)


def jaccard_growth(errors: Tensor, truth: Tensor) -> Tensor:
    """How much the Jaccard loss grows when a pixel joins those with larger errors; all tensors are (..., N).

    After the first i pixels, intersection = pixels of the class not yet reached, union = pixels of the class
    plus others reached, and the loss is 1 - intersection / union. Its growth at pixel i is written out here,
    from integers: differences of neighbouring values would drown in rounding on large images.
    """
    order = errors.argsort(dim=-1, descending=True)
    member = truth.gather(-1, order)
    size = truth.sum(-1, keepdim=True)
    intersection = size - member.cumsum(-1)
    union = size + (~member).cumsum(-1)
    grown = torch.where(member, 1 / union, intersection / (union * (union - 1)).clamp(min=1))
    return torch.empty_like(errors).scatter_(-1, order, grown)


def one_hot(label: Tensor, num_classes: int) -> Tensor:
    """(B, H, W) -> (B, K, N) bool; an ignored pixel belongs to no class."""
    classes = torch.arange(num_classes, device=label.device)
    return label.flatten(1).unsqueeze(1) == classes.unsqueeze(1)


def mean_over_present(losses: Tensor, truth: Tensor) -> LossTerm:
    """(B, K), (B, K, N) -> the mean loss over the classes that occur in an image, summed over images."""
    present = truth.any(2)  # (B, K)
    per_image = (losses * present).sum(1) / present.sum(1).clamp(min=1)
    return LossTerm(per_image.sum(), present.any(1).sum().float())
