"""Training steps of whole models: the time of each part, and memory.

Shapes: B images, K classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from danet.ops.flops import fake_tensors, flop_counter
from danet_benchmark import trainers
from danet_benchmark.networks import Context, DANet, Work
from danet_benchmark.timing import Contestant, contest
from danet_benchmark.trainers import Trainer

Row = dict[str, Any]
PART_RUNS = 5  # on CUDA, where waiting for the device between the parts would slow the timed steps


def rows(context: Context) -> Iterator[Row]:
    """A row for each number of classes and model; the first of a case is ours as configured."""
    settings = context.config.training
    for place, num_classes in enumerate(settings.num_classes):
        work = context.work(settings.size, settings.batch_size, num_classes)
        everyone = _contestants(context, work)
        names = everyone if place == 0 else [name for name in ("ours", "mmsegmentation") if name in everyone]
        operations = step_operations(context.danet, work)
        case = {
            "case": f"{settings.batch_size} x 3 x {work.size[0]} x {work.size[1]}, K = {num_classes}",
            "num_classes": num_classes,
        }
        for row in contest_of_trainers(
            context, {name: everyone[name] for name in names}, settings.seconds, settings.at_least
        ):
            yield {**case, **row, "operations": operations if _same_network(row["name"]) else None}


def _same_network(name: str) -> bool:
    return name.startswith(("ours", "mmsegmentation"))


def contest_of_trainers(
    context: Context, builders: dict[str, tuple[Callable[[], Trainer], str]], seconds: float, at_least: int
) -> list[Row]:
    """The rows of a contest between training steps, with the time of their parts.

    Args:
        context: of the benchmark.
        builders: by name, with a note.
        seconds: see `contest`.
        at_least: see `contest`.
    """
    built: dict[str, Trainer] = {}

    def start(name: str) -> Callable[[], None]:
        built[name] = builders[name][0]()
        return built[name].step

    contestants = []
    for name, (_, note) in builders.items():
        once = context.device.type == "cpu" and not _same_network(name)  # other networks' steps are long there, too
        contestants.append(Contestant(name, partial(start, name), note, at_most=1 if once else None))
    rows = []
    for timing in contest(contestants, device=context.device, seconds=seconds, at_least=at_least):
        trainer = built.get(timing.name)
        if trainer and trainer.has_parts and timing.error is None and context.device.type == "cuda":
            trainer.parts.enabled = True
            for _ in range(PART_RUNS):
                trainer.step()
        rows.append(timing.row(parts=trainer.parts.medians() if trainer else {}))
    return rows


def _contestants(context: Context, work: Work) -> dict[str, tuple[Callable[[], Trainer], str]]:
    danet, settings = context.danet, context.config.training
    name = str(work.dtype).removeprefix("torch.")
    full = context.work(work.size, work.batch_size, work.num_classes, torch.float32)
    # On a CPU mmsegmentation computes in float32, as it ships; on a GPU it gets the same autocast.
    theirs = full if work.device.type == "cpu" else work
    plain = f"{str(theirs.dtype).removeprefix('torch.')}"
    same = "the same network and outputs" if danet.auxiliary_head else "the same network"
    makers: dict[str, tuple[Callable[[], Trainer], str]] = {
        "ours": (partial(trainers.ours, danet, work), f"{name}, channels_last"),
        "mmsegmentation": (partial(trainers.mmseg, danet, theirs), f"{plain}, as it ships; {same}"),
        "ours, recompute": (
            partial(trainers.ours, danet, work, recompute=True),
            f"{name}; the backbone's activations are computed again",
        ),
        "smp DeepLabV3": (partial(trainers.smp, danet, theirs), f"{plain}; another network, one loss"),
        "torchvision DeepLabV3": (
            partial(trainers.torchvision, danet, theirs),
            f"{plain}; another network, two losses",
        ),
    }
    if work.device.type == "cuda":  # a CPU takes long for a step, and the modules alone are compared, too
        note = f"{plain}; plain stem, three losses, no auxiliary head"
        makers["official formulas"] = (partial(trainers.official, danet, theirs), note)
    if work.dtype != torch.float32 and work.device.type == "cpu":
        makers["ours, float32"] = (partial(trainers.ours, danet, full), "float32, channels_last")
    if settings.compiled:
        makers["ours, compiled"] = (
            partial(trainers.ours, danet, work, compiled=True),
            f"{name}, torch.compile",
        )
    return makers


def step_operations(danet: DANet, work: Work) -> int:
    """Operations of a step, a multiply-add counting as two: three times the forward pass, without recomputation."""
    # Written plainly, for other forms compute some products again, and have operators that the counter does not know.
    plain = {"attention": "dense"} if "attention" in danet.head else {}
    model = replace(danet, head={**danet.head, **plain}).build(work.num_classes).train()
    own = (*model.named_parameters(), *model.named_buffers())
    with torch.no_grad(), fake_tensors(), flop_counter() as counter:
        tensors = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in own}
        image = torch.empty(work.batch_size, 3, *work.size, dtype=torch.uint8)
        torch.func.functional_call(model, tensors, (image,))
    return 3 * counter.get_total_flops()
