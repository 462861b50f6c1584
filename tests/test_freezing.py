"""backbone.freeze and backbone.freeze_batchnorm: what keeps its values in training, and what still learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import TINY, load
from danet.config import ConfigError
from danet.model import build_model
from danet.optimizers import build_optimizer
from danet.registry import BACKBONES
from danet.training import run

SGD = {"name": "sgd", "lr": 0.1, "weight_decay": 0.1}
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet_tiny": {"name": "resnet_tiny", "widths": [8, 8, 16, 32]},
    "resnet18": {"name": "resnet18"},
    "timm": {"name": "timm", "model": "mobilenetv2_035"},
}
EVERY = pytest.mark.parametrize("network", NETWORKS)


def backbone(network: str, **options: Any) -> Any:
    section = {**NETWORKS[network], **options}
    if section["name"] == "timm":
        pytest.importorskip("timm")
    return BACKBONES[section.pop("name")](**section)


def stepped(network: str, **options: Any) -> tuple[Any, dict[str, bool]]:
    """A model after a step with weight decay, and whether each tensor of its backbone has moved."""
    torch.manual_seed(0)
    if network == "timm":
        pytest.importorskip("timm")
    model = build_model({**NETWORKS[network], **options}, {"name": "fcn"}, 5)
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    optimizer = build_optimizer(SGD, model)
    model.train()(torch.rand(2, 3, 64, 64) * 255)["main"].square().mean().backward()
    optimizer.step()
    after = model.backbone.state_dict()
    return model, {key: not torch.equal(after[key], value) for key, value in before.items()}


def parameters(net: Any, *groups: int) -> set[int]:
    """Of the backbone's layer groups with these numbers, by identity."""
    chosen = [net.layer_groups()[index] for index in groups]
    return {id(parameter) for group in chosen for module in group for parameter in module.parameters()}


@EVERY
def test_layer_groups_begin_with_the_stem(network: str) -> None:
    net = backbone(network)
    everything = [id(parameter) for parameter in net.parameters()]
    assert everything[0] in parameters(net, 0)
    assert parameters(net, *range(len(net.layer_groups()))) == set(everything)


@EVERY
@pytest.mark.parametrize("freeze", [2, ["stem", "stage1"]], ids=str)
def test_frozen_groups_keep_weights_and_statistics_and_the_others_learn(network: str, freeze: Any) -> None:
    model, moved = stepped(network, freeze=freeze)
    frozen = parameters(model.backbone, 0, 1)
    for name, parameter in model.backbone.named_parameters():
        assert moved[name] == (id(parameter) not in frozen), name
        assert (parameter.grad is None) == (id(parameter) in frozen), name
    for name, layer in model.backbone.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert moved[f"{name}.running_mean"] == (id(layer.weight) not in frozen), name


@EVERY
def test_freeze_batchnorm_freezes_all_of_them_and_nothing_else(network: str) -> None:
    model, moved = stepped(network, freeze_batchnorm=True)
    layers = [name for name, layer in model.backbone.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    for name, has_moved in moved.items():
        assert has_moved == (name.rpartition(".")[0] not in layers), name


def test_a_frozen_batch_norm_normalizes_by_its_running_statistics() -> None:
    net = backbone("resnet_tiny", freeze=5, freeze_batchnorm=True)
    image = torch.randn(2, 3, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(net.train()(image), net.eval()(image), strict=True))


def test_a_stage_in_the_middle_can_be_frozen_alone() -> None:
    net = backbone("resnet_tiny", freeze=["stage2"])
    assert {id(parameter) for parameter in net.parameters() if not parameter.requires_grad} == parameters(net, 2)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["backbone.freeze=[stem, stage9]"], r"backbone resnet_tiny: freeze: unknown group 'stage9'; did you mean"),
        (["backbone.freeze=7"], r"freeze=7: there are 5 groups, stem, stage1"),
        (["backbone.freeze=-1"], r"backbone.freeze = -1"),
    ],
    ids=str,
)
def test_what_cannot_be_frozen_is_a_configuration_error(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(overrides, probe=True)


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_a_frozen_run_resumes_bit_for_bit(outputs: Path) -> None:
    """With averaged weights, from its checkpoint at step 8 of 12."""
    options = [*TINY, "backbone.freeze=[stem, stage1]", "backbone.freeze_batchnorm=true", "train.ema_decay=0.9"]
    outcome = run.start(load(options, probe=True))
    checkpoints = outcome.folder / "checkpoints"
    whole = torch.load(checkpoints / "step_00000012.pt", weights_only=True)
    for file in (checkpoints / "step_00000012.pt", outcome.folder / "result.json"):
        file.unlink()
    again = run.start(load([f"resume={outcome.folder}"]))
    resumed = torch.load(again.folder / "checkpoints" / "step_00000012.pt", weights_only=True)
    for part in ("model", "ema"):
        assert all(torch.equal(whole[part][key], resumed[part][key]) for key in whole[part])
    for key in ("stem.0.weight", "stage1.conv1.weight", "stage3.bn1.weight", "stage3.bn1.running_mean"):
        assert torch.equal(whole["model"][f"backbone.{key}"], whole["ema"][f"backbone.{key}"])
    assert not torch.equal(whole["model"]["backbone.stage3.conv1.weight"], whole["ema"]["backbone.stage3.conv1.weight"])


def test_a_model_without_gradients_is_not_a_frozen_one() -> None:
    """As danet.load gives it: in training mode its batch norms normalize by the batch."""
    backbone = build_model({"name": "resnet18"}, {"name": "fcn"}, 3).requires_grad_(False).backbone.train()
    assert all(module.training for module in backbone.modules())
