"""Parameter groups: every parameter once, with the right learning rate and decay."""

import pytest
import torch
from torch import nn

from danet.optimizers import build_optimizer, sgd
from danet.registry import OPTIMIZERS

SGD = {"name": "sgd", "lr": 0.003, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": False}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
        self.head = nn.Conv2d(4, 2, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.head.tied = self.head.weight  # shared: one parameter under two names


def names(model, optimizer):
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["name"]: sorted(known[id(p)] for p in group["params"]) for group in optimizer.param_groups}


def test_head_learns_faster():
    model = Model()
    optimizer = build_optimizer(SGD, model)
    assert names(model, optimizer) == {
        "backbone": [
            "backbone.0.weight",
            "backbone.1.bias",
            "backbone.1.weight",
            "backbone.2.bias",
            "backbone.2.weight",
        ],
        "head": ["gamma", "head.bias", "head.weight"],
    }
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.003, 0.03])
    assert all(group["initial_lr"] == group["lr"] for group in optimizer.param_groups)
    assert all(group["weight_decay"] == 1e-4 for group in optimizer.param_groups)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_no_decay_of_norms_biases_and_gammas(name):
    model = Model()
    section = {
        "name": name,
        "lr": 0.01,
        "weight_decay": 0.5,
        "head_lr_factor": 1.0,
        "decay_norm_and_bias": False,
    }
    optimizer = build_optimizer(section, model)
    assert names(model, optimizer) == {
        "backbone": ["backbone.0.weight", "backbone.2.weight"],
        "backbone_no_decay": ["backbone.1.bias", "backbone.1.weight", "backbone.2.bias"],
        "head": ["head.weight"],
        "head_no_decay": ["gamma", "head.bias"],
    }
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # without a gradient, only decay moves a parameter
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert moved == {"backbone.0.weight", "backbone.2.weight", "head.weight"}


def test_sgd_follows_its_equations():
    """v = momentum * v + (gradient + decay * w); w = w - lr * v."""
    model = Model()
    optimizer = build_optimizer(SGD | {"weight_decay": 0.1}, model)
    weight = model.head.weight.detach().clone()
    velocity = torch.zeros_like(weight)
    for step in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, float(step + 1))
        optimizer.step()
        velocity = 0.9 * velocity + (step + 1) + 0.1 * weight
        weight = weight - 0.03 * velocity
    torch.testing.assert_close(model.head.weight.detach(), weight)


def test_frozen_parameters_are_left_out():
    model = Model()
    model.backbone.requires_grad_(False)
    assert names(model, build_optimizer(SGD, model)) == {"head": ["gamma", "head.bias", "head.weight"]}


def test_an_optimizer_that_loses_parameters_is_refused(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS._components, "sgd", lambda groups, /, **options: sgd(groups[:1], lr=0.1))
    with pytest.raises(ValueError, match="does not hold these parameters exactly once: gamma, head.weight, head.bias"):
        build_optimizer(SGD, Model())


def test_nesterov_needs_momentum():
    assert sgd.problems({"nesterov": True, "momentum": 0.9}) == []
    (line,) = sgd.problems({"nesterov": True, "momentum": 0})
    assert line.startswith("nesterov=true needs a momentum")  # the configuration's check puts "optimizer." before it
