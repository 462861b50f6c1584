"""Adding an image to the scores of a split.

Shapes: H x W image size, K classes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from danet.metrics import ConfusionMatrix
from danet_benchmark import peers
from danet_benchmark.networks import IGNORE, Context
from danet_benchmark.timing import Contestant, contest


def rows(context: Context) -> Iterator[dict[str, Any]]:
    """A row for each number of classes and metric; the first of a case is ours."""
    settings = context.config.metrics
    for num_classes in settings.num_classes:
        _, label = context.work(settings.size, 1, num_classes).batch()
        generator = torch.Generator().manual_seed(1)
        wrong = torch.randint(0, num_classes, label.shape, generator=generator, dtype=torch.uint8)
        prediction = torch.where((label == IGNORE) | (wrong % 4 == 0), wrong, label)
        pixels = [x[0].to(context.device) for x in (prediction.long(), label)]

        def start(build: Any, pixels: list[Tensor] = pixels, num_classes: int = num_classes) -> Callable[[], Any]:
            update = build(num_classes, context.device)
            return lambda: update(*pixels)

        builders = {"ours": ours, "torchmetrics": torchmetrics, "mmsegmentation": mmseg}
        contestants = [
            Contestant(name, lambda build=build: start(build))  # type: ignore[misc]
            for name, build in builders.items()
        ]
        case = {"case": f"{settings.size[0]} x {settings.size[1]}, K = {num_classes}", "num_classes": num_classes}
        for timing in contest(contestants, device=context.device, seconds=settings.seconds):
            yield timing.row(**case)


Update = Callable[[Tensor, Tensor], Any]  # prediction (H, W) int64 and label (H, W) uint8, on the device


def ours(num_classes: int, device: torch.device) -> Update:
    """Our confusion matrix."""
    return ConfusionMatrix(num_classes).to(device).update


def torchmetrics(num_classes: int, device: torch.device) -> Update:
    """Torchmetrics' confusion matrix, without its checks."""
    from torchmetrics.classification import MulticlassConfusionMatrix

    return MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE, validate_args=False).to(device).update


def mmseg(num_classes: int, device: torch.device) -> Update:
    """Mmsegmentation's IoUMetric: areas of intersection and union, as its `process` finds them."""
    metric = peers.mmseg_module("mmseg.evaluation.metrics.iou_metric").IoUMetric
    return lambda prediction, label: metric.intersect_and_union(prediction, label.to(prediction), num_classes, IGNORE)
