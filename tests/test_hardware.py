"""Device, precision and memory."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from danet.services import hardware
from danet.services.compute import Compute
from danet.services.distributed import World
from danet.services.hardware import autocast_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("machine", "flags", "dtype"),
    [
        ("x86_64", "avx512f avx512_bf16", torch.bfloat16),
        ("x86_64", "amx_bf16 amx_tile", torch.bfloat16),
        ("x86_64", "avx2 avx512f avx512_vnni", torch.float32),
        ("aarch64", "asimd bf16", torch.float32),
    ],
)
def test_auto_is_bf16_where_the_processor_has_it(machine, flags, dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DANET_CPU_BF16", raising=False)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", lambda self: f"flags: fpu {flags}")
    assert autocast_dtype("auto", CPU) == dtype


@pytest.mark.parametrize(("native", "dtype"), [("0", torch.float32), ("1", torch.bfloat16)])
def test_the_environment_overrides_the_processor_and_nothing_else(native, dtype, monkeypatch) -> None:
    monkeypatch.setenv("DANET_CPU_BF16", native)
    assert autocast_dtype("auto", CPU) == dtype
    assert autocast_dtype("auto", torch.device("mps")) == torch.float32
    given = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert {name: autocast_dtype(name, CPU) for name in given} == given


def test_an_invalid_value_in_the_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANET_CPU_BF16", "yes")
    with pytest.raises(ValueError, match="DANET_CPU_BF16=yes: must be 1"):
        autocast_dtype("auto", CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_compute_enters_autocast_unless_it_is_float32(dtype) -> None:
    compute = Compute(CPU, dtype, World(1, 4))
    assert not compute.world.is_main
    with compute.autocast():
        assert torch.is_autocast_enabled("cpu") == (dtype != torch.float32)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.skipif(not hardware.STATUS.exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("kept", [False, True])
def test_peak_memory_is_that_since_the_reset(kept: bool) -> None:
    if kept:
        hardware.keep_memory()
    hardware.reset_peak_memory(CPU)  # gives back what other tests have left
    size = 2**28
    large = torch.ones(size, dtype=torch.uint8)
    during = hardware.process_memory()
    del large
    assert hardware.peak_memory(CPU) >= during - 2**20
    hardware.reset_peak_memory(CPU)
    after = hardware.process_memory()
    assert during - after == pytest.approx(size, rel=0.05)
    assert hardware.peak_memory(CPU) == pytest.approx(after, rel=0.05)


def test_a_device_of_another_name_is_told_plainly() -> None:
    with pytest.raises(ValueError, match="device = 'gpu': must be auto, cpu, cuda or mps"):
        hardware.select_device("gpu")


PAGES = """
import resource, torch
from danet.services import hardware

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**25)  # 128 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
hardware.keep_memory()
faults()
print(first, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_freed_memory_is_kept_and_the_next_step_faults_no_page() -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run([sys.executable, "-c", PAGES], env=env, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 4  # a block may be placed anew once
