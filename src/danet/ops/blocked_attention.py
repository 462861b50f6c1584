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


@torch.library.custom_op("danet::blocked_attention", mutates_args=())
def blocked_attention(query: Tensor, key: Tensor, value: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, D), (B, N, D), (B, N, C) -> (B, N, C); also each position's largest energy, (B, N), and the kept weights.

    Args:
        query: from which positions are compared.
        key: with which they are compared.
        value: what is averaged.
        keep: whether there will be a backward pass.
    """
    with torch.autocast(query.device.type, enabled=False):
        output, largest, kept = _outputs(query, key, value, keep)
        compared, keys = _exact(query), _exact(key)
        for block, energies, weights, _ in _blocks(compared.dtype, value, kept):
            torch.bmm(compared[:, block], keys.transpose(1, 2), out=energies)
            largest[:, block] = energies.amax(-1)
            torch.bmm(_softmax_into(weights, energies), value, out=output[:, block])
        return output, largest, kept


@blocked_attention.register_fake
def _outputs(query: Tensor, key: Tensor, value: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    row, rows = len(value) * value.shape[1], _rows_of_a_block(value)
    fitting = KEPT_BYTES // (row * value.element_size()) if keep else 0
    kept = value.new_empty(row * torch.sym_min(value.shape[1], fitting // rows * rows))
    return torch.empty_like(value), _exact(query).new_empty(query.shape[:2]), kept


@torch.library.custom_op("danet::blocked_attention_backward", mutates_args=())
def _blocked_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, largest: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value from that of the output (B, N, C)."""
    with torch.autocast(query.device.type, enabled=False):
        given = query.dtype
        relative = given == torch.bfloat16 and query.device.type == "cpu"
        compared, keys = _relative(query, key, largest) if relative else (_exact(query), _exact(key))
        if given == torch.float16:  # too small a range for the gradients of energies
            query, key = compared, keys
        # A constant of a value's channel changes no gradient of an energy. Without it, the rounding of the weights to
        # the values' type, whose rows then do not quite sum to 1, has nothing large to multiply.
        columns = (value - value.mean(1, keepdim=True)).transpose(1, 2).contiguous()
        grad_query = torch.empty_like(query)
        # (B, D, N) and (B, C, N): so the weights are never transposed, which would cost as much as half their product.
        exact = _exact(key).dtype
        grad_key, grad_value = (x.new_zeros(len(x), x.shape[2], x.shape[1], dtype=exact) for x in (key, value))
        for block, energies, weights, is_kept in _blocks(compared.dtype, value, kept):
            if not is_kept:
                torch.bmm(compared[:, block], keys.transpose(1, 2), out=energies)
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
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, largest: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def rows_of(columns: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, D, N) -> contiguous (B, N, D) of the given type."""
    return columns.transpose(1, 2).to(dtype).contiguous()


def _exact(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _relative(query: Tensor, key: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """Query and key with two channels more, (B, N, D + 2) each: their energies are relative to their row's largest.

    In bfloat16 the products are summed in float32, then rounded by up to 2^-8 of their value. An energy d below the
    largest is off by 2^-8 d, and has e^-d of the largest weight: so the rounding changes a weight by no more than
    2^-8 / e of the largest. Rounding the weights themselves changes as much, and the products take half of the time
    of float32's on processors that have bfloat16.
    """
    high = largest.to(query.dtype)
    low = (largest - high).to(query.dtype)
    return torch.cat([query, -high.unsqueeze(2), -low.unsqueeze(2)], dim=2), F.pad(key, (0, 2), value=1.0)


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
    rows = _rows_of_a_block(value)
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


def _rows_of_a_block(value: Tensor) -> int:
    """In both passes, whatever energies they compute: so kept weights lie where they are looked for."""
    images, count, _ = value.shape
    size = BLOCK_BYTES.get(value.device.type, BLOCK_BYTES_ELSEWHERE)
    itemsize = torch.promote_types(value.dtype, torch.float32).itemsize
    rows: Any = torch.sym_min(count, torch.sym_max(FEWEST_ROWS, size // (images * count * itemsize)))
    return rows


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to a total that may be of a more exact type."""
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total.add_(left @ right)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:3], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else there would be zeros as large as the kept weights


def _differentiate(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return None, None, None, None
    return *_blocked_backward(gradient.contiguous(), *ctx.saved_tensors), None


blocked_attention.register_autograd(_differentiate, setup_context=_save)
