"""The machine that was measured: what it is, and how fast it multiplies, which nothing on it can exceed."""

import importlib.metadata
import math
import platform
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import psutil
import torch
from torch import Tensor

from danet.config import REPOSITORY
from danet.services import hardware, provenance
from danet_benchmark.timing import Contestant, contest

PACKAGES = (
    "torch torchvision numpy opencv-python-headless mmsegmentation mmcv-lite mmengine segmentation-models-pytorch timm "
    "torchmetrics"
).split()
ROUNDS = 15  # in turns, for what slows a shared machine slows one round


def describe(device: torch.device, size: int | None = None) -> dict[str, Any]:
    """The machine in figures.

    Args:
        device: that is measured.
        size: rows of the matrices whose product is timed; None: as large as keeps the device busy for a moment.
    """
    environment = provenance.environment(REPOSITORY)
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "device": name(device),
        "cpu": environment["cpu"],
        "cores": environment["cpu_cores"],
        "threads": torch.get_num_threads(),
        "memory": psutil.virtual_memory().total,
        "gpu_memory": gpu.total_memory if gpu else None,
        "platform": environment["platform"],
        "python": environment["python"],
        "versions": {package: _version(package) for package in PACKAGES}
        | {"cuda": environment["cuda"], "cudnn": environment["cudnn"]},
        "matmul": matmul_rates(device, size),
        "copy": copy_rate(device),
    }


def name(device: torch.device) -> str:
    """Such as "cpu" or "NVIDIA H100 80GB HBM3"."""
    return hardware.describe(device) if device.type == "cuda" else device.type


def slug(device: torch.device) -> str:
    """The device's part in the names of files, such as "nvidia_h100_80gb_hbm3" or "amd_epyc_bf16"."""
    words = name(device)
    if device.type == "cpu":
        model = re.sub(r"\(\w+\)|\b(CPU|Processor)\b|@.*", " ", provenance.cpu_name() or platform.machine())
        words = f"{model} bf16" if "bfloat16" in _types(device) else model
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")


def commit() -> str | None:
    """The commit of the code, with a mark where files differ from it."""
    git = provenance.environment(REPOSITORY)["git"]
    return f"{git['commit'][:12]}{' with changes' if git['dirty'] else ''}" if git["commit"] else None


def matmul_rates(device: torch.device, size: int | None = None) -> dict[str, float]:
    """Operations a second of a product of square matrices, by type; a multiply-add counts as two.

    On a CPU, of a 3x3 convolution where that is faster: PyTorch takes the two from different libraries, of which now
    one and now the other is a fifth ahead. On CUDA a convolution's float32 is TF32.
    """
    size = size or (8192 if device.type == "cuda" else 2048)
    channels, positions = size // 4, (48, 64)
    operations = {"matrices": 2 * size**3, "convolution": 2 * 9 * channels**2 * math.prod(positions)}

    def matrices(dtype: torch.dtype) -> Callable[[], Tensor]:
        left, right = torch.randn(2, size, size, device=device).to(dtype)
        return lambda: left @ right

    def convolution(dtype: torch.dtype) -> Callable[[], Tensor]:
        shapes = (1, channels, *positions), (channels, channels, 3, 3)
        image, weight = (torch.randn(s, device=device).to(dtype, memory_format=torch.channels_last) for s in shapes)
        return lambda: torch.conv2d(image, weight, padding=1)

    kinds = (matrices, convolution) if device.type == "cpu" else (matrices,)
    types = _types(device)
    builds = {f"{kind.__name__} {key}": partial(kind, dtype) for kind in kinds for key, dtype in types.items()}
    seconds = _seconds(builds, device)
    names = [kind.__name__ for kind in kinds]
    return {key: max(operations[name] / seconds[f"{name} {key}"] for name in names) for key in types}


def copy_rate(device: torch.device) -> float:
    """Bytes a second that are read and written by copying a tensor larger than the caches."""
    source = torch.zeros(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds({"copy": lambda: lambda: target.copy_(source)}, device)["copy"]


def _seconds(builds: Mapping[str, Callable[[], Callable[[], Any]]], device: torch.device) -> dict[str, float]:
    timings = contest([Contestant(*item) for item in builds.items()], device=device, seconds=0, at_least=ROUNDS)
    return {timing.name: timing.median or math.nan for timing in timings}


def _types(device: torch.device) -> dict[str, torch.dtype]:
    """Those that the device computes in natively."""
    if hardware.autocast_dtype("auto", device) == torch.bfloat16:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return {"float32": torch.float32}


def available_memory(device: torch.device) -> int:
    """Free memory of the device [bytes]."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
