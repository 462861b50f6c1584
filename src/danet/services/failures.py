"""What a script says where something fails that its user can mend: one line with cause and remedy, no traceback."""

import contextlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator

from danet.schema import ConfigError
from danet.services.records import REMEDIES

# How PyTorch, its back ends, NumPy and OpenCV say that memory has run out, besides by MemoryError.
NO_MEMORY = re.compile(
    "out of memory|not enough memory|can(no|')t allocate memory|insufficient memory|bad_alloc|by signal: Killed",
    re.IGNORECASE,
)
NO_COMPILER = re.compile(r"No working C\+\+ compiler|Failed to find C compiler|Compiler: .* is not found")
COMPILER_ERRORS = {"torch._dynamo.exc.TorchDynamoException", "torch._inductor.exc.CppCompileError"}
INSTALL = "install one or set runtime.compile=false"


class ResourceError(RuntimeError):
    """The machine lacks what the work needs, memory or a compiler; the text has the remedy."""


@contextlib.contextmanager
def one_line(memory: str = "") -> Iterator[None]:
    """End the script with one line where what fails is the user's to mend; what is ours keeps its traceback.

    Args:
        memory: what needs less of it.
    """
    try:
        with explained(memory):
            yield
    except (ConfigError, ValueError, OSError, ArithmeticError, ResourceError) as error:
        sys.exit(in_words(error))


@contextlib.contextmanager
def explained(memory: str = "") -> Iterator[None]:
    """Turn the many errors for a lack of memory or of a compiler into one.

    Args:
        memory: what needs less of it, such as "try evaluate.mode=slide".

    Raises:
        ResourceError: in place of such an error; all others pass.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ResourceError | ChildProcessError):  # they are explained already
            raise
        if is_out_of_memory(error):
            raise ResourceError(f"out of memory ({first_line(error)}){memory and '; '}{memory}") from error
        if _is_of_compiler(error):
            raise ResourceError(_of_compiler(error)) from error
        raise


def in_words(error: Exception) -> str:
    """The error on one line, as far as its own text is one."""
    name, text = type(error).__name__, str(error)
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        remedy = REMEDIES.get(error.errno, "")
        cause = f"{error.strerror}; {remedy}" if remedy not in str(error.strerror) else error.strerror
        return f"{name}: {os.fsdecode(error.filename)}: {cause}"
    if "Original Traceback" in text:  # of a process that loads data; the error's own text is at its end
        text = re.split(rf"\n[\w.]*{name}: ", text)[-1].rstrip()
    return f"{name}: {text}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of any device has run out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # PyTorch's, of all devices
        return True
    by_text = isinstance(error, RuntimeError | OSError) or type(error).__module__ == "cv2"
    return by_text and NO_MEMORY.search(str(error)) is not None


def missing_compiler() -> str:
    """What torch.compile lacks on a CPU, with the remedy; empty where its compiler is there."""
    if sys.platform == "win32" or os.environ.get("TORCH_INDUCTOR_INSTALL_GXX"):
        return ""
    command = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    program = next(iter(shlex.split(command)), command)
    return "" if shutil.which(program) else f"runtime.compile=true needs a C++ compiler ({command}): {INSTALL}"


def first_line(error: BaseException) -> str:
    """The beginning of an error's text; of one without text, its name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 200 else f"{lines[0][:200]} ..."


def _is_of_compiler(error: Exception) -> bool:
    """Whether torch.compile has raised it."""
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    return bool(kinds & COMPILER_ERRORS) or NO_COMPILER.search(str(error)) is not None


def _of_compiler(error: Exception) -> str:
    if NO_COMPILER.search(str(error)):
        return missing_compiler() or f"runtime.compile=true needs a C compiler (gcc): {INSTALL}"
    told = re.search(r"^.*\berror: .*$", str(error), re.MULTILINE)  # by the compiler that it has called
    reason = told[0].strip() if told else first_line(error)
    return f"runtime.compile=true: torch.compile failed ({reason}); set runtime.compile=false"
