"""Parameter groups: every parameter once, with the right learning rate and decay; states after a skipped step."""

import copy

import pytest
import torch
from torch import nn

from danet.model import build_model
from danet.optimizers import build_optimizer, load_state, sgd
from danet.registry import OPTIMIZERS
from danet.services.nonfinite import FiniteSteps

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


def test_adamw_follows_its_equations():
    """m, v = running means of gradient and square, divided by 1 - beta^t; w = w - lr * (m / sqrt(v) + decay * w)."""
    model = Model()
    section = {"name": "adamw", "lr": 0.01, "betas": [0.5, 0.7], "weight_decay": 0.1, "head_lr_factor": 1.0}
    optimizer = build_optimizer(section, model)
    weight, mean, square = model.head.weight.detach().clone(), 0.0, 0.0
    for step in (1, 2, 3):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, float(step))
        optimizer.step()
        mean, square = 0.5 * mean + 0.5 * step, 0.7 * square + 0.3 * step**2
        direction = mean / (1 - 0.5**step) / (square / (1 - 0.7**step)) ** 0.5
        weight = weight - 0.01 * (direction + 0.1 * weight)
    torch.testing.assert_close(model.head.weight.detach(), weight)


class Layered(Model):
    """The model with a backbone of three layer groups."""

    def __init__(self):
        super().__init__()
        self.backbone.layer_groups = lambda: [[module] for module in self.backbone]


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_each_layer_group_learns_slower_than_the_next(name):
    model = build_model({"name": "resnet_tiny"}, {"name": "fcn"}, 2)
    section = {"name": name, "lr": 0.01, "head_lr_factor": 3.0, "layer_decay": 0.5, "decay_norm_and_bias": False}
    optimizer = build_optimizer(section, model)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    by_stage = {"stem": 0.5**5, "stage1": 0.5**4, "stage2": 0.5**3, "stage3": 0.5**2, "stage4": 0.5, "head": 3.0}
    for key, parameter in model.named_parameters():
        stage = key.removeprefix("backbone.").split(".")[0]
        assert rate[id(parameter)] == pytest.approx(0.01 * by_stage[stage]), key
    assert [group["name"] for group in optimizer.param_groups][:3] == [
        "backbone_0",
        "backbone_0_no_decay",
        "backbone_1",
    ]


def test_a_layer_decay_of_one_changes_no_rate():
    optimizer = build_optimizer(SGD | {"layer_decay": 1.0}, Layered())
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.003, 0.003, 0.003, 0.03])


def test_layer_decay_needs_layer_groups_of_all_parameters():
    with pytest.raises(
        ValueError, match=r"optimizer.layer_decay=0.5: Sequential has no layer_groups\(\). Set it to null"
    ):
        build_optimizer(SGD | {"layer_decay": 0.5}, Model())
    model = Layered()
    model.backbone.layer_groups = lambda: [[model.backbone[0]], [model.backbone[1]]]
    with pytest.raises(ValueError, match="lacks these parameters: 2.weight, 2.bias"):
        build_optimizer(SGD | {"layer_decay": 0.5}, model)


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


def fill_gradients(model, value):
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)


def same(model, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.fixture(params=[True, False], ids=["deterministic", "not deterministic"])
def determinism(request):
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("determinism")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("how", ["found_inf", "scaler", "skip"])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_skipped_first_update_leaves_no_trace(name, how, channels_last):
    """The steps after it are those of a run that never had it."""
    model = Model()
    if channels_last:
        model.to(memory_format=torch.channels_last)
    untouched = copy.deepcopy(model)
    optimizer, reference = (build_optimizer({"name": name, "lr": 0.01}, each) for each in (model, untouched))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=how == "scaler")
    steps = FiniteSteps("skip", model, scaler)
    for number, bad in enumerate((True, False, False), start=1):
        scale = scaler.scale(torch.ones(())).item()
        fill_gradients(model, torch.nan if bad else number * scale)
        if how == "found_inf":
            optimizer.found_inf = torch.tensor(float(bad))
            optimizer.step()
        elif how == "scaler":  # as in the loop: fp16's gradients overflow, the loss does not
            scaler.unscale_(optimizer)
            steps.check(number, torch.tensor(1.0), torch.tensor(torch.inf if bad else 1.0), [])
            steps.step(optimizer, scaler)
        else:
            steps.check(number, torch.tensor(torch.nan if bad else 1.0), torch.tensor(1.0), [])
            steps.step(optimizer, scaler)
        if bad:
            assert same(model, untouched)
        else:
            fill_gradients(untouched, float(number))
            reference.step()
    assert same(model, untouched)


def test_after_a_stop_in_the_first_step_nothing_changes():
    model = Model()
    before = copy.deepcopy(model)
    optimizer = build_optimizer(SGD, model)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    steps = FiniteSteps("stop", model, scaler)
    for loss in (torch.nan, 1.0):
        fill_gradients(model, loss)
        steps.check(1, torch.tensor(loss), torch.tensor(1.0), [])
        steps.step(optimizer, scaler)
    assert same(model, before)
    assert all(state["momentum_buffer"].isfinite().all() for state in optimizer.state.values())


@pytest.mark.parametrize("options", [{}, {"nesterov": True}, {"momentum": 0.0}, {"weight_decay": 0.1}], ids=str)
def test_every_step_has_the_bits_of_pytorchs_sgd(options):
    model = Model()
    plain = copy.deepcopy(model)
    optimizer = build_optimizer({**SGD, "head_lr_factor": 1.0, **options}, model)
    settings = {key: value for key, value in (SGD | options).items() if key != "name"}
    reference = torch.optim.SGD(plain.parameters(), **settings, fused=True)
    for step in range(3):
        for own, other in zip(model.parameters(), plain.parameters(), strict=True):
            own.grad = torch.randn(own.shape, generator=torch.Generator().manual_seed(step))
            other.grad = own.grad.clone()
        optimizer.step()
        reference.step()
        assert same(model, plain)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_loaded_state_goes_on_as_the_saved_one_with_this_devices_implementation(name):
    model = Model()
    optimizer = build_optimizer({"name": name, "lr": 0.01}, model)
    fill_gradients(model, 1.0)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    other = copy.deepcopy(model)
    resumed = build_optimizer({"name": name, "lr": 0.01}, other)
    for group in resumed.param_groups:
        group["fused"] = False  # as on a device that has no fused optimizer
    load_state(resumed, saved)
    assert [group["fused"] for group in resumed.param_groups] == [False] * len(resumed.param_groups)
    load_state(resumed := build_optimizer({"name": name, "lr": 0.01}, other), saved)
    assert all(group["fused"] for group in resumed.param_groups)
    for each, its in ((model, optimizer), (other, resumed)):
        fill_gradients(each, 2.0)
        its.step()
    assert same(model, other)


def test_a_state_from_before_the_first_step_gets_its_buffers():
    """As checkpoints had them that were written when only a step made buffers."""
    model = Model()
    saved = torch.optim.SGD([{"params": group["params"]} for group in build_optimizer(SGD, model).param_groups], 0.1)
    assert saved.state_dict()["state"] == {}
    saved.param_groups[0]["momentum"] = saved.param_groups[1]["momentum"] = 0.9
    optimizer = build_optimizer(SGD, model)
    load_state(optimizer, saved.state_dict())
    assert all((state["momentum_buffer"] == 0).all() for state in optimizer.state.values())
    assert len(optimizer.state) == len(list(model.parameters()))
