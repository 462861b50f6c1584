"""How long a model takes from images to labels on this device, and with how much memory.

Shapes: B images, H x W image size.
"""

import statistics
import time
from dataclasses import dataclass

import torch

from danet.model import Segmenter
from danet.services import hardware
from danet.services.progress import track


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The answers to one batch.

    Attributes:
        device: in words.
        precision: what matrix products and convolutions compute in.
        milliseconds: of each run, in order, those to warm up left out.
        memory: bytes. On CUDA the most that tensors held, weights included. On the CPU how far the process grew in its
            first run over what it had before, which is weights and libraries. None where it cannot be told.
        process: bytes, the most that the process had in memory in that run; None where it cannot be told.
    """

    device: str
    precision: str
    milliseconds: tuple[float, ...]
    memory: int | None
    process: int | None

    @property
    def median(self) -> float:
        """Milliseconds."""
        return statistics.median(self.milliseconds)


def measure(
    model: Segmenter, size: tuple[int, int], *, batch_size: int = 1, runs: int = 10, dtype: torch.dtype = torch.float32
) -> Measurement:
    """Segment the same random images again and again.

    The images are on the device already and the labels stay there.

    Args:
        model: in evaluation mode, on the device. What memory says on the CPU is right for a model not yet used.
        size: H, W.
        batch_size: B.
        runs: how many are timed.
        dtype: for matrix products and convolutions.
    """
    device = model.mean.device
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch_size, 3, *size), dtype=torch.uint8, generator=generator).to(device)

    def answer() -> float:
        """Milliseconds."""
        _wait(device)
        begin = time.perf_counter()
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            model.segment(images)
        _wait(device)
        return 1000 * (time.perf_counter() - begin)

    hardware.reset_peak_memory(device)
    before = hardware.process_memory("VmRSS")
    answer()
    process = hardware.process_memory("VmHWM")
    memory = process - before if process is not None and before is not None else None
    if device.type == "cuda":
        memory, process = hardware.peak_memory(device), None
        answer()
        answer()
    elif device.type != "cpu":
        memory = None  # the device's own is not told
    milliseconds = [answer() for _ in track(range(runs), runs, "measuring")]
    return Measurement(
        device=hardware.describe(device),
        precision=str(dtype).removeprefix("torch."),
        milliseconds=tuple(milliseconds),
        memory=memory,
        process=process,
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
