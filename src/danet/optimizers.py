"""Optimizers, and the parameter groups that they are given.

The loop sets every group's "lr" to its "initial_lr" times the schedule's factor.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from danet.arguments import NonNegativeFloat, PositiveFloat
from danet.interfaces import HasLayerGroups
from danet.registry import OPTIMIZERS

Groups = list[dict[str, Any]]
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a running average: at 1 nothing new would enter

LayerDecay = Annotated[float, Field(gt=0, le=1)]

ADAM_BETAS = [0.9, 0.999]
NO_DECAY = "_no_decay"  # ends the name of a group without weight decay


@OPTIMIZERS.register("sgd")
def sgd(
    groups: Groups,
    /,
    *,
    lr: PositiveFloat = 0.003,
    momentum: Decay = 0.9,
    weight_decay: NonNegativeFloat = 1e-4,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent; the defaults are those of DANet's published training command."""
    optimizer = torch.optim.SGD(
        groups, lr, momentum, weight_decay=weight_decay, nesterov=nesterov, fused=_can_be_fused(groups)
    )
    _add_momentum_buffers(optimizer)
    return optimizer


def _add_momentum_buffers(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter that has none a momentum buffer of zeros, where the optimizer keeps such buffers.

    PyTorch makes them in the first step, without values; where that step is skipped (found_inf), they never get any.
    From zeros the first step is the same.
    """
    for group in optimizer.param_groups:
        if group.get("momentum"):
            for parameter in group["params"]:
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _sgd_problems(options: dict[str, Any]) -> list[str]:
    if options["nesterov"] and options["momentum"] == 0:
        return ["nesterov=true needs a momentum above 0; set optimizer.momentum=0.9"]
    return []


sgd.problems = _sgd_problems


@OPTIMIZERS.register("adamw")
def adamw(
    groups: Groups,
    /,
    *,
    lr: PositiveFloat = 1e-4,
    betas: Annotated[list[Decay], Field(min_length=2, max_length=2)] = ADAM_BETAS,
    weight_decay: NonNegativeFloat = 0.01,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019)."""
    return torch.optim.AdamW(groups, lr, (betas[0], betas[1]), weight_decay=weight_decay, fused=_can_be_fused(groups))


def _can_be_fused(groups: Groups) -> bool:
    """Whether PyTorch has one kernel for the whole update; the loop can then refuse an update without waiting."""
    return all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])


@OPTIMIZERS.common
def parameter_groups(
    model: nn.Module,
    lr: float,
    loss: nn.Module | None = None,
    /,
    *,
    head_lr_factor: PositiveFloat = 10.0,
    decay_norm_and_bias: bool = True,
    layer_decay: LayerDecay | None = None,
) -> Groups:
    """Divide the trainable parameters into groups named "backbone", "head" and "loss".

    Without `decay_norm_and_bias`, parameters of at most one dimension (scales and shifts of normalization
    layers, biases, the attention's gammas) move to "backbone_no_decay" and "head_no_decay".

    With `layer_decay`, the backbone has a group for each of its layer groups, "backbone_0" (the stem), "backbone_1" and
    so on: of n, group k learns at lr * layer_decay ** (n - k), as in ELECTRA (Clark et al., ICLR 2020) and BEiT (Bao
    et al., ICLR 2022), where the head counts as group n.

    Args:
        model: its `backbone` holds the pretrained part; all else is the head.
        lr: learning rate of the backbone.
        loss: whose own parameters, if any, learn as fast as the head.
        head_lr_factor: the head, which starts from random weights, learns this many times faster.
        decay_norm_and_bias: whether weight decay also acts on parameters of at most one dimension.
        layer_decay: ratio of the learning rates of a layer group and the next; None: one rate for the backbone.

    Raises:
        ValueError: `layer_decay` is given, and the backbone has no layer groups or they lack a parameter.
    """
    parts = _backbone_parts(model.get_submodule("backbone"), layer_decay)
    part_of = {id(parameter): name for name, (parameters, _) in parts.items() for parameter in parameters}
    rates = {name: lr * factor for name, (_, factor) in parts.items()} | {"head": lr * head_lr_factor}
    groups: dict[str, list[nn.Parameter]] = {f"{name}{kind}": [] for name in rates for kind in ("", NO_DECAY)}
    for parameter in model.parameters():  # a shared parameter comes once
        if parameter.requires_grad:
            decays = decay_norm_and_bias or parameter.ndim > 1
            groups[part_of.get(id(parameter), "head") + ("" if decays else NO_DECAY)].append(parameter)
    if loss is not None:
        groups["loss"] = [parameter for parameter in loss.parameters() if parameter.requires_grad]

    described = []
    for name, parameters in groups.items():
        rate = rates[name.removesuffix(NO_DECAY) if name != "loss" else "head"]
        decay = {"weight_decay": 0.0} if name.endswith(NO_DECAY) else {}
        if parameters:
            described.append({"name": name, "params": parameters, "lr": rate, "initial_lr": rate} | decay)
    return described


def _backbone_parts(backbone: nn.Module, layer_decay: float | None) -> dict[str, tuple[list[nn.Parameter], float]]:
    """The backbone's parameters and the factor of their learning rate, by the name of their group."""
    if layer_decay is None:
        return {"backbone": (list(backbone.parameters()), 1.0)}
    if not isinstance(backbone, HasLayerGroups):
        raise ValueError(
            f"optimizer.layer_decay={layer_decay}: {type(backbone).__name__} has no layer_groups(). Set it to null, or "
            "use a backbone that has, such as resnet50"
        )
    groups = [[p for module in modules for p in module.parameters()] for modules in backbone.layer_groups()]
    grouped = {id(parameter) for group in groups for parameter in group}
    if absent := [name for name, parameter in backbone.named_parameters() if id(parameter) not in grouped]:
        raise ValueError(f"{type(backbone).__name__}.layer_groups() lacks these parameters: {', '.join(absent)}")
    return {f"backbone_{k}": (group, layer_decay ** (len(groups) - k)) for k, group in enumerate(groups)}


def build_optimizer(section: dict[str, Any], model: nn.Module, loss: nn.Module | None = None) -> torch.optim.Optimizer:
    """The optimizer that a configuration section (name and options) describes, of a model and of its loss.

    Raises:
        ValueError: a trainable parameter is not held exactly once (left out, it would never train).
    """
    groups = parameter_groups(model, section["lr"], loss, **OPTIMIZERS.common_options(section))
    optimizer = OPTIMIZERS.build(section, groups)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    wrong = [key for key, value in model.named_parameters() if value.requires_grad and held.count(id(value)) != 1]
    if wrong:
        raise ValueError(
            f"optimizer {section['name']!r} does not hold these parameters exactly once: {', '.join(wrong)}"
        )
    return optimizer


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore an optimizer's state from a checkpoint, whichever kind of device wrote it.

    Which implementation runs stays this process's choice: the device of a checkpoint may have a fused one where this
    device has none.

    Args:
        optimizer: as `build_optimizer` made it.
        state: of its `state_dict()`.
    """
    chosen = [group.get("fused") for group in optimizer.param_groups]
    saved = zip(state["param_groups"], chosen, strict=False)  # PyTorch tells of another number of groups
    # Before PyTorch loads it, as it decides by this where the number of steps lies.
    groups = [{**group, "fused": fused} for group, fused in saved]
    optimizer.load_state_dict({**state, "param_groups": [*groups, *state["param_groups"][len(groups) :]]})
    _add_momentum_buffers(optimizer)  # of parameters that had no gradient before the checkpoint was written
