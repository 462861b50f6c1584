"""The forms of position attention against its definition, in float64 and in NumPy."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from danet.heads.danet import DANetHead, PositionAttention
from danet.interfaces import Stage
from danet.ops import blocked_attention as blocks
from danet.ops import position_attention as forms
from danet.ops.flops import flop_counter
from danet.ops.position_attention import choose_form, position_attention

B, D, C, N = 2, 5, 37, 103  # no multiple of a block's rows or of a fused kernel's width
LINEAR = ["blocked", "sdpa"]
FORMS = ["dense", *LINEAR]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """11 rows of float64 at a time, 22 of other types: the last block is always a shorter one.

    The weights of about half of them are kept for the backward pass.
    """
    monkeypatch.setattr(blocks, "BLOCK_BYTES", {"cpu": 11 * 8 * B * N})
    monkeypatch.setattr(blocks, "FEWEST_ROWS", 1)
    monkeypatch.setattr(blocks, "KEPT_BYTES", 50 * 8 * B * N)


def inputs(dtype: torch.dtype = torch.float64, layout: str = "channels_first") -> list[Tensor]:
    """Query, key, value and the output's gradient; the energies reach about 30, so that some weights are near 1."""
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for channels, factor in ((D, 2.0), (D, 2.0), (C, 1.0), (C, 1.0)):
        tensor = factor * torch.randn(B, N, channels, generator=generator, dtype=torch.float64)
        tensor = tensor.to(dtype).transpose(1, 2)
        tensors.append(tensor if layout == "channels_last" else tensor.contiguous())
    return [tensor.requires_grad_() for tensor in tensors]


def definition(query: Tensor, key: Tensor, value: Tensor) -> np.ndarray:
    """Equations 1 and 2 position by position."""
    q, k, v = (tensor.detach().double().numpy() for tensor in (query, key, value))
    out = np.empty_like(v)
    for b in range(B):
        for j in range(N):
            energies = np.array([q[b, :, j] @ k[b, :, i] for i in range(N)])
            weights = np.exp(energies - energies.max())
            out[b, :, j] = v[b] @ (weights / weights.sum())
    return out


def results(form: Any, query: Tensor, key: Tensor, value: Tensor, gradient: Tensor) -> list[Tensor]:
    output = position_attention(query, key, value, form)
    return [output.detach(), *torch.autograd.grad(output, (query, key, value), gradient)]


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_definition(form: str, layout: str) -> None:
    query, key, value, _ = inputs(layout=layout)
    for _ in (torch.enable_grad(), torch.no_grad()):
        out = position_attention(query, key, value, form)  # type: ignore[arg-type]
        np.testing.assert_allclose(out.detach(), definition(query, key, value), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("form", FORMS)
def test_results_and_gradients_are_those_of_the_dense_form_in_float64(
    form: str, dtype: torch.dtype, tolerance: float
) -> None:
    rounded = inputs(dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in rounded]
    for found, expected in zip(results(form, *rounded), results("dense", *exact), strict=True):
        assert found.dtype == dtype
        assert (found.double() - expected).norm() / expected.norm() < tolerance


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_gradients_are_as_exact_where_values_have_a_mean(form: str) -> None:
    """Rows of rounded weights do not quite sum to 1: a mean of the values must not reach the energies' gradients."""
    query, key, value, gradient = (tensor.detach() for tensor in inputs(torch.bfloat16))
    rounded = [tensor.requires_grad_() for tensor in (query, key, value + 3)] + [gradient + 0.3]
    exact = [tensor.detach().double().requires_grad_() for tensor in rounded]
    found, expected = (results(f, *t)[1] for f, t in ((form, rounded), ("dense", exact)))
    assert (found.double() - expected).norm() / expected.norm() < (1e-2 if form == "blocked" else 1e-1)


def test_energies_of_the_backward_pass_are_exact_where_weights_are_large() -> None:
    """In bfloat16, each is off by 2^-8 of what it lies below its row's largest, however large the energies are."""
    query, key = (10 * tensor.detach().transpose(1, 2).contiguous() for tensor in inputs(torch.bfloat16)[:2])
    exact = query.double() @ key.double().transpose(1, 2)
    assert exact.abs().max() > 1000  # which bfloat16 has in steps of 8
    _, largest, _ = blocks.blocked_attention(query, key, key, keep=False)
    left, right = blocks._relative(query, key, largest)
    below = exact - exact.amax(-1, keepdim=True)
    limit = 1.01 * 2**-8 * below.abs() + 2**-16 * exact.amax(-1, keepdim=True).abs()
    assert ((left @ right.transpose(1, 2) - below).abs() <= limit).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 0.0), (torch.bfloat16, 1e-2)])
def test_gradients_are_the_same_whatever_is_kept(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16, energies that are computed again are rounded."""
    found = []
    for kept in (0, 50 * dtype.itemsize * B * N, 2**30):
        monkeypatch.setattr(blocks, "KEPT_BYTES", kept)
        found.append(results("blocked", *inputs(dtype)))
    for few, some, every in zip(*found, strict=True):
        assert (few - some).norm() <= tolerance * few.norm()
        assert (few - every).norm() <= tolerance * few.norm()


def test_the_blocked_forms_gradients_are_its_slopes() -> None:
    query, key, value = (tensor.detach()[:, :, :13].requires_grad_() for tensor in inputs()[:3])
    assert torch.autograd.gradcheck(lambda *t: position_attention(*t, form="blocked"), (query, key, value / 3))


@pytest.mark.parametrize("form", LINEAR)
def test_what_is_kept_for_the_backward_pass_grows_linearly(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the positions, twice the bytes; N x N weights would be four times as many, and 200 times these."""
    monkeypatch.setattr(blocks, "KEPT_BYTES", 0)

    def kept(positions: int) -> int:
        found: dict[int, int] = {}
        tensors = [torch.randn(1, channels, positions, requires_grad=True) for channels in (8, 8, 16)]

        def keep(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = position_attention(*tensors, form=form)  # type: ignore[arg-type]
        del output
        return sum(found.values())

    assert kept(4096) < 2.1 * kept(2048)
    assert kept(2048) < 2048**2
    without = kept(2048)
    monkeypatch.setattr(blocks, "KEPT_BYTES", 2**20)
    least = 2**19 if form == "blocked" else 0
    assert without + least <= kept(2048) <= without + 2**20


@pytest.mark.parametrize("kept", [0, 21 * 4 * B * N, 50 * 4 * B * N, 2**30])
def test_whole_blocks_of_weights_are_kept_and_the_rest_is_counted_again(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for 21 rows holds no block of 22, that for 50 holds two."""
    monkeypatch.setattr(blocks, "KEPT_BYTES", kept)
    query, key, value, gradient = (t.transpose(1, 2).contiguous() for t in inputs(torch.float32))
    with flop_counter() as counter:
        output, _, weights = blocks.blocked_attention(query, key, value, keep=True)
        output.backward(gradient)
    rows = {0: 0, 21 * 4 * B * N: 0, 50 * 4 * B * N: 44, 2**30: N}[kept]
    assert len(weights) == rows * B * N
    products = N * (D + C) + N * (2 * D + 2 * C) + (N - rows) * D
    assert counter.get_total_flops() == 2 * B * N * products


@pytest.mark.parametrize("form", FORMS)
def test_energies_are_float32_under_autocast(form: str) -> None:
    """Energies of 400 have a spacing of 2 in bfloat16: rounded, neighboring weights would differ e-fold."""
    query, key = torch.full((1, 4, 16), 10.0), 10 + torch.linspace(0, 0.3, 16).expand(1, 4, 16)
    value = torch.eye(16)[None]
    with torch.autocast("cpu", torch.bfloat16):
        weights = position_attention(query, key, value, form)  # type: ignore[arg-type]
    expected = torch.softmax(40 * torch.linspace(0, 0.3, 16).double(), dim=0)
    assert (weights[0, :, 0].double() - expected).norm() / expected.norm() < 1e-2


def test_the_choice_needs_linear_memory_wherever_n_is_large() -> None:
    for device in ("cpu", "cuda", "mps"):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert choose_form(torch.device(device), dtype, 2048) in LINEAR
            words = forms.describe_choice(torch.device(device), dtype)
            assert choose_form(torch.device(device), dtype, 2048) in words


@pytest.mark.parametrize("form", FORMS)
def test_the_option_reaches_the_arithmetic(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def spy(query: Tensor, key: Tensor, value: Tensor, form: str) -> Tensor:
        called.append(form)
        return value

    def spy_dense(query: Tensor, key: Tensor) -> Tensor:
        called.append("dense")
        return forms.position_weights(query, key)

    monkeypatch.setattr("danet.heads.danet.position_attention", spy)
    monkeypatch.setattr("danet.heads.danet.position_weights", spy_dense)
    DANetHead([Stage(64, 8)], 3, attention=form)([torch.randn(2, 64, 4, 4)])  # type: ignore[arg-type]
    assert called == ["dense" if form == "auto" else form]  # auto: with 16 positions


@pytest.mark.parametrize("form", FORMS)
def test_one_graph_serves_images_of_all_sizes(form: str) -> None:
    module = PositionAttention(16, reduction=2, form=form)  # type: ignore[arg-type]
    nn.init.constant_(module.gamma, 0.7)
    graphs = []

    def count(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=count)
    for size in ((2, 16, 5, 7), (2, 16, 9, 6), (2, 16, 12, 11)):
        x = torch.randn(size)
        torch.testing.assert_close(compiled(x), module(x))
    assert len(graphs) == 1
