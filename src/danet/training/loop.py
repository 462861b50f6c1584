"""The training loop: read it straight down.

Optimizer steps are the clock. Everything random in step s is drawn from a generator keyed by (seed, s), so the loop
can stop after any step and go on from a checkpoint as if it had not.
"""

import logging
import math
import time
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

import danet.config
from danet.config import RunConfig
from danet.config.sections import TrainConfig
from danet.data.augment import Augmentation
from danet.data.loader import Batch, Loader, ending, training_loader
from danet.data.rare_classes import factors_of
from danet.data.sampler import StepSampler
from danet.evaluation.evaluate import Evaluation, Share, evaluate
from danet.interfaces import LossTerm, SegmentationDataset
from danet.losses.segmentation_loss import SegmentationLoss, mean_loss
from danet.ops.position_attention import describe_choice
from danet.schedules import build_schedule, to_steps
from danet.services import distributed
from danet.services.compute import Compute
from danet.services.nonfinite import FiniteSteps, NonFiniteError, check_weights
from danet.services.signals import StopRequested, StopSignals
from danet.training.network import as_called
from danet.training.recorder import Recorder
from danet.training.state import Outcome, Trained, build

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """When things happen, in optimizer steps."""

    total: int
    per_epoch: float
    log_every: int
    eval_every: int
    save_every: int

    @classmethod
    def of(cls, options: TrainConfig, num_images: int) -> Self:
        """The plan for a training split of so many images."""
        per_epoch = num_images / options.batch_size
        every = (to_steps(each, per_epoch) for each in (options.log_every, options.eval_every, options.save_every))
        return cls(options.total_steps(num_images), per_epoch, *every)

    def is_due(self, step: int, every: int) -> bool:
        """Whether something that happens `every` so many steps, and at the end, happens after this step."""
        return step % every == 0 or step == self.total


def train(
    config: RunConfig,
    compute: Compute,
    train_set: SegmentationDataset,
    eval_set: SegmentationDataset,
    recorder: Recorder,
    saved: dict[str, Any] | None = None,
) -> Outcome:
    """Train to the end, or until a signal; evaluate, save and record on the way.

    Args:
        config: the run.
        compute: where, and in which precision.
        train_set: the split to train on.
        eval_set: the split to score.
        recorder: writes the run folder.
        saved: a checkpoint of this run to go on from.

    Raises:
        NonFiniteError: a loss or gradient is not finite and train.on_nonfinite is "stop", or a weight is not finite.
    """
    options, device = config.train, compute.device
    plan = Plan.of(options, len(train_set))
    init_from = config.init_from if saved is None else None
    trained = build(config, compute, train_set, num_classes=len(eval_set.class_names), init_from=init_from)
    if saved is not None:
        trained.load(saved, device)
    model, optimizer, state = trained.model, trained.optimizer, trained.state
    schedule = build_schedule(config.schedule, plan.total, plan.per_epoch)
    finite = FiniteSteps(options.on_nonfinite, model, trained.scaler)
    network = as_called(config, trained, device)
    loader = _loader(config, train_set, compute, state.step, plan.total)
    stream = iter(loader)
    share = _share(config, eval_set, compute)
    patience = options.early_stop_patience or math.inf
    recorder.begin(model, plan.total, saved, arithmetic=_arithmetic(model, compute), num_images=len(train_set))
    clock = time.monotonic() - state.seconds
    saved_step = state.step

    def row(**values: float) -> dict[str, Any]:
        return {"step": state.step, "epoch": state.step / plan.per_epoch, "seconds": state.seconds, **values}

    def log_metrics() -> None:
        recorder.log(row(**state.averages(), **_rates(optimizer), **_gammas(model)))

    def save() -> None:
        nonlocal saved_step
        recorder.save(trained.checkpoint())
        saved_step = state.step

    with ending(loader, share.loader), StopSignals() as signals, recorder:
        stopped_early = state.since_best >= patience  # by a run that was killed before it could write its result
        signalled, is_whole = False, True  # is_whole: the last step is complete, so that the run can go on from it
        try:
            while True:
                last = state.step == plan.total
                pause = time.monotonic()
                if plan.is_due(state.step, plan.eval_every) and state.step > state.evaluated and not signalled:
                    _switch(optimizer, "eval")
                    evaluation = _evaluate(config, trained, share, signals)
                    state.seconds = time.monotonic() - clock
                    is_best = state.judge({**evaluation.result(), "step": state.step, "split": config.evaluate.split})
                    recorder.evaluated(row(), evaluation, is_best, trained.ema or model)
                    stopped_early = state.since_best >= patience or distributed.any_process(recorder.pruned)[0]
                    if stopped_early and not last:
                        recorder.paused(time.monotonic() - pause)
                        pause = time.monotonic()
                        if state.step % plan.log_every:
                            log_metrics()
                        save()
                recorder.paused(time.monotonic() - pause)
                if last or stopped_early or signalled:
                    break

                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * schedule(state.step)
                torch.manual_seed(_keyed_seed(config.seed, state.step, compute.world.rank))
                waiting = time.monotonic()
                with signals.raising(compute.world.size == 1):
                    batches: list[Batch] = [next(stream) for _ in range(options.accumulate_steps)]
                recorder.waited(time.monotonic() - waiting)

                is_whole = False
                _step(options, trained, network, batches, compute, finite)
                state.seconds = time.monotonic() - clock
                is_whole = True

                (signalled,) = distributed.any_process(signals.received)
                saves = plan.is_due(state.step, plan.save_every) or signalled
                logs = plan.is_due(state.step, plan.log_every)
                if saves or logs or plan.is_due(state.step, plan.eval_every):
                    finite.report()
                log_metrics() if logs else recorder.advance(state.step)
                pause = time.monotonic()
                if saves:  # before an evaluation, which may take long
                    save()
                recorder.paused(time.monotonic() - pause)
        except StopRequested:
            signalled = True
            if state.step > saved_step:
                finite.report()
                save()
        except Exception as error:
            is_whole = is_whole or finite.undo()
            if is_whole and state.step > saved_step and not isinstance(error, NonFiniteError | OSError):
                finite.report()
                save()
            if saved_step:
                log.info("step %d is saved. %s", saved_step, recorder.how_to_resume())
            raise
        finished = state.evaluated == plan.total or stopped_early
        recorder.finish(state.best, finished=finished)
        return Outcome(recorder.folder, state.best, finished)


def _step(
    options: TrainConfig,
    trained: Trained,
    network: nn.Module,
    batches: list[Batch],
    compute: Compute,
    finite: FiniteSteps,
) -> None:
    """One optimizer step on its batches; then the clock moves."""
    model, criterion, optimizer, scaler = trained.model, trained.criterion, trained.optimizer, trained.scaler
    state = trained.state
    finite.begin()
    model.train()
    _switch(optimizer, "train")
    losses = _backward(network, criterion, scaler, batches, compute, model.align_corners)
    scaler.unscale_(optimizer)
    distributed.average_gradients(criterion)
    updated = [p for part in (model, criterion) for p in part.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in updated if p.grad is not None])
    if options.max_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(updated, options.max_grad_norm, norm)
    counts = finite.check(state.step + 1, losses["train/loss"], norm, batches)
    finite.step(optimizer, scaler)
    optimizer.zero_grad(set_to_none=True)
    state.add({**losses, "train/grad_norm": norm}, counts)
    state.step += 1
    if trained.ema is not None and options.ema_decay:
        _average(trained.ema, model, min(options.ema_decay, state.step / (state.step + 9)))


def _evaluate(config: RunConfig, trained: Trained, share: Share, signals: StopSignals) -> Evaluation:
    """Score the averaged weights, if there are such, else the model's."""
    scored = trained.ema or trained.model
    check_weights(trained.state.step, {"model": trained.model.state_dict()})
    distributed.share_buffers(scored)
    return evaluate(
        scored,
        share,
        inference=config.evaluate,
        num_pictures=max(config.evaluate.samples, config.tracking.images, config.tracking.attention_images),
        interruptible=signals.raising,
    )


def _loader(
    config: RunConfig,
    train_set: SegmentationDataset,
    compute: Compute,
    first_step: int,
    total_steps: int,
) -> Loader:
    """This process's batches from `first_step` on."""
    workers, cache_dir = config.runtime.num_workers, danet.config.OUTPUTS / ".cache"
    sampler = StepSampler(
        len(train_set),
        batch_size=config.train.batch_size,
        parts=config.train.accumulate_steps,
        rank=compute.world.rank,
        world_size=compute.world.size,
        seed=config.seed,
        first_step=first_step,
        total_steps=total_steps,
        factors=factors_of(config.train, train_set, cache_dir=cache_dir, workers=workers),
    )
    augment = Augmentation(config.augment, train_set.class_names)
    return training_loader(train_set, augment, sampler, seed=config.seed, num_workers=workers, device=compute.device)


def _share(config: RunConfig, eval_set: SegmentationDataset, compute: Compute) -> Share:
    """This process's images to score."""
    return Share(
        eval_set,
        compute=compute,
        batch_size=config.evaluate.batch_size,
        max_images=config.evaluate.max_images,
        num_workers=config.runtime.num_workers,
    )


def _backward(
    network: nn.Module,
    criterion: SegmentationLoss,
    scaler: torch.amp.GradScaler,
    batches: list[Batch],
    compute: Compute,
    align_corners: bool,
) -> dict[str, Tensor]:
    """Add up the gradients of a step's batches; gives the losses, over all processes, by metric name."""
    shares: dict[str, Tensor] = {}  # what this process and each batch add to the step's losses
    for part, batch in enumerate(batches, start=1):
        image = batch.image.to(compute.device, non_blocking=True)
        label = batch.label.to(compute.device, non_blocking=True).long()
        with distributed.exchange_gradients(network, part == len(batches)):
            with compute.autocast():
                logits = network(image)
            terms = criterion(logits, label, align_corners=align_corners)
            means = _means(terms)
            loss = torch.stack([terms[name].weight * mean for name, mean in means.items()]).sum()
            # DistributedDataParallel averages gradients over processes; these are to be added.
            scaler.scale(loss * compute.world.size / len(batches)).backward()
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


def _arithmetic(model: nn.Module, compute: Compute) -> str:
    """Device, precision and what the position attention's form "auto" comes to, in words."""
    if not any(getattr(module, "form", None) == "auto" for module in model.modules()):
        return compute.describe()
    return f"{compute.describe()}, position attention {describe_choice(compute.device, compute.dtype)}"


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
