"""The contracts of interfaces.py, held to by every registered component: a newcomer is covered without an edit."""

import inspect
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from danet.config import REPOSITORY
from danet.config.source import parameters
from danet.interfaces import (
    IGNORE,
    Backbone,
    Criterion,
    HasAttention,
    HasLayerGroups,
    Head,
    LossTerm,
    SegmentationDataset,
    Stage,
)
from danet.losses.segmentation_loss import build_loss, mean_loss
from danet.model import build_model, stages_of
from danet.optimizers import build_optimizer
from danet.registry import BACKBONES, DATASETS, HEADS, LOSSES, OPTIMIZERS, SCHEDULES, Registry
from danet.schedules import build_schedule
from danet.tools.export.exported import EXAMPLE, WholeImage

REGISTRIES = (BACKBONES, HEADS, LOSSES, DATASETS, OPTIMIZERS, SCHEDULES)
ALL = [pytest.param(registry, name, id=f"{registry.kind}-{name}") for registry in REGISTRIES for name in registry]
STAGES = [Stage(8, 4), Stage(16, 8), Stage(32, 8), Stage(64, 8)]
K = 5
TINY = {"name": "resnet_tiny", "widths": [8, 8, 16, 32]}
TIMM = ("convnext_atto", "hrnet_w18_small", "mobilenetv3_small_050", "regnetx_002", "tf_efficientnet_lite0")


def section(kind: str, name: str) -> dict[str, Any]:
    """A component's YAML with the options that its defaults list adds."""
    folder = REPOSITORY / "conf" / kind
    values = yaml.safe_load((folder / f"{name}.yaml").read_text())
    for entry in values.pop("defaults", []):
        for group, option in entry.items() if isinstance(entry, dict) else ():
            values[group] = yaml.safe_load((folder / group / f"{option}.yaml").read_text())
    return values


def options(kind: str, name: str) -> dict[str, Any]:
    return {key: value for key, value in section(kind, name).items() if key != "name"}


@pytest.mark.parametrize(("registry", "name"), ALL)
def test_its_source_tells_the_signature_without_an_import(registry: Registry, name: str) -> None:
    read, schema = parameters(registry.kind, name), registry.schema(name)
    assert read is not None
    assert list(read) == list(schema)
    for key, parameter in schema.items():
        assert repr(read[key].annotation) == repr(parameter.annotation), key
        assert (read[key].default is parameter.empty) == (parameter.default is parameter.empty), key


@pytest.mark.parametrize(("registry", "name"), ALL)
def test_the_yaml_has_the_keys_and_the_defaults_of_the_signature(registry: Registry, name: str) -> None:
    given, schema = options(registry.kind, name), registry.schema(name)
    assert section(registry.kind, name)["name"] == name
    assert given.keys() == schema.keys()
    for key, value in given.items():
        if not (isinstance(value, str) and "${" in value):
            assert schema[key].default in (value, inspect.Parameter.empty), key
    assert registry[name].__doc__


@pytest.mark.parametrize("name", list(BACKBONES))
def test_backbone(name: str) -> None:
    with torch.device("meta"):
        backbone = BACKBONES[name](**options("backbone", name))
        features = backbone(torch.empty(2, backbone.in_channels, 97, 131))
    assert isinstance(backbone, Backbone)
    stages = stages_of(backbone)
    assert len(stages) == len(features) >= 1
    assert list(backbone.strides) == sorted(backbone.strides)  # fine to coarse
    for stage, feature in zip(stages, features, strict=True):
        size = math.ceil(97 / stage.stride), math.ceil(131 / stage.stride)
        assert feature.shape == (2, stage.channels, *size)
    assert len(backbone.mean) == len(backbone.std) == backbone.in_channels
    assert all(0 <= mean <= 255 for mean in backbone.mean)
    assert all(std > 1 for std in backbone.std)  # in units of the 0..255 scale
    if isinstance(backbone, HasLayerGroups):
        held = [id(p) for group in backbone.layer_groups() for module in group for p in module.parameters()]
        assert sorted(held) == sorted(id(parameter) for parameter in backbone.parameters())


@pytest.mark.parametrize("name", list(HEADS))
def test_head(name: str) -> None:
    head = HEADS[name](STAGES, K, **options("head", name))
    assert isinstance(head, Head)
    assert head.num_classes == K
    assert isinstance(head.align_corners, bool)
    features = [torch.randn(2, stage.channels, 104 // stage.stride, 136 // stage.stride) for stage in STAGES]
    logits = head.train()(features)
    assert "main" in logits
    assert all(values.shape[:2] == (2, K) for values in logits.values())
    assert set(head.eval()(features)) == {"main"}
    modules = head.attention_modules() if isinstance(head, HasAttention) else {}
    assert all(callable(module.attention) for module in modules.values())


@pytest.mark.parametrize("name", list(HEADS))
def test_equal_layers_of_all_heads_start_with_equal_values(name: str) -> None:
    """Their names and the seed decide, whatever was drawn before."""
    first, second, other = (build_model(TINY, section("head", name), K, seed=seed) for seed in (0, 0, 1))
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    differs = [not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)]
    assert all(same)
    assert any(differs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        *((TINY, section("head", name)) for name in HEADS if name != "smp"),  # whose decoders are another library's
        *((section("backbone", name), {"name": "linear"}) for name in ("dfanet", "mit", "u2net")),
        *(({"name": "timm", "model": model}, {"name": "linear"}) for model in TIMM),
    ],
    ids=lambda section: section.get("model", section["name"]),
)
def test_a_graph_takes_every_size(backbone: dict[str, Any], head: dict[str, Any]) -> None:
    """And any number of images: nothing in it depends on those that it is recorded with."""
    model = WholeImage(build_model(backbone, head, K).eval())
    free = torch.export.Dim.DYNAMIC
    example = torch.zeros(EXAMPLE[0], 3, *EXAMPLE[1:], dtype=torch.uint8)
    with torch.no_grad():
        graph = torch.export.export(model, (example,), dynamic_shapes=({0: free, 2: free, 3: free},)).module()
        for size in ((1, 3, 97, 210), (3, 3, 192, 128), (1, 3, 129, 163)):
            image = torch.randint(0, 256, size, dtype=torch.uint8)
            torch.testing.assert_close(graph(image)["logits"], model(image)["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(LOSSES))
def test_loss(name: str) -> None:
    labels = [np.arange(63, dtype=np.uint8).reshape(7, 9) % K]
    loss = build_loss(section("loss", name), K, lambda: labels)
    assert isinstance(loss.criterion, Criterion)
    logits = torch.randn(2, K, 4, 5, requires_grad=True)
    label = torch.from_numpy(labels[0]).long().expand(2, 7, 9).clone()
    label[0, :2] = IGNORE
    for truth, zero in ((label, False), (torch.full_like(label, IGNORE), True)):
        logits.grad = None
        terms = loss({"main": logits}, truth, align_corners=False)
        assert all(isinstance(term, LossTerm) for term in terms.values())
        value = sum(term.weight * mean_loss(term.total, term.count) for term in terms.values())
        assert (value == 0) if zero else (value > 0)
        value.backward()
        assert logits.grad.isfinite().all()
        assert bool(logits.grad.any()) != zero


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_optimizer(name: str) -> None:
    model = build_model({"name": "resnet_tiny", "widths": [4, 4, 8, 16]}, section("head", "fcn"), K)
    optimizer = build_optimizer(section("optimizer", name), model)
    assert isinstance(optimizer, torch.optim.Optimizer)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    before = [parameter.clone() for parameter in model.parameters()]
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert all((parameter < old).all() for parameter, old in zip(model.parameters(), before, strict=True))  # downhill


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_schedule(name: str) -> None:
    factor = build_schedule(section("schedule", name), 100, 10.0)
    values = [factor(step) for step in range(101)]
    assert all(0 <= value <= 1 for value in values)
    assert [factor(step) for step in reversed(range(101))] == values[::-1]  # a function of the step alone


@pytest.mark.parametrize("name", list(DATASETS))
def test_dataset(name: str, tmp_path: Path) -> None:
    kind: Any = DATASETS[name]
    found = kind.tiny(tmp_path / "data")
    for split in ("train", "val"):
        dataset = kind(split, **found)
        assert isinstance(dataset, SegmentationDataset)
        count = len(dataset.class_names)
        assert count == len(set(dataset.class_names)) == len(dataset.palette) >= 2
        assert all(len(color) == 3 and all(0 <= value <= 255 for value in color) for color in dataset.palette)
        assert dataset.description
        names = []
        for index in range(len(dataset)):
            image, label, sample_name = dataset[index]
            names.append(sample_name)
            assert image.dtype == label.dtype == np.uint8
            assert image.shape == (*label.shape, 3)
            assert set(np.unique(label)) <= {*range(count), IGNORE}
            assert np.array_equal(dataset.read_label(index), label)
        assert len(set(names)) == len(names) >= 1
        assert kind(split, **found).fingerprint() == dataset.fingerprint()
    assert kind("train", **found).fingerprint() != kind("val", **found).fingerprint()


@pytest.mark.parametrize("name", [name for name in DATASETS if "root" in DATASETS.schema(name)])
def test_a_copied_data_set_is_the_same_and_a_changed_one_is_not(name: str, tmp_path: Path) -> None:
    kind: Any = DATASETS[name]
    found = kind.tiny(tmp_path / "data")
    moved = {**found, "root": str(shutil.copytree(found["root"], tmp_path / "moved"))}
    assert kind("train", **moved).fingerprint() == kind("train", **found).fingerprint()
    Path(kind("train", **moved).files[0].image).write_bytes(b"shorter")
    assert kind("train", **moved).fingerprint() != kind("train", **found).fingerprint()
