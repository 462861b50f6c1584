"""The products of channels and their gradient against float64 and PyTorch's own."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from danet.heads.danet import ChannelAttention
from danet.ops.channel_products import channel_products

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def feature_map(dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    x = torch.randn(2, 6, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.to(dtype).contiguous(memory_format=layout).requires_grad_()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_and_their_slopes(layout: torch.memory_format) -> None:
    x = feature_map(torch.float64, layout)
    flat = x.detach().flatten(2).numpy()
    np.testing.assert_allclose(channel_products(x.flatten(2)).detach(), np.einsum("bcn,bdn->bcd", flat, flat))
    assert torch.autograd.gradcheck(lambda x: channel_products(x.flatten(2)), x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("energy", ["max_minus", "plain"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_channel_attention_is_equation_4_in_float64(
    dtype: torch.dtype, tolerance: float, energy: Any, layout: torch.memory_format
) -> None:
    module = ChannelAttention(energy)
    nn.init.constant_(module.gamma, 0.7)
    x = feature_map(dtype, layout)
    exact = x.detach().double().contiguous().requires_grad_()
    flat = exact.flatten(2)
    products = flat @ flat.transpose(1, 2)
    energies = products.amax(-1, keepdim=True) - products if energy == "max_minus" else products
    expected = 0.7 * (energies.softmax(-1) @ flat).view_as(exact) + exact
    out = module(x)
    assert out.dtype == dtype
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = [out.detach(), *torch.autograd.grad(out, x, gradient.to(dtype))]
    wanted = [expected.detach(), *torch.autograd.grad(expected, exact, gradient)]
    for mine, true in zip(found, wanted, strict=True):
        assert (mine.double() - true).norm() / true.norm() < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_the_gradient_is_pytorchs_own_in_float64(dtype: torch.dtype, tolerance: float) -> None:
    x = feature_map(dtype, torch.channels_last)
    exact = x.detach().double().requires_grad_()
    gradient = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found,) = torch.autograd.grad(channel_products(x.flatten(2)), x, gradient.float())
    flat = exact.flatten(2)
    (true,) = torch.autograd.grad(flat @ flat.transpose(1, 2), exact, gradient)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found.double() - true).norm() / true.norm() < tolerance


def test_products_are_float32_of_a_bfloat16_map_and_under_autocast() -> None:
    """300 ones and 301 differ by less than bfloat16's spacing of 2 there."""
    x = torch.zeros(1, 2, 301, dtype=torch.bfloat16)
    x[0, 0] = 1
    x[0, 1, :300] = 1
    with torch.autocast("cpu", torch.bfloat16):
        products = channel_products(x)
    assert products.dtype == torch.float32
    assert products.tolist() == [[[301, 300], [300, 300]]]
