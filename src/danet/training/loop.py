"""The training loop: read it straight down.

Optimizer steps are the clock. Everything random in step s is drawn from a generator keyed by (seed, s), so the loop
can stop after any step and go on from a checkpoint as if it had not.
"""

import copy
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from danet.config import RunConfig
from danet.data.augment import Augmentation
from danet.data.loader import Batch, Loader, StepSampler, ending, training_loader
from danet.evaluation import evaluate as evaluation
from danet.interfaces import LossTerm, SegmentationDataset
from danet.losses.segmentation_loss import SegmentationLoss, build_loss, mean_loss
from danet.model import Segmenter, build_model
from danet.ops.position_attention import describe_choice
from danet.optimizers import build_optimizer, load_state
from danet.schedules import build_schedule, to_steps
from danet.services import checkpoint, distributed, hardware, weights
from danet.services.distributed import World
from danet.services.nonfinite import FiniteSteps, NonFiniteError, check_weights
from danet.services.signals import StopRequested, StopSignals
from danet.training.recorder import Recorder

log = logging.getLogger(__name__)


@dataclass
class RunState:
    """How far the run is. It is part of every checkpoint: what the loop needs to know besides model and optimizer."""

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
        """Means since the last call; none if no step counted."""
        sums = {name: float(value) for name, value in self.sums.items()}
        self.sums, steps = {}, sums.pop("steps", 0.0)
        return {name: value / steps for name, value in sums.items()} if steps else {}

    def judge(self, result: dict[str, Any]) -> bool:
        """Note an evaluation's result; whether it is the best so far: the first of equals, a defined one if any."""
        better = not self.best or result["miou"] > self.best["miou"]
        undefined_before = bool(self.best) and math.isnan(self.best["miou"]) and not math.isnan(result["miou"])
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


def check_state(saved: Mapping[str, Any], folder: Path) -> None:
    """See whether a run can go on from a checkpoint in `folder`.

    Raises:
        ValueError: another version of the code has saved it, whose `RunState` has other fields.
    """
    own, found = {item.name for item in fields(RunState)}, saved["run"].keys()
    problems = [f"{name!r} is missing" for name in sorted(own - found)]
    problems += [f"{name!r} is unknown" for name in sorted(found - own)]
    if problems:
        file = checkpoint.step_file(folder, saved["step"])
        raise ValueError(
            f"{file}: saved by another version of the code, whose run cannot go on exactly in this one (of its state "
            f"{', '.join(problems)}). Resume with the commit in the run's environment.json, or start a new run; "
            f"init_from={file} takes the weights"
        )


def train(
    config: RunConfig,
    world: World,
    device: torch.device,
    train_set: SegmentationDataset,
    eval_set: SegmentationDataset,
    recorder: Recorder,
    saved: dict[str, Any] | None = None,
) -> Outcome:
    """Train to the end, or until a signal; evaluate, save and record on the way.

    Args:
        config: the run.
        world: this process among several.
        device: where to compute.
        train_set: the split to train on.
        eval_set: the split to score.
        recorder: writes the run folder.
        saved: a checkpoint of this run to go on from.

    Raises:
        NonFiniteError: a loss or gradient is not finite and train.on_nonfinite is "stop", or a weight is not finite.
    """
    options, num_classes = config.train, len(eval_set.class_names)
    dtype = hardware.autocast_dtype(options.precision, device)
    steps_per_epoch = len(train_set) / options.batch_size
    total_steps = options.total_steps(len(train_set))
    log_every, eval_every, save_every = (
        to_steps(every, steps_per_epoch) for every in (options.log_every, options.eval_every, options.save_every)
    )

    model = _new_model(config, num_classes, device, init_from=config.init_from if saved is None else None)
    criterion = build_loss(config.loss, num_classes, lambda: map(train_set.read_label, range(len(train_set))))
    criterion.to(device)
    optimizer = build_optimizer(config.optimizer, model, criterion)
    schedule = build_schedule(config.schedule, total_steps, steps_per_epoch)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    ema = copy.deepcopy(model).requires_grad_(False) if options.ema_decay else None
    if config.runtime.recompute:
        model.backbone.recompute = True
    state = RunState()
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scaler": scaler, "ema": ema}
    if criterion.state_dict():
        parts["criterion"] = criterion
    if saved is not None:
        for name, part in parts.items():
            if part is not None and part is not optimizer:
                part.load_state_dict(saved[name])
        load_state(optimizer, saved["optimizer"])
        state = RunState(**saved["run"])
        state.sums = {name: value.to(device) for name, value in state.sums.items()}
    finite = FiniteSteps(options.on_nonfinite, model, scaler)
    some_unused = 0 in criterion.weights.values()  # the classifier of an output without weight
    compiled: Any = torch.compile(model) if config.runtime.compile else model
    network = distributed.wrap(compiled, device, some_unused=some_unused)

    loader = _loader(config, train_set, world, device, state.step, total_steps)
    stream = iter(loader)
    eval_share = _share(config, eval_set, world, device)
    num_pictures = max(config.evaluate.samples, config.tracking.images, config.tracking.attention_images)
    patience = options.early_stop_patience or math.inf
    recorder.begin(model, total_steps, saved, arithmetic=_arithmetic(model, device, dtype), num_images=len(train_set))
    clock = time.monotonic() - state.seconds

    saved_step = state.step

    def save() -> None:
        nonlocal saved_step
        state_dicts = {name: part.state_dict() if part is not None else None for name, part in parts.items()}
        check_weights(state.step, state_dicts)
        recorder.save({**state_dicts, "step": state.step, "run": vars(state)})
        saved_step = state.step

    with ending(loader, eval_share.loader), recorder, StopSignals() as signals:
        stopped_early = state.since_best >= patience  # by a run that was killed before it could write its result
        signalled, is_whole = False, True  # whether the last step is, so that the run can go on from it
        try:
            while True:
                last = state.step == total_steps
                pause = time.monotonic()
                if (state.step % eval_every == 0 or last) and state.step > state.evaluated and not signalled:
                    check_weights(state.step, {"model": model.state_dict()})
                    _switch(optimizer, "eval")
                    distributed.share_buffers(ema or model)
                    found = evaluation.evaluate(
                        ema or model,
                        eval_share,
                        dtype=dtype,
                        inference=config.evaluate,
                        num_pictures=num_pictures,
                        interruptible=signals.raising,
                    )
                    is_best = state.judge({**found.result(), "step": state.step, "split": config.evaluate.split})
                    state.evaluated = state.step
                    row = {"step": state.step, "epoch": state.step / steps_per_epoch, "seconds": state.seconds}
                    recorder.evaluated(row, found, is_best, ema or model)
                    stopped_early = state.since_best >= patience or distributed.any_process(recorder.pruned)[0]
                    if stopped_early and not last:
                        if state.step % log_every:
                            recorder.log({**row, **state.averages(), **_rates(optimizer), **_gammas(model)})
                        save()
                recorder.paused(time.monotonic() - pause)
                if last or stopped_early or signalled:
                    break

                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * schedule(state.step)
                torch.manual_seed(_keyed_seed(config.seed, state.step, world.rank))
                waiting = time.monotonic()
                with signals.raising(world.size == 1):
                    batches: list[Batch] = [next(stream) for _ in range(options.accumulate_steps)]
                recorder.waited(time.monotonic() - waiting)

                is_whole = False
                finite.begin()
                model.train()
                _switch(optimizer, "train")
                losses = _backward(network, criterion, scaler, batches, device, dtype, model.align_corners, world)
                scaler.unscale_(optimizer)
                distributed.average_gradients(criterion)
                trained = [p for part in (model, criterion) for p in part.parameters() if p.grad is not None]
                norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
                if options.max_grad_norm is not None:
                    nn.utils.clip_grads_with_norm_(trained, options.max_grad_norm, norm)
                updated = finite.check(state.step + 1, losses["train/loss"], norm, batches)
                finite.step(optimizer, scaler)
                state.add({**losses, "train/grad_norm": norm}, updated)
                optimizer.zero_grad(set_to_none=True)
                state.step += 1
                if ema is not None and options.ema_decay:
                    _average(ema, model, min(options.ema_decay, state.step / (state.step + 9)))
                state.seconds = time.monotonic() - clock
                is_whole = True

                (signalled,) = distributed.any_process(signals.received)
                last = signalled or state.step == total_steps
                if last or any(state.step % every == 0 for every in (log_every, eval_every, save_every)):
                    finite.report()
                if state.step % log_every == 0 or state.step == total_steps:
                    row = {"step": state.step, "epoch": state.step / steps_per_epoch, "seconds": state.seconds}
                    recorder.log({**row, **state.averages(), **_rates(optimizer), **_gammas(model)})
                else:
                    recorder.advance(state.step)
                pause = time.monotonic()
                if state.step % save_every == 0 or last:  # before an evaluation, which may take long
                    save()
                recorder.paused(time.monotonic() - pause)
        except StopRequested:
            signalled = True
            if state.step > saved_step:
                finite.report()
                save()
        except Exception as error:
            if is_whole and state.step > saved_step and not isinstance(error, NonFiniteError | OSError):
                finite.report()
                save()
            if saved_step:
                log.info("step %d is saved. %s", saved_step, recorder.how_to_resume())
            raise
        finished = state.evaluated == total_steps or stopped_early
        recorder.finish(state.best, finished=finished)
        return Outcome(recorder.folder, state.best, finished)


def _new_model(config: RunConfig, num_classes: int, device: torch.device, init_from: str | None) -> Segmenter:
    """The network on `device`, with the weights of the file `init_from` if there is one."""
    options: dict[str, Any] = {"head": config.head, "auxiliary_head": config.auxiliary_head, "seed": config.seed}
    model = build_model(config.backbone, num_classes=num_classes, **options)
    if init_from:
        backbone = {key: value for key, value in config.backbone.items() if key != "pretrained"}
        weights.start_from(
            model, Path(init_from), lambda classes: build_model(backbone, num_classes=classes, **options)
        )
    if config.train.sync_batchnorm:
        distributed.synchronize_batchnorm(model, device)
    model.to(device)
    if config.train.channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def _loader(
    config: RunConfig,
    train_set: SegmentationDataset,
    world: World,
    device: torch.device,
    first_step: int,
    total_steps: int,
) -> Loader:
    """This process's batches from `first_step` on."""
    sampler = StepSampler(
        len(train_set),
        batch_size=config.train.batch_size,
        parts=config.train.accumulate_steps,
        rank=world.rank,
        world_size=world.size,
        seed=config.seed,
        first_step=first_step,
        total_steps=total_steps,
    )
    augment, workers = Augmentation(config.augment), config.runtime.num_workers
    return training_loader(train_set, augment, sampler, seed=config.seed, num_workers=workers, device=device)


def _share(config: RunConfig, eval_set: SegmentationDataset, world: World, device: torch.device) -> evaluation.Share:
    """This process's images to score."""
    return evaluation.Share(
        eval_set,
        device=device,
        world=world,
        batch_size=config.evaluate.batch_size,
        max_images=config.evaluate.max_images,
        num_workers=config.runtime.num_workers,
    )


def _backward(
    network: nn.Module,
    criterion: SegmentationLoss,
    scaler: torch.amp.GradScaler,
    batches: list[Batch],
    device: torch.device,
    dtype: torch.dtype,
    align_corners: bool,
    world: World,
) -> dict[str, Tensor]:
    """Add up the gradients of a step's batches; gives the losses, over all processes, by metric name."""
    shares: dict[str, Tensor] = {}  # what this process and each batch add to the step's losses
    for part, batch in enumerate(batches, start=1):
        image = batch.image.to(device, non_blocking=True)
        label = batch.label.to(device, non_blocking=True).long()
        with distributed.exchange_gradients(network, part == len(batches)):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = network(image)
            terms = criterion(logits, label, align_corners=align_corners)
            means = _means(terms)
            loss = torch.stack([terms[name].weight * mean for name, mean in means.items()]).sum()
            # DistributedDataParallel averages gradients over processes; these are to be added.
            scaler.scale(loss * world.size / len(batches)).backward()
        for name, value in (("", loss), *((f"/{name}", mean) for name, mean in means.items())):
            share = value.detach() / len(batches)
            shares[f"train/loss{name}"] = shares.get(f"train/loss{name}", 0.0) + share
    sums = distributed.sum_over_processes(torch.stack(list(shares.values())))
    return dict(zip(shares, sums, strict=True))


def _means(terms: dict[str, LossTerm]) -> dict[str, Tensor]:
    """This process's share of each term's mean: its total over the count of all processes."""
    counts = distributed.sum_over_processes(torch.stack([term.count for term in terms.values()]).clone())
    return {name: mean_loss(term.total, count) for (name, term), count in zip(terms.items(), counts, strict=True)}


def _keyed_seed(*key: int) -> int:
    """A seed for PyTorch that is a function of the key alone."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


@torch.no_grad()
def _average(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the model's, each tensor once whatever names it has; counters are copied."""
    tensors = ([*each.parameters(), *each.buffers()] for each in (ema, model))
    for own, new in zip(*tensors, strict=True):
        if own.is_floating_point():
            own.lerp_(new, 1 - decay)
        else:
            own.copy_(new)


def _arithmetic(model: nn.Module, device: torch.device, dtype: torch.dtype) -> str:
    """Device, precision and what the position attention's form "auto" comes to, in words."""
    words = f"{hardware.describe(device)}, {str(dtype).removeprefix('torch.')}"
    if any(getattr(module, "form", None) == "auto" for module in model.modules()):
        words += f", position attention {describe_choice(device, dtype)}"
    return words


def _switch(optimizer: torch.optim.Optimizer, mode: Literal["train", "eval"]) -> None:
    """Tell an optimizer whose weights differ between training and evaluation which are needed now."""
    if hasattr(optimizer, mode):
        getattr(optimizer, mode)()


def _rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Learning rates by metric name."""
    return {f"train/lr/{group['name']}": group["lr"] for group in optimizer.param_groups}


def _gammas(model: nn.Module) -> dict[str, float]:
    """The attention modules' learned scales: how much attention counts (0 at the start)."""
    values = {}
    for name, parameter in model.named_parameters():
        *path, last = name.split(".")
        if last == "gamma" and parameter.numel() == 1:
            branch = next((part for part in path if part in ("pam", "cam")), ".".join(path))
            values[f"train/gamma/{branch}"] = float(parameter.detach())
    return values
