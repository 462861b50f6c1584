"""The cost of a model, against published sizes, formulas by hand and known allocations."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from conftest import environment
from danet import config
from danet.analysis.measurement import measure
from danet.analysis.summary import SummaryConfig, summarize
from danet.config import REPOSITORY, ConfigError
from danet.interfaces import IMAGENET_MEAN, IMAGENET_STD
from danet.model import Segmenter, build_model
from danet.ops.flops import fake_tensors, flop_counter
from danet.registry import HEADS
from danet.services import weights
from danet.services.hardware import STATUS
from danet.services.palettes import voc_palette


def on_meta(backbone: str, head: str, num_classes: int, **options) -> Segmenter:
    with torch.device("meta"):
        return build_model({"name": backbone}, {"name": head}, num_classes, **options)


def by_name(model: Segmenter, size: tuple[int, int], batch_size: int = 1) -> dict[str, tuple[int, int]]:
    """Parameters and operations of each part."""
    return {part.name: (part.parameters, part.flops) for part in summarize(model, size, batch_size).parts}


def test_parameters_match_the_published_ones():
    """mmsegmentation's DANet, ResNet-50 with 19 classes: the head has 23.954619 million, everything 49.85."""
    with torch.device("meta"):
        model = build_model({"name": "resnet50", "stem": "deep"}, {"name": "danet"}, 19, auxiliary_head=True)
    parts = by_name(model, (64, 64))
    heads = {name: sum(p for key, (p, _) in parts.items() if key.startswith(name)) for name in ("head", "auxiliary")}
    assert heads["head"] == 23_954_619
    assert round(heads["auxiliary"] / 1e6, 2) == 2.36
    assert round(summarize(model, (64, 64)).parameters / 1e6, 2) == 49.85
    assert list(parts)[:6] == [f"backbone, {s}" for s in ("stem", *(f"stage {i}" for i in range(1, 5)))] + [
        "head, PAM branch"
    ]


def test_operations_match_the_formulas():
    """A convolution: 2 * k * k * in * out at each position; a matrix product: 2 * rows * inner * columns."""
    parts = by_name(on_meta("resnet50", "danet", 19), (97, 131), batch_size=3)
    positions = 13 * 17  # an eighth of the image, rounded up
    around = 9 * 2048 * 512 + 9 * 512 * 512  # the 3x3 convolutions before and behind the attention
    pam = positions * (around + 2 * 512 * 64 + 512 * 512) + positions**2 * (64 + 512)
    cam = positions * around + (0.75 + 1) * 512 * 512 * positions  # the products of channels are symmetric
    assert parts["backbone, stem"] == (9536, 3 * 2 * 49 * 3 * 64 * 49 * 66)
    assert parts["head, PAM branch"][1] == 3 * 2 * pam
    assert parts["head, CAM branch"][1] == 3 * 2 * cam
    assert parts["head, rest"] == (512 * 19 + 19, 3 * 2 * positions * 512 * 19)


@pytest.mark.parametrize("head", list(HEADS))
def test_parts_add_up_to_the_model(head):
    model = build_model({"name": "resnet_tiny"}, {"name": head}, 5, auxiliary_head=True)
    summary = summarize(model, (45, 70), batch_size=2)
    assert model.training
    assert summary.parameters == sum(parameter.numel() for parameter in model.parameters())
    image = torch.zeros(2, 3, 45, 70, dtype=torch.uint8)
    with torch.no_grad(), flop_counter() as counter:
        model.eval()(image)
    assert summary.flops == counter.get_total_flops()
    assert all(part.parameters or part.flops for part in summary.parts)


def test_a_vits_attention_is_counted():
    """Products with N = 1 + (96 / 16)^2 tokens and width 192 in 12 blocks: 4 N^2 C, however it is computed."""
    timm = pytest.importorskip("timm")
    section, totals = {"name": "timm", "model": "vit_tiny_patch16_224"}, []
    for fused in (True, False):
        timm.layers.set_fused_attn(fused)
        try:
            model = build_model(section, {"name": "fcn"}, 5)
        finally:
            timm.layers.set_fused_attn(True)
        summary = summarize(model, (96, 96))
        totals.append(summary.flops)
    assert totals[0] == totals[1]
    stages = [part.name for part in summary.parts if part.name.startswith("backbone, stage")]
    assert stages == sorted(stages, key=lambda name: int(name.rpartition(" ")[2]))


def test_a_large_model_on_a_large_image_is_not_computed():
    """Running it would take minutes and gigabytes."""
    begin = time.process_time()
    summary = summarize(on_meta("resnet101", "danet", 19), (1024, 2048))
    assert time.process_time() - begin < 60
    assert 5.6e12 < summary.flops < 5.7e12


def test_fake_tensors_of_pytorch_have_shapes_and_autocast_but_no_memory():
    """A private name of PyTorch, checked with 2.11 to 2.14; the device "meta" has no autocast."""
    with fake_tensors(), torch.autocast("cpu", torch.bfloat16):
        product = torch.empty(2**20, 2**20) @ torch.empty(2**20, 2**18)
    assert product.shape == (2**20, 2**18), torch.__version__


class Waiting(nn.Module):
    """A head that holds 300 MiB for 20 milliseconds."""

    num_classes, align_corners = 2, True

    def forward(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        held = torch.ones(300 * 2**18)
        time.sleep(0.02)
        return {"main": features[-1][:, :2] * held[0]}


class Passing(nn.Module):
    """A backbone without weights."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return 4 * [image]


@pytest.mark.skipif(not STATUS.exists(), reason="needs Linux's /proc")
def test_latency_and_memory_of_a_known_load():
    measured = measure(Segmenter(Passing(), Waiting()).eval(), (16, 16), runs=3)
    assert len(measured.milliseconds) == 3
    assert all(run >= 20 for run in measured.milliseconds)
    assert sorted(measured.milliseconds)[1] == measured.median
    assert 290 <= measured.memory / 2**20 < 330
    assert measured.process > measured.memory


@pytest.mark.slow
def test_script_summarizes_trained_weights(tmp_path: Path):
    sections = {"backbone": {"name": "resnet_tiny", "widths": [8, 8, 16, 32]}, "head": {"name": "fcn"}}
    model = build_model(**sections, num_classes=4)
    file = weights.Weights(
        tensors=model.state_dict(),
        config=config.model_yaml(sections),
        class_names=tuple("abcd"),
        palette=voc_palette(4),
        facts={},
    )
    weights.write(tmp_path / "model.safetensors", file)
    arguments = ["checkpoint=model.safetensors", "size=[40,56]", "measure=true", "runs=2", "output=new/figures.json"]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "src" / "summary.py"), *arguments, "runtime.device=cpu"],
        cwd=tmp_path,
        env=environment(tmp_path / "outputs"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert figures["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert figures["flops"] == summarize(model, (40, 56)).flops
    assert len(figures["measured"]["milliseconds"]) == 2
    assert "4 classes, 1 x 3 x 40 x 56" in done.stdout
    assert "median of 2 runs" in done.stdout


def settings(*overrides: str) -> SummaryConfig:
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return config.load_as(SummaryConfig, compose("summary", overrides=list(overrides)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "no model given"),
        (["backbone=resnet50"], "no model given"),
        (["backbone=resnet50", "head=danet", "size=[64]"], "size"),
        (["backbone=resnet50", "backbone.multi_grid=[4,8]", "head=danet"], "multi_grid"),
        ([f"run={REPOSITORY}", "num_classes=3"], "num_classes"),
    ],
)
def test_ambiguous_models_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        settings(*overrides)


def test_defaults_of_the_file_match_the_dataclass():
    read = settings("backbone=resnet50", "head=danet")
    assert read == SummaryConfig(backbone=read.backbone, head=read.head, size=[1024, 2048])
