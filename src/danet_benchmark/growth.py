"""Cost as work grows: a training step by batch, image size and classes; scoring by number of images.

Shapes: B images, H x W image size, K classes.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from danet.metrics import ConfusionMatrix
from danet_benchmark import inference, trainers
from danet_benchmark.networks import Context, Work
from danet_benchmark.timing import Contestant, contest
from danet_benchmark.training import contest_of_trainers

Row = dict[str, Any]


def rows(context: Context) -> Iterator[Row]:
    """A row for each value of each axis, ours and mmsegmentation's."""
    settings = context.config.growth
    size, batch_size, num_classes = settings.sizes[0], settings.batch_sizes[0], settings.num_classes[0]
    axes: dict[str, dict[int, Work]] = {
        "images in a batch": {n: context.work(size, n, num_classes) for n in settings.batch_sizes},
        "pixels in an image": {h * w: context.work((h, w), batch_size, num_classes) for h, w in settings.sizes},
        "classes": {count: context.work(size, batch_size, count) for count in settings.num_classes},
    }
    measured: dict[Work, list[Row]] = {}  # the axes share their first value
    for axis, works in axes.items():
        for value, work in works.items():
            if work not in measured:
                measured[work] = _step(context, work)
            yield from ({**_case(axis, value, work), **row} for row in measured[work])
    for value in settings.images:
        yield from _score(context, value, context.work(size, 1, num_classes))


def _step(context: Context, work: Work) -> list[Row]:
    settings, danet = context.config.growth, context.danet
    builders: dict[str, tuple[Callable[[], trainers.Trainer], str]] = {
        "ours": (partial(trainers.ours, danet, work), ""),
        "mmsegmentation": (partial(trainers.mmseg, danet, work), ""),
    }
    return contest_of_trainers(context, builders, settings.seconds, settings.at_least)


def _case(axis: str, value: int, work: Work) -> Row:
    fixed = f"{work.batch_size} x 3 x {work.size[0]} x {work.size[1]}, K = {work.num_classes}"
    return {"case": f"training step, {axis} = {value}: {fixed}", "axis": axis, "value": value}


def _score(context: Context, count: int, work: Work) -> Iterator[Row]:
    settings, axis = context.config.growth, "images scored"

    def start(build: Any) -> Callable[[], None]:
        segment = inference.start(build, context.danet, work)
        label = work.batch()[1].to(work.device)
        matrix = ConfusionMatrix(work.num_classes).to(work.device)

        def run() -> None:
            for _ in range(count):
                matrix.update(segment(), label)

        return run

    contestants = [
        Contestant("ours", lambda: start(inference.ours)),
        Contestant("mmsegmentation", lambda: start(inference.mmseg)),
    ]
    case = {"case": f"scoring, {axis} = {count}: 1 x 3 x {work.size[0]} x {work.size[1]}", "axis": axis, "value": count}
    for timing in contest(contestants, device=context.device, seconds=settings.seconds, at_least=settings.at_least):
        yield timing.row(**case)
