"""The heads of DANet's family: against mmsegmentation's own with the same weights, else against loops.

Shapes: B images, C channels, H x W size of the feature map, N = H * W positions, K classes.
"""

import importlib.util
import itertools
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import mmseg_peer
from danet.analysis.attention_maps import position_maps
from danet.config import REPOSITORY
from danet.heads.danet_gated import gate
from danet.heads.dranet import CompactChannelAttention, CompactPositionAttention
from danet.heads.linear import LinearAttention
from danet.heads.parts import GatingDecoder, from_blocks, interlace, interlaced_order, pool, spread, to_blocks
from danet.interfaces import IGNORE, Stage
from danet.losses.presence import presence_loss
from danet.losses.segmentation_loss import build_loss, mean_loss
from danet.model import build_model
from danet.registry import HEADS
from danet.services import weights
from danet.tools.export import exported
from danet_benchmark import peers

B, K, LOW, HIGH = 2, 5, 32, 64  # LOW and HIGH: channels of the last two stages
STAGES = [Stage(8, 4), Stage(16, 8), Stage(LOW, 8), Stage(HIGH, 8)]
MMSEG = ["ann", "ccnet", "dnl", "emanet", "encnet", "gcnet", "isanet", "nonlocal", "ocrnet", "psanet"]
EXTRA = {"encnet": "presence", "ocrnet": "coarse"}  # what they give in training besides
NEW = [*MMSEG, "danet_gated", "dranet", "linear"]
LINEAR = ["ann", "ccnet", "dranet", "emanet", "encnet", "gcnet", "linear", "ocrnet"]


def build(name: str, stages: Sequence[Stage] = STAGES, **overrides: Any) -> Any:
    """A head with the options of its YAML; parameters that start at zero have a value."""
    text = (REPOSITORY / "conf" / "head" / f"{name}.yaml").read_text()
    options = {key: value for key, value in yaml.safe_load(text).items() if key != "name"}
    torch.manual_seed(0)
    return mmseg_peer.randomize(HEADS[name](stages, K, **options | overrides))


def features(height: int, width: int, stages: Sequence[Stage] = STAGES, batch: int = B) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = [(height * 8 // stage.stride, width * 8 // stage.stride) for stage in stages]
    return [
        torch.randn(batch, stage.channels, *size, generator=generator).relu()
        for stage, size in zip(stages, sizes, strict=True)
    ]


# ---- mmsegmentation's heads ------------------------------------------------------------------------------------------


def criss_cross() -> type[nn.Module]:
    """mmcv's module, which is pure PyTorch; only its package asks for compiled operations."""
    spec = importlib.util.find_spec("mmcv")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / "ops" / "cc_attention.py"
    names: dict[str, Any] = {"__name__": "cc_attention"}
    exec(compile(path.read_text().replace("@MODELS.register_module()", ""), path, "exec"), names)
    return names["CrissCrossAttention"]


class MaskLoops(nn.Module):
    """PSAMask of mmcv's C++ (psamask.cpp), index by index."""

    def __init__(self, kind: str, mask_size: tuple[int, int]) -> None:
        super().__init__()
        self.collects, self.mask_size = kind == "collect", mask_size

    def forward(self, mask: Tensor) -> Tensor:
        (mask_height, mask_width), (height, width) = self.mask_size, mask.shape[2:]
        out = mask.new_zeros(len(mask), height * width, height, width)
        for h, w, i, j in itertools.product(*map(range, (height, width, mask_height, mask_width))):
            row, column = i + h - (mask_height - 1) // 2, j + w - (mask_width - 1) // 2
            if 0 <= row < height and 0 <= column < width:
                value = mask[:, i * mask_width + j, h, w]
                if self.collects:
                    out[:, row * width + column, h, w] = value
                else:
                    out[:, h * width + w, row, column] = value
        return out


class Cascade(nn.Module):
    """mmsegmentation's OCRNet: its decode_head is a list, the first's output an input of the second."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.heads = nn.ModuleList([first, second])

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return {key.removeprefix("heads."): value for key, value in super().state_dict().items()}

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        coarse = self.heads[0](maps)
        return self.heads[1](maps, coarse), coarse


def mmseg_settings(name: str, low: int, high: int, **common: Any) -> list[dict[str, Any]]:
    """mmsegmentation's options for a head, those of its configuration for ResNet-50; OCRNet has two heads."""
    common = {"num_classes": K, "norm_cfg": peers.BATCH_NORM, "align_corners": False, "dropout_ratio": 0.1} | common
    quarter, half = high // 4, high // 8
    last = {**common, "in_channels": high, "in_index": 3, "channels": quarter}
    coarse = {**common, "in_channels": low, "in_index": 2, "channels": low // 4}
    steps = {"ema_channels": quarter, "num_bases": 64, "num_stages": 3, "momentum": 0.1}
    return {
        "nonlocal": [{"type": "NLHead", **last}],
        "dnl": [{"type": "DNLHead", **last}],
        "gcnet": [{"type": "GCHead", **last}],
        "ccnet": [{"type": "CCHead", **last}],
        "emanet": [{"type": "EMAHead", **last, "channels": half, **steps}],
        "ann": [{"type": "ANNHead", **last, "in_channels": [low, high], "in_index": [2, 3], "project_channels": half}],
        "isanet": [{"type": "ISAHead", **last, "isa_channels": half}],
        "psanet": [{"type": "PSAHead", **last, "mask_size": (7, 7)}],
        "encnet": [{"type": "EncHead", **last, "in_channels": [low // 2, low, high], "in_index": (1, 2, 3)}],
        "ocrnet": [
            {"type": "FCNHead", **coarse, "num_convs": 1, "concat_input": False},
            {"type": "OCRHead", **last, "ocr_channels": half},
        ],
    }[name]


def without_compiled_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put Python in place of what mmcv compiles."""
    mmseg_peer.mmseg_models()
    monkeypatch.setattr("mmseg.models.decode_heads.cc_head.CrissCrossAttention", criss_cross())
    monkeypatch.setattr("mmseg.models.decode_heads.psa_head.PSAMask", MaskLoops)


def theirs(name: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """mmsegmentation's head."""
    heads: Any = mmseg_peer.mmseg_models().decode_heads
    without_compiled_operations(monkeypatch)
    parts = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mmsegmentation's about its own deprecations
        for settings in mmseg_settings(name, LOW, HIGH):
            parts.append(getattr(heads, settings.pop("type"))(**settings))
    return mmseg_peer.randomize(parts[0] if len(parts) == 1 else Cascade(*parts)).double()


def translated(state: Mapping[str, Tensor], pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Tensors under our names; each pair of a head's `foreign_keys` is how a key begins there and here."""

    def ours(key: str) -> str:
        return next((here + key.removeprefix(there) for there, here in pairs if key.startswith(there)), key)

    return {ours(key): value.reshape(1) if key.endswith("gamma.scale") else value for key, value in state.items()}


@pytest.mark.parametrize(("training", "size"), [(False, (13, 17)), (True, (9, 23))])  # odd, as PSANet's have to be
@pytest.mark.parametrize("name", MMSEG)
@pytest.mark.filterwarnings("ignore:When align_corners=True")
def test_a_head_is_mmsegmentations(
    name: str, training: bool, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, and in training the running means, too."""
    reference = theirs(name, monkeypatch)
    head = build(name, align_corners=False, **({"window": 7} if name == "psanet" else {})).double()
    pairs = head.foreign_keys["mmseg"]
    head.load_state_dict(translated(reference.state_dict(), pairs))
    for module in (*head.modules(), *reference.modules()):
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    maps = [part.double() for part in features(*size)]
    with torch.no_grad():
        expected = reference.train(training)(maps)
        outputs = head.train(training)(maps)
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert list(outputs) == (["main", EXTRA[name]] if training and name in EXTRA else ["main"])
    for (key, values), others in zip(outputs.items(), expected, strict=training):
        difference = (values - others).abs().max().item()
        print(f"{name}, {key}: {difference:.1e}")
        assert others.std() > 0.01
        assert difference < 1e-8  # DNL's temperature is a float32 there
    if name != "ann":  # where it updates a shared layer's statistics twice
        for key, value in translated(reference.state_dict(), pairs).items():
            torch.testing.assert_close(head.state_dict()[key], value, rtol=1e-8, atol=1e-8)


def test_the_presence_loss_is_mmsegmentations() -> None:
    """Its SE loss is the mean over images and classes; a class with a single pixel counts as much as others."""
    label = torch.zeros(3, 4, 6, dtype=torch.int64)
    label[0, 1, 2], label[1, :2], label[1, 3, 3] = 4, IGNORE, 2
    logits = torch.randn(3, K, generator=torch.Generator().manual_seed(0))
    onehot = mmseg_peer.mmseg_models().decode_heads.EncHead._convert_to_onehot_labels(label, K)
    assert onehot.tolist() == [[1, 0, 0, 0, 1], [1, 0, 1, 0, 0], [1, 0, 0, 0, 0]]
    term = presence_loss(logits, label)
    expected = -(onehot * logits.sigmoid().log() + (1 - onehot) * (1 - logits.sigmoid()).log()).mean()
    torch.testing.assert_close(mean_loss(term.total, term.count), expected)


def test_an_image_without_a_valid_pixel_says_nothing_about_presence() -> None:
    label = torch.full((2, 4, 6), IGNORE)
    label[1, 0, 0] = 3
    logits = torch.randn(2, K, generator=torch.Generator().manual_seed(0))
    both, second = presence_loss(logits, label), presence_loss(logits[1:], label[1:])
    torch.testing.assert_close(both, second)
    assert presence_loss(logits[:1], label[:1]).count == 0


def test_encnets_outputs_are_weighed_by_name() -> None:
    label = torch.randint(0, K, (B, 40, 56), generator=torch.Generator().manual_seed(0))
    outputs = build("encnet").train()(features(5, 7))
    loss = build_loss({"name": "dice"}, K, lambda: ())
    terms = loss(outputs, label, align_corners=True)
    assert {name: term.weight for name, term in terms.items()} == {"main": 1.0, "presence": 0.2}


# ---- loops from the formulas -----------------------------------------------------------------------------------------


def dense(layer: Any, x: np.ndarray) -> np.ndarray:
    """A 1x1 convolution or a linear layer of one image: (C, N) -> (out, N)."""
    weight = layer.weight.detach().numpy().reshape(len(layer.weight), -1)
    return weight @ x + (0 if layer.bias is None else layer.bias.detach().numpy()[:, None])


def rectified(layer: Any, x: np.ndarray) -> np.ndarray:
    """Convolution, batch norm by its running statistics, ReLU: (C, N) -> (out, N)."""
    mean, var, weight, bias = (
        tensor.detach().numpy()[:, None]
        for tensor in (layer.bn.running_mean, layer.bn.running_var, layer.bn.weight, layer.bn.bias)
    )
    return np.maximum((dense(layer.conv, x) - mean) / np.sqrt(var + layer.bn.eps) * weight + bias, 0)


def softmax(energies: np.ndarray) -> np.ndarray:
    return np.exp(energies) / np.exp(energies).sum()


def cells(height: int, width: int) -> list[list[int]]:
    """The positions in each of DRANet's 50 cells; neighbors may share a row or a column."""
    members = []
    for size in (1, 2, 3, 6):
        for r, c in itertools.product(range(size), range(size)):
            rows = range(r * height // size, -(-(r + 1) * height // size))
            columns = range(c * width // size, -(-(c + 1) * width // size))
            members.append([row * width + column for row in rows for column in columns])
    return members


def of_module(module: nn.Module, channels: int, height: int, width: int) -> tuple[Any, Tensor, np.ndarray]:
    """A module in evaluation with random weights, a map, and its output as NumPy sees it: (B, C, N)."""
    module = mmseg_peer.randomize(module).double().eval()
    x = torch.randn(B, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return module, x, module(x).detach().flatten(2).numpy()


def test_dranets_position_attention_is_a_loop() -> None:
    module, x, out = of_module(CompactPositionAttention(8), 8, 7, 10)
    maps, members = module.attention(x).detach().numpy(), cells(7, 10)
    for b in range(B):
        a = x[b].flatten(1).numpy()
        means = np.stack([a[:, cell].mean(axis=1) for cell in members], axis=1)  # (C, 50)
        levels = np.split(means, [1, 5, 14], axis=1)
        centers = np.concatenate(
            [rectified(layer, part) for layer, part in zip(module.centers, levels, strict=True)], 1
        )
        query, key, value = dense(module.query, a), dense(module.key, centers), dense(module.value, centers)
        for i in range(70):
            weights = softmax(np.array([query[:, i] @ key[:, m] for m in range(50)]))
            gathered = sum(weights[m] * value[:, m] for m in range(50))
            np.testing.assert_allclose(out[b, :, i], a[:, i] + module.gamma.item() * gathered, rtol=1e-10)
            shares = np.zeros(70)
            for weight, cell in zip(weights, members, strict=True):
                shares[cell] += weight / len(cell)
            np.testing.assert_allclose(maps[b, i], shares, rtol=1e-10)


def test_dranets_channel_attention_is_a_loop() -> None:
    module, x, out = of_module(CompactChannelAttention(32), 32, 3, 4)
    for b in range(B):
        a = x[b].flatten(1).numpy()
        centers = rectified(module.reduce, a)  # (2, N)
        for c in range(32):
            products = np.array([a[c] @ center for center in centers])
            weights = softmax(products.max() - products)
            gathered = sum(weight * center for weight, center in zip(weights, centers, strict=True))
            np.testing.assert_allclose(out[b, c], a[c] + module.gamma.item() * gathered, rtol=1e-10)


def test_linear_attention_is_a_loop() -> None:
    module, x, out = of_module(LinearAttention(16, 4), 16, 3, 5)
    maps = module.attention(x).detach().numpy()
    for b in range(B):
        a = x[b].flatten(1).numpy()
        query, key, value = (dense(layer, a) for layer in (module.query_conv, module.key_conv, module.value_conv))
        for i in range(15):
            cosines = [
                query[:, i] @ key[:, j] / np.linalg.norm(query[:, i]) / np.linalg.norm(key[:, j]) for j in range(15)
            ]
            weights = np.array([1 + cosine for cosine in cosines]) / sum(1 + cosine for cosine in cosines)
            np.testing.assert_allclose(maps[b, i], weights, rtol=1e-10)
            gathered = sum(weights[j] * value[:, j] for j in range(15))
            np.testing.assert_allclose(out[b, :, i], a[:, i] + module.gamma.item() * gathered, rtol=1e-10)


# How keys begin in the authors' DRANet and here; BLOCKS are convolutions with batch norm.
BLOCKS = {
    **{name: name for name in ("conv_cpam_b", "conv_cpam_e", "conv_ccam_b", "conv_ccam_e", "conv_cat")},
    **{name: name for name in ("clgd.conv_low", "clgd.conv_cat", "clgd.conv_out")},
    **{f"cpam_enc.conv{index + 1}": f"cpam.centers.{index}" for index in range(4)},
    "ccam_enc": "ccam.reduce",
}
DRANET_KEYS = (
    ("cls_seg.", "classifier."),
    ("clgd.conv_att.0.", "clgd.conv_att.conv."),
    *((f"cpam_dec.conv_{name}.", f"cpam.{name}.") for name in ("query", "key", "value")),
    *((f"{name}_dec.scale", f"{name}.gamma") for name in ("cpam", "ccam")),
    *((f"{theirs}.0.", f"{ours}.conv.") for theirs, ours in BLOCKS.items()),
    *((f"{theirs}.1.", f"{ours}.bn.") for theirs, ours in BLOCKS.items()),
)


class PlainDRAN(nn.Module):
    """The wiring and the names of the authors' DRANet (encoding/models/sseg/dran.py), its attentions being ours."""

    def __init__(self, head: Any, low: int, channels: int) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, size: int = 3) -> nn.Module:
            layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
            return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())

        self.attentions = {"cpam": head.cpam, "ccam": head.ccam}  # checked by the loops above
        self.conv_cpam_b, self.conv_cpam_e = block(HIGH, channels), block(channels, channels)
        self.conv_ccam_b, self.conv_ccam_e = block(HIGH, channels), block(channels, channels)
        self.cpam_enc = nn.ModuleDict({f"conv{index}": block(channels, channels, 1) for index in range(1, 5)})
        self.cpam_dec = nn.ParameterDict({"scale": torch.zeros(1)})
        self.cpam_dec_layers = {
            "conv_query": nn.Conv2d(channels, channels // 4, 1),
            "conv_key": nn.Linear(channels, channels // 4),
            "conv_value": nn.Linear(channels, channels),
        }
        self.ccam_enc = block(channels, channels // 16, 1)
        self.ccam_dec = nn.ParameterDict({"scale": torch.zeros(1)})
        half = channels // 2
        self.conv_cat = block(2 * channels, half)
        gate = nn.Sequential(nn.Conv2d(half + 32, 1, 1), nn.Sigmoid())
        convs = {"conv_low": block(low, 32), "conv_cat": block(half + 32, half), "conv_out": block(half, half)}
        self.clgd = nn.ModuleDict({**convs, "conv_att": gate})
        self.clgd.gamma = nn.Parameter(torch.ones(1))
        self.cls_seg = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(half, K, 1))

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
        layers = {
            f"cpam_dec.{name}.{key}": value
            for name, layer in self.cpam_dec_layers.items()
            for key, value in layer.state_dict().items()
        }
        return super().state_dict() | layers

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        position = self.conv_cpam_e(self.attentions["cpam"](self.conv_cpam_b(high)))
        channel = self.conv_ccam_e(self.attentions["ccam"](self.conv_ccam_b(high)))
        joined = self.conv_cat(torch.cat([position, channel], 1))
        low = self.clgd["conv_low"](low)
        joined = nn.functional.interpolate(joined, low.shape[2:], mode="bilinear", align_corners=True)
        low = self.clgd.gamma * self.clgd["conv_att"](torch.cat([low, joined], 1)) * low
        return self.cls_seg(self.clgd["conv_out"](self.clgd["conv_cat"](torch.cat([low, joined], 1))))


def test_dranet_is_wired_and_named_as_by_its_authors() -> None:
    head = build("dranet").double().eval()
    plain = mmseg_peer.randomize(PlainDRAN(head, STAGES[0].channels, HIGH // 4), seed=3).double().eval()
    head.load_state_dict(translated(plain.state_dict(), DRANET_KEYS))
    maps = [part.double() for part in features(9, 7)]
    with torch.no_grad():
        torch.testing.assert_close(head(maps)["main"], plain(maps[0], maps[-1]), rtol=1e-10, atol=1e-10)


def test_danet_with_the_decoder_is_danet_and_the_decoder() -> None:
    """Its branches and their logits are DANet's own; the sum of the branches is decoded, then classified."""
    head, plain = build("danet_clgd").train(), build("danet").train()
    weights = head.state_dict()
    decoder = GatingDecoder(STAGES[0].channels, HIGH // 4, align_corners=True).train()
    decoder.load_state_dict(
        {key.removeprefix("decoder."): weights.pop(key) for key in list(weights) if "decoder" in key}
    )
    plain.load_state_dict(weights)
    for module in (head, plain):
        module.classifier[0].p = 0.0
        for classify in module.aux_classifiers.values():
            classify[0].p = 0.0
    maps = features(5, 6)
    expected = plain(maps)
    joined = sum(branch(maps[-1]) for branch in plain.branches.values())
    expected["main"] = plain.classifier(decoder(maps[0], joined))
    assert expected["main"].shape == (B, K, 10, 12)
    for name, logits in head(maps).items():
        torch.testing.assert_close(logits, expected.pop(name))
    assert not expected


def test_the_decoder_joins_the_first_stage_of_stride_4() -> None:
    """MobileNets and EfficientNets have one of stride 2, too, which is costly; ResNets begin with stride 4."""
    stages = [Stage(8, 2), *STAGES]
    assert build("danet_clgd", stages)(features(4, 4, stages))["main"].shape == (B, K, 8, 8)


def test_the_channel_gates_are_the_papers() -> None:
    """Sigmoids: of two layers on the means, on means and maxima, of a convolution along the channels."""
    x = torch.randn(B, 16, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    means, maxima = x.mean(dim=(2, 3)).numpy(), x.amax(dim=(2, 3)).numpy()
    for kind in ("se", "cbam", "eca"):
        module: Any = mmseg_peer.randomize(gate(kind, 16)).double()
        if kind == "eca":
            kernel = module.conv.weight.detach().numpy().ravel()
            energy = np.stack([np.convolve(row, kernel[::-1], mode="same") for row in means])
        else:
            parts = (means,) if kind == "se" else (means, maxima)
            energy = sum(dense(module.fc2, np.maximum(dense(module.fc1, part.T), 0)).T for part in parts)
        expected = x.numpy() / (1 + np.exp(-energy))[:, :, None, None]
        np.testing.assert_allclose(module(x).detach(), expected, rtol=1e-10)


def test_a_gate_without_timm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=re.escape("cam = 'eca': needs timm; pip install 'danet[models]'")):
        build("danet_gated", cam="eca")


# ---- what they show, need and export ---------------------------------------------------------------------------------


SHOWN = [name for name in NEW if getattr(build(name), "attention_modules", dict)()]


@pytest.mark.parametrize("name", SHOWN)
def test_rows_of_the_maps_sum_to_one_and_can_be_asked_for_one_by_one(name: str) -> None:
    for module in build(name).eval().attention_modules().values():
        generator = torch.Generator().manual_seed(0)
        inputs = [torch.randn(B, HIGH // 4, 16, 8, generator=generator)]
        if name == "ann":  # the map that is looked at
            inputs.append(inputs[0])
        if name == "ocrnet":  # the positions' shares in the regions
            inputs.append(torch.randn(B, K, 128, generator=generator).softmax(dim=2))
        with torch.no_grad():
            maps = module.attention(*inputs)
            some = module.attention(*inputs, [77, 5])
        assert maps.shape == (B, 128, 128)
        assert (maps >= 0).all()
        torch.testing.assert_close(maps.sum(dim=2), torch.ones(B, 128))
        torch.testing.assert_close(some, maps[:, [77, 5]])


def test_the_maps_are_the_weights_that_are_used() -> None:
    """PSANet gathers the features themselves; in OCRNet a position takes regions, which are made of positions."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, HIGH // 4, 6, 5, dtype=torch.float64, generator=generator)
    flat = x.flatten(2).numpy()
    with torch.no_grad():
        for module in build("psanet").double().eval().attention_modules().values():
            expected = np.einsum("bij,bcj->bci", module.attention(x).numpy(), flat)
            np.testing.assert_allclose(module(x).flatten(2), expected, rtol=1e-10, atol=1e-12)
        block: Any = build("ocrnet").double().eval().object_context_block
        members = torch.randn(B, K, 30, dtype=torch.float64, generator=generator).softmax(dim=2)
        means = np.einsum("bkj,bcj->bck", members.numpy(), flat)
        query = block.query_project(x).flatten(2).numpy()
        key = block.key_project(torch.from_numpy(means)[..., None]).flatten(2).numpy()
        energy = np.exp(np.einsum("bdi,bdk->bik", query, key) / np.sqrt(query.shape[1]))
        expected = energy / energy.sum(axis=2, keepdims=True) @ members.numpy()
        np.testing.assert_allclose(block.attention(x, members), expected, rtol=1e-10)


@pytest.mark.parametrize("name", SHOWN)
def test_the_maps_of_an_image_can_be_read(name: str) -> None:
    model = build_model({"name": "resnet_tiny", "widths": [8, 8, 16, HIGH]}, {"name": name}, K)
    mmseg_peer.randomize(model.head)
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    maps = position_maps(model, image, [[5, 100], [60, 3]])
    assert maps.shape == ((2, 4, 8) if name == "psanet" else (2, 8, 16))  # which works on a map of half the size
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1, rtol=1e-5)


def transparent(layer: Any) -> None:
    """Let a layer pass its input, which is positive, on."""
    for key, value in layer.state_dict().items():
        value.fill_(float(key.endswith(("running_var", "bn.weight"))))
        if value.ndim == 4:
            nn.init.dirac_(value)
        if key.endswith("running_var"):
            value.sub_(1e-5)  # batch norm's eps


def test_criss_cross_and_interlaced_maps_are_what_gathers() -> None:
    """With values and layers between that change nothing, the output is the maps' weighted mean of the input."""
    x = torch.rand(B, HIGH // 4, 11, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = nn.functional.pad(x, (0, 3, 0, 5))  # to whole blocks
    criss_cross = build("ccnet").double().eval().cca
    transparent(criss_cross.value_conv)
    nn.init.ones_(criss_cross.gamma)
    interlaced = build("isanet").double().eval().interlaced
    for relation in (interlaced.global_relation, interlaced.local_relation):
        transparent(relation.value_project)
        transparent(relation.output_project)
    with torch.no_grad():
        for module, residual in ((criss_cross, x), (interlaced, 0)):
            expected = (x.flatten(2) @ module.attention(x).transpose(1, 2)).view_as(x) + residual
            torch.testing.assert_close(module(x), expected, rtol=1e-6, atol=1e-8)


def test_a_map_divided_into_blocks_is_whole_again_and_its_positions_are_found() -> None:
    x = torch.randn(B, 3, 11, 13)
    interlaced = interlace(x, 4)
    assert torch.equal(from_blocks(to_blocks(interlaced, 4), x.shape[2:]), x)
    by_place = interlaced.unflatten(0, (B, -1)).transpose(1, 2)  # (B, C, 4 * 4, 3, 4)
    assert torch.equal(by_place.flatten(2)[:, :, interlaced_order(x.shape[2:], 4)], x.flatten(2))


@pytest.mark.parametrize("size", [1, 3, 6, 8])
def test_a_grids_cells_are_adaptive_average_poolings(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(B, 4, 13, 22, dtype=torch.float64)
    weights = torch.rand(B, 7, size**2, dtype=torch.float64)
    means = pool(x, size)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(pool(x, size), means)
    of_positions = spread(weights, [size], x) @ x.flatten(2).transpose(1, 2)
    torch.testing.assert_close(of_positions, weights @ means.transpose(1, 2))


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation gives."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else (results,):
            if isinstance(result, Tensor):
                self.elements = max(self.elements, result.numel())
        return results


@pytest.mark.parametrize("name", [*LINEAR, "nonlocal"])
def test_linear_heads_have_no_weight_for_every_pair_of_positions(name: str) -> None:
    """Forward and backward; the non-local head shows that such a tensor would be seen."""
    head, maps = build(name).eval(), [part.requires_grad_() for part in features(24, 32, batch=1)]
    with Largest() as largest:
        head(maps)["main"].square().sum().backward()
    assert (largest.elements < (24 * 32) ** 2) == (name != "nonlocal")


@pytest.mark.slow
@pytest.mark.parametrize("name", NEW)
def test_a_head_answers_the_same_in_onnx_for_images_of_any_size(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    section = {"name": name, **({"window": 15} if name == "psanet" else {})}
    model = build_model({"name": "resnet_tiny", "widths": [8, 8, 16, HIGH]}, section, K)
    mmseg_peer.randomize(model.head)
    described = weights.Weights(tensors={}, config=None, class_names=tuple("abcde"), palette=5 * ((0, 0, 0),), facts={})
    exported.FORMS["onnx"].write(model.eval(), described, tmp_path / "model.onnx")
    answer = exported.FORMS["onnx"].run(tmp_path / "model.onnx")
    for size in ((1, 3, 192, 256), (2, 3, 129, 163), (1, 3, 97, 210)):
        image = torch.randint(0, 256, size, dtype=torch.uint8)
        with torch.no_grad():
            expected = exported.WholeImage(model)(image)["logits"]
        torch.testing.assert_close(answer(image)["logits"], expected, rtol=1e-4, atol=1e-5)
