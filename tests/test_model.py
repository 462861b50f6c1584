"""The segmenter and how it is built."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import danet
from danet.interfaces import IMAGENET_MEAN, IMAGENET_STD
from danet.model import Segmenter, build_model
from danet.ops.strided_pointwise import stride_by_slices
from danet.registry import BACKBONES, HEADS

TINY = {"name": "resnet_tiny"}


class Identity(nn.Module):
    """A backbone of four equal "features": the normalized image."""

    out_channels, strides = (3, 3, 3, 3), (1, 1, 1, 1)
    in_channels, mean, std = 3, IMAGENET_MEAN, IMAGENET_STD

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return 4 * [image]


class Passing(nn.Module):
    """A head whose logits are its features."""

    num_classes, align_corners = 3, True

    def forward(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"main": features[-1]}


def test_images_are_normalized_as_pretrained_backbones_expect():
    image = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    model = Segmenter(Identity(), Passing())
    mean, std = (
        np.array([0.485, 0.456, 0.406]),
        np.array([0.229, 0.224, 0.225]),
    )  # as torchvision documents them
    expected = ((image.numpy() / 255).transpose(0, 2, 3, 1) - mean) / std
    normalized = model(image)["main"]
    np.testing.assert_allclose(normalized.permute(0, 2, 3, 1), expected, atol=1e-5)
    assert torch.equal(model(image.float())["main"], normalized)
    assert model.state_dict() == {}


@pytest.mark.parametrize("head", list(HEADS))
def test_every_head_trains_and_segments_an_odd_image(head):
    model = build_model(TINY, {"name": head}, 5, auxiliary_head=True)
    image = torch.randint(0, 256, (2, 3, 97, 131), dtype=torch.uint8)
    logits = model(image)
    assert logits["aux"].shape == (2, 5, 13, 17)
    sum(values.sum() for values in logits.values()).backward()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []

    model.eval()
    assert set(model(image)) == {"main"}
    labels = model.segment(image)
    assert labels.shape == (2, 97, 131)
    assert labels.dtype == torch.int64
    assert model.segment(image, (60, 80)).shape == (2, 60, 80)


@pytest.mark.parametrize(("align_corners", "border"), [(True, 2), (False, 3)])
def test_segment_takes_the_largest_of_the_resized_logits(align_corners, border):
    """Class 0 rises from 0 to 1 over eight columns, by i/7 or by (2i - 3)/8 between the ends; class 1 is at 0.2."""
    ramp = torch.tensor([0.0, 1.0]).expand(1, 1, 2, 2)
    head = Passing()
    head.align_corners = align_corners
    model = Segmenter(Identity(), head)
    logits = torch.cat([ramp, torch.full_like(ramp, 0.2), torch.full_like(ramp, -9)], dim=1)
    image = model.mean + model.std * logits
    assert model.segment(image, (3, 8)).tolist() == [3 * [border * [1] + (8 - border) * [0]]]


def test_mmsegmentations_danet_has_its_published_size():
    """ResNet-50 with the deep stem, 19 classes: 49.85 million = 23.53 + 23.95 + 2.36."""
    with torch.device("meta"):
        model = build_model({"name": "resnet50", "stem": "deep"}, {"name": "danet"}, 19, auxiliary_head=True)
    parts = (model.backbone, model.head, model.auxiliary, model)
    millions = [round(sum(p.numel() for p in part.parameters()) / 1e6, 2) for part in parts]
    assert millions == [23.53, 23.95, 2.36, 49.85]


# Initial values.


def test_seed_decides_the_initial_values_and_nothing_else_does():
    torch.manual_seed(1)
    first = build_model(TINY, {"name": "danet"}, 5, seed=3).state_dict()
    torch.manual_seed(2)
    second = build_model(TINY, {"name": "danet"}, 5, seed=3).state_dict()
    other = build_model(TINY, {"name": "danet"}, 5, seed=4).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    weights = [key for key in first if first[key].ndim == 4]
    assert not any(torch.equal(first[key], other[key]) for key in weights)


def test_building_leaves_the_global_random_state():
    before = torch.get_rng_state()
    build_model(TINY, {"name": "danet"}, 5, auxiliary_head=True)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("head", "auxiliary_head", "shared"),
    [
        ({"name": "danet", "cam": False}, False, "head.branches.pam."),
        ({"name": "danet", "pam": False}, True, "head.branches.cam."),
        ({"name": "danet", "aux_loss": False}, True, "head.branches."),
        ({"name": "fcn"}, True, "head.classifier."),
    ],
)
def test_models_start_equal_in_the_layers_they_share(head, auxiliary_head, shared):
    full = build_model(TINY, {"name": "danet"}, 5).state_dict()
    variant = build_model(TINY, head, 5, auxiliary_head=auxiliary_head).state_dict()
    keys = [key for key in variant if key.startswith(("backbone.", shared, "head.classifier."))]
    assert any(key.startswith(shared) for key in keys)
    assert all(torch.equal(variant[key], full[key]) for key in keys)


def test_layers_of_one_shape_start_differently():
    branches = build_model(TINY, {"name": "danet"}, 5).head.branches
    assert not torch.equal(branches["pam"].conv_in[0].weight, branches["cam"].conv_in[0].weight)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(KeyError, match="did you mean 'danet'"):
        build_model(TINY, {"name": "dannet"}, 5)
    assert {"resnet50", "resnet_tiny"} <= set(BACKBONES)


def test_compiles_without_graph_breaks():
    model = build_model(TINY, {"name": "danet", "dropout": 0.0}, 5)
    image = torch.randint(0, 256, (2, 3, 33, 41), dtype=torch.uint8)
    compiled = torch.compile(model, fullgraph=True, backend="eager")(image)
    for name, values in model(image).items():
        torch.testing.assert_close(compiled[name], values)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ({"name": "danet", "dropout": 0.0}, 0.0),
        ({"name": "fcn", "dropout": 0.5}, 0.5),
        ({"name": "danet"}, 0.1),  # as ever
        ({"name": "danet_article"}, 0.1),  # which has no dropout
    ],
)
def test_the_auxiliary_head_has_the_heads_dropout(head, expected):
    model = build_model(TINY, head, 5, auxiliary_head=True)
    assert [module.p for module in model.auxiliary.modules() if isinstance(module, nn.Dropout2d)] == [expected]
    others = [module.p for module in model.head.modules() if isinstance(module, nn.Dropout2d)]
    assert set(others) == ({expected} if head["name"] != "danet_article" else set())


@pytest.mark.parametrize(("channels", "stride", "bias"), [(8, 2, False), (3, (2, 3), True), (16, 2, False)])
def test_strided_pointwise_convolutions_of_few_channels_stay_what_they_are(channels, stride, bias):
    net = nn.Sequential(nn.Conv2d(channels, 5, 1, stride=stride, bias=bias)).double()
    x = torch.randn(2, channels, 13, 10, dtype=torch.float64, requires_grad=True)
    expected = net(x)
    gradient = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, [x, *net.parameters()], gradient)
    names = list(net.state_dict())
    stride_by_slices(net)
    assert (net[0].stride == (1, 1)) == (channels < 16)
    found = net(x)
    assert torch.allclose(found, expected, rtol=1e-12)
    for ours, plain in zip(torch.autograd.grad(found, [x, *net.parameters()], gradient), gradients, strict=True):
        assert torch.allclose(ours, plain, rtol=1e-12)
    assert list(net.state_dict()) == names


def test_one_image_and_narrow_stages_do_not_crash_the_process(tmp_path):
    """As strided convolutions of few channels do with two threads in bfloat16, where the processor has it."""
    code = """
import torch
from danet.model import build_model
torch.set_num_threads(2)
model = build_model({"name": "resnet_tiny", "widths": [8, 8, 16, 32]}, {"name": "fcn"}, num_classes=3)
model.eval().to(memory_format=torch.channels_last)
for _ in range(30):
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8))
    sum(output.float().sum() for output in outputs.values()).backward()
"""
    environment = {"PYTHONPATH": str(Path(danet.__file__).parents[1]), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
