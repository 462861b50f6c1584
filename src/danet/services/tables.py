"""Tables in a run folder: training history, scores per class and per image, confusion matrices."""

import csv
import importlib.util
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danet.services.atomic_files import replacing, write_bytes, write_text

if TYPE_CHECKING:
    import numpy as np


def history(rows: Iterable[Mapping[str, Any]], split: str = "val") -> tuple[list[str], list[list[Any]]]:
    """The training history: one row per evaluation, with the mean of the training losses logged since the previous one.

    Args:
        rows: the rows of metrics.jsonl.
        split: the evaluated split; a row with "<split>/miou" is an evaluation.

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
    """Write `history` to history.csv, and to history.xlsx if openpyxl (the `excel` extra) is installed."""
    columns, lines = history(rows, split)
    write_text(folder / "history.csv", csv_text([columns, *lines]))
    if importlib.util.find_spec("openpyxl") is None:
        return
    import openpyxl
    from openpyxl.styles import Font

    book = openpyxl.Workbook()
    sheet = book.active
    for line in [columns, *lines]:
        sheet.append(line)
    sheet.freeze_panes = "A2"  # keep the column names visible
    for cell in sheet[1]:
        cell.font = Font(bold=True)
        sheet.column_dimensions[cell.column_letter].width = len(str(cell.value)) + 3
    content = io.BytesIO()
    book.save(content)
    write_bytes(folder / "history.xlsx", content.getvalue())


def write_per_class(
    path: Path, class_names: Sequence[str], iou: Sequence[float], accuracy: Sequence[float], pixels: Sequence[int]
) -> None:
    """Write the scores of each class as CSV.

    Args:
        path: the file.
        class_names: the K names.
        iou: intersection over union in [0, 1]; NaN, written n/a, if the class is absent.
        accuracy: share of the class's pixels that were labeled correctly, in [0, 1] or NaN.
        pixels: number of labeled pixels of the class.
    """
    lines = [
        [name, *("n/a" if math.isnan(score) else f"{score:.6f}" for score in scores), int(count)]
        for name, *scores, count in zip(class_names, iou, accuracy, pixels, strict=True)
    ]
    write_text(path, csv_text([["class", "iou", "accuracy", "pixels"], *lines]))


def write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV; floats get six decimals, NaN becomes n/a."""

    def text(value: Any) -> Any:
        return ("n/a" if math.isnan(value) else f"{value:.6f}") if isinstance(value, float) else value

    write_text(path, csv_text([header, *([text(value) for value in line] for line in lines)]))


def csv_text(lines: Iterable[Sequence[Any]]) -> str:
    """Lines of cells as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def write_matrices(path: Path, matrices: Mapping[str, "np.ndarray"], class_names: Sequence[str]) -> None:
    """Write the confusion matrix of each image, for statistics over images.

    Args:
        path: the .npz file: "names" (N,), "matrices" (N, K, K) with rows truth, columns prediction, "class_names" (K,).
        matrices: confusion matrices by image name.
        class_names: the K names.
    """
    import numpy as np  # imported here, since `--help` loads this module and must be fast

    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            names=np.array(list(matrices)),
            matrices=np.stack(list(matrices.values())),
            class_names=np.array(class_names),
        )
