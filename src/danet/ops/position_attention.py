"""Position attention's arithmetic: the same sums, arranged in three ways.

Written out, attention over N positions keeps N x N weights, several times over in training: 4 GiB each in float32 for
an image of 1024 x 2048 pixels at stride 8. Two arrangements need memory linear in N instead:

- "blocked" works through the queries in blocks, and computes weights beyond 256 MiB again for the backward pass.
  Rabe and Staats, "Self-attention Does Not Need O(n^2) Memory", 2021.
- "sdpa" is PyTorch's fused kernel. It wants query, key and value of equal width: query and key are padded with zeros,
  which add nothing to their products, and the value's channels are divided among attention "heads".

Unlike in a Transformer the products are not divided by the square root of D, so they reach hundreds. They, and the
softmax over them, are therefore computed in float32 at least, whatever the type of the rest.

Shapes: B images, N positions, n of them in a block, D channels of query and key, C channels of value.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from danet.ops.blocked_attention import NEGLIGIBLE, blocked_attention, rows_of
from danet.services.exporting import is_exporting

Form = Literal["auto", "dense", "blocked", "sdpa"]
FORMS: tuple[Form, ...] = ("auto", "dense", "blocked", "sdpa")

FEWEST_POSITIONS = 1024  # below, the dense form is as fast and its weights are 4 MiB
EXPORT_BLOCKS = 8  # an exported graph has a fixed number of blocks
SDPA_WIDTHS = (64, 128)  # of a fused kernel's head; every GPU's kernels have them
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]  # not cuDNN: deterministic mode refuses it


def position_weights(query: Tensor, key: Tensor) -> Tensor:
    """How much each position takes from every position (equation 1): (B, D, n), (B, D, N) -> (B, n, N).

    Each row is one position's weights for all positions and sums to 1, in float32 at least.
    """
    with torch.autocast(query.device.type, enabled=False):
        dtype = torch.promote_types(query.dtype, torch.float32)
        return softmax(query.to(dtype).transpose(1, 2) @ key.to(dtype))


def softmax(energies: Tensor) -> Tensor:
    """The softmax of each row, with negligible weights exactly 0, and so their gradients.

    Attention's energies differ by hundreds, so that many weights would be subnormal numbers. Processors take some
    hundred times as long for a product of those.
    """
    return _Softmax.apply(energies)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, energies: Tensor) -> Tensor:
        weights = F.threshold(torch.softmax(energies, dim=-1), NEGLIGIBLE, 0.0, inplace=True)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        return torch._softmax_backward_data(gradient, weights, -1, weights.dtype)


def position_attention(query: Tensor, key: Tensor, value: Tensor, form: Form = "auto") -> Tensor:
    """Every position's weighted mean of all values (the sum in equation 2).

    Query (B, D, N), key (B, D, N), value (B, C, N) -> (B, C, N), of the value's type. Fastest where they are views of
    channels_last tensors.

    Args:
        query: from which positions are compared.
        key: with which they are compared.
        value: what is averaged.
        form: how it is computed; "auto" is `choose_form`'s.

    Raises:
        RuntimeError: form "sdpa" where PyTorch has no fused kernel.
    """
    if is_exporting():
        return _exportable(query, key, value)
    if form == "auto":
        form = choose_form(query.device, query.dtype, query.shape[2])
    if form == "dense":
        return _dense(query, key, value)
    rows = [rows_of(tensor, tensor.dtype) for tensor in (query, key, value)]  # (B, N, D or C)
    if form == "sdpa":
        return _fused(*rows).transpose(1, 2)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in rows)
    return blocked_attention(*rows, keep)[0].transpose(1, 2)


def is_dense(form: Form, query: Tensor) -> bool:
    """Whether a form comes to the one that is written out, for query (B, D, N)."""
    if is_exporting():
        return False
    return form == "dense" or (form == "auto" and choose_form(query.device, query.dtype, query.shape[2]) == "dense")


def choose_form(device: torch.device, dtype: torch.dtype, positions: int) -> Form:
    """The fastest form for N positions in linear memory; experiments/results has the measurements."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        return "sdpa"  # in float32 its backward pass is not deterministic
    return "dense" if positions < FEWEST_POSITIONS else "blocked"


def describe_choice(device: torch.device, dtype: torch.dtype) -> str:
    """What `choose_form` does on a device, for the log."""
    few, many = choose_form(device, dtype, 1), choose_form(device, dtype, 2**30)
    return many if few == many else f"{few} below {FEWEST_POSITIONS} positions, {many} from there"


def _dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return value @ position_weights(query, key).transpose(1, 2).to(value.dtype)


def _exportable(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Blocks of as many rows as the image asks for, in a graph that is the same for every image."""
    count = query.shape[2]
    rows = count // EXPORT_BLOCKS + 2  # so never 1 and always some to pad: the graph needs no case apart
    padded = F.pad(query, (0, EXPORT_BLOCKS * rows - count))
    blocks = padded.unflatten(2, (EXPORT_BLOCKS, rows)).unbind(2)
    return torch.cat([_dense(block, key, value) for block in blocks], dim=2)[:, :, :count]


def _fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(B, N, D), (B, N, D), (B, N, C) -> (B, N, C) by PyTorch's kernel."""
    width = next((width for width in SDPA_WIDTHS if width >= query.shape[2]), query.shape[2])
    channels = value.shape[2]
    heads = -(-channels // width)
    query, key = (
        F.pad(tensor, (0, width - tensor.shape[2])).unsqueeze(1).expand(-1, heads, -1, -1) for tensor in (query, key)
    )
    value = F.pad(value, (0, heads * width - channels)).unflatten(2, (heads, width)).transpose(1, 2)
    # Without the list of kernels PyTorch might fall back to N x N weights without a word.
    with sdpa_kernel(FUSED), torch.autocast(query.device.type, enabled=False):
        gathered = F.scaled_dot_product_attention(query, key, value, scale=1.0)  # (B, heads, N, width)
    return gathered.transpose(1, 2).flatten(2)[..., :channels]
