"""Backbones: what every registered one promises, then torchvision as the reference for the ResNets."""

import logging
import math
import urllib.error
from pathlib import Path

import pydantic
import pytest
import torch
import torchvision
import yaml
from torch import nn

from danet.model import Segmenter, build_model
from danet.registry import BACKBONES
from danet.services import checkpoint, weights

CONF = Path(__file__).parents[1] / "conf" / "backbone"


def options(name: str) -> dict:
    """The options in the component's YAML."""
    return {k: v for k, v in yaml.safe_load((CONF / f"{name}.yaml").read_text()).items() if k != "name"}


def build(name: str, **overrides) -> nn.Module:
    return BACKBONES[name](**options(name) | overrides)


# Every registered backbone.


@pytest.mark.parametrize("name", list(BACKBONES))
def test_feature_maps_have_the_promised_sizes_and_reach_every_parameter(name):
    with torch.device("meta"):
        backbone = build(name)
        features = backbone(torch.empty(2, 3, 97, 131))
    assert [f.shape[1] for f in features] == list(backbone.out_channels)
    stride = backbone.strides[-1]
    assert features[-1].shape == (
        2,
        backbone.out_channels[-1],
        math.ceil(97 / stride),
        math.ceil(131 / stride),
    )
    torch.stack([feature.sum() for feature in features]).sum().backward()
    assert [key for key, parameter in backbone.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", list(BACKBONES))
def test_evaluation_is_deterministic(name):
    backbone = build(name).eval()
    image = torch.randn(1, 3, 41, 33)
    with torch.no_grad():
        first, second = backbone(image)[-1], backbone(image)[-1]
    assert torch.isfinite(first).all()
    assert torch.equal(first, second)


# ResNets.


def torchvision_features(net: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    x = net.maxpool(net.relu(net.bn1(net.conv1(image))))
    features = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = stage(x)
        features.append(x)
    return features


def dilations(stage: nn.Module) -> list[int]:
    convs = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert all(conv.padding == conv.dilation for conv in convs)
    return [conv.dilation[0] for conv in convs]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_weights_are_torchvisions(name):
    with torch.device("meta"):
        ours = build(name, multi_grid=[4, 8] if name == "resnet18" else [4, 8, 16]).state_dict()
        theirs = torchvision.models.get_model(name).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items() if not k.startswith("fc.")}


@pytest.mark.parametrize(
    ("name", "stride", "replaced"),
    [("resnet18", 32, [False, False, False]), ("resnet50", 8, [False, True, True])],
)
def test_features_are_torchvisions(name, stride, replaced):
    ours = build(name, output_stride=stride)
    theirs = torchvision.models.get_model(name, replace_stride_with_dilation=replaced)
    assert theirs.load_state_dict(ours.state_dict(), strict=False).unexpected_keys == []
    image = torch.randn(2, 3, 33, 41)
    with torch.no_grad():  # in training mode, so that batch normalization keeps the values moderate
        for our_feature, their_feature in zip(ours(image), torchvision_features(theirs, image), strict=True):
            assert torch.equal(our_feature, their_feature)


@pytest.mark.parametrize("name", ["resnet18", "resnet_tiny"])
def test_dilation_computes_the_strided_network_at_every_position(name):
    coarse_stride = 16 if name == "resnet_tiny" else 32
    dilated, strided = build(name).double().eval(), build(name, output_stride=coarse_stride).double().eval()
    strided.load_state_dict(dilated.state_dict())
    image = torch.randn(1, 3, 65, 97, dtype=torch.float64)
    step = coarse_stride // 8
    with torch.no_grad():
        torch.testing.assert_close(dilated(image)[-1][:, :, ::step, ::step], strided(image)[-1])


@pytest.mark.parametrize(
    ("name", "overrides", "layer3", "layer4"),
    [
        ("resnet50", {}, [1, 2, 2, 2, 2, 2], [2, 4, 4]),
        ("resnet101", {"multi_grid": [4, 8, 16]}, [1] + 22 * [2], [4, 8, 16]),
        ("resnet50", {"output_stride": 16}, 6 * [1], [1, 2, 2]),
        ("resnet50", {"output_stride": 32}, 6 * [1], [1, 1, 1]),
        ("resnet18", {}, [1, 2, 2, 2], [2, 4, 4, 4]),
        ("resnet18", {"multi_grid": [4, 8]}, [1, 2, 2, 2], [4, 4, 8, 8]),
    ],
)
def test_dilations(name, overrides, layer3, layer4):
    with torch.device("meta"):
        backbone = build(name, **overrides)
    assert dilations(backbone.layer1) == len(dilations(backbone.layer1)) * [1]
    assert dilations(backbone.layer2) == len(dilations(backbone.layer2)) * [1]
    assert dilations(backbone.layer3) == layer3
    assert dilations(backbone.layer4) == layer4


@pytest.mark.parametrize(
    ("name", "stem", "widths"),
    [
        ("resnet18", "deep", [32, 32, 64]),
        ("resnet18", "deep_wide", [64, 64, 128]),
        ("resnet50", "deep_wide", [64, 64, 128]),
    ],
)
def test_deep_stems(name, stem, widths):
    backbone = build(name, stem=stem)
    assert [backbone.conv1[i].out_channels for i in (0, 3, 6)] == widths
    assert backbone.bn1.num_features == backbone.layer1[0].conv1.in_channels == widths[-1]
    feature = backbone(torch.randn(2, 3, 33, 41))[0]
    assert feature.shape == (2, backbone.out_channels[0], 9, 11)
    feature.square().sum().backward()
    assert all(p.grad.any() for p in backbone.layer1.parameters())


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match=r"multi_grid=\[4, 8, 16\]: layer4 of resnet18 has 2 blocks"):
        build("resnet18", multi_grid=[4, 8, 16])
    with pytest.raises(ValueError, match="pretrained=imagenet: .* stem=deep;"):
        build("resnet50", stem="deep", pretrained="imagenet")


def test_tiny_has_at_least_four_channels_for_the_head_to_quarter():
    widths = pydantic.TypeAdapter(BACKBONES.schema("resnet_tiny")["widths"].annotation)
    assert widths.validate_python([4, 4, 4, 4]) == [4, 4, 4, 4]
    with pytest.raises(pydantic.ValidationError, match="greater than or equal to 4"):
        widths.validate_python([16, 32, 64, 3])


@pytest.mark.parametrize(("multi_grid", "reach"), [(None, 95), ([4], 175)])
def test_tiny_sees_95_pixels_and_more_with_multi_grid(multi_grid, reach):
    """Each feature depends on exactly the pixels in reach: the gradient of one of them tells."""
    backbone = build("resnet_tiny", multi_grid=multi_grid).double().eval()
    for parameter in backbone.parameters():
        nn.init.constant_(parameter, 0.1)  # all positive, so nothing cancels and no ReLU closes
    for stage, pixels in enumerate([11, 23, 47, reach]):
        image = torch.ones(1, 3, 241, 241, dtype=torch.float64, requires_grad=True)
        feature = backbone(image)[stage]
        feature[0, 0, feature.shape[2] // 2, feature.shape[3] // 2].backward()
        rows, columns = image.grad[0].sum(dim=0).nonzero().T
        assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == pixels


# Pretrained weights.


def save_weights(path: Path, name: str, *, nested: bool = False, **overrides) -> str:
    """Writes weights of the right shapes in a small file: each tensor is one number, expanded."""
    with torch.device("meta"):
        state = BACKBONES[name](**overrides).state_dict()
    weights = {k: torch.tensor(0.5).expand(v.shape) for k, v in state.items() if "num_batches_tracked" not in k}
    weights |= {"fc.weight": torch.zeros(1000, 1), "fc.bias": torch.zeros(1000)}
    torch.save({"state_dict": weights, "epoch": 3} if nested else weights, path)
    return str(path)


@pytest.mark.parametrize("nested", [False, True])
def test_a_file_of_weights_loads(tmp_path, nested):
    backbone = build("resnet18", pretrained=save_weights(tmp_path / "weights.pth", "resnet18", nested=nested))
    assert all((parameter == 0.5).all() for parameter in backbone.parameters())


def test_mmsegmentations_stem_names_load(tmp_path):
    """As in its ResNetV1c: convolutions stem.0, 3, 6 and their normalization stem.1, 4, 7."""
    stored = build("resnet18", stem="deep").state_dict()
    for index, (key, value) in enumerate(stored.items()):
        stored[key] = torch.full_like(value, index)
    stem = {
        **{f"conv1.{index}.": f"stem.{index}." for index in (0, 1, 3, 4, 6)},
        "bn1.": "stem.7.",
    }
    theirs = dict(stored)
    for ours, their in stem.items():
        for key in [key for key in theirs if key.startswith(ours)]:
            theirs[their + key.removeprefix(ours)] = theirs.pop(key)
    assert {key.split(".")[0] for key in theirs} == {"stem", "layer1", "layer2", "layer3", "layer4"}
    path = tmp_path / "weights.pth"
    torch.save(theirs, path)
    loaded = build("resnet18", stem="deep", pretrained=str(path)).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in stored.items())

    with pytest.raises(ValueError, match=r"another stem\. .* unexpected: .*stem\.0\.weight"):
        build("resnet18", pretrained=str(path))
    torch.save(theirs | {"stem.8.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"1 unexpected: stem\.8\.weight$"):
        build("resnet18", stem="deep", pretrained=str(path))
    torch.save(theirs | {"conv1.0.weight": stored["conv1.0.weight"]}, path)  # twice, so one would be ignored
    with pytest.raises(ValueError, match=r"1 unexpected: stem\.0\.weight$"):
        build("resnet18", stem="deep", pretrained=str(path))


@pytest.mark.parametrize(
    ("stored", "overrides", "name", "message"),
    [
        ("resnet101", {}, "resnet50", r"another depth\. 255 unexpected: layer3\.6\.conv1\.weight, "),
        ("resnet18", {}, "resnet34", r"another depth\. .* missing: layer1\.2\.conv1\.weight, "),
        (
            "resnet50",
            {"stem": "deep"},
            "resnet50",
            r"another stem\. 1 missing: conv1\.weight; 11 unexpected: ",
        ),
        ("resnet_tiny", {}, "resnet18", r"with other names than torchvision's\. .* missing: conv1\.weight, "),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_key(tmp_path, stored, overrides, name, message):
    path = save_weights(tmp_path / "weights.pth", stored, **overrides)
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build(name, pretrained=path)


def test_a_wrong_shape_is_refused_by_key(tmp_path):
    path = save_weights(tmp_path / "weights.pth", "resnet18")
    weights = torch.load(path)
    torch.save(weights | {"layer4.1.bn2.weight": torch.zeros(7)}, path)
    with pytest.raises(ValueError, match=r"1 of another shape: layer4\.1\.bn2\.weight$"):
        build("resnet18", pretrained=path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a file of plain tensors"):
        build("resnet18", pretrained=str(path))


def test_imagenet_weights_come_by_name(tmp_path, monkeypatch):
    """From torch's own cache; where they are not there and cannot be downloaded, the text says what to do."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    with pytest.raises(ValueError, match=r"cannot download .*resnet18.* set pretrained to the file, or copy"):
        build("resnet18", pretrained="imagenet")

    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    cached = tmp_path / "hub" / "checkpoints" / Path(url).name
    cached.parent.mkdir(parents=True, exist_ok=True)
    save_weights(cached, "resnet18")
    backbone = build("resnet18", pretrained="imagenet")
    assert all((parameter == 0.5).all() for parameter in backbone.parameters())


# Our own files, and whole models of others.

OWN = {
    "resnet_tiny": {"name": "resnet_tiny", "widths": [8, 8, 8, 16]},
    "resnet18": {"name": "resnet18", "stem": "deep"},
}


@pytest.fixture(scope="module")
def models() -> dict[str, Segmenter]:
    head = {"name": "fcn"}
    return {name: build_model(section, head, 5, auxiliary_head=True, seed=3) for name, section in OWN.items()}


def assert_taken(file: Path, name: str, model: Segmenter) -> None:
    """The backbone is loaded from the file, to the last bit."""
    section = {key: value for key, value in OWN[name].items() if key != "name"}
    loaded = BACKBONES[name](**section, pretrained=str(file)).state_dict()
    own = model.backbone.state_dict()
    assert loaded.keys() == own.keys()
    assert all(torch.equal(loaded[key], value) for key, value in own.items())


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("form", ["run", "averaged", "alone", "safetensors", "model alone", "module.", "net", "others"])
def test_the_backbone_of_a_trained_model_loads(tmp_path, models, name, form):
    model = models[name]
    state, own = model.state_dict(), model.backbone.state_dict()
    file = tmp_path / ("a.safetensors" if form == "safetensors" else "a.pt")
    random = {key: torch.randn(value.shape) for key, value in state.items()}
    if form == "safetensors":
        found = weights.Weights(tensors=state, config=None, class_names=("a",) * 5, palette=(), facts={})
        weights.write(file, found)
    elif form in ("run", "averaged"):
        models_saved = {"model": state, "ema": None} if form == "run" else {"model": random, "ema": state}
        checkpoint.save(file, {"step": 3, "optimizer": {"state": {}}, **models_saved, "class_names": ["a"]})
    else:
        contents = {
            "alone": own,
            "model alone": state,
            "module.": {f"module.{key}": value for key, value in own.items()},
            "net": {"net": {f"module.{key}": value for key, value in state.items()}, "epoch": 3},
            "others": {f"encoder.{key}": v for key, v in own.items()} | {"decoder.0.weight": torch.zeros(3, 3)},
        }
        torch.save(contents[form], file)
    assert_taken(file, name, model)


def test_the_log_says_what_of_a_whole_model_was_taken(tmp_path, models, caplog):
    torch.save(models["resnet_tiny"].state_dict(), tmp_path / "a.pt")
    with caplog.at_level(logging.INFO, "danet"):
        assert_taken(tmp_path / "a.pt", "resnet_tiny", models["resnet_tiny"])
    count = len(models["resnet_tiny"].backbone.state_dict())
    rest = len(models["resnet_tiny"].state_dict()) - count
    assert f"took the {count} tensors under 'backbone' and left out the other {rest}" in caplog.text


def test_a_file_with_two_backbones_is_refused(tmp_path, models):
    own = models["resnet_tiny"].backbone.state_dict()
    torch.save({f"{part}.{key}": value for part in ("query", "key") for key, value in own.items()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt has several backbones, under 'query\.', 'key\.'; leave one of them"):
        BACKBONES["resnet_tiny"](pretrained=str(tmp_path / "a.pt"))


def test_weights_for_bands_are_told_as_such(tmp_path):
    for name in ("resnet_tiny", "resnet18"):
        model = build_model({"name": name}, {"name": "fcn"}, 2, in_channels=4)
        torch.save({"model": model.state_dict(), "step": 1}, tmp_path / "four.pt")
        with pytest.raises(ValueError, match=r"weights for images of 4 channels; .* init_from=FILE"):
            BACKBONES[name](pretrained=str(tmp_path / "four.pt"))


def test_another_backbones_model_is_refused(tmp_path, models):
    torch.save({"model": models["resnet_tiny"].state_dict(), "step": 1}, tmp_path / "tiny.pt")
    torch.save({"model": models["resnet18"].state_dict(), "step": 1}, tmp_path / "18.pt")
    with pytest.raises(ValueError, match=r"tiny\.pt does not fit; probably a file of something else.*missing: conv1\."):
        BACKBONES["resnet18"](pretrained=str(tmp_path / "tiny.pt"))
    with pytest.raises(ValueError, match=r"18\.pt does not fit; probably weights of another stem"):
        BACKBONES["resnet18"](pretrained=str(tmp_path / "18.pt"))
    with pytest.raises(
        ValueError, match=r"tiny\.pt does not fit; probably weights of other widths\. \d+ of another sha"
    ):
        BACKBONES["resnet_tiny"](pretrained=str(tmp_path / "tiny.pt"))


@pytest.mark.parametrize("name", OWN)
def test_weights_that_are_not_finite_are_refused(tmp_path, models, name):
    state = {key: value.clone() for key, value in models[name].state_dict().items()}
    key = next(key for key in state if key.endswith("running_var"))
    state[key][0] = torch.inf
    torch.save({"model": state}, tmp_path / "a.pt")
    bad = key.removeprefix("backbone.")
    section = {key: value for key, value in OWN[name].items() if key != "name"}
    with pytest.raises(ValueError, match=rf"a\.pt: 1 of \d+ tensors have values that are NaN or infinite \({bad}\)"):
        BACKBONES[name](**section, pretrained=str(tmp_path / "a.pt"))
