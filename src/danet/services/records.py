"""The files of a run folder: metrics as they come, tables made of them, and the facts of the environment.

Everything but metrics.jsonl is written to a temporary file first and renamed, so no reader ever sees half a file.
"""

import ast
import contextlib
import csv
import errno
import hashlib
import importlib.metadata
import importlib.util
import io
import itertools
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

PACKAGES = ("torch", "torchvision", "numpy", "albumentations", "hydra-core", "omegaconf", "wandb")

# What to do where a file cannot be written.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # nor can any other
REMEDIES = {
    errno.ENOSPC: "free some space there, or name another folder",
    errno.EDQUOT: "free some space there, or name another folder",
    errno.EROFS: "name another folder",
    errno.EEXIST: "it is a file where a folder is needed; name another folder",
    errno.ENOTDIR: "there is a file where a folder is needed; name another folder",
    errno.EACCES: "change its permissions, or name another one",
    errno.EPERM: "change its permissions, or name another one",
}


class MetricsFile:
    """metrics.jsonl, the truth about a run: one JSON object a line, each with its "step".

    Args:
        path: the file; it appears with the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row, which a kill of the process afterwards cannot take back. NaN and infinities become null."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(row))

    def rows(self) -> list[dict[str, Any]]:
        """All rows; a last line torn by a kill is left out.

        Raises:
            ValueError: another line than the last is not JSON.
        """
        if not self.path.exists():
            return []
        *lines, torn = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{self.path}, line {number} is not JSON ({error}): repair or delete it") from None
        return rows

    def truncate(self, step: int, *, evaluated: int, score: str) -> None:
        """Drop what a resumed run will write again, and a torn last line.

        Args:
            step: of the checkpoint.
            evaluated: the last step that was evaluated before it was saved.
            score: the key that makes a row an evaluation, such as "val/miou".
        """

        def is_kept(row: Mapping[str, Any]) -> bool:
            return row["step"] <= step and not (score in row and row["step"] > evaluated)

        if self.path.exists():
            write_text(self.path, "".join(_line(row) for row in itertools.takewhile(is_kept, self.rows())))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(_finite(row), allow_nan=False) + "\n"


def history(rows: Iterable[Mapping[str, Any]], split: str = "val") -> tuple[list[str], list[list[Any]]]:
    """The training table: one line per evaluation, with the mean of the training losses logged since the last one.

    Args:
        rows: the rows of metrics.jsonl.
        split: the one that is scored; a row with "<split>/miou" is an evaluation.

    Returns:
        Column names, which are the keys of the rows, and lines. Per-class scores are left out.
    """
    lines: list[dict[str, Any]] = []
    losses: dict[str, list[float]] = {}
    latest: dict[str, Any] = {}
    for row in rows:
        latest |= {key: x for key, x in row.items() if key.startswith(("epoch", "step", "train/lr", "perf/"))}
        for key, value in row.items():
            if key.startswith("train/loss") and value is not None:
                losses.setdefault(key, []).append(value)
        if f"{split}/miou" in row:
            means = {key: sum(values) / len(values) for key, values in losses.items()}
            scores = {key: x for key, x in row.items() if key.startswith(f"{split}/") and key.count("/") == 1}
            lines.append(latest | means | scores)
            losses = {}
    order = ("epoch", "step", "train/loss", f"{split}/", "train/lr", "perf/")
    names = {key for line in lines for key in line}
    columns = [key for prefix in order for key in sorted(names) if key.startswith(prefix)]
    return columns, [[line.get(key) for key in columns] for line in lines]


def write_history(rows: Iterable[Mapping[str, Any]], folder: Path, split: str = "val") -> None:
    """Writes `history` to history.csv, and to history.xlsx where openpyxl (the `excel` extra) is installed."""
    columns, lines = history(rows, split)
    write_text(folder / "history.csv", _csv([columns, *lines]))
    if importlib.util.find_spec("openpyxl") is None:
        return
    import openpyxl
    from openpyxl.styles import Font

    book = openpyxl.Workbook()
    sheet = book.active
    for line in [columns, *lines]:
        sheet.append(line)
    sheet.freeze_panes = "A2"  # the names stay in sight
    for cell in sheet[1]:
        cell.font = Font(bold=True)
        sheet.column_dimensions[cell.column_letter].width = len(str(cell.value)) + 3
    content = io.BytesIO()
    book.save(content)
    _write(folder / "history.xlsx", content.getvalue())


def write_per_class(
    path: Path, class_names: Sequence[str], iou: Sequence[float], accuracy: Sequence[float], pixels: Sequence[int]
) -> None:
    """Writes the scores of each class as CSV.

    Args:
        path: the file.
        class_names: the K names.
        iou: intersection over union in [0, 1]; NaN, written n/a, where the class is absent.
        accuracy: share of the class's pixels that were found, in [0, 1] or NaN.
        pixels: number of labelled pixels of the class.
    """
    lines = [
        [name, *("n/a" if math.isnan(score) else f"{score:.6f}" for score in scores), int(count)]
        for name, *scores, count in zip(class_names, iou, accuracy, pixels, strict=True)
    ]
    write_text(path, _csv([["class", "iou", "accuracy", "pixels"], *lines]))


def write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """Writes a table as CSV; numbers that are not whole get six decimals, NaN is n/a."""

    def text(value: Any) -> Any:
        return ("n/a" if math.isnan(value) else f"{value:.6f}") if isinstance(value, float) else value

    write_text(path, _csv([header, *([text(value) for value in line] for line in lines)]))


def _csv(lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def write_matrices(path: Path, matrices: Mapping[str, "np.ndarray"], class_names: Sequence[str]) -> None:
    """Writes images' confusion matrices, for statistics over images, with their names and the classes'.

    Args:
        path: the .npz file: "names" (N,), "matrices" (N, K, K), rows truth, columns prediction, "class_names" (K,).
        matrices: by image name.
        class_names: K names.
    """
    import numpy as np  # here, for `--help` loads this module and need not wait

    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            names=np.array(list(matrices)),
            matrices=np.stack(list(matrices.values())),
            class_names=np.array(class_names),
        )


def environment(repository: Path) -> dict[str, Any]:
    """What a number depends on besides configuration and code; null where something cannot be found out.

    Args:
        repository: a folder of the git repository that the code lies in.
    """
    import torch

    status = _git(repository, "status", "--porcelain")
    return {
        "command": sys.argv,
        "git": {"commit": _git(repository, "rev-parse", "HEAD"), "dirty": None if status is None else status != ""},
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
    }


def code_version(package: Path, components: Iterable[Path]) -> str:
    """A hash of the source that a run uses, without docstrings and comments: words do not make another version.

    Args:
        package: its folder.
        components: the modules of what the run's configuration chose; with run.py's and theirs, their imports count.
    """
    todo = [package / "training" / "run.py", *components]
    found: dict[Path, ast.Module] = {}
    while todo:
        file = todo.pop()
        if file in found or not file.is_file():
            continue
        found[file] = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(found[file]):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package.name:
                parts = str(node.module).split(".")[1:]
                names = [parts, *([*parts, alias.name] for alias in node.names)]
                todo += [package.joinpath(*name).with_suffix(".py") for name in names if name]
                todo += [package.joinpath(*name, "__init__.py") for name in names]
    digest = hashlib.sha256()
    for file in sorted(found):
        name = file.relative_to(package) if file.is_relative_to(package) else Path(file.name)
        digest.update(f"{name.as_posix()}\0{_meaning(found[file])!r}\0".encode())
    return digest.hexdigest()[:16]


def _meaning(node: Any) -> Any:
    """A syntax tree as nested tuples without docstrings; ast.dump's texts differ between versions of Python."""
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
    """What git answers; None without git, without a repository or after ten seconds."""
    try:
        done = subprocess.run(
            ["git", "-C", str(repository), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or None


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Hold a run folder against other processes; gives False where one holds it already.

    The lock ends with the process, however that ends; loader processes that outlive it do not inherit it. Where the
    system has no such locks it is always given.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def is_locked(folder: Path) -> bool:
    """Whether another process holds the run folder."""
    with lock(folder) as free:
        return not free


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file holds something else; the text names it.
    """
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}). Repair or delete it") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object. Repair or delete it")
    return value


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a run folder."""
    for place in (folder, folder / "checkpoints", folder / "samples"):
        for file in place.glob("*.tmp"):
            file.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, with null for NaN and infinities."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """`value` without NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    _write(path, text.encode("utf-8", "backslashreplace"))


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, to be written; it takes the place of `path` at the end, or goes on an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)  # atomic, as both lie in one folder
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error in writing name the file that is wanted and the remedy, whatever library meets it and how.

    Args:
        path: the file; one in work has its name with a dot before and more behind.

    Raises:
        OSError: in place of such an error; all others pass.
    """
    try:
        yield
    except Exception as error:
        number, name = getattr(error, "errno", None), getattr(error, "filename", None)
        ours = name is None or f".{path.name}." in os.fsdecode(name)
        if not isinstance(error, OSError) or number is None:
            if told := re.search(r"\(os error (\d+)\)", str(error)):  # by safetensors, written in Rust
                number, ours = int(told[1]), True
            else:  # encoders and PyTorch say that a write has failed, and not why
                number, ours = errno.ENOSPC, _is_full(path)
        if not ours:
            raise
        cause = "; ".join(filter(None, [os.strerror(number), REMEDIES.get(number)]))
        raise OSError(number, cause, str(path)) from error


def _is_full(path: Path) -> bool:
    """Whether the disk has no room for as much as a page."""
    there = next((folder for folder in path.parents if folder.is_dir()), None)
    return there is not None and shutil.disk_usage(there).free < 2**14
