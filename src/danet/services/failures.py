"""Errors that the user can fix: one line with cause and remedy instead of a traceback."""

import contextlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator

from danet.schema import ConfigError
from danet.services.atomic_files import REMEDIES
from danet.services.console import printable

# Out-of-memory messages of PyTorch, its back ends, NumPy and OpenCV; not all of them raise MemoryError.
NO_MEMORY = re.compile(
    "out of memory|not enough memory|can(no|')t allocate memory|insufficient memory|bad_alloc|by signal: Killed",
    re.IGNORECASE,
)
NO_COMPILER = re.compile(r"No working C\+\+ compiler|Failed to find C compiler|Compiler: .* is not found")
COMPILER_ERRORS = {  # base classes of what torch.compile raises; private names
    "torch._dynamo.exc.TorchDynamoException",
    "torch._inductor.exc.CppCompileError",
}
NOT_DETERMINISTIC = re.compile(r"(\w+) does not have a deterministic implementation")
INSTALL = "install one or set runtime.compile=false"


BUSY = 69  # exit code (EX_UNAVAILABLE): another process is at work on the same run, sweep or search


class BusyError(ConfigError):
    """Another process is at work on the same folder; nothing was changed."""


class ResourceError(RuntimeError):
    """Memory, a compiler or a deterministic algorithm is missing; the message has the remedy."""


@contextlib.contextmanager
def one_line(memory: str = "") -> Iterator[None]:
    """End the script with one line for errors that the user can fix; others, which are bugs, keep their traceback.

    Args:
        memory: what to do when memory runs out, such as "lower batch_size".
    """
    try:
        with explained(memory):
            yield
    except BusyError as error:
        print(printable(f"busy: {'; '.join(error.problems)}"), file=sys.stderr)
        sys.exit(BUSY)
    except (ConfigError, ValueError, OSError, ArithmeticError, ResourceError) as error:
        sys.exit(printable(in_words(error)))


@contextlib.contextmanager
def explained(memory: str = "") -> Iterator[None]:
    """Turn the many errors for lack of memory, a compiler or a deterministic algorithm into one.

    Args:
        memory: what to do when memory runs out, such as "try evaluate.mode=slide".

    Raises:
        ResourceError: replaces such an error; all others pass unchanged.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ResourceError | ChildProcessError):  # explained already
            raise
        if is_out_of_memory(error):
            raise ResourceError(f"out of memory ({first_line(error)}){memory and '; '}{memory}") from error
        if _is_from_compiler(error):
            raise ResourceError(_compiler_text(error)) from error
        if found := NOT_DETERMINISTIC.search(str(error)):
            text = f"runtime.deterministic=true: PyTorch has no such algorithm for {found[1]} on this device"
            raise ResourceError(f"{text}; set runtime.deterministic=false") from error
        raise


def in_words(error: Exception) -> str:
    """The name and message of an error; file errors get the path and a remedy."""
    name, text = type(error).__name__, str(error)
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        remedy = REMEDIES.get(error.errno, "")
        cause = f"{error.strerror}; {remedy}" if remedy not in str(error.strerror) else error.strerror
        return f"{name}: {os.fsdecode(error.filename)}: {cause}"
    if "Original Traceback" in text:  # from a loader process; the message is at the end
        text = re.split(rf"\n[\w.]*{name}: ", text)[-1].rstrip()
    return f"{name}: {text}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device has run out of memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # PyTorch's, for all devices
        return True
    by_text = isinstance(error, RuntimeError | OSError) or type(error).__module__ == "cv2"
    return by_text and NO_MEMORY.search(str(error)) is not None


def missing_compiler() -> str:
    """The error text if torch.compile lacks its C++ compiler on a CPU; empty if it is installed."""
    if sys.platform == "win32" or os.environ.get("TORCH_INDUCTOR_INSTALL_GXX"):
        return ""
    command = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    program = next(iter(shlex.split(command)), command)
    return "" if shutil.which(program) else f"runtime.compile=true needs a C++ compiler ({command}): {INSTALL}"


def first_line(error: BaseException) -> str:
    """The first line of an error message, at most 200 characters; the error's name if it has no message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 200 else f"{lines[0][:200]} ..."


def _is_from_compiler(error: Exception) -> bool:
    """Whether torch.compile raised the error."""
    bases = {f"{base.__module__}.{base.__name__}" for base in type(error).__mro__}
    return bool(bases & COMPILER_ERRORS) or NO_COMPILER.search(str(error)) is not None


def _compiler_text(error: Exception) -> str:
    if NO_COMPILER.search(str(error)):
        return missing_compiler() or f"runtime.compile=true needs a C compiler (gcc): {INSTALL}"
    compiler_line = re.search(r"^.*\berror: .*$", str(error), re.MULTILINE)
    reason = compiler_line[0].strip() if compiler_line else first_line(error)
    return f"runtime.compile=true: torch.compile failed ({reason}); set runtime.compile=false"
