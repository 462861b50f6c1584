"""Heads: what every registered one promises, then the published sizes and the variants of DANet's."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from danet.heads.danet import ChannelAttention, PositionAttention
from danet.interfaces import Stage
from danet.ops.contiguous_conv import ManyChannelsConv2d
from danet.registry import HEADS

CONF = Path(__file__).parents[1] / "conf" / "head"


def options(name: str) -> dict:
    """The options in the component's YAML."""
    return {k: v for k, v in yaml.safe_load((CONF / f"{name}.yaml").read_text()).items() if k != "name"}


def stages(channels: int) -> list[Stage]:
    """Of a backbone at stride 8 whose last stage has so many channels."""
    return [Stage(channels // 8, 4), Stage(channels // 4, 8), Stage(channels // 2, 8), Stage(channels, 8)]


def pyramid(channels: int, height: int, width: int, batch: int = 2) -> list[torch.Tensor]:
    """Its feature maps, where the last has this size."""
    sizes = [(2 * height, 2 * width), *3 * [(height, width)]]
    return [torch.randn(batch, stage.channels, *size) for stage, size in zip(stages(channels), sizes, strict=True)]


def build(name: str, in_channels: int = 64, num_classes: int = 5, **overrides) -> nn.Module:
    torch.manual_seed(0)
    return HEADS[name](stages(in_channels), num_classes, **options(name) | overrides)


def parameters(name: str, in_channels: int, num_classes: int, **overrides) -> int:
    with torch.device("meta"):
        head = build(name, in_channels, num_classes, **overrides)
    return sum(parameter.numel() for parameter in head.parameters())


# Every registered head.


@pytest.mark.parametrize("name", list(HEADS))
def test_logits_and_gradients(name):
    head = build(name)
    assert head.num_classes == 5
    assert isinstance(head.align_corners, bool)
    for parameter in head.parameters():
        if not parameter.any():  # parameters that start at zero, as gamma does, keep others from any gradient
            nn.init.constant_(parameter, 0.5)
    features = [part.requires_grad_() for part in pyramid(64, 13, 17)]  # of a 97 x 131 image at stride 8
    logits = head(features)
    assert "main" in logits
    for values in logits.values():
        assert values.shape[:2] == (2, 5)
        assert values.ndim == 2 or values.shape[2] * 17 == values.shape[3] * 13  # the feature map's proportions
    sum(values.square().sum() for values in logits.values()).backward()
    assert any(part.grad is not None and part.grad.any() for part in features)
    for key, parameter in head.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, key
        # A bias may have no effect, as one that softmax takes away again.
        assert parameter.grad.any() or key.endswith("bias"), key


@pytest.mark.parametrize("name", list(HEADS))
def test_evaluation_is_deterministic_and_gives_main_only(name):
    head = build(name).eval()
    features = pyramid(64, 9, 7)
    with torch.no_grad():
        first, second = head(features), head(features)
    assert list(first) == ["main"]
    assert torch.equal(first["main"], second["main"])


# DANet's head.


def test_danet_head_has_the_published_size():
    """The authors' head for Cityscapes: 23.954619 million, measured on their code."""
    assert parameters("danet", 2048, 19) == 23_954_619


def test_fcn_as_auxiliary_head_has_the_published_size():
    assert round(parameters("fcn", 1024, 19) / 1e6, 2) == 2.36  # mmsegmentation's, on ResNet-50's third stage


@pytest.mark.parametrize(
    ("switches", "names"),
    [
        ({}, {"main", "pam", "cam"}),
        ({"cam": False}, {"main", "pam"}),
        ({"pam": False}, {"main", "cam"}),
        ({"aux_loss": False}, {"main"}),
    ],
)
def test_attentions_switch_off_with_their_whole_branch(switches, names):
    head = build("danet", **switches)
    assert set(head([torch.randn(2, 64, 5, 4)])) == names
    modules = [type(module) for module in head.modules()]
    assert modules.count(PositionAttention) == switches.get("pam", True)
    assert modules.count(ChannelAttention) == switches.get("cam", True)
    assert modules.count(nn.BatchNorm2d) == 2 * (switches.get("pam", True) + switches.get("cam", True))


def test_each_classifier_reads_its_own_branch_and_main_their_sum():
    head = build("danet", dropout=0.0)
    features = torch.randn(2, 64, 5, 4)
    logits = head([features])
    pam, cam = (head.branches[name](features) for name in ("pam", "cam"))
    for name, classifier, x in (
        ("main", head.classifier, pam + cam),
        ("pam", head.aux_classifiers["pam"], pam),
        ("cam", head.aux_classifiers["cam"], cam),
    ):
        kernel, bias = classifier[1].weight[:, :, 0, 0], classifier[1].bias
        expected = torch.einsum("kc,bchw->bkhw", kernel, x) + bias[:, None, None]
        torch.testing.assert_close(logits[name], expected)


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="head=fcn"):
        build("danet", pam=False, cam=False)
    assert HEADS["danet"].problems(options("danet")) == []
    assert len(HEADS["danet"].problems(options("danet") | {"pam": False, "cam": False})) == 1
    with pytest.raises(ValueError, match="reduction=64 leaves none of the 16 channels"):
        build("danet", reduction=64)


# The article's head.


def test_article_head_keeps_three_projections_or_shares_one():
    head = build("danet_article", 2048 // 16, 33)
    shared = build("danet_article", 2048 // 16, 33, shared_projection=True)
    count = [sum(p.numel() for p in h.parameters()) for h in (head, shared)]
    assert count[0] - count[1] == 2 * 32 * 32  # two 1x1 projections of 32 channels, without bias


def test_article_head_classifies_at_eight_times_the_feature_maps_size():
    assert build("danet_article")([torch.randn(2, 64, 5, 4)])["main"].shape == (2, 5, 40, 32)


@pytest.mark.parametrize("training", [True, False])
def test_a_convolution_of_many_channels_is_a_convolution(training: bool) -> None:
    """Values, gradients and memory format are PyTorch's own."""
    x = torch.randn(2, 32, 7, 9, dtype=torch.float64).to(memory_format=torch.channels_last)
    plain = torch.nn.Conv2d(32, 8, 3, padding=1, bias=False).double().to(memory_format=torch.channels_last)
    other = (
        ManyChannelsConv2d(32, 8, 3, padding=1, bias=False)
        .double()
        .to(memory_format=torch.channels_last)
        .train(training)
    )
    other.load_state_dict(plain.state_dict())
    results = []
    for layer in (plain, other):
        inputs = x.clone().requires_grad_()
        output = layer(inputs)
        output.square().sum().backward()
        results.append([output, inputs.grad, layer.weight.grad])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
        assert found.stride() == expected.stride()
