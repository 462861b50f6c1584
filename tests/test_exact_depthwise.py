"""Depthwise convolutions on a CPU: the arranged ones are PyTorch's own, whatever the network around them."""

import copy

import pytest
import torch
from torch import nn

from danet.ops.exact_depthwise import DilatedDepthwiseConv2d, compute_exactly


def network(**options: object) -> nn.Sequential:
    arguments = {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 6, "bias": False} | options
    return nn.Sequential(nn.Conv2d(6, 6, **arguments), nn.ReLU()).double()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel_size": 5, "padding": 8, "dilation": 4},
        {"kernel_size": (3, 5), "padding": (3, 2), "dilation": (3, 1)},
    ],
)
def test_values_gradients_and_names_are_pytorchs(options: dict[str, object]) -> None:
    plain = network(**options).to(memory_format=torch.channels_last)
    arranged = copy.deepcopy(plain)
    compute_exactly(arranged)
    assert isinstance(arranged[0], DilatedDepthwiseConv2d)
    assert list(arranged.state_dict()) == list(plain.state_dict())
    image = torch.randn(2, 6, 7, 9, dtype=torch.float64).to(memory_format=torch.channels_last)
    results = []
    for net in (plain, arranged):
        x = image.clone().requires_grad_()
        output = net(x)
        output.square().sum().backward()
        results.append([output, x.grad, net[0].weight.grad])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    assert results[1][0].stride() == results[0][0].stride()


def test_a_frozen_kernel_has_no_gradient_and_its_input_has() -> None:
    net = network()
    compute_exactly(net)
    net.requires_grad_(False)
    x = torch.randn(1, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, x)
    net(x).sum().backward()
    assert net[0].weight.grad is None


def test_gradients_are_float32s_in_autocast_too() -> None:
    net = network().float()
    compute_exactly(net)
    image = torch.randn(2, 6, 7, 9)
    gradients = []
    for enabled in (False, True):
        x = image.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            net(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)


def test_an_empty_batch_has_gradients_of_zero() -> None:
    net = network()
    compute_exactly(net)
    net(torch.zeros(0, 6, 8, 8, dtype=torch.float64)).sum().backward()
    assert net[0].weight.grad.abs().max() == 0


def test_a_bfloat16_kernels_gradient_is_summed_exactly() -> None:
    """Twelve strips of eight images: sums of so many terms in bfloat16 would be off by a hundredth."""
    net = nn.Sequential(nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16, bias=False)).bfloat16()
    exact = copy.deepcopy(net).double()
    compute_exactly(net)
    x = torch.randn(8, 16, 96, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    net(x).backward(gradient)
    exact(x.double()).backward(gradient.double())
    expected = exact[0].weight.grad
    assert (net[0].weight.grad.double() - expected).norm() / expected.norm() < 2.5e-3


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_convolution_of_two_names_stays_one(dilation: int) -> None:
    shared = network(dilation=dilation, padding=dilation)[0].float()
    net = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared), nn.Conv2d(6, 6, 1))
    compute_exactly(net)
    assert net[0][0] is net[1][0]
    assert isinstance(net[0][0], DilatedDepthwiseConv2d) == (dilation > 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(torch.randn(1, 6, 5, 5)).dtype == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")


def test_a_bias_that_comes_later_counts() -> None:
    """As where a batch norm is fused into the convolution."""
    net = network()
    compute_exactly(net)
    x = torch.randn(1, 6, 5, 5, dtype=torch.float64)
    without = net[0](x)
    net[0].bias = nn.Parameter(torch.arange(6, dtype=torch.float64))
    torch.testing.assert_close(net[0](x), without + torch.arange(6)[:, None, None])


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"padding": 0},
        {"dilation": 1, "padding": 1},
        {"kernel_size": 4, "padding": 3},
        {"groups": 3},
        {"bias": True},
        {"padding_mode": "reflect"},
    ],
)
def test_other_convolutions_stay_what_they_are(options: dict[str, object]) -> None:
    net = network(**options)
    compute_exactly(net)
    assert type(net[0]) is nn.Conv2d
    image = torch.randn(1, 6, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(net(image), network_like(net, options)(image))


def network_like(net: nn.Sequential, options: dict[str, object]) -> nn.Sequential:
    other = network(**options)
    other.load_state_dict(net.state_dict())
    return other
