"""Whole networks, put together from a backbone and a head, against the libraries that have them in one piece."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import load
from danet.config import ConfigError
from danet.interfaces import Stage
from danet.losses.segmentation_loss import build_loss
from danet.model import build_model
from danet.registry import BACKBONES, HEADS

K = 5
IMAGE = torch.randn(2, 3, 65, 97)


def full_size(logits: Tensor) -> Tensor:
    return F.interpolate(logits, IMAGE.shape[-2:], mode="bilinear", align_corners=False)


@pytest.mark.parametrize("decoder", ["fcn", "deeplabv3"])
def test_torchvisions_networks(decoder: str) -> None:
    """Its ResNet-50 network at stride 8, with our backbone's names of weights, which are torchvision's."""
    from torchvision.models import segmentation

    whole: Any = getattr(segmentation, f"{decoder}_resnet50")(weights=None, weights_backbone=None, num_classes=K).eval()
    backbone = BACKBONES["resnet50"](output_stride=8).eval()
    head = HEADS["torchvision"](stages(backbone), K, decoder=decoder).eval()
    backbone.load_state_dict(whole.backbone.state_dict())
    head.classifier.load_state_dict(whole.classifier.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(full_size(head(backbone(IMAGE))["main"]), whole(IMAGE)["out"], rtol=1e-4, atol=1e-4)


def stages(backbone: Any) -> list[Stage]:
    return [Stage(*stage) for stage in zip(backbone.out_channels, backbone.strides, strict=True)]


def test_torchvisions_lraspp() -> None:
    """Its head with its own weights; the last stage of stride 8 is what it calls low."""
    levels = [Stage(16, 4), Stage(24, 8), Stage(40, 8), Stage(96, 16)]
    features = [torch.randn(2, stage.channels, 96 // stage.stride, 64 // stage.stride) for stage in levels]
    head = HEADS["torchvision"](levels, K, decoder="lraspp").eval()
    expected = head.classifier({"low": features[2], "high": features[3]})
    assert torch.equal(head(features)["main"], expected)
    assert expected.shape == (2, K, 12, 8)
    with pytest.raises(ValueError, match="lraspp needs a stage of stride 8 before the last; the strides are 4, 16"):
        HEADS["torchvision"]([Stage(8, 4), Stage(8, 16)], K, decoder="lraspp")


def test_segformer_is_smps() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    whole = smp.Segformer("mit_b0", encoder_weights=None, classes=K).eval()
    backbone = BACKBONES["mit"]().eval()
    head = HEADS["smp"](stages(backbone), K, decoder="segformer").eval()
    backbone.net.load_state_dict(whole.encoder.state_dict())
    head.decoder.load_state_dict(whole.decoder.state_dict())
    head.classifier.load_state_dict(whole.segmentation_head.state_dict())
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        logits = F.interpolate(head(backbone(image))["main"], image.shape[-2:], mode="bilinear", align_corners=True)
        torch.testing.assert_close(logits, whole(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "millions"), [("full", 44.0099), ("small", 1.1312)])
def test_u2net_has_the_authors_parameters(size: str, millions: float) -> None:
    """With one class: 44,009,869 and 1,131,181, by the authors' files u2net.pth and u2netp.pth."""
    with torch.device("meta"):
        backbone = BACKBONES["u2net"](size=size)
        head = HEADS["u2net"](stages(backbone), 1)
    count = sum(parameter.numel() for part in (backbone, head) for parameter in part.parameters())
    assert count == pytest.approx(millions * 1e6, abs=50)
    names = {key for part in (backbone, head) for key in part.state_dict()}
    assert {"stage1.rebnconv7.conv_s1.weight", "stage5d.rebnconv1d.bn_s1.bias", "side6.bias", "outconv.weight"} <= names


def conv(net: nn.Module, name: str, x: Tensor) -> Tensor:
    """One of U2-Net's convolutions in evaluation, by its parts."""
    tensors = {key.removeprefix(f"{name}."): v for key, v in net.state_dict().items() if key.startswith(f"{name}.")}
    (rate,) = {m.dilation[0] for m in net.get_submodule(name).modules() if isinstance(m, nn.Conv2d)}
    x = F.conv2d(x, tensors["conv_s1.weight"], tensors["conv_s1.bias"], padding=rate, dilation=rate)
    statistics = tensors["bn_s1.running_mean"], tensors["bn_s1.running_var"]
    return F.batch_norm(x, *statistics, tensors["bn_s1.weight"], tensors["bn_s1.bias"]).relu()


def test_a_residual_u_block_is_figure_2s() -> None:
    """RSU-4 and RSU-4F, written out."""
    from danet.backbones.u2net import ResidualUBlock

    def up(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)

    x = torch.randn(1, 6, 21, 33)
    for dilated in (False, True):
        net = ResidualUBlock(4, 6, 4, 8, dilated=dilated).eval()
        rates = [m.dilation[0] for m in net.modules() if isinstance(m, nn.Conv2d)]
        assert rates == ([1, 1, 2, 4, 8, 4, 2, 1] if dilated else [1, 1, 1, 1, 2, 1, 1, 1])
        start = conv(net, "rebnconvin", x)
        first = conv(net, "rebnconv1", start)
        second = conv(net, "rebnconv2", first if dilated else F.max_pool2d(first, 2, ceil_mode=True))
        third = conv(net, "rebnconv3", second if dilated else F.max_pool2d(second, 2, ceil_mode=True))
        fourth = conv(net, "rebnconv4", third)
        y = conv(net, "rebnconv3d", torch.cat([fourth, third], 1))
        y = conv(net, "rebnconv2d", torch.cat([up(y, second), second], 1))
        y = conv(net, "rebnconv1d", torch.cat([up(y, first), first], 1))
        torch.testing.assert_close(net(x), y + start)


def test_u2nets_seven_outputs_train() -> None:
    model = build_model({"name": "u2net", "size": "small"}, {"name": "u2net"}, K).train()
    outputs = model(torch.rand(2, 3, 41, 59) * 255)
    assert {name: tuple(x.shape[2:]) for name, x in outputs.items()} == {
        "main": (41, 59),
        **{f"side{i}": (-(-41 // 2 ** (i - 1)), -(-59 // 2 ** (i - 1))) for i in range(1, 7)},
    }
    loss = build_loss({"name": "cross_entropy"}, K, list)
    terms = loss(outputs, torch.randint(0, K, (2, 41, 59)), align_corners=model.align_corners)
    assert {name: term.weight for name, term in terms.items()} == dict.fromkeys(outputs, 1.0)
    assert model.eval()(torch.zeros(1, 3, 41, 59)).keys() == {"main"}


def test_u2nets_weights_are_read_from_the_authors_names(tmp_path: Any) -> None:
    source = build_model({"name": "u2net", "size": "small"}, {"name": "u2net"}, 1)
    tensors = {**source.backbone.state_dict(), **source.head.state_dict()}
    torch.save(tensors, tmp_path / "u2netp.pth")
    backbone = BACKBONES["u2net"](size="small", pretrained=str(tmp_path / "u2netp.pth"))
    assert all(torch.equal(value, tensors[key]) for key, value in backbone.state_dict().items())
    with pytest.raises(ValueError, match="weights of the other size"):
        BACKBONES["u2net"](size="full", pretrained=str(tmp_path / "u2netp.pth"))


def test_dfanet_has_the_papers_operations() -> None:
    """3.4 billion multiply-adds for 1024 x 1024 pixels, without the decoder's 0.3."""
    from danet.analysis.summary import summarize

    with torch.device("meta"):
        model = build_model({"name": "dfanet"}, {"name": "dfanet"}, 19)
    parts = {part.name: part.flops for part in summarize(model, (1024, 1024)).parts}
    assert sum(count for name, count in parts.items() if name.startswith("backbone")) / 2e9 == pytest.approx(
        3.4, abs=0.05
    )


def test_dfanets_passes_start_from_what_the_one_before_gave() -> None:
    """Figure 3, written out for the second pass."""
    net: Any = BACKBONES["dfanet"]().eval()
    image = torch.randn(1, 3, 97, 131)
    enc2, enc3, enc4, gate = net.stage1
    second2, second3, second4, second_gate = net.stage2
    a2 = enc2(net.stem(image))
    a3 = enc3(a2)
    a4 = enc4(a3)
    gated = gate(a4)
    b2 = second2(torch.cat([F.interpolate(gated, a2.shape[-2:], mode="bilinear", align_corners=False), a2], 1))
    b4 = second4(torch.cat([second3(torch.cat([b2, a3], 1)), a4], 1))
    features = net(image)
    for index, expected in ((0, a2), (1, b2), (3, gated), (4, second_gate(b4))):
        torch.testing.assert_close(features[index], expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        ({"name": "timm", "model": "convnext_atto"}, {"name": "smp", "decoder": "unet"}),
        ({"name": "timm", "model": "mobilenetv2_035", "output_stride": 16}, {"name": "smp", "decoder": "pan"}),
        ({"name": "u2net", "size": "small"}, {"name": "u2net"}),
    ],
    ids=lambda section: section["name"],
)
def test_onnx_files_take_odd_sizes(backbone: dict[str, Any], head: dict[str, Any], tmp_path: Path) -> None:
    """Where sizes are rounded up and maps are padded and cut."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("segmentation_models_pytorch")
    model = build_model(backbone, head, K).eval()
    free = torch.export.Dim.DYNAMIC
    example = torch.rand(2, 3, 128, 192) * 255
    program = torch.onnx.export(model, (example,), dynamo=True, dynamic_shapes=({0: free, 2: free, 3: free},))
    assert program is not None
    program.save(tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    for size in ((1, 3, 129, 163), (2, 3, 97, 210)):
        image = torch.rand(size) * 255
        (logits,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(image)["main"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("library", "overrides"),
    [
        ("timm", ["backbone=timm"]),
        ("segmentation_models_pytorch", ["backbone=mit"]),
        ("segmentation_models_pytorch", ["head=smp"]),
    ],
    ids=str,
)
def test_a_missing_library_is_a_configuration_error(
    library: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [library, *(name for name in sys.modules if name.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install 'danet\[models\]'"):
        load(overrides, probe=True)
