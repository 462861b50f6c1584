"""The device, its precision, its memory, and determinism."""

import contextlib
import ctypes
import os
import platform
import re
from pathlib import Path

import psutil
import torch

# Linux only, for the peak memory: psutil has only the current one; getrusage never resets, may report the parent's.
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of mallopt, in malloc.h


def select_device(wanted: str, local_rank: int = 0) -> torch.device:
    """The device to run on; "auto" prefers CUDA, then MPS, then the CPU.

    Raises:
        ValueError: the requested device is not available.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "auto":
        wanted = "cuda" if cuda else "mps" if mps else "cpu"
    if wanted == "cuda" and not cuda:
        raise ValueError("runtime.device = 'cuda': PyTorch finds no CUDA device; use runtime.device=auto or cpu")
    if wanted == "cuda" and local_rank >= (count := torch.cuda.device_count()):
        raise ValueError(f"runtime.devices: needs at least {local_rank + 1} CUDA devices, {count} available")
    if wanted == "mps" and not mps:
        raise ValueError("runtime.device = 'mps': PyTorch finds no Apple GPU; use runtime.device=auto or cpu")
    if wanted == "cuda":
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    try:
        return torch.device(wanted)
    except RuntimeError:
        raise ValueError(f"device = {wanted!r}: must be auto, cpu, cuda or mps") from None


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type for matrix products and convolutions; float32 means no autocast.

    "auto" is bfloat16 where the hardware computes it natively: elsewhere it is emulated and slower than float32. The
    environment variable DANET_CPU_BF16 (0 or 1) overrides what the processor reports, so one machine can test both.

    Raises:
        ValueError: there is no such precision, or the variable is neither.
    """
    if precision in DTYPES:
        return DTYPES[precision]
    if precision != "auto":
        raise ValueError(f"precision={precision}: must be auto, {', '.join(DTYPES)}")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and _cpu_has_bf16()
    return torch.bfloat16 if native else torch.float32


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 natively.

    Raises:
        ValueError: DANET_CPU_BF16 is neither 0 nor 1.
    """
    wanted = os.environ.get("DANET_CPU_BF16", "")
    if wanted in ("0", "1"):
        return wanted == "1"
    if wanted:
        raise ValueError(
            f"DANET_CPU_BF16={wanted}: must be 1 (native bf16) or 0 (none); unset it to detect the processor's support"
        )
    if platform.machine() == "x86_64":
        with contextlib.suppress(OSError):
            flags = Path("/proc/cpuinfo").read_text()
            return "avx512_bf16" in flags or "amx_bf16" in flags
    return False


def keep_memory() -> None:
    """Let the C library keep freed memory for the next step; it would give large blocks back, and fault each page anew.

    A fifth of a training step on a CPU. Only glibc has this setting, and variables of the user's own take precedence.
    """
    own = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if platform.libc_ver()[0] == "glibc" and not own:
        libc = ctypes.CDLL(None)
        for option, size in ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, (1 << 31) - 1), (M_TOP_PAD, 64 << 20)):
            libc.mallopt(option, size)


def set_determinism(wanted: bool) -> None:
    """Use deterministic algorithms if wanted, else the fastest."""
    # cuBLAS reads this at its first use; without it, deterministic matrix products raise an error.
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    # PyTorch would overwrite every new tensor before an operation does: a tenth of a step on a CPU.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cudnn.benchmark = not wanted


def describe(device: torch.device) -> str:
    """The name of the device, for the log and environment.json."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def process_memory() -> int:
    """Memory that this process uses now [bytes]."""
    return psutil.Process().memory_info().rss


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak that `peak_memory` reports."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_REFS.exists():
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)  # what `keep_memory` has kept
        CLEAR_REFS.write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Peak memory [bytes] of tensors on CUDA, or of the process on a CPU; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or not STATUS.exists():
        return None
    peak = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    return 1024 * int(peak[1]) if peak else None
