"""Position attention in blocks of queries: memory linear in the positions, in time near the plain form's.

Weights beyond a constant amount are computed again for the backward pass (position_attention.py has the source). An
operator of its own, so that torch.compile takes it as it is, for all sizes.

Shapes: B images, N positions, n of them in a block, D channels of query and key, C channels of value.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_BYTES = {"cpu": 2**24}  # of a block's energies, which caches hold
BLOCK_BYTES_ELSEWHERE = 2**28  # where larger products keep the device busy
FEWEST_ROWS = 512  # of a block, even where it is larger then: smaller products are slow
KEPT_BYTES = 2**28  # of the weights that are kept for the backward pass, at most
NEGLIGIBLE = 1e-20  # a weight that no rounding of a row's sum, which is 1, would notice even in float64
CLOSE = 1.0  # how far a row's largest energy may lie from the row's reference
CORRECTIONS = 2  # of references; each leaves 2^-8 of how far they were off


@torch.library.custom_op("danet::blocked_attention", mutates_args=())
def blocked_attention(query: Tensor, key: Tensor, value: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, D), (B, N, D), (B, N, C) -> (B, N, C), and for the backward pass references (B, N) and kept weights.

    Args:
        query: from which positions are compared.
        key: with which they are compared.
        value: what is averaged.
        keep: whether there will be a backward pass.
    """
    with torch.autocast(query.device.type, enabled=False):
        output, references, kept = _outputs(query, key, value, keep)
        compared = _Energies(query, key)
        columns = value.transpose(1, 2).contiguous().transpose(1, 2)  # which multiply faster
        for block, energies, weights, _ in _blocks(compared.dtype, value, kept):
            compared.find(energies, block, references)
            torch.bmm(_softmax_into(weights, energies), columns, out=output[:, block])
        return output, references, kept


@blocked_attention.register_fake
def _outputs(query: Tensor, key: Tensor, value: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    fitting = KEPT_BYTES // value.element_size() if keep else 0
    kept = value.new_empty(torch.sym_min(len(value) * value.shape[1] ** 2, fitting))
    return torch.empty_like(value), _exact(query).new_zeros(query.shape[:2]), kept


@torch.library.custom_op("danet::blocked_attention_backward", mutates_args=())
def _blocked_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, references: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value from that of the output (B, N, C)."""
    with torch.autocast(query.device.type, enabled=False):
        given, compared = query.dtype, _Energies(query, key)
        if given == torch.float16:  # too small a range for the gradients of energies
            query, key = _exact(query), _exact(key)
        # A constant of a value's channel changes no gradient of an energy. Without it, the rounding of the weights to
        # the values' type, whose rows then do not quite sum to 1, has nothing large to multiply.
        columns = (value - value.mean(1, keepdim=True)).transpose(1, 2).contiguous()
        grad_query = torch.empty_like(query)
        # (B, D, N) and (B, C, N): so the weights are never transposed, which would cost as much as half their product.
        exact = _exact(key).dtype
        grad_key, grad_value = (x.new_zeros(len(x), x.shape[2], x.shape[1], dtype=exact) for x in (key, value))
        for block, energies, weights, is_kept in _blocks(compared.dtype, value, kept):
            if not is_kept:
                compared.compute(energies, block, references)
                _softmax_into(weights, energies)
            _add_product(grad_value, gradient[:, block].transpose(1, 2), weights)
            grad_weights = torch.bmm(gradient[:, block], columns)
            grad_energies = torch._softmax_backward_data(
                grad_weights, weights, -1, weights.dtype, grad_input=_in_place(grad_weights)
            ).to(query.dtype)
            torch.bmm(grad_energies, key, out=grad_query[:, block])
            _add_product(grad_key, query[:, block].transpose(1, 2).contiguous(), grad_energies)
        return grad_query.to(given), rows_of(grad_key, given), rows_of(grad_value, value.dtype)


@_blocked_backward.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, references: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def rows_of(columns: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, D, N) -> contiguous (B, N, D) of the given type."""
    return columns.transpose(1, 2).to(dtype).contiguous()


def _exact(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class _Energies:
    """The energies of blocks of queries: in float32 at least, or in bfloat16 on a CPU.

    There bfloat16's products take half of the time of float32's. They are summed in float32, then rounded by up to 2^-8
    of their value. So they are made small where they matter: two channels more subtract from every row's energies the
    row's reference, which is close to the largest of them. An energy d below the reference has e^-d of its weight, and
    is off by 2^-8 d, which changes a weight by no more than 2^-8 of about the largest, as rounding the weights does.

    Args:
        query: (B, N, D).
        key: likewise.
    """

    def __init__(self, query: Tensor, key: Tensor) -> None:
        self.relative = query.dtype == torch.bfloat16 and query.device.type == "cpu"
        self.query = query if self.relative else _exact(query)
        key = F.pad(key, (0, 2), value=1.0) if self.relative else _exact(key)
        self.columns = key.transpose(1, 2).contiguous()
        self.dtype = key.dtype

    def compute(self, energies: Tensor, block: slice, references: Tensor) -> None:
        """Write those of a block, (B, n, N)."""
        query = self.query[:, block]
        if self.relative:
            reference = references[:, block].unsqueeze(2)
            high = reference.to(query.dtype)
            query = torch.cat([query, -high, (high - reference).to(query.dtype)], dim=2)
        torch.bmm(query, self.columns, out=energies)

    def find(self, energies: Tensor, block: slice, references: Tensor) -> None:
        """The same with references that are found for it, and written to (B, N)."""
        self.compute(energies, block, references)
        for _ in range(CORRECTIONS if self.relative else 0):
            above = energies.amax(-1)
            if above.abs().max() <= CLOSE:
                break
            references[:, block] += above
            self.compute(energies, block, references)


def _softmax_into(weights: Tensor, energies: Tensor) -> Tensor:
    """The weights of energies (B, n, N), which are overwritten; see NEGLIGIBLE."""
    softened = torch.softmax(energies, dim=-1, out=_in_place(energies))
    return weights.copy_(F.threshold(softened, NEGLIGIBLE, 0.0, inplace=True))


def _in_place(tensor: Tensor) -> Tensor | None:
    """Where a softmax may write: over what it reads on a CPU, whose kernels finish a row at a time."""
    return tensor if tensor.device.type == "cpu" else None


def _blocks(dtype: torch.dtype, value: Tensor, kept: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, bool]]:
    """Blocks of positions, memory for their energies and weights, (B, n, N), and whether the weights are kept.

    Memory is used again: fresh memory is faulted in page by page. Energies and weights of one type are in one place.

    Args:
        dtype: of the energies.
        value: (B, N, C); its type is that of the weights.
        kept: memory for the weights of the first blocks.
    """
    images, count, _ = value.shape
    size = BLOCK_BYTES.get(value.device.type, BLOCK_BYTES_ELSEWHERE)
    rows = min(count, max(FEWEST_ROWS, size // (images * count * dtype.itemsize)))
    buffer = value.new_empty(images * count * rows)
    apart = None if dtype == value.dtype else torch.empty_like(buffer, dtype=dtype)
    for start in range(0, count, rows):
        stop = min(start + rows, count)
        first, last = (images * count * row for row in (start, stop))
        is_kept = last <= len(kept)
        weights = kept[first:last] if is_kept else buffer[: last - first]
        energies = weights if apart is None else apart[: last - first]
        shape = images, stop - start, count
        yield slice(start, stop), energies.view(shape), weights.view(shape), is_kept


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to a total that may be of a more exact type."""
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total.add_(left @ right)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:3], *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return *_blocked_backward(gradient.contiguous(), *ctx.saved_tensors), None


blocked_attention.register_autograd(_differentiate, setup_context=_save)
