"""A loss on logits that are resized to the label's size, without full-size tensors of the whole batch.

Logits are resized a few images at a time, and these images' gradient is taken at once. That is exact, since a total is
a sum over images.

Shapes: B images, K classes, h, w of the logits, H and W of the label, T terms of the loss.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.interfaces import LossTerm

PART_ELEMENTS = 2**24  # of resized logits that exist at a time, but for one image's: 64 MiB in float32

DIRECTLY = (
    "which computes its gradient in the forward pass; resize the logits to the label's size and call its "
    "`criterion(logits, label)`"
)


def enlarged_loss(logits: Tensor, label: Tensor, criterion: nn.Module, align_corners: bool) -> dict[str, LossTerm]:
    """(B, K, h, w), (B, H, W) -> the criterion's terms by name; "" is the name of an only one."""
    shapes: dict[str, float] = {}
    try:
        totals, counts = _EnlargedLoss.apply(
            logits, label, criterion, align_corners, shapes, *filter(lambda p: p.requires_grad, criterion.parameters())
        )
    except RuntimeError as error:
        if "setup_context" not in str(error):  # what torch.func asks of an autograd.Function
            raise
        raise NotImplementedError(f"torch.func's transforms cannot pass through this loss, {DIRECTLY}") from None
    return {
        name: LossTerm(total, count, weight)
        for (name, weight), total, count in zip(shapes.items(), totals, counts, strict=True)
    }


class _EnlargedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        label: Tensor,
        criterion: nn.Module,
        align_corners: bool,
        weights: dict[str, float],
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Totals and counts, (T,) each; `weights` gets the terms' by name. `parameters` are the criterion's."""
        height, width = label.shape[-2:]
        per_batch = getattr(criterion, "per_batch", False)
        num_images = len(label) if per_batch else max(1, PART_ELEMENTS // (logits.shape[1] * height * width))
        ctx.dtype, wanted = logits.dtype, ctx.needs_input_grad[0]
        values, grad_logits, grad_parameters = [], [], []
        for low, truth in zip(logits.detach().float().split(num_images), label.split(num_images), strict=True):
            with torch.set_grad_enabled(wanted):
                # Resizing is fastest with a pixel's values side by side, a loss with a class's values side by side.
                low = low.contiguous(memory_format=torch.channels_last).requires_grad_(wanted)
                enlarged = F.interpolate(low, (height, width), mode="bilinear", align_corners=align_corners)
                planes = enlarged.contiguous()
                terms = _by_name(criterion(planes, truth))
            weights.update({name: term.weight for name, term in terms.items()})
            values.append(torch.stack([torch.stack([t.total.detach(), t.count]) for t in terms.values()], dim=1))
            if wanted:
                last = list(terms)[-1]
                per_term = [
                    _gradients(term.total, planes, enlarged, low, parameters, keep=name != last)
                    for name, term in terms.items()
                ]
                grad_logits.append([gradient for gradient, _ in per_term])
                grad_parameters.append([gradients for _, gradients in per_term])
        if wanted:
            by_term = [torch.cat(parts) for parts in zip(*grad_logits, strict=True)]
            own = [  # term by term
                torch.stack(parts).sum(dim=0)
                for grad_term in zip(*grad_parameters, strict=True)
                for parts in zip(*grad_term, strict=True)
            ]
            ctx.save_for_backward(*by_term, *own)
        totals, counts = torch.stack(values).sum(dim=0)
        ctx.mark_non_differentiable(counts)
        return totals, counts

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, known already for totals that count once."""
        if torch.is_grad_enabled():  # create_graph=True; the known gradient is a constant to autograd
            raise NotImplementedError(f"second derivatives cannot pass through this loss, {DIRECTLY}")
        factors = gradients[0]
        grad_logits, grad_parameters = ctx.saved_tensors[: len(factors)], ctx.saved_tensors[len(factors) :]
        count = len(grad_parameters) // len(factors)
        own = [_weighted(grad_parameters[index::count], factors) for index in range(count)]
        return _weighted(grad_logits, factors).to(ctx.dtype), None, None, None, None, *own


def _by_name(terms: Any) -> dict[str, LossTerm]:
    return {"": terms} if isinstance(terms, LossTerm) else dict(terms)


def _gradients(
    total: Tensor, planes: Tensor, enlarged: Tensor, low: Tensor, parameters: tuple[Tensor, ...], *, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """Of a total to the logits as they came, and to the criterion's parameters; `keep` what led to it for another."""
    if not parameters:
        grad_planes, own = *torch.autograd.grad(total, planes, retain_graph=keep), []
    else:
        grad_planes, *own = torch.autograd.grad(
            total, (planes, *parameters), retain_graph=keep, allow_unused=True, materialize_grads=True
        )
    grad_enlarged = grad_planes.contiguous(memory_format=torch.channels_last)
    (grad_low,) = torch.autograd.grad(enlarged, low, grad_enlarged, retain_graph=keep)
    return grad_low, own


def _weighted(tensors: Any, factors: Tensor) -> Tensor:
    first, *others = (tensor * factor for tensor, factor in zip(tensors, factors, strict=True))
    for other in others:
        first += other
    return first
