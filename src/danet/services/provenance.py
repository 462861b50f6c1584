"""What a run's results depend on besides its configuration: the machine, the packages, the code."""

import ast
import contextlib
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from danet.services.places import INSTALLED

PACKAGES = ("torch", "torchvision", "numpy", "albumentations", "hydra-core", "omegaconf", "wandb")


def environment(repository: Path) -> dict[str, Any]:
    """Versions, hardware and git commit; None for whatever cannot be determined.

    Args:
        repository: a folder of the git repository that holds the code.
    """
    import torch

    status = _git(repository, "status", "--porcelain")
    return {
        "command": sys.argv,
        "git": {"commit": _git(repository, "rev-parse", "HEAD"), "dirty": None if status is None else status != ""},
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,  # it would load the library
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_cores": os.cpu_count(),
    }


def code_version(package: Path, components: Iterable[Path]) -> str:
    """A hash of the source code that a run uses, ignoring docstrings and comments.

    Args:
        package: the package's folder.
        components: modules of the components that the run's configuration chose. They, run.py and all that these import
            from the package are hashed.
    """
    todo = [package / "training" / "run.py", *components]
    trees: dict[Path, ast.Module] = {}
    while todo:
        file = todo.pop()
        if file in trees or not file.is_file():
            continue
        trees[file] = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(trees[file]):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package.name:
                parts = str(node.module).split(".")[1:]
                names = [parts, *([*parts, alias.name] for alias in node.names)]
                todo += [package.joinpath(*name).with_suffix(".py") for name in names if name]
                todo += [package.joinpath(*name, "__init__.py") for name in names]
    digest = hashlib.sha256()
    for file in sorted(trees):
        name = file.relative_to(package) if file.is_relative_to(package) else Path(file.name)
        digest.update(f"{name.as_posix()}\0{_meaning(trees[file])!r}\0".encode())
    return digest.hexdigest()[:16]


def _meaning(node: Any) -> Any:
    """A syntax tree as nested tuples without docstrings; the output of ast.dump differs between Python versions."""
    if isinstance(node, list):
        return tuple(map(_meaning, node))
    if not isinstance(node, ast.AST):
        return node
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
        fields["body"] = fields["body"][1:]
    return type(node).__name__, *((name, _meaning(value)) for name, value in fields.items() if value not in (None, []))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(repository: Path, *arguments: str) -> str | None:
    """The output of a git command; None without git, outside a repository or after ten seconds."""
    if INSTALLED:  # a repository around the environment is not the code's
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(repository), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def cpu_name() -> str | None:
    """The processor's model, as Linux or Python name it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or None
