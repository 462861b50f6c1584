"""Position and channel attention against loops written from the equations.

Shapes: B images, C channels, N = H * W positions, D channels of query and key.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from danet.heads.danet import ChannelAttention, PositionAttention, position_attention
from danet.heads.danet_article import ArticleChannelAttention, ArticlePositionAttention
from danet.ops import position_attention as arithmetic

B, C, H, W, D = 2, 16, 3, 4, 2
N = H * W


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(B, C, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def position_module(**options) -> PositionAttention:
    torch.manual_seed(0)
    module = PositionAttention(C, **options).double()
    nn.init.constant_(module.gamma, 0.7)
    return module


def softmax(energies: list[float]) -> list[float]:
    exponentials = [np.exp(energy) for energy in energies]
    return [e / sum(exponentials) for e in exponentials]


def project(conv: nn.Conv2d, features: np.ndarray) -> np.ndarray:
    """A 1x1 convolution of one image: (C, N) -> (out, N)."""
    bias = 0 if conv.bias is None else conv.bias.detach().numpy()[:, None]
    return conv.weight.detach().numpy()[:, :, 0, 0] @ features + bias


def position_loops(module: nn.Module, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Equations 1 and 2 for one (j) and every other (i) position: the weights and the output."""
    weights, out = np.zeros((B, N, N)), np.zeros((B, C, N))
    for b in range(B):
        a = x[b].reshape(C, N).numpy()
        query, key, value = (project(conv, a) for conv in (module.query, module.key, module.value))
        for j in range(N):
            weights[b, j] = softmax([sum(query[:, j] * key[:, i]) for i in range(N)])
            gathered = sum(weights[b, j, i] * value[:, i] for i in range(N))
            out[b, :, j] = module.gamma.item() * gathered + a[:, j]
    return weights, out.reshape(B, C, H, W)


def channel_loops(gamma: float, x: torch.Tensor, energy: str, transposed: bool = False) -> np.ndarray:
    """Equations 3 and 4 for one (j) and every other (i) channel."""
    out = np.zeros((B, C, N))
    for b in range(B):
        a = x[b].reshape(C, N).numpy()
        weights = np.zeros((C, C))
        for j in range(C):
            products = [sum(a[j] * a[i]) for i in range(C)]
            weights[j] = softmax([max(products) - p if energy == "max_minus" else p for p in products])
        for j in range(C):
            gathered = sum((weights[i, j] if transposed else weights[j, i]) * a[i] for i in range(C))
            out[b, j] = gamma * gathered + a[j]
    return out.reshape(B, C, H, W)


def test_position_attention_is_equations_1_and_2(x):
    module = position_module(reduction=C // D)
    weights, out = position_loops(module, x)
    np.testing.assert_allclose(module.attention(x).detach(), weights, rtol=1e-10)
    np.testing.assert_allclose(module(x).detach(), out, rtol=1e-10)


def test_position_rows_sum_to_one_and_columns_do_not(x):
    attention = position_module(reduction=C // D).attention(x)
    assert torch.allclose(attention.sum(dim=2), torch.ones(B, N, dtype=torch.float64))
    assert not torch.allclose(attention.sum(dim=1), torch.ones(B, N, dtype=torch.float64), atol=1e-3)


def test_position_attention_is_the_fused_kernels_with_scale_one():
    query, key, value = torch.randn(3, B, D, N, dtype=torch.float64)
    fused = nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (query, key, value)), scale=1)
    torch.testing.assert_close(position_attention(query, key, value), fused.transpose(1, 2))


@pytest.mark.parametrize("energy", ["max_minus", "plain"])
def test_channel_attention_is_equations_3_and_4(x, energy):
    x = x / 2  # keeps the plain softmax away from one-hot, where a wrong orientation would hide
    module = ChannelAttention(energy).double()
    nn.init.constant_(module.gamma, 0.7)
    np.testing.assert_allclose(module(x).detach(), channel_loops(0.7, x, energy), rtol=1e-10)
    attention = module.attention(x)
    assert torch.allclose(attention.sum(dim=2), torch.ones(B, C, dtype=torch.float64))
    assert not torch.allclose(attention.sum(dim=1), torch.ones(B, C, dtype=torch.float64), atol=1e-3)


def test_channel_attention_prefers_the_least_similar_channel_unless_plain(x):
    flat = x.flatten(2)
    energy = flat @ flat.transpose(1, 2)
    assert torch.equal(ChannelAttention("max_minus").attention(x).argmax(dim=2), energy.argmin(dim=2))
    assert torch.equal(ChannelAttention("plain").attention(x).argmax(dim=2), energy.argmax(dim=2))


@pytest.mark.parametrize("shared", [False, True])
def test_article_attentions_are_as_printed(x, shared):
    x = x / 2
    torch.manual_seed(0)
    position = ArticlePositionAttention(C, shared).double()
    channel = ArticleChannelAttention().double()
    nn.init.constant_(position.gamma, 0.7)
    nn.init.constant_(channel.gamma, 0.7)
    np.testing.assert_allclose(position(x).detach(), position_loops(position, x)[1], rtol=1e-10)
    np.testing.assert_allclose(channel(x).detach(), channel_loops(0.7, x, "plain", transposed=True), rtol=1e-10)


@pytest.mark.parametrize("module", [PositionAttention(C), ChannelAttention(), ArticleChannelAttention()])
def test_attention_starts_as_the_identity(module, x):
    assert torch.equal(module.double()(x), x)


def test_gradients_begin_at_gamma_and_then_reach_every_projection(x):
    """At gamma = 0 the branch is switched off, so that only gamma can learn in the first step."""
    module = position_module(reduction=C // D)
    projections = [module.query.weight, module.key.weight, module.value.weight]
    nn.init.zeros_(module.gamma)
    module(x).square().sum().backward()
    assert module.gamma.grad.abs() > 0
    assert all(torch.count_nonzero(weight.grad) == 0 for weight in projections)

    nn.init.constant_(module.gamma, 0.7)
    module(x).square().sum().backward()
    assert all(torch.count_nonzero(weight.grad) == weight.numel() for weight in projections)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("module", [ChannelAttention(), ChannelAttention("plain"), ArticleChannelAttention()])
def test_channel_attention_does_not_overflow_under_autocast(module, dtype):
    x = 4 * torch.randn(1, 8, 96, 96, generator=torch.Generator().manual_seed(0)).relu()
    flat = x.flatten(2)
    assert (flat @ flat.transpose(1, 2)).max() > torch.finfo(torch.float16).max  # there is something to overflow
    nn.init.constant_(module.gamma, 0.7)
    with torch.autocast("cpu", dtype=dtype):
        out = module(x.to(dtype))
    expected = module(x.to(dtype).float())
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "module", [PositionAttention(C, reduction=1), ArticlePositionAttention(C, False), ArticlePositionAttention(C, True)]
)
def test_position_attention_does_not_overflow_under_autocast(module):
    """Whole numbers, which float16 holds: only the energies' range and the output's rounding can tell."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(100, (1, C, 6, 6), generator=generator).float()
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    for conv in (module.query, module.key, module.value):
        nn.init.dirac_(conv.weight)  # the identity
    nn.init.constant_(module.gamma, 0.7)
    flat = x.flatten(2)
    assert (flat.transpose(1, 2) @ flat).max() > torch.finfo(torch.float16).max  # there is something to overflow
    with torch.autocast("cpu", dtype=torch.float16):
        out = module(x)
    torch.testing.assert_close(out, module(x), rtol=0.002, atol=0)


def test_reduction_beyond_the_channels_is_refused():
    with pytest.raises(ValueError, match="reduction=32 .* 16 channels"):
        PositionAttention(16, reduction=32)


def test_weights_are_never_subnormal_and_else_the_softmaxs():
    """Subnormal weights made channel attention's step ten times slower on a CPU."""
    energies = torch.linspace(-110, 0, 1000)[None].requires_grad_()
    tiny = torch.finfo(torch.float32).tiny
    usual = torch.softmax(energies, dim=1)
    assert ((usual > 0) & (usual < tiny)).any()  # there is something to avoid
    gradient = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.grad(torch.softmax(energies.double(), 1), energies, gradient.double())[0]
    weights = arithmetic.softmax(energies)
    (slopes,) = torch.autograd.grad(weights, energies, gradient)
    torch.testing.assert_close(weights, usual)
    torch.testing.assert_close(slopes, expected.float())
    for values in (weights, slopes):
        assert not ((values != 0) & (values.abs() < tiny)).any()


def test_the_steps_of_both_attentions_meet_no_subnormal_number():
    """Through the modules: whatever is multiplied with the features, forward and backward."""
    tiny = torch.finfo(torch.float32).tiny
    found = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.baddbmm, torch.ops.aten.baddbmm_):
                for value in (a for a in args if torch.is_tensor(a)):
                    found.append(int(((value != 0) & (value.abs() < tiny)).sum()))
            return function(*args, **(kwargs or {}))

    features = 6 * torch.randn(2, C, 24, 24, generator=torch.Generator().manual_seed(0)).relu()
    for module in (PositionAttention(C, 1, "blocked"), PositionAttention(C, 1, "dense"), ChannelAttention()):
        nn.init.constant_(module.gamma, 0.7)
        with Watch():
            module(features.clone().requires_grad_()).square().sum().backward()
    assert len(found) > 10
    assert sum(found) == 0
