"""Heads alone on the feature maps of a dilated ResNet-50: parameters, operations, time and memory of each.

Shapes: H x W image size, K classes.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from danet.interfaces import Stage
from danet.ops.flops import fake_tensors, flop_counter
from danet.registry import HEADS
from danet_benchmark import networks
from danet_benchmark.networks import Context, Work
from danet_benchmark.timing import Contestant, Timing, contest

STAGES = (Stage(256, 4), Stage(512, 8), Stage(1024, 8), Stage(2048, 8))
IMAGES = {"forward": 1, "forward + backward": 2}  # batch norm cannot train on the one value of a single image's mean
Row = dict[str, Any]


def rows(context: Context) -> Iterator[Row]:
    """A row for each size, direction and head; the first of a case is DANet's."""
    settings = context.config.heads
    for place, size in enumerate(settings.sizes):
        work = context.work(size, 1, settings.num_classes)
        for what in IMAGES if place == 0 else ("forward",):
            contestants = [Contestant(name, partial(_start, name, work, what)) for name in settings.names]
            images = f"{IMAGES[what]} image{'s' if IMAGES[what] > 1 else ''}"
            case = {"case": f"{work.size[0]} x {work.size[1]}, {images}, {what}", "size": list(work.size), "what": what}
            for timing in contest(contestants, device=context.device, seconds=settings.seconds, at_least=0):
                yield timing.row(**case, **_counted(timing, work))


def _counted(timing: Timing, work: Work) -> Row:
    """Parameters, and operations of a forward pass, a multiply-add counting as two."""
    if timing.error:
        return {"parameters": None, "operations": None}
    with fake_tensors(), torch.no_grad():
        head = _head(timing.name, work).eval()
        with flop_counter() as counter:
            head(_features(work))
    return {"parameters": sum(p.numel() for p in head.parameters()), "operations": counter.get_total_flops()}


def _head(name: str, work: Work) -> nn.Module:
    head: Any = HEADS[name](STAGES, work.num_classes)
    return head


def _features(work: Work, device: torch.device | None = None, images: int = 1) -> list[Tensor]:
    """Random and rectified feature maps, as a backbone gives them."""
    sizes = [[-(-side // stage.stride) for side in work.size] for stage in STAGES]
    maps = [
        torch.randn(images, stage.channels, *size, device=device) for stage, size in zip(STAGES, sizes, strict=True)
    ]
    return [x.relu_().contiguous(memory_format=torch.channels_last) for x in maps]


def _start(name: str, work: Work, what: str) -> Callable[[], None]:
    """The head's forward pass, or a training step of it alone, built."""
    head = networks.wake(_head(name, work)).to(work.device).to(memory_format=torch.channels_last)
    features = _features(work, work.device, IMAGES[what])
    if what == "forward":
        head.eval()

        def forward() -> None:
            with torch.inference_mode(), work.autocast():
                head(features)

        return forward

    def both() -> None:
        with work.autocast():
            outputs = head([x.requires_grad_() for x in features])
            total = torch.stack([logits.float().mean() for logits in outputs.values()]).sum()
        total.backward()
        head.zero_grad(set_to_none=True)
        for x in features:
            x.grad = None

    return both
