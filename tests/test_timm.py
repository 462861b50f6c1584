"""backbone=timm against timm itself: features, strides, weights under three names, refusals."""

import copy
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from conftest import load
from danet.config import REPOSITORY, ConfigError
from danet.model import build_model
from danet.registry import BACKBONES
from danet.services.synchronized_batchnorm import SummedBatchNorm, synchronize_batchnorm

timm = pytest.importorskip("timm")

SMALL = "mobilenetv2_035"  # the smallest of the family
PRESETS = [p.stem for p in sorted((REPOSITORY / "conf" / "backbone").glob("*.yaml")) if "name: timm" in p.read_text()]


def build(**options: Any) -> Any:
    return BACKBONES["timm"](**options).eval()


@pytest.mark.parametrize("preset", PRESETS)
def test_features_have_the_declared_channels_and_sizes(preset: str) -> None:
    section = yaml.safe_load((REPOSITORY / "conf" / "backbone" / f"{preset}.yaml").read_text())
    with torch.device("meta"):
        backbone = build(**{key: value for key, value in section.items() if key != "name"})
        features = backbone(torch.empty(2, 3, 83, 101))
    for feature, channels, stride in zip(features, backbone.out_channels, backbone.strides, strict=True):
        assert feature.shape == (2, channels, math.ceil(83 / stride), math.ceil(101 / stride))


@pytest.mark.parametrize("model", [SMALL, "resnet10t", "convnext_atto", "vit_tiny_patch16_224"])
def test_features_are_timms_own(model: str, tmp_path: Path) -> None:
    """At a size that needs no padding, with the same weights."""
    whole = timm.create_model(model).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    image = torch.randn(1, 3, 224, 224)
    features = build(model=model, pretrained=str(tmp_path / "weights.pt"))(image)
    taps = [2, 5, 8, 11] if model.startswith("vit") else None
    expected = whole.forward_intermediates(image, indices=taps, intermediates_only=True)
    for feature, reference in zip(features[-3:], expected[-3:], strict=True):
        torch.testing.assert_close(feature, reference, rtol=1e-4, atol=1e-4)


def test_a_graph_for_free_sizes_has_tensorflows_padding() -> None:
    """That of EfficientNet-Lite0, by a kernel of 3 and of 5, before it is dilated and after: PyTorch did not end."""
    network = timm.create_model("tf_efficientnet_lite0", features_only=True, output_stride=16).eval()
    backbone = build(model="tf_efficientnet_lite0", output_stride=16)
    backbone.net.load_state_dict(network.state_dict())
    free = torch.export.Dim.DYNAMIC
    graph = torch.export.export(backbone, (torch.zeros(1, 3, 128, 168),), dynamic_shapes=({2: free, 3: free},)).module()
    for size in ((97, 131), (90, 120), (45, 60), (64, 64)):
        image = torch.randn(1, 3, *size)
        for feature, reference, own in zip(graph(image), network(image), backbone(image), strict=True):
            assert torch.equal(own, reference)
            torch.testing.assert_close(feature, reference)


def test_a_network_that_needs_whole_strides_is_padded_with_its_mean_color() -> None:
    backbone = build(model="hrnet_w18_small")
    image = torch.randn(1, 3, 40, 50)
    padded = torch.zeros(1, 3, 64, 64)
    padded[:, :, :40, :50] = image
    for feature, whole in zip(backbone(image), backbone.net(padded), strict=True):
        assert torch.equal(feature, whole[:, :, : feature.shape[2], : feature.shape[3]])


@pytest.mark.parametrize("stride", [8, 16])
def test_dilation_keeps_the_resolution(stride: int) -> None:
    backbone = build(model=SMALL, output_stride=stride)
    assert backbone.strides[-1] == stride
    assert backbone(torch.zeros(1, 3, 64, 96))[-1].shape[2:] == (64 // stride, 96 // stride)


def test_mean_and_deviation_are_the_networks_own() -> None:
    assert build(model="tf_efficientnet_lite0").mean == (127.5, 127.5, 127.5)
    assert build(model=SMALL).std == pytest.approx((58.395, 57.12, 57.375))


@pytest.mark.parametrize("naming", ["timm", "features", "other", "run"])
def test_weights_under_any_names(naming: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = timm.create_model(SMALL).eval()
    tensors = whole.state_dict()
    if naming == "features":
        tensors = build(model=SMALL, pretrained=str(_saved(tensors, tmp_path / "a.pt"))).net.state_dict()
    elif naming == "other":
        tensors = {f"layer.{i}": value for i, (key, value) in enumerate(tensors.items()) if "num_batches" not in key}
    elif naming == "run":
        model = build_model({"name": "timm", "model": SMALL}, {"name": "fcn"}, 5)
        tensors = model.state_dict()
    file = _saved(tensors, tmp_path / "b.pt")
    with caplog.at_level(logging.INFO, logger="danet"):
        backbone = build(model=SMALL, output_stride=16, pretrained=str(file))
    source = model.backbone.net.conv_stem.weight if naming == "run" else whole.conv_stem.weight
    assert torch.equal(backbone.net.conv_stem.weight, source)
    last = "blocks.6.0.bn3.running_var"
    assert torch.equal(
        backbone.net.state_dict()[last], (model.backbone.net if naming == "run" else whole).state_dict()[last]
    )
    assert ("order and shape" in caplog.text) == (naming == "other")


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3", "convnext_atto", "regnetx_002"])
def test_a_runs_backbone_is_taken_whatever_its_names(model: str, tmp_path: Path) -> None:
    """Networks for feature maps have names of their own, under which timm would load nothing into a ViT."""
    source = build_model({"name": "timm", "model": model}, {"name": "fcn"}, 5, seed=1)
    taken = build(model=model, pretrained=str(_saved(source.state_dict(), tmp_path / "best.pt")))
    expected = source.backbone.net.state_dict()
    assert taken.net.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in taken.net.state_dict().items())


def test_a_network_without_layer_groups_says_so() -> None:
    with pytest.raises(ValueError, match="timm has no layer groups of model=poolformer_s12; leave freeze and"):
        build(model="poolformer_s12", freeze=1)


def _saved(tensors: dict[str, torch.Tensor], file: Path) -> Path:
    torch.save(dict(tensors), file)
    return file


def test_a_file_that_does_not_fit_lists_the_keys(tmp_path: Path) -> None:
    file = _saved(timm.create_model("resnet10t").state_dict(), tmp_path / "resnet.pt")
    with pytest.raises(
        ValueError, match=rf"does not fit {SMALL}.*missing: conv_stem.weight.*unexpected: conv1.0.weight"
    ):
        build(model=SMALL, pretrained=str(file))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["backbone.model=mobilenetv2_99"], "model=mobilenetv2_99: not in timm .*did you mean 'mobilenetv2_"),
        (["backbone=hrnet_w18", "backbone.output_stride=8"], "output_stride=8: hrnet_w18 cannot be dilated"),
        (["backbone=vit_small", "backbone.output_stride=16"], "vit_small_patch16_224 cannot be dilated"),
        (["backbone.model=beit_base_patch16_224"], "cannot segment images of any size .it takes only 224 x 224 pixels"),
        (["backbone.model=inception_v3"], "its feature maps are not ceil.size / stride"),
        (["backbone=hrnet_w18", "runtime.recompute=true"], "runtime.recompute = True: backbone timm cannot recompute"),
    ],
    ids=str,
)
def test_what_a_network_cannot_do_is_a_configuration_error(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(["backbone=timm", *overrides], probe=True)


@pytest.mark.slow
def test_a_run_trains_and_goes_on_without_the_file(tmp_path: Path, outputs: Path) -> None:
    from danet.training import run

    file = _saved(timm.create_model(SMALL).state_dict(), tmp_path / "weights.pt")
    short = ["train.batch_size=2", "dataset.size=64", "dataset.train_images=4", "dataset.val_images=2"]
    every = ["train.steps=4", "train.save_every=2", "train.eval_every=4", "runtime.num_workers=0", "tracking=disabled"]
    options = ["backbone=timm", f"backbone.model={SMALL}", f"backbone.pretrained={file}", *short, *every]
    outcome = run.start(load(options, probe=True))
    (outcome.folder / "checkpoints" / "step_00000004.pt").unlink()
    (outcome.folder / "result.json").unlink()
    before = torch.load(outcome.folder / "checkpoints" / "best.pt", weights_only=True)["model"]
    file.unlink()
    again = run.start(load([f"resume={outcome.folder}"]))
    after = torch.load(again.folder / "checkpoints" / "best.pt", weights_only=True)["model"]
    assert again.finished
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_network_with_channels_last_gives_them_first() -> None:
    model = timm.create_model("swin_tiny_patch4_window7_224", strict_img_size=False).eval()
    backbone = build(model="swin_tiny_patch4_window7_224")
    backbone.net.load_state_dict({_part(key): value for key, value in model.state_dict().items()}, strict=False)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = backbone(image)
        expected = model.forward_intermediates(image, intermediates_only=True)
    assert [feature.shape[1] for feature in features] == [96, 192, 384, 768]
    for feature, reference in zip(features, expected, strict=True):
        torch.testing.assert_close(feature, reference, rtol=1e-4, atol=1e-4)


def _part(key: str) -> str:
    return key.replace("layers.", "layers_")


def test_hrnet_gives_its_four_resolutions_as_they_are() -> None:
    with torch.device("meta"):
        backbone = build(model="hrnet_w18")
    assert backbone.out_channels == (64, 18, 36, 72, 144)  # the paper's; the classifier's copies are 128 to 1024 wide


@pytest.mark.parametrize("model", [SMALL, "resnet10t", "convnext_atto", "vit_tiny_patch16_224"])
def test_recomputing_changes_no_value(model: str) -> None:
    """Gradients and running statistics after three forward and backward passes."""

    def trained(recompute: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        backbone = BACKBONES["timm"](model=model).train()
        if recompute:
            backbone.recompute = True
        for _ in range(3):
            torch.stack([x.square().mean() for x in backbone(torch.randn(2, 3, 64, 64))]).sum().backward()
        gradients = {f"{name}'s gradient": p.grad for name, p in backbone.named_parameters() if p.grad is not None}
        statistics = {key: x for key, x in backbone.state_dict().items() if "num_batches" not in key}
        return {**gradients, **statistics}

    plain, recomputed = trained(False), trained(True)
    assert plain.keys() == recomputed.keys()
    for key, value in plain.items():
        torch.testing.assert_close(recomputed[key], value, rtol=1e-5, atol=1e-6, msg=key)


def test_names_that_contradict_each_other_do_not_match_by_shape(tmp_path: Path) -> None:
    """As in files that list a batch norm's four tensors, of one shape, alphabetically."""
    tensors = timm.create_model(SMALL).state_dict()
    swapped = {".weight": ".bias", ".bias": ".weight"}
    wrong = {}
    for index, (key, value) in enumerate(tensors.items()):
        end = key[key.rindex(".") :]
        wrong[f"layer.{index}{swapped.get(end, end) if value.ndim == 1 else end}"] = value
    with pytest.raises(ValueError, match="does not fit"):
        build(model=SMALL, pretrained=str(_saved(wrong, tmp_path / "a.pt")))


def test_a_legacy_file_is_read(tmp_path: Path) -> None:
    """The form of torch.save before PyTorch 1.6, without counters and with wrappers' prefixes."""
    whole = timm.create_model(SMALL)
    tensors = {f"module.{k}": v for k, v in whole.state_dict().items() if "num_batches" not in k}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    backbone = build(model=SMALL, pretrained=str(tmp_path / "old.pth"))
    assert torch.equal(backbone.net.conv_stem.weight, whole.conv_stem.weight)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_synchronized_batch_norm_keeps_the_activation_inside(device: str, tmp_path: Path) -> None:
    """In timm's networks a batch norm calls its activation; of a group of one process nothing else changes."""
    backbone = build(model=SMALL).double()  # as batch statistics of few values magnify rounding
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    training = device == "cpu"  # PyTorch's layer for GPUs computes on a CPU in evaluation alone
    expected = copy.deepcopy(backbone).train(training)(images)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        synchronize_batchnorm(backbone, torch.device(device))
        kind = SummedBatchNorm if training else nn.SyncBatchNorm
        assert isinstance(backbone.net.bn1, kind)
        for feature, reference in zip(backbone.train(training)(images), expected, strict=True):
            torch.testing.assert_close(feature, reference)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("model", [SMALL, "tf_efficientnet_lite0"])
def test_depthwise_convolutions_have_the_gradients_of_float32(model: str) -> None:
    """In bfloat16 on a CPU PyTorch's own depend on what memory held before, and were infinite in a real run."""
    torch.manual_seed(0)
    backbone = BACKBONES["timm"](model=model, output_stride=8).train()
    depthwise = [conv for conv in backbone.modules() if isinstance(conv, torch.nn.Conv2d) and conv.groups > 1]
    assert {max(conv.dilation) for conv in depthwise} >= {1, 2}
    for conv in depthwise:
        x = torch.randn(2, conv.in_channels, 16, 20).contiguous(memory_format=torch.channels_last)
        gradients = []
        for enabled in (True, False):
            conv.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                output = conv(x)
                assert torch.is_autocast_enabled("cpu") == enabled
            output.square().sum().backward()
            gradients.append(conv.weight.grad.clone())
        assert output.dtype == torch.float32
        torch.testing.assert_close(*gradients)


def test_torchvisions_mobilenet_gives_its_own_features(tmp_path: Path) -> None:
    """Its names are not timm's; order and shapes are."""
    from torchvision.models import mobilenet_v2

    whole = mobilenet_v2(weights=None).eval()
    backbone = build(model="mobilenetv2_100", pretrained=str(_saved(whole.state_dict(), tmp_path / "torchvision.pth")))
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image)[-1], whole.features[:18](image), rtol=1e-4, atol=1e-5)


def test_without_a_network_the_remedy_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(*arguments: Any, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise OSError("no route to host")
        return create(*arguments, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        ValueError, match=r"pretrained=true: the weights .* cannot be downloaded \(no route to host\).*pretrained=FILE"
    ):
        build(model=SMALL, pretrained=True)


def test_weights_that_cannot_be_had_are_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's client alone would try for more than a minute."""
    from huggingface_hub import constants

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    asked: list[bool] = []
    create = timm.create_model

    def watched(*arguments: Any, **options: Any) -> Any:
        asked.append(constants.HF_HUB_OFFLINE)
        return create(*arguments, **options)

    monkeypatch.setattr(timm, "create_model", watched)
    with pytest.raises(ValueError, match=r"pretrained=true: the weights .* backbone.pretrained=FILE.*=false"):
        build(model="mobilenetv2_050", pretrained=True)
    assert asked[-1] is True
    assert constants.HF_HUB_OFFLINE is False
