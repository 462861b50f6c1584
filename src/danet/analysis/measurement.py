"""Measure latency and memory of a model, from images to labels.

Shapes: B images, H x W image size.
"""

import statistics
import time
from dataclasses import dataclass

import torch

from danet.model import Segmenter
from danet.services import hardware
from danet.services.compute import Compute
from danet.services.console import track


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Latency and memory of a model for batches of one size.

    Attributes:
        device: name of the device.
        precision: type of matrix products and convolutions.
        milliseconds: latency of each timed run, in order.
        memory: on CUDA peak memory of tensors, weights included; on a CPU growth of the process in its first run,
            without weights and libraries [bytes]. None if unknown.
        process: peak memory of the process in the first run on a CPU [bytes]; None elsewhere or if unknown.
    """

    device: str
    precision: str
    milliseconds: tuple[float, ...]
    memory: int | None
    process: int | None

    @property
    def median(self) -> float:
        """Median latency [ms]."""
        return statistics.median(self.milliseconds)


def measure(
    model: Segmenter, size: tuple[int, int], *, batch_size: int = 1, runs: int = 10, dtype: torch.dtype = torch.float32
) -> Measurement:
    """Segment the same random images repeatedly; images and labels stay on the device.

    Args:
        model: in evaluation mode, on the device. On a CPU, memory is only correct for a model that was not used before.
        size: H, W.
        batch_size: B.
        runs: number of timed runs.
        dtype: type of matrix products and convolutions.
    """
    device = model.mean.device
    compute = Compute(device, dtype)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch_size, model.in_channels, *size), dtype=torch.uint8, generator=generator).to(
        device
    )

    def latency() -> float:
        hardware.synchronize(device)
        begin = time.perf_counter()
        with torch.inference_mode(), compute.autocast():
            model.segment(images)
        hardware.synchronize(device)
        return 1000 * (time.perf_counter() - begin)

    hardware.reset_peak_memory(device)
    before = hardware.process_memory()
    latency()
    memory, process = hardware.peak_memory(device), None
    if device.type == "cuda":
        latency()  # the first runs also search for fast algorithms
        latency()
    elif memory is not None:
        memory, process = memory - before, memory
    milliseconds = [latency() for _ in track(range(runs), runs, "measuring")]
    return Measurement(
        device=hardware.describe(device),
        precision=str(dtype).removeprefix("torch."),
        milliseconds=tuple(milliseconds),
        memory=memory,
        process=process,
    )
