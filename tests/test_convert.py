"""Weights of other code: layouts written out key by key, with reference computations for them.

The layouts are those of the official DANet code, of mmsegmentation, of torchvision and of the article. Real files of
them are not at hand here; mmsegmentation's own code is, where it is installed (see mmseg_peer.py).

Shapes: B images, C channels, H x W size, N = H * W positions, K classes.
"""

import errno
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import nn

import danet
import danet.config
import mmseg_peer
from conftest import environment
from danet.config import REPOSITORY
from danet.model import build_model
from danet.registry import BACKBONES, DATASETS
from danet.schema import ConfigError
from danet.services import failures, safe_pickle, weights
from danet.tools.convert import architecture, foreign
from danet.tools.convert import mmseg as mmseg_models
from danet.tools.convert.conversion import convert
from danet.tools.convert.options import ConvertConfig
from danet.tools.convert.report import ConversionReport
from test_attention_heads import MMSEG, mmseg_settings, without_compiled_operations

State = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]

MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}

# ---- the foreign layouts, key by key ---------------------------------------------------------------------------------


def norm(name: str, width: int) -> Shapes:
    shapes: Shapes = {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {f"{name}.num_batches_tracked": ()}


def conv(name: str, out_channels: int, in_channels: int, size: int, *, bias: bool = False) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (out_channels, in_channels, size, size)}
    return shapes | ({f"{name}.bias": (out_channels,)} if bias else {})


def stages(prefix: str, depth: int, channels: int = 64) -> Shapes:
    """layer1 to layer4 of a ResNet whose stem gives `channels`."""
    shapes: Shapes = {}
    for stage, (blocks, width) in enumerate(zip(BLOCKS[depth], (64, 128, 256, 512), strict=True), start=1):
        for index in range(blocks):
            block, out = f"{prefix}layer{stage}.{index}", width * (4 if depth >= 50 else 1)
            if depth >= 50:
                shapes |= conv(f"{block}.conv1", width, channels, 1) | norm(f"{block}.bn1", width)
                shapes |= conv(f"{block}.conv2", width, width, 3) | norm(f"{block}.bn2", width)
                shapes |= conv(f"{block}.conv3", out, width, 1) | norm(f"{block}.bn3", out)
            else:
                shapes |= conv(f"{block}.conv1", width, channels, 3) | norm(f"{block}.bn1", width)
                shapes |= conv(f"{block}.conv2", width, width, 3) | norm(f"{block}.bn2", width)
            if index == 0 and (channels != out or stage > 1):
                shapes |= conv(f"{block}.downsample.0", out, channels, 1) | norm(f"{block}.downsample.1", out)
            channels = out
    return shapes


def plain_resnet(prefix: str, depth: int) -> Shapes:
    return conv(f"{prefix}conv1", 64, 3, 7) | norm(f"{prefix}bn1", 64) | stages(prefix, depth)


def wide_stem_resnet(prefix: str, depth: int) -> Shapes:
    """The official code's of 2020: three convolutions of widths 64, 64, 128."""
    stem = conv(f"{prefix}conv1.0", 64, 3, 3) | norm(f"{prefix}conv1.1", 64)
    stem |= conv(f"{prefix}conv1.3", 64, 64, 3) | norm(f"{prefix}conv1.4", 64)
    stem |= conv(f"{prefix}conv1.6", 128, 64, 3) | norm(f"{prefix}bn1", 128)
    return stem | stages(prefix, depth, channels=128)


def mmseg_resnet(prefix: str, depth: int) -> Shapes:
    """ResNetV1c."""
    stem = conv(f"{prefix}stem.0", 32, 3, 3) | norm(f"{prefix}stem.1", 32)
    stem |= conv(f"{prefix}stem.3", 32, 32, 3) | norm(f"{prefix}stem.4", 32)
    stem |= conv(f"{prefix}stem.6", 64, 32, 3) | norm(f"{prefix}stem.7", 64)
    return stem | stages(prefix, depth)


def official(depth: int = 18, num_classes: int = 19, *, wide_stem: bool = False) -> Shapes:
    c = 512 if depth >= 50 else 128
    shapes = (wide_stem_resnet if wide_stem else plain_resnet)("pretrained.", depth)
    for name in ("head.conv5a", "head.conv5c"):
        shapes |= conv(f"{name}.0", c, 4 * c, 3) | norm(f"{name}.1", c)
    shapes |= {"head.sa.gamma": (1,), "head.sc.gamma": (1,)}
    shapes |= conv("head.sa.query_conv", c // 8, c, 1, bias=True) | conv("head.sa.key_conv", c // 8, c, 1, bias=True)
    shapes |= conv("head.sa.value_conv", c, c, 1, bias=True)
    for name in ("head.conv51", "head.conv52"):
        shapes |= conv(f"{name}.0", c, c, 3) | norm(f"{name}.1", c)
    for name in ("head.conv6.1", "head.conv7.1", "head.conv8.1"):
        shapes |= conv(name, num_classes, c, 1, bias=True)
    return shapes


def mmseg(depth: int = 18, num_classes: int = 19, *, auxiliary: bool = True) -> Shapes:
    c = 512 if depth >= 50 else 128
    shapes, head = mmseg_resnet("backbone.", depth), "decode_head."
    for name in ("pam_in_conv", "cam_in_conv"):
        shapes |= conv(f"{head}{name}.conv", c, 4 * c, 3) | norm(f"{head}{name}.bn", c)
    for name in ("pam_out_conv", "cam_out_conv"):
        shapes |= conv(f"{head}{name}.conv", c, c, 3) | norm(f"{head}{name}.bn", c)
    for name, width in (("query", c // 8), ("key", c // 8), ("value", c)):
        shapes |= conv(f"{head}pam.{name}_project", width, c, 1, bias=True)
    shapes |= {f"{head}pam.gamma.scale": (), f"{head}cam.gamma.scale": ()}
    for name in ("conv_seg", "pam_conv_seg", "cam_conv_seg"):
        shapes |= conv(f"{head}{name}", num_classes, c, 1, bias=True)
    if auxiliary:
        aux = conv("auxiliary_head.convs.0.conv", c // 2, 2 * c, 3) | norm("auxiliary_head.convs.0.bn", c // 2)
        shapes |= aux | conv("auxiliary_head.conv_seg", num_classes, c // 2, 1, bias=True)
    return shapes


def article(depth: int = 18, num_classes: int = 32) -> Shapes:
    c, head = (512 if depth >= 50 else 128), "decoder."
    shapes = plain_resnet("ResNet50.", depth)
    for name in ("conv1", "conv2"):
        shapes |= conv(f"{head}{name}.0", c, 4 * c, 3) | norm(f"{head}{name}.1", c)
    shapes |= conv(f"{head}conv3.0", c, c, 3) | norm(f"{head}conv3.1", c)
    shapes |= conv(f"{head}conv4.0", c // 2, c, 3) | norm(f"{head}conv4.1", c // 2)
    shapes |= conv(f"{head}conv4.3", num_classes, c // 2, 3)
    for name in ("convB", "convC", "convD"):
        shapes |= conv(f"{head}PositionAttention.{name}", c, c, 1)
    return shapes | {f"{head}PositionAttention.gamma": (1,), f"{head}ChannelAttention.beta": (1,)}


def draw(shapes: Shapes) -> State:
    """Random values that keep activations moderate; no factor of an attention is 0."""
    holder = nn.Module()
    for name, shape in shapes.items():
        dtype = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
        holder.register_buffer(name.replace(".", "/"), torch.zeros(shape, dtype=dtype))
    mmseg_peer.randomize(holder)
    return {name.replace("/", "."): value for name, value in holder.state_dict().items()}


def fill(shapes: Shapes) -> State:
    """Another number for every tensor, held once: small files where the values need no meaning."""
    numbers = enumerate(shapes.items(), start=1)
    types = {True: torch.int64, False: torch.float32}
    return {
        name: torch.tensor(number, dtype=types[name.endswith("num_batches_tracked")]).expand(shape)
        for number, (name, shape) in numbers
    }


# ---- reference computations ------------------------------------------------------------------------------------------


def batch_norm(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    weight, bias, mean, var = (
        state[f"{name}.{part}"].view(-1, 1, 1) for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias


def official_backbone(state: State, x: torch.Tensor, layer4: tuple[int, int, int]) -> torch.Tensor:
    """The last feature map at stride 8, of a ResNet with bottlenecks and a 7x7 stem."""
    x = F.conv2d(x, state["pretrained.conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(F.relu(batch_norm(state, "pretrained.bn1", x)), 3, stride=2, padding=1)
    dilations = {1: [1] * 3, 2: [1] * 4, 3: [1] + [2] * 5, 4: layer4}
    for stage, dilated in dilations.items():
        for index, dilation in enumerate(dilated):
            name = f"pretrained.layer{stage}.{index}"
            stride = 2 if stage == 2 and index == 0 else 1
            y = F.relu(batch_norm(state, f"{name}.bn1", F.conv2d(x, state[f"{name}.conv1.weight"])))
            y = F.conv2d(y, state[f"{name}.conv2.weight"], stride=stride, padding=dilation, dilation=dilation)
            y = F.conv2d(F.relu(batch_norm(state, f"{name}.bn2", y)), state[f"{name}.conv3.weight"])
            if index == 0:
                x = F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
                x = batch_norm(state, f"{name}.downsample.1", x)
            x = F.relu(batch_norm(state, f"{name}.bn3", y) + x)
    return x


def official_head(state: State, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits "main", "pam" and "cam" without dropout: (B, 4C, H, W) -> (B, K, H, W) each."""

    def block(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.relu(batch_norm(state, f"head.{name}.1", F.conv2d(x, state[f"head.{name}.0.weight"], padding=1)))

    def point(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, state[f"head.{name}.weight"], state[f"head.{name}.bias"])

    a = block("conv5a", x)
    query, key, value = (point(f"sa.{name}_conv", a).flatten(2) for name in ("query", "key", "value"))
    weights_of_positions = torch.softmax(torch.bmm(query.transpose(1, 2), key), dim=-1)  # (B, N, N)
    a = state["head.sa.gamma"] * torch.bmm(value, weights_of_positions.transpose(1, 2)).view_as(a) + a
    c = block("conv5c", x)
    energy = torch.bmm(c.flatten(2), c.flatten(2).transpose(1, 2))
    weights_of_channels = torch.softmax(energy.max(dim=-1, keepdim=True).values - energy, dim=-1)  # (B, C, C)
    c = state["head.sc.gamma"] * torch.bmm(weights_of_channels, c.flatten(2)).view_as(c) + c
    a, c = block("conv51", a), block("conv52", c)
    return point("conv8.1", a + c), point("conv6.1", a), point("conv7.1", c)


def article_head(state: State, x: torch.Tensor) -> torch.Tensor:
    def block(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.relu(batch_norm(state, f"decoder.{name}.1", F.conv2d(x, state[f"decoder.{name}.0.weight"], padding=1)))

    a, c = block("conv1", x), block("conv2", x)
    b = F.conv2d(a, state["decoder.PositionAttention.convB.weight"]).flatten(2)
    positions = torch.softmax(b.transpose(1, 2) @ b, dim=2)
    a = state["decoder.PositionAttention.gamma"] * (b @ positions.transpose(1, 2)).view_as(a) + a
    channels = torch.softmax(c.flatten(2) @ c.flatten(2).transpose(1, 2), dim=2)
    c = state["decoder.ChannelAttention.beta"] * (channels.transpose(1, 2) @ c.flatten(2)).view_as(c) + c
    y = F.interpolate(block("conv3", a + c), scale_factor=8, mode="bilinear", align_corners=True)
    return F.conv2d(block("conv4", y), state["decoder.conv4.3.weight"], padding=1)


# ---- helpers ---------------------------------------------------------------------------------------------------------


def run(
    tmp_path: Path, source: str, content: Any, out: str = "out.safetensors", **options: Any
) -> tuple[Path, ConversionReport]:
    """Convert what torch.save writes of `content`."""
    file = tmp_path / "in.pth"
    torch.save(content, file, _use_new_zipfile_serialization=options.pop("zipped", True))
    report = convert(ConvertConfig(from_=source, in_=str(file), out=str(tmp_path / out), **options))
    return tmp_path / out, report


def back(tmp_path: Path, file: Path, to: str) -> dict[str, Any]:
    convert(ConvertConfig(from_="danet", in_=str(file), out=str(tmp_path / "back.pth"), to=to))
    return torch.load(tmp_path / "back.pth", weights_only=True)


def assert_same_bits(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype, key
        assert one[key].shape == other[key].shape, key
        assert torch.equal(one[key], other[key]), key


def assert_refused(tmp_path: Path, source: str, content: Any, *texts: str, **options: Any) -> None:
    """A ValueError that names the file and says every text, and nothing is written."""
    with pytest.raises(ValueError, match="in.pth: ") as refusal:
        run(tmp_path, source, content, **options)
    assert [text for text in texts if text not in str(refusal.value)] == [], str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


def problems(tmp_path: Path, **keys: Any) -> str:
    """What the check of the configuration says of changes to a good one, as the script does it."""
    file = tmp_path / "in.pth"
    file.touch()
    keys = {"from": "official", "in": file, "out": tmp_path / "out.safetensors"} | keys
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        composed = compose("convert", overrides=[f"{key}={value}" for key, value in keys.items()])
    with pytest.raises(ConfigError) as error:
        danet.config.load_as(ConvertConfig, composed)
    return str(error.value)


@pytest.fixture(autouse=True)
def _clear(tmp_path: Path) -> Any:
    """The files are large, and pytest keeps the folders of several sessions."""
    yield
    for path in tmp_path.iterdir():
        path.unlink()


IMAGE = torch.randint(0, 256, (1, 3, 33, 41), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))

# ---- the official code -----------------------------------------------------------------------------------------------


def test_the_official_model_gives_the_same_logits_and_labels(tmp_path: Path) -> None:
    state = draw(official(depth=50))
    container = {"epoch": 239, "state_dict": state, "optimizer": {"state": {}}, "best_pred": 0.81}
    file, report = run(tmp_path, "official", container, dataset={"name": "cityscapes"})
    loaded = danet.load(file, device="cpu", precision="fp32")
    with torch.no_grad():
        expected = official_head(state, official_backbone(state, (IMAGE - MEAN) / STD, (4, 8, 16)))[0]
        logits = loaded.model(IMAGE)["main"]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    upsampled = F.interpolate(expected, (33, 41), mode="bilinear", align_corners=True)
    assert (torch.tensor(loaded.predict(IMAGE[0])) == upsampled[0].argmax(dim=0)).float().mean() > 0.999
    assert loaded.class_names == DATASETS["cityscapes"].class_names
    assert loaded.palette == DATASETS["cityscapes"].palette
    assert "[4, 8, 16] (assumed" in report.summary()


@pytest.mark.parametrize("wide_stem", [False, True])
def test_the_official_branches_are_the_training_outputs(tmp_path: Path, wide_stem: bool) -> None:
    state = draw(official(num_classes=5, wide_stem=wide_stem))
    file, _ = run(tmp_path, "official", state)
    head = danet.load(file, device="cpu").model.head.train()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout2d):
            module.eval()
    features = torch.rand(2, 512, 5, 7)
    with torch.no_grad():
        logits = head([features])
        for name, expected in zip(("main", "pam", "cam"), official_head(state, features), strict=True):
            torch.testing.assert_close(logits[name], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("wide_stem", [False, True])
def test_the_official_layout_comes_back_bit_identical(tmp_path: Path, wide_stem: bool) -> None:
    state = fill(official(wide_stem=wide_stem))
    state["head.conv8.1.bias"] = state["head.conv8.1.bias"].half()  # types are kept, too
    file, _ = run(tmp_path, "official", {"state_dict": state})
    assert_same_bits(back(tmp_path, file, "official")["state_dict"], state)


def test_files_of_2018_load(tmp_path: Path) -> None:
    """With the ImageNet classifier, without batch counters, saved from DataParallel, in the old file format."""
    state = fill(official())
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    old = {f"module.{key}": value for key, value in state.items() if key not in counters}
    old |= {"module.pretrained.fc.weight": torch.rand(1000, 512), "module.pretrained.fc.bias": torch.rand(1000)}
    file, report = run(tmp_path, "official", {"state_dict": old}, zipped=False)
    for key in counters:
        state[key] = torch.tensor(0)
    assert_same_bits(back(tmp_path, file, "official")["state_dict"], state)
    assert f"{len(counters)} batch counters" in report.summary()
    assert [key for key, _ in report.dropped] == ["pretrained.fc.bias", "pretrained.fc.weight"]


def test_the_report_names_every_tensor(tmp_path: Path) -> None:
    state = fill(official())
    file, report = run(tmp_path, "official", state)
    text = Path(f"{file}.report.txt").read_text()
    assert [key for key in state if f"\n{key} " not in text] == []
    assert sorted(target for _, target, _ in report.moved) == sorted(weights.read(file).tensors)
    assert f"{sum(value.numel() for value in state.values()):,}" in report.summary()
    assert file.stat().st_mode == Path(f"{file}.report.txt").stat().st_mode  # others may read what is published


def test_settings_can_be_given(tmp_path: Path) -> None:
    file, _ = run(tmp_path, "official", fill(official()), multi_grid=[3, 5], output_stride=16, align_corners=False)
    sections = danet.config.model_sections(weights.read(file).config)
    assert sections["backbone"]["multi_grid"] == [3, 5]
    assert sections["backbone"]["output_stride"] == 16
    assert sections["head"]["align_corners"] is False
    back(tmp_path, file, "official")
    notes = (tmp_path / "back.pth.report.txt").read_text()
    for what in ("only builds resnet50, resnet101, resnet152,", "multi_grid at stride 8", "align_corners=True"):
        assert what in notes
    assert notes.count("note: the official code has to be changed: it ") == 3


@pytest.mark.parametrize(("to", "note"), [("official", "3 channels, not of 4"), ("mmseg", "in_channels=4")])
def test_bands_are_told_to_other_code(tmp_path: Path, to: str, note: str) -> None:
    sections = {"backbone": {"name": "resnet50"}, "head": {"name": "danet"}, "in_channels": 4}
    tensors, config = build_model(**sections, num_classes=2).state_dict(), danet.config.model_yaml(sections)
    content = weights.Weights(tensors=tensors, config=config, class_names=("a", "b"), palette=(), facts={})
    weights.write(tmp_path / "in.safetensors", content)
    back(tmp_path, tmp_path / "in.safetensors", to)
    assert note in (tmp_path / "back.pth.report.txt").read_text()


def test_a_checkpoint_can_be_written_instead(tmp_path: Path) -> None:
    file, _ = run(tmp_path, "official", fill(official(num_classes=4)), out="out.pt")
    found = weights.read(file)
    assert found.class_names == ("class 0", "class 1", "class 2", "class 3")
    assert found.facts["source_file"] == "in.pth"
    model = build_model(**danet.config.model_sections(found.config), num_classes=4)
    weights.load_into(model, file)
    assert torch.equal(model.head.classifier[1].bias, fill(official(num_classes=4))["head.conv8.1.bias"])


# ---- mmsegmentation --------------------------------------------------------------------------------------------------

CONFIG = """
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
model = dict(
    backbone=dict(type='ResNetV1c', strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), multi_grid=(2, 4, 8),
                  contract_dilation=True, style='pytorch'),
    decode_head=dict(type='DAHead', align_corners=True, loss_decode=dict(loss_weight=1.0)),
    auxiliary_head=dict(type='FCNHead', in_index=2))
work_dir = os.path.join('a', 'b')
"""


@pytest.mark.parametrize("told", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_mmsegmentations_model_gives_the_same_logits(tmp_path: Path, told: bool) -> None:
    unusual = {"strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2), "multi_grid": (2, 4, 8)}
    options = {"backbone": unusual if told else {}, "align_corners": told}
    theirs = mmseg_peer.randomize(mmseg_peer.build_segmentor(19, **options))
    assert {key: tuple(value.shape) for key, value in theirs.state_dict().items()} == mmseg(depth=50)
    content: dict[str, Any] = {"state_dict": theirs.state_dict()}
    if told:  # as its training writes it
        from mmengine import Config

        text = Config({"model": mmseg_peer.segmentor_settings(19, **options)}).pretty_text
        content["meta"] = {"cfg": text}
    file, _ = run(tmp_path, "mmseg", content)
    loaded = danet.load(file, device="cpu", precision="fp32")
    assert loaded.model.align_corners is told
    ours = loaded.model.to(memory_format=torch.contiguous_format)
    for module in (*theirs.modules(), *ours.modules()):
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    for training in (False, True):  # in training, normalization is by batch statistics
        ours.train(training)
        theirs.train(training)
        with torch.no_grad():
            features = theirs.extract_feat((IMAGE - MEAN) / STD)
            expected = dict(zip(("main", "pam", "cam"), theirs.decode_head(features), strict=True))
            expected["aux"] = theirs.auxiliary_head(features)
            logits = ours(IMAGE)
            assert set(logits) == (set(expected) if training else {"main"})
            for name, value in logits.items():
                assert (value - expected[name]).abs().max() < 1e-5, name


def test_mmsegmentations_head_gives_the_same_logits_but_for_the_last_digits(tmp_path: Path) -> None:
    theirs = mmseg_peer.randomize(mmseg_peer.build_head(7, in_channels=512)).eval()
    state = fill(mmseg(num_classes=7)) | {f"decode_head.{key}": value for key, value in theirs.state_dict().items()}
    file, _ = run(tmp_path, "mmseg", state, output_stride=32)
    ours = danet.load(file, device="cpu").model.head.train().to(memory_format=torch.contiguous_format)
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout2d):
            module.eval()
    features = torch.rand(2, 512, 9, 13)
    with torch.no_grad():
        logits = ours([features])
        for name, expected in zip(("main", "pam", "cam"), theirs([None, None, None, features]), strict=True):
            torch.testing.assert_close(logits[name], expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_mmsegmentations_layout_comes_back_bit_identical(tmp_path: Path, auxiliary: bool) -> None:
    state = fill(mmseg(num_classes=3, auxiliary=auxiliary))
    meta = {"dataset_meta": {"classes": ("a", "b", "c"), "palette": [[0, 0, 0], [9, 8, 7], [1, 2, 3]]}}
    file, _ = run(tmp_path, "mmseg", {"meta": meta, "state_dict": state, "optimizer": {}}, output_stride=32)
    returned = back(tmp_path, file, "mmseg")
    assert_same_bits(returned["state_dict"], state)
    assert returned["meta"]["dataset_meta"] == {
        "classes": ["a", "b", "c"],
        "palette": [[0, 0, 0], [9, 8, 7], [1, 2, 3]],
    }


@pytest.mark.parametrize(
    "meta",
    [
        {"cfg": CONFIG, "dataset_meta": {"classes": ("a", "b"), "palette": [[1, 2, 3], [4, 5, 6]]}},  # 1.x
        {"config": CONFIG, "CLASSES": ["a", "b"], "PALETTE": [[1, 2, 3], [4, 5, 6]]},  # 0.x
    ],
)
def test_mmsegmentations_text_tells_classes_and_settings(tmp_path: Path, meta: dict[str, Any]) -> None:
    file, report = run(tmp_path, "mmseg", {"meta": meta, "state_dict": fill(mmseg(50, num_classes=2))})
    found = weights.read(file)
    sections = danet.config.model_sections(found.config)
    assert (found.class_names, found.palette) == (("a", "b"), ((1, 2, 3), (4, 5, 6)))
    assert sections["backbone"]["output_stride"] == 16
    assert sections["backbone"]["multi_grid"] == [2, 4, 8]
    assert sections["head"]["align_corners"] is True
    assert sections["auxiliary_head"] is True
    assert report.summary().count("(the file's configuration)") == 3


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("contract_dilation=True", "contract_dilation=False", "contract_dilation=False"),
        ("style='pytorch'", "style='caffe'", "style='caffe'"),
        ("strides=(1, 2, 2, 1)", "strides=(1, 1, 2, 1)", "strides=(1, 1, 2, 1), dilations=(1, 1, 1, 2)"),
        ("'DAHead'", "'PSPHead'", "type='PSPHead'"),
        ("in_index=2", "in_index=1", "in_index=1"),
        ("decode_head=dict(", "decode_head=dict(in_index=2, ", "decode_head: in_index=2"),
        ("mean=[123.675, ", "mean=[0, ", "mean=(0, 116.28, 103.53)"),
        ("bgr_to_rgb=True", "bgr_to_rgb=False", "bgr_to_rgb=False"),
    ],
)
def test_what_this_framework_does_not_compute_is_found(old: str, new: str, text: str) -> None:
    assert mmseg_models.stated(foreign.parsed(CONFIG), "danet")[1] == []
    (line,) = mmseg_models.stated(foreign.parsed(CONFIG.replace(old, new)), "danet")[1]
    assert text in line


def test_what_this_framework_does_not_compute_is_refused(tmp_path: Path) -> None:
    content = {"meta": {"cfg": CONFIG.replace("'pytorch'", "'caffe'")}, "state_dict": fill(mmseg())}
    assert_refused(tmp_path, "mmseg", content, "not supported here", "style='caffe'")
    assert_refused(tmp_path, "mmseg", fill(mmseg()), "resnet18 with output_stride=8")


def test_a_configuration_is_read_without_executing_it(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    text = f"a = open({str(marker)!r}, 'w')\nb = dict(c=1, d=open({str(marker)!r}, 'w'), e=dict(f=[2]))\nb.h = 3"
    assert foreign.parsed(text) == {"b": {"c": 1, "e": {"f": [2]}}}
    assert foreign.parsed("no python (") == {}
    assert not marker.exists()


def test_names_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    content = {"meta": {"CLASSES": ["a"]}, "state_dict": fill(mmseg(num_classes=2))}
    file, report = run(tmp_path, "mmseg", content, output_stride=32)
    assert weights.read(file).class_names == ("class 0", "class 1")
    assert "has 1 class names for a classifier of 2" in report.summary()


UNUSUAL = {  # what only the configuration says: there, and here
    "dnl": ({"temperature": 0.5}, {"temperature": 0.5}),
    "ccnet": ({"recurrence": 1}, {"recurrence": 1}),
    "emanet": ({"num_stages": 2, "momentum": 0.2}, {"iterations": 2, "momentum": 0.2}),
    "isanet": ({"down_factor": (2, 2)}, {"block": 2}),
}
UNDILATED = {"strides": (1, 2, 2, 2), "dilations": (1, 1, 1, 1)}


@pytest.mark.parametrize("name", MMSEG)
@pytest.mark.filterwarnings("ignore:When align_corners=True")
def test_mmsegmentations_attention_heads_give_the_same_logits_and_come_back(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole models, described by their configuration; mmsegmentation's OCRNet needs the dilations of a ResNet-50."""
    without_compiled_operations(monkeypatch)
    from mmengine import Config

    there, here = UNUSUAL.get(name, ({}, {}))
    depth, width, size = (50, 2048, (33, 49)) if name == "ocrnet" else (18, 512, (129, 193))
    settings = mmseg_peer.segmentor_settings(5, depth=depth, backbone=UNDILATED if depth == 18 else {})
    *coarse, last = mmseg_settings(name, width // 2, width, align_corners=True)
    settings["decode_head"] = [*coarse, last | there] if coarse else last | there
    kind = "CascadeEncoderDecoder" if coarse else "EncoderDecoder"
    theirs: Any = mmseg_peer.build(kind, settings | ({"num_stages": 2} if coarse else {}))
    mmseg_peer.randomize(theirs).eval()
    meta = {"cfg": Config({"model": settings}).pretty_text}
    file, _ = run(tmp_path, "mmseg", {"meta": meta, "state_dict": theirs.state_dict()})

    loaded = danet.load(file, device="cpu", precision="fp32")
    head = danet.config.model_sections(weights.read(file).config)["head"]
    assert head == head | {"name": name, "align_corners": True, **here}
    image = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        maps = theirs.extract_feat((image - MEAN) / STD)
        expected = theirs.decode_head[1](maps, theirs.decode_head[0](maps)) if coarse else theirs.decode_head(maps)
        expected = expected[0] if isinstance(expected, tuple) else expected  # EncNet's classes besides
        torch.testing.assert_close(loaded.model(image)["main"], expected, rtol=0, atol=1e-5)
    assert_same_bits(back(tmp_path, file, "mmseg")["state_dict"], dict(theirs.state_dict()))


def test_what_is_one_tensor_here_has_to_be_one_there(tmp_path: Path) -> None:
    settings = mmseg_peer.segmentor_settings(5, depth=18, backbone=UNDILATED)
    model = mmseg_peer.build("EncoderDecoder", settings | {"decode_head": mmseg_settings("ann", 256, 512)[0]})
    state = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = (f"decode_head.context.stages.0.{name}_project.conv.weight" for name in ("query", "key"))
    state[second] += 1
    assert_refused(tmp_path, "mmseg", state, f"{second} differs from {first}", output_stride=32)


# ---- the article -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_articles_head_gives_the_same_logits(tmp_path: Path, prefix: str) -> None:
    state = draw(article())
    file, report = run(tmp_path, "article", {prefix + key: value for key, value in state.items()})
    model = danet.load(file, device="cpu").model
    features = torch.rand(1, 512, 4, 5)
    with torch.no_grad():
        torch.testing.assert_close(model.head([features])["main"], article_head(state, features), rtol=0, atol=1e-5)
    for key in plain_resnet("", 18):
        assert torch.equal(model.backbone.state_dict()[key], state[f"ResNet50.{key}"]), key
    assert [key.split(".")[2] for key, _ in report.dropped] == ["convC", "convD"]


# ---- backbones alone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "shapes", "stem"),
    [
        ("torchvision", plain_resnet("", 18), "conv7"),
        ("torchvision", wide_stem_resnet("", 18), "deep_wide"),
        ("mmseg", mmseg_resnet("", 18), "deep"),
        ("mmseg", mmseg_resnet("backbone.", 18), "deep"),
    ],
)
def test_a_backbone_alone_becomes_a_file_to_start_from(tmp_path: Path, source: str, shapes: Shapes, stem: str) -> None:
    prefix = "backbone." if "backbone.layer1.0.bn1.bias" in shapes else ""
    state = fill(shapes)
    content = state | {f"{prefix}fc.weight": torch.rand(1000, 512), f"{prefix}fc.bias": torch.rand(1000)}
    file, report = run(tmp_path, source, content, out="backbone.pt")
    loaded = BACKBONES["resnet18"](pretrained=str(file), stem=stem).state_dict()
    names = {f"stem.{index}": f"conv1.{index}" for index in range(7)} | {"stem.7": "bn1"}
    for key, value in state.items():
        module, _, tensor = key.removeprefix(prefix).rpartition(".")
        assert torch.equal(loaded[f"{names.get(module, module)}.{tensor}"], value), key
    assert len(loaded) == len(state)
    assert f"backbone.stem={stem}" in report.summary()


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_torchvisions_networks_are_known_by_their_keys(name: str) -> None:
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    assert architecture.infer_backbone(state, "") == {"name": name, "stem": "conv7"}


# ---- files that must not be trusted ----------------------------------------------------------------------------------


class Payload:
    """Calls `function(*arguments)` when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


class Logger:
    """An object of a training framework that the reader has not."""

    def __init__(self) -> None:
        self.history = {"loss": [1.0]}


class Registry(dict):
    """Likewise, of a class that pickles fill piece by piece."""


def saved(tmp_path: Path, content: Any, zipped: bool) -> Path:
    torch.save(content, tmp_path / "in.pth", _use_new_zipfile_serialization=zipped)
    return tmp_path / "in.pth"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [False, True])
def test_a_payload_is_not_executed(tmp_path: Path, zipped: bool, nested: bool) -> None:
    marker = tmp_path / "executed"
    payload = Payload(open, str(marker), "w")
    if nested:  # in bytes that PyTorch's own loader of storages would unpickle
        payload = Payload(torch.storage._load_from_bytes, saved(tmp_path, payload, zipped=False).read_bytes())
    state = fill(norm("bn", 4))
    file = saved(tmp_path, {"state_dict": state, "optimizer": payload}, zipped)
    found = foreign.read(file)
    assert not marker.exists()
    assert_same_bits(found.tensors, state)
    assert any("not created" in line for line in found.skipped)
    torch.load(file, weights_only=False)
    assert marker.exists()  # it would have been executed


@pytest.mark.parametrize("zipped", [True, False])
def test_a_payload_among_the_tensors_is_refused(tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / "executed"
    file = saved(tmp_path, fill(norm("bn", 4)) | {"fc.weight": Payload(open, str(marker), "w")}, zipped)
    with pytest.raises(ValueError, match=r"not tensors: fc\.weight"):
        foreign.read(file)
    assert not marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_of_other_code_are_passed_over(tmp_path: Path, zipped: bool) -> None:
    logging = pytest.importorskip("mmengine.logging")
    buffer = logging.HistoryBuffer([1.0, 2.0], [1, 1])
    meta = {"hub": buffer, "registry": Registry(a=Logger()), "seen": {Path("a")}, "CLASSES": Logger()}
    state = fill(norm("bn", 4))
    found = foreign.read(saved(tmp_path, {"meta": meta, "state_dict": state, "hub": [buffer]}, zipped))
    assert_same_bits(found.tensors, state)
    assert found.class_names == ()
    for name in ("HistoryBuffer", "Registry", "Logger"):
        assert any(name in line for line in found.skipped), name


def test_the_unpickler_makes_tensors_and_containers_only() -> None:
    for name in ("os system", "builtins eval", "torch.storage _load_from_bytes", "torch load", "numpy dtype"):
        made = safe_pickle.Unpickler(sys.stdin.buffer).find_class(*name.split())
        assert issubclass(made, safe_pickle.Inert), name


@pytest.mark.filterwarnings("ignore")
def test_compiled_programs_and_damaged_files_are_refused(tmp_path: Path) -> None:
    script, damaged, cut = tmp_path / "script.pth", tmp_path / "damaged.pth", tmp_path / "cut.pth"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2)), script)
    damaged.write_bytes(b"no weights")
    torch.save({"a.weight": torch.rand(9, 99)}, cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    for file in (script, damaged, cut):
        with pytest.raises(ValueError, match=f"{file.name}: cannot be read"):
            convert(ConvertConfig(from_="official", in_=str(file), out=str(tmp_path / "out.pt")))


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, "official", nn.Linear(2, 2), "Linear, not a state dict")
    assert_refused(tmp_path, "official", {"state_dict": {"a.weight": torch.rand(1), "b": 3}}, "not tensors: b")
    assert_refused(tmp_path, "official", {}, "not a DANet head")


# ---- files that do not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["official", "mmseg", "article"])
def test_every_key_that_does_not_fit_is_listed(tmp_path: Path, source: str) -> None:
    state = fill({"official": official, "mmseg": mmseg, "article": article}[source]())
    options = {"output_stride": 32} if source == "mmseg" else {}
    first, second, *_, last = (key for key in state if ".layer2." in key)
    state.pop(first)
    state[second] = torch.rand(3, 5)
    state["extra.weight"] = state.pop(last)
    missing = [f"missing {key}" for key in (first, last) if not key.endswith("num_batches_tracked")]
    assert_refused(tmp_path, source, state, *missing, f"{second} has shape (3, 5)", "unknown extra.weight", **options)


def test_the_factors_of_the_attentions_keep_their_layouts_shape(tmp_path: Path) -> None:
    state = fill(mmseg())
    state["decode_head.pam.gamma.scale"] = torch.rand(1)
    assert_refused(
        tmp_path, "mmseg", state, "decode_head.pam.gamma.scale has shape (1,), expected ()", output_stride=32
    )


def test_another_layout_is_recognized(tmp_path: Path) -> None:
    assert_refused(tmp_path, "official", fill(mmseg()), "looks like from=mmseg")
    assert_refused(tmp_path, "article", fill(official()), "looks like from=official")
    assert_refused(tmp_path, "official", fill(plain_resnet("", 18)), "looks like from=torchvision")
    ours = build_model({"name": "resnet_tiny"}, {"name": "danet"}, 2).state_dict()
    assert_refused(tmp_path, "mmseg", {f"decode_head.{k}": v for k, v in ours.items()}, "begins with decode_head.")
    assert_refused(tmp_path, "official", ours, "from=danet")


def test_unknown_networks_are_refused(tmp_path: Path) -> None:
    state = fill(official())
    assert_refused(tmp_path, "official", {k: v for k, v in state.items() if ".layer4.1." not in k}, "(2, 2, 2, 1)")
    stem = {k: v for k, v in fill(official(wide_stem=True)).items() if "conv1.3." not in k}
    assert_refused(tmp_path, "official", stem, "the stem is neither", "(64, None, 128)")
    assert_refused(tmp_path, "official", fill(official(num_classes=1)), "one output")


def test_names_come_from_a_folder_of_images(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its classes stand in a file; data sets with a fixed list have them in their type."""
    root = tmp_path_factory.mktemp("own")
    for split, (name, mode) in itertools.product(("train", "val"), (("images", "RGB"), ("masks", "L"))):
        (root / split / name).mkdir(parents=True)
        Image.new(mode, (8, 8)).save(root / split / name / "a.png")
    (root / "classes.txt").write_text("ground\nleaf\nstem\n")
    state, folder = fill(official(num_classes=3)), {"name": "folder", "root": str(root)}
    assert_refused(tmp_path, "official", state, "missing", dataset=folder | {"root": str(root / "missing")})
    file, _ = run(tmp_path, "official", state, dataset=folder)
    assert danet.load(file, device="cpu", precision="fp32").class_names == ("ground", "leaf", "stem")


def test_options_that_do_not_fit_the_file_are_refused(tmp_path: Path) -> None:
    cityscapes = {"name": "cityscapes"}
    state = fill(official(num_classes=11))
    assert_refused(tmp_path, "official", state, "cityscapes has 19 classes", "has 11", dataset=cityscapes)
    backbone = fill(plain_resnet("", 18))
    assert_refused(tmp_path, "torchvision", backbone, "for which dataset cannot be set", out="a.pt", dataset=cityscapes)
    assert_refused(tmp_path, "torchvision", backbone, "for which multi_grid cannot be set", out="a.pt", multi_grid=None)
    assert_refused(tmp_path, "torchvision", backbone, "must end with .pt")
    with pytest.raises(ConfigError, match="layer4 of resnet18 has 2 blocks"):
        run(tmp_path, "official", state, multi_grid=[4, 8, 16])


@pytest.mark.parametrize(
    ("to", "backbone", "head", "text"),
    [
        ("mmseg", {}, {}, "resnet18 with output_stride=8"),
        ("official", {}, {"cam_energy": "plain"}, "head.cam_energy = 'plain'"),
        ("official", {}, {"cam": False}, "head.cam = False"),
        ("mmseg", {}, {"aux_loss": False}, "head.aux_loss = False"),
        ("official", {}, {"reduction": 4}, "head.reduction = 4"),
        ("mmseg", {}, {"name": "fcn"}, "head.name = 'fcn'"),
        ("official", {"stem": "deep"}, {}, "stem deep"),
        ("mmseg", {"name": "resnet_tiny"}, {}, "backbone resnet_tiny"),
    ],
)
def test_models_that_other_code_does_not_have_are_refused(
    tmp_path: Path, to: str, backbone: dict[str, Any], head: dict[str, Any], text: str
) -> None:
    sections = {"backbone": {"name": "resnet18", **backbone}, "head": {"name": "danet", **head}}
    config = danet.config.model_yaml(sections)
    file = weights.Weights(tensors={"a": torch.rand(1)}, config=config, class_names=("a", "b"), palette=(), facts={})
    weights.write(tmp_path / "in.safetensors", file)
    with pytest.raises(ValueError, match="has no equivalent of this model") as refusal:
        convert(ConvertConfig(from_="danet", in_=str(tmp_path / "in.safetensors"), out=str(tmp_path / "o.pth"), to=to))
    assert text in str(refusal.value)
    assert not (tmp_path / "o.pth").exists()


def test_our_files_are_checked_before_they_go_out(tmp_path: Path) -> None:
    sections = {"backbone": {"name": "resnet18"}, "head": {"name": "danet"}, "auxiliary_head": True}
    tensors = build_model(**sections, num_classes=2).state_dict()
    tensors.pop("backbone.conv1.weight")
    tensors |= {"backbone.bn1.bias": torch.rand(3), "extra": torch.rand(1)}
    source, out = tmp_path / "in.safetensors", tmp_path / "out.pth"
    options = ConvertConfig(from_="danet", in_=str(source), out=str(out), to="official")

    def write(tensors: State, config: str | None) -> None:
        weights.write(
            source, weights.Weights(tensors=tensors, config=config, class_names=("a", "b"), palette=(), facts={})
        )

    write(tensors, danet.config.model_yaml(sections))
    with pytest.raises(ValueError, match="3 keys do not fit") as refusal:
        convert(options)
    for text in ("missing backbone.conv1.weight", "backbone.bn1.bias has shape (3,)", "unknown extra"):
        assert text in str(refusal.value)
    write(tensors, None)
    with pytest.raises(ValueError, match="no configuration"):
        convert(options)
    assert not out.exists()


def test_the_official_code_gets_no_head_on_the_third_stage(tmp_path: Path) -> None:
    sections = {"backbone": {"name": "resnet18"}, "head": {"name": "danet"}, "auxiliary_head": True}
    model = build_model(**sections, num_classes=2)
    file = tmp_path / "in.safetensors"
    content = weights.Weights(
        tensors=model.state_dict(),
        config=danet.config.model_yaml(sections),
        class_names=("a", "b"),
        palette=(),
        facts={},
    )
    weights.write(file, content)
    returned = back(tmp_path, file, "official")["state_dict"]
    assert {key: tuple(value.shape) for key, value in returned.items()} == official(num_classes=2)
    assert "dropped: auxiliary.classifier.1.bias" in (tmp_path / "back.pth.report.txt").read_text()


def test_contradictions_between_the_options_are_refused(tmp_path: Path) -> None:
    assert "one of them must be danet" in problems(tmp_path, to="mmseg")
    assert "one of them must be danet" in problems(tmp_path, **{"from": "danet"})
    assert "must end with .safetensors or .pt" in problems(tmp_path, out="a.pth")
    assert "same as the input file" in problems(tmp_path, out=tmp_path / "in.pth")
    (tmp_path / "folder.pt").mkdir()
    assert "is a folder" in problems(tmp_path, out=tmp_path / "folder.pt")
    (tmp_path / "net.json").write_text('{"of": "mine"}')
    assert f"its manifest would replace {tmp_path / 'net.json'}" in problems(tmp_path, out=tmp_path / "net.pt")
    (tmp_path / "folder.pt").rmdir()
    told = problems(tmp_path, **{"from": "danet", "to": "mmseg", "out": "a.pth", "align_corners": "true"})
    assert "align_corners: not valid with from=danet" in told
    assert "in = 'nowhere'" in problems(tmp_path, **{"in": "nowhere"})
    assert "from = 'caffe'" in problems(tmp_path, **{"from": "caffe"})


# ---- the script ------------------------------------------------------------------------------------------------------


def test_the_script_converts_and_tells(tmp_path: Path) -> None:
    torch.save({"state_dict": fill(official())}, tmp_path / "DANet18 =1.pth.tar")
    script = [sys.executable, str(REPOSITORY / "src" / "convert.py")]
    arguments = ["from=official", "in=DANet18 =1.pth.tar", "out=danet.safetensors", "dataset=cityscapes"]
    done = subprocess.run(
        [*script, *arguments], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "head.branches.pam" in done.stdout
    assert "resnet18, stem=conv7" in done.stdout
    assert weights.read(tmp_path / "danet.safetensors").class_names[0] == "road"
    done = subprocess.run(
        [*script, "from=mmseg", "in=DANet18 =1.pth.tar", "out=x.pth"],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("ConfigError: 1 problem")
    assert not (tmp_path / "x.pth").exists()


def test_help_names_the_keys() -> None:
    script = [sys.executable, str(REPOSITORY / "src" / "convert.py")]
    done = subprocess.run([*script, "--help"], capture_output=True, text=True, check=True)
    assert "from: ???" in done.stdout
    assert "align_corners: auto" in done.stdout


# ---- containers, and weights that compute nothing --------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["", "state_dict", "model", "model_state_dict", "net", "my_network"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_weights_are_found_under_any_name(tmp_path: Path, entry: str, prefix: str) -> None:
    state = fill(official())
    stored: Any = {prefix + key: value for key, value in state.items()}
    if entry:
        stored = {
            "epoch": 3,
            entry: stored,
            "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []},
        }
    file, report = run(tmp_path, "official", stored)
    expected, _ = run(tmp_path, "official", {"state_dict": state}, out="expected.safetensors")
    assert_same_bits(weights.read(file).tensors, weights.read(expected).tensors)
    assert ("skipped: 'epoch', 'optimizer'" in report.notes) == bool(entry)


def test_several_models_in_a_file_are_refused(tmp_path: Path) -> None:
    state = fill(official())
    assert_refused(tmp_path, "official", {"student": state, "teacher": state}, "several state dicts", "'teacher'")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_not_converted(tmp_path: Path, value: float) -> None:
    state = fill(official())
    state["head.sa.gamma"] = torch.tensor([value])
    assert_refused(tmp_path, "official", state, "1 of", "NaN or infinite (head.sa.gamma)")
    backbone = fill(plain_resnet("", 18))
    backbone["bn1.weight"] = torch.full((64,), value)
    assert_refused(tmp_path, "torchvision", backbone, "NaN or infinite (bn1.weight)", out="a.pt")


@pytest.mark.parametrize("out", ["out.safetensors", "out.pt"])
def test_a_disk_that_is_full_is_told_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    def full(*arguments: Any, **_: Any) -> None:
        for target in arguments:
            if isinstance(target, Path):
                target.write_bytes(b"half")
            elif hasattr(target, "write"):
                target.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    torch.save(fill(official()), tmp_path / "in.pth")
    monkeypatch.setattr("safetensors.torch.save_file", full)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        convert(ConvertConfig(from_="official", in_=str(tmp_path / "in.pth"), out=str(tmp_path / out)))
    assert "; free some space there, or choose another folder" in failures.in_words(caught.value)
    assert caught.value.filename == str(tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]
