"""Errors that users can fix end a script with one line."""

import errno
import importlib
import multiprocessing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from conftest import load
from danet.config import REPOSITORY
from danet.schema import ConfigError
from danet.services import failures
from danet.services.failures import ResourceError


def test_every_script_starts_by_the_runner_that_ends_with_one_line() -> None:
    scripts = {path.name: path.read_text() for path in (REPOSITORY / "src").glob("*.py")}
    runner = REPOSITORY / "src" / "command_line" / "__init__.py"
    assert "with failures.one_line(memory):" in runner.read_text()
    assert len(scripts) >= 9
    for name, text in scripts.items():
        assert "command_line.start(main, " in text, name


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("photo.png: cannot be read"), "ValueError: photo.png: cannot be read"),
        (ConfigError(["x: y"]), "ConfigError: 1 problem in the configuration:\n  x: y"),
        (ChildProcessError("process 1: ValueError: a"), "ChildProcessError: process 1: ValueError: a"),
        (ZeroDivisionError("nothing"), "ZeroDivisionError: nothing"),
        (OSError("encoder error -2"), "OSError: encoder error -2"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a/b.png"),
            "OSError: a/b.png: No space left on device; free some space there, or choose another folder",
        ),
        (
            OSError(
                errno.ENOSPC, "No space left on device; free some space there, or choose another folder", "a/b.png"
            ),
            "OSError: a/b.png: No space left on device; free some space there, or choose another folder",
        ),
        (
            OSError(errno.EACCES, "Permission denied", "a/b.png"),
            "PermissionError: a/b.png: Permission denied; change its permissions, or choose another one",
        ),
        (OSError(errno.EIO, "Input/output error", b"a/b.png"), "OSError: a/b.png: Input/output error"),
        (ResourceError("out of memory; lower x"), "ResourceError: out of memory; lower x"),
    ],
)
def test_an_error_that_the_user_can_fix_ends_the_script_with_one_line(error: Exception, line: str) -> None:
    with pytest.raises(SystemExit) as end, failures.one_line():
        raise error
    assert end.value.code == line


@pytest.mark.parametrize("error", [KeyError("a"), AssertionError("b"), TypeError("c"), RuntimeError("shapes differ")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, failures.one_line():
        raise error
    assert caught.value is error


class Broken(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        raise ValueError("a.png: cannot be decoded; restore it")


def test_the_traceback_of_a_loader_process_is_left_out() -> None:
    context = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    with pytest.raises(ValueError, match="Original Traceback") as caught:
        list(DataLoader(Broken(), num_workers=1, multiprocessing_context=context))
    assert failures.in_words(caught.value) == "ValueError: a.png: cannot be decoded; restore it"


# ---- memory ----------------------------------------------------------------------------------------------------------


def too_much_of_torch() -> Any:
    return torch.empty(2**60, dtype=torch.uint8)


def too_much_of_numpy() -> Any:
    return np.empty(2**60, np.uint8)


def too_much_of_opencv() -> Any:
    line = np.zeros((1, 1), np.uint8)
    return cv2.resize(line, (2**31 - 1, 2**31 - 1))


@pytest.mark.parametrize("allocate", [too_much_of_torch, too_much_of_numpy, too_much_of_opencv])
def test_a_lack_of_memory_comes_with_the_remedy(allocate: Any) -> None:
    with pytest.raises(ResourceError, match=r"^out of memory \(.+\); try x=1$"), failures.explained("try x=1"):
        allocate()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        MemoryError(),
    ],
)
def test_all_messages_for_a_lack_of_memory_are_known(error: Exception) -> None:
    with pytest.raises(ResourceError, match="out of memory"), failures.explained():
        raise error
    with pytest.raises(SystemExit) as end, failures.one_line("lower x"):
        raise error
    assert str(end.value.code).startswith("ResourceError: out of memory (")
    assert str(end.value.code).endswith("; lower x")


def test_an_algorithm_that_is_not_deterministic_comes_with_the_remedy() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(ResourceError, match="deterministic=true: .* put_ .*; set runtime"), failures.explained():
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    finally:
        torch.use_deterministic_algorithms(before)


def test_an_explained_error_is_not_explained_again() -> None:
    error = ChildProcessError("process 1: ResourceError: out of memory (x); try y")
    with pytest.raises(ChildProcessError) as caught, failures.explained("try z"):
        raise error
    assert caught.value is error


# ---- torch.compile ---------------------------------------------------------------------------------------------------


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CXX", "TORCH_INDUCTOR_INSTALL_GXX"):
        monkeypatch.delenv(name, raising=False)


NEEDS = r"runtime\.compile=true needs a C\+\+ compiler \((clang|g)\+\+\): install one or set runtime\.compile=false"


@pytest.mark.slow
@pytest.mark.usefixtures("no_compiler")
def test_a_run_without_a_compiler_is_refused_before_it_starts() -> None:
    with pytest.raises(ConfigError, match=NEEDS):
        load(["runtime.compile=true", "runtime.device=cpu"], probe=True)
    load(["runtime.device=cpu"], probe=True)
    load(["runtime.compile=true", "runtime.device=cpu"])  # a run that was trained elsewhere can be inspected


def test_the_environment_may_name_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TORCH_INDUCTOR_INSTALL_GXX", raising=False)
    (tmp_path / "my cc").write_text("#!/bin/sh\n")
    (tmp_path / "my cc").chmod(0o755)
    monkeypatch.setenv("CXX", f"'{tmp_path / 'my cc'}' -std=c++17")
    assert failures.missing_compiler() == ""
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert "needs a C++ compiler (no-such-compiler -O2): install one" in failures.missing_compiler()


@pytest.mark.usefixtures("no_compiler")
def test_a_compiler_that_is_missing_at_the_first_step_is_reported_in_one_line() -> None:
    """Uses the real error of torch.compile."""
    torch._dynamo.reset()
    from torch._inductor import cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    with pytest.raises(ResourceError, match=rf"^{NEEDS}$"), failures.explained():
        torch.compile(lambda x: torch.sin(x) + 1)(torch.rand(77))
    torch._dynamo.reset()
    cpp_builder.cpp_compiler_search.cache_clear()


def test_pytorch_has_the_private_errors_that_are_recognized_by_name() -> None:
    """Checked with PyTorch 2.11 to 2.14; a version that renames them needs new names in COMPILER_ERRORS."""
    for name in failures.COMPILER_ERRORS:
        module, _, kind = name.rpartition(".")
        assert issubclass(getattr(importlib.import_module(module), kind), Exception), torch.__version__


def test_a_compiler_that_fails_is_quoted() -> None:
    from torch._inductor.exc import CppCompileError

    output = "In file included from x.cpp:1:\n/tmp/x.h:7:10: fatal error: Python.h: No such file or directory\n  7 | #"
    expected = (
        "runtime.compile=true: torch.compile failed (/tmp/x.h:7:10: fatal error: Python.h: No such file or directory)"
    )
    with pytest.raises(ResourceError) as caught, failures.explained():
        raise CppCompileError(["g++", "x.cpp"], output)
    assert str(caught.value) == f"{expected}; set runtime.compile=false"
