"""How long a model takes from images to labels on this device, and with how much memory.

Shapes: B images, H x W image size.
"""

import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from danet import hardware
from danet.model import Segmenter
from danet.progress import track

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux


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

    _reset_peak(device)
    before = _process_memory("VmRSS")
    answer()
    process = _process_memory("VmHWM")
    memory = process - before if process is not None and before is not None else None
    if device.type == "cuda":
        memory, process = torch.cuda.max_memory_allocated(device), None
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


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR.exists():
        CLEAR.write_text("5")  # from here on VmHWM is the peak since now


def _process_memory(key: str) -> int | None:
    """Bytes in memory, now (VmRSS) or at most (VmHWM); None where the system does not say."""
    if not STATUS.exists():
        return None
    found = re.search(rf"{key}:\s+(\d+) kB", STATUS.read_text())
    return 1024 * int(found[1]) if found else None
