"""One whole image, from uint8 in main memory to labels on the device: time and memory.

Shapes: B images, H x W image size.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from danet_benchmark import networks
from danet_benchmark.networks import Context, DANet, Work
from danet_benchmark.timing import Contestant, contest

Segment = Callable[[Tensor], Tensor]  # (B, 3, H, W) uint8 in main memory -> (B, H, W) labels


def rows(context: Context) -> Iterator[dict[str, Any]]:
    """A row for each size and model; the first of a case is ours as configured."""
    settings = context.config.inference
    name, peers_dtype = str(context.dtype).removeprefix("torch."), context.dtype
    if context.device.type == "cpu":
        peers_dtype = torch.float32
    plain = str(peers_dtype).removeprefix("torch.")
    for size in settings.sizes:
        work = context.work(size, 1, settings.num_classes)
        theirs = context.work(size, 1, settings.num_classes, peers_dtype)
        contestants = [
            Contestant("ours", partial(start, ours, context.danet, work), f"{name}, channels_last"),
            Contestant("mmsegmentation", partial(start, mmseg, context.danet, theirs), f"{plain}, as it ships"),
        ]
        if context.device.type == "cuda" or size == settings.sizes[0]:  # a CPU needs most of a minute for the largest
            contestants += [
                Contestant(name, partial(start, build, context.danet, theirs), f"{plain}; another network")
                for name, build in (("smp DeepLabV3", smp), ("torchvision DeepLabV3", torchvision))
            ]
        case = {"case": f"{work.size[0]} x {work.size[1]}", "size": list(work.size)}
        timings = contest(contestants, device=context.device, seconds=settings.seconds, at_least=settings.at_least)
        yield from (timing.row(**case) for timing in timings)


def start(build: Callable[[DANet, Work], Segment], danet: DANet, work: Work) -> Callable[[], Tensor]:
    """What segments the work's images, built."""
    segment, (image, _) = build(danet, work), work.batch()

    def run() -> Tensor:
        with torch.inference_mode(), work.autocast():
            return segment(image)

    return run


def ours(danet: DANet, work: Work) -> Segment:
    """Ours, as evaluation and prediction do it."""
    model = networks.wake(danet.build(work.num_classes)).to(work.device).to(memory_format=torch.channels_last).eval()
    return lambda image: model.segment(image.to(work.device, non_blocking=True))  # type: ignore[operator]


def mmseg(danet: DANet, work: Work) -> Segment:
    """Mmsegmentation's DANet on the whole image, as its `predict` does it."""
    model = networks.mmseg(danet, work).eval()

    def segment(image: Tensor) -> Tensor:
        results = model.predict(networks.normalized(image, work))
        return torch.cat([result.pred_sem_seg.data for result in results])

    return segment


def smp(danet: DANet, work: Work) -> Segment:
    """segmentation-models-pytorch's DeepLabV3."""
    return _plainly(networks.smp(danet, work), work)


def torchvision(danet: DANet, work: Work) -> Segment:
    """Torchvision's DeepLabV3."""
    return _plainly(networks.torchvision(danet, work), work)


def _plainly(model: torch.nn.Module, work: Work) -> Segment:
    model.eval()
    return lambda image: networks.tensors(model(networks.normalized(image, work)))[0].argmax(dim=1)
