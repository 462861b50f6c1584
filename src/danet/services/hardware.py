"""The device, its arithmetic, and determinism."""

import contextlib
import os
import platform
import re
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux


def select_device(wanted: str, local_rank: int = 0) -> torch.device:
    """The device to run on; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        ValueError: the wanted device is not there.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "auto":
        wanted = "cuda" if cuda else "mps" if mps else "cpu"
    if wanted == "cuda" and not cuda:
        raise ValueError("runtime.device = 'cuda': PyTorch sees no CUDA device; use runtime.device=auto or cpu")
    if wanted == "cuda" and local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"runtime.devices: {local_rank + 1} or more wanted, {torch.cuda.device_count()} CUDA devices are there"
        )
    if wanted == "mps" and not mps:
        raise ValueError("runtime.device = 'mps': PyTorch sees no Apple GPU; use runtime.device=auto or cpu")
    if wanted == "cuda":
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device(wanted)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type that matrix products and convolutions compute in; float32 means no autocast.

    "auto" is bfloat16 where the hardware computes it natively: elsewhere it is emulated and slower than float32. The
    environment variable DANET_CPU_BF16 (0 or 1) overrides what the processor says, so one machine can test both.
    """
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        native = _cpu_has_bf16()
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 natively.

    Raises:
        ValueError: DANET_CPU_BF16 is set to something else than 0 or 1.
    """
    wanted = os.environ.get("DANET_CPU_BF16", "")
    if wanted in ("0", "1"):
        return wanted == "1"
    if wanted:
        raise ValueError(f"DANET_CPU_BF16={wanted}: must be 1 (native bf16) or 0 (none); unset, the processor decides")
    if platform.machine() == "x86_64":
        with contextlib.suppress(OSError):
            flags = Path("/proc/cpuinfo").read_text()
            return "avx512_bf16" in flags or "amx_bf16" in flags
    return False


def set_determinism(wanted: bool) -> None:
    """Choose the same algorithms at every run (wanted), or the fastest."""
    # cuBLAS reads this when it is first used; without it deterministic matrix products are an error.
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cudnn.benchmark = not wanted


def describe(device: torch.device) -> str:
    """The device in words, for the log and environment.json."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def reset_peak_memory(device: torch.device) -> None:
    """Count `peak_memory` from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR.exists():
        CLEAR.write_text("5")  # from here on VmHWM is the peak since now


def peak_memory(device: torch.device) -> int | None:
    """Bytes: on CUDA the most that tensors held, on the CPU the most that the process had. None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return process_memory("VmHWM") if device.type == "cpu" else None


def process_memory(key: str) -> int | None:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM); None where the system does not say."""
    if not STATUS.exists():
        return None
    found = re.search(rf"{key}:\s+(\d+) kB", STATUS.read_text())
    return 1024 * int(found[1]) if found else None
