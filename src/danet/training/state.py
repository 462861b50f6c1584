"""What a run trains and how far it is: all that its checkpoints hold."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danet.config import RunConfig
from danet.interfaces import SegmentationDataset
from danet.losses.segmentation_loss import SegmentationLoss, build_loss
from danet.model import Segmenter, build_model
from danet.optimizers import build_optimizer, load_state
from danet.services import checkpoint, nonfinite, weights
from danet.services.compute import Compute
from danet.services.synchronized_batchnorm import synchronize_batchnorm


@dataclass
class RunState:
    """How far the run is: what the loop needs to know besides model and optimizer."""

    step: int = 0
    seconds: float = 0.0  # spent on the run, over all its processes' lives
    best: dict[str, Any] = field(default_factory=dict)  # result of the best evaluation; empty before the first
    since_best: int = 0  # evaluations
    evaluated: int = 0  # the last step that was evaluated
    sums: dict[str, Tensor] = field(default_factory=dict)  # of losses and gradient norm since the last log

    def add(self, values: dict[str, Tensor], counts: Tensor) -> None:
        """Add a step's values to the sums, where it counts, without waiting for the device."""
        for name, value in {**values, "steps": torch.ones_like(counts, dtype=torch.float32)}.items():
            counted = torch.where(counts, value, 0.0)
            self.sums[name] = self.sums[name] + counted if name in self.sums else counted

    def averages(self) -> dict[str, float]:
        """Means since the last call; empty if no step counted."""
        sums = {name: float(value) for name, value in self.sums.items()}
        self.sums, steps = {}, sums.pop("steps", 0.0)
        return {name: value / steps for name, value in sums.items()} if steps else {}

    def judge(self, result: dict[str, Any]) -> bool:
        """Record an evaluation's result; True if it is the best so far: the first of equals, a defined one if any."""
        better = not self.best or result["miou"] > self.best["miou"]
        undefined_before = bool(self.best) and math.isnan(self.best["miou"]) and not math.isnan(result["miou"])
        self.evaluated = result["step"]
        if better or undefined_before:
            self.best, self.since_best = result, 0
            return True
        self.since_best += 1
        return False


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    folder: Path
    result: dict[str, Any]  # of the best evaluation: "miou", "iou", "step" ...
    finished: bool  # False: stopped by a signal, with everything saved


@dataclass
class Trained:
    """The parts of a run that change as it trains."""

    model: Segmenter
    criterion: SegmentationLoss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: Segmenter | None  # averaged weights
    state: RunState

    def _parts(self) -> dict[str, Any]:
        parts = {name: getattr(self, name) for name in ("model", "optimizer", "scaler", "ema")}
        return {**parts, "criterion": self.criterion} if self.criterion.state_dict() else parts

    def checkpoint(self) -> dict[str, Any]:
        """All that a checkpoint needs.

        Raises:
            NonFiniteError: a weight is not finite.
        """
        states = {name: part.state_dict() if part is not None else None for name, part in self._parts().items()}
        nonfinite.check_weights(self.state.step, states)
        return {**states, "step": self.state.step, "run": vars(self.state)}

    def load(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Go back to a checkpoint."""
        for name, part in self._parts().items():
            if part is self.optimizer:
                load_state(self.optimizer, saved[name])
            elif part is not None:
                part.load_state_dict(saved[name])
        sums = {name: value.to(device) for name, value in saved["run"]["sums"].items()}
        self.state = RunState(**{**saved["run"], "sums": sums})


def build(
    config: RunConfig, compute: Compute, train_set: SegmentationDataset, *, num_classes: int, init_from: str | None
) -> Trained:
    """Build what a run trains, on its device.

    Args:
        config: the run.
        compute: where.
        train_set: whose labels decide class weights, where the loss has such.
        num_classes: of the data.
        init_from: a file of weights to start from.
    """
    model = new_model(config, num_classes, compute.device, init_from, train_set.class_names)
    if config.runtime.recompute:
        model.backbone.recompute = True
    criterion = build_loss(config.loss, num_classes, lambda: map(train_set.read_label, range(len(train_set))))
    criterion.to(compute.device)
    return Trained(
        model,
        criterion,
        build_optimizer(config.optimizer, model, criterion),
        torch.amp.GradScaler(compute.device.type, enabled=compute.dtype == torch.float16),
        copy.deepcopy(model).requires_grad_(False) if config.train.ema_decay else None,
        RunState(),
    )


def new_model(
    config: RunConfig, num_classes: int, device: torch.device, init_from: str | None, class_names: Sequence[str] = ()
) -> Segmenter:
    """The network on `device`, with the weights of the file `init_from` if there is one."""
    options: dict[str, Any] = {"head": config.head, "auxiliary_head": config.auxiliary_head, "seed": config.seed}
    options |= {"in_channels": config.in_channels, "normalization": config.mean_and_std}
    model = build_model(config.backbone, num_classes=num_classes, **options)
    if init_from:
        backbone = {key: value for key, value in config.backbone.items() if key != "pretrained"}
        weights.start_from(
            *(model, Path(init_from), lambda classes: build_model(backbone, num_classes=classes, **options)),
            class_names,
        )
    if config.train.sync_batchnorm:
        synchronize_batchnorm(model, device)
    model.to(device)
    if config.train.channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def check_saved(saved: Mapping[str, Any], folder: Path) -> None:
    """Check whether a run can go on from a checkpoint in `folder`.

    Raises:
        ValueError: it was saved by another version of the code, whose `RunState` has other fields.
    """
    own, there = {item.name for item in fields(RunState)}, saved["run"].keys()
    problems = [f"{name!r} is missing" for name in sorted(own - there)]
    problems += [f"{name!r} is unknown" for name in sorted(there - own)]
    if problems:
        file = checkpoint.step_file(folder, saved["step"])
        raise ValueError(
            f"{file}: saved by another version of the code, so the run cannot be resumed exactly (its state: "
            f"{', '.join(problems)}). Resume with the commit in the run's environment.json, or start a new run; "
            f"init_from={file} takes the weights"
        )
