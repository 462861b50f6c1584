"""The tables of a benchmark's page, in Markdown: from a section's rows to texts."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from danet_benchmark.timing import memory_ratio, time_ratio

Row = dict[str, Any]
PARTS = ("input", "backbone", "head", "losses", "optimizer")


def cases(rows: Sequence[Row]) -> list[str]:
    """A table of all cases: each contestant against the case's first."""
    header = ["", "contestant", "median", "low–high", "runs", "time / ours", "memory", "memory / ours", "remark"]
    lines = []
    for case, several in _grouped(rows):
        ours = several[0]
        for place, row in enumerate(several):
            lines.append([case if place == 0 else "", row["name"], *_figures(row, ours), _remark(row)])
    shown = [i for i, name in enumerate(header) if name in ("", "contestant") or any(line[i] for line in lines)]
    return [table([header[i] for i in shown], [[line[i] for i in shown] for line in lines])] if lines else []


def _grouped(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    return list(cases.items())


def _figures(row: Row, ours: Row) -> list[str]:
    if not row["median"]:
        return [""] * 6
    runs = str(len(row["seconds"])) if row["seconds"] else ""
    spread = f"{duration(row['low'])}–{duration(row['high'])}" if len(row["seconds"]) > 1 else ""
    return [
        duration(row["median"]),
        spread,
        runs,
        _two_digits(time_ratio(row, ours)),
        size(row["memory"]),
        _two_digits(memory_ratio(row, ours)),
    ]


def _two_digits(ratio: float | None) -> str:
    return f"{ratio:.2f}" if ratio else ""


def _remark(row: Row) -> str:
    error = f"could not run: {row['error']}" if row["error"] else ""
    return "; ".join(text for text in (row["note"], error) if text)


def _attention(rows: Sequence[Row]) -> list[str]:
    """Tables of time and of memory by N, a line for each contestant."""
    parts: list[str] = []
    for module, what in dict.fromkeys((row["module"], row["what"]) for row in rows):
        several = [row for row in rows if (row["module"], row["what"]) == (module, what)]
        by_place = {(row["name"], row["positions"]): row for row in several}
        names, columns = (list(dict.fromkeys(row[key] for row in several)) for key in ("name", "positions"))
        for quantity, cell in (("time", _time_cell), ("peak memory", _memory_cell)):
            lines = [
                [name, *(cell(by_place.get((name, n)), by_place.get(("ours", n))) for n in columns)] for name in names
            ]
            header = [f"{module} attention, {what}: {quantity}", *(f"N = {n}" for n in columns)]
            parts.append(table(header, lines))
        forms = [f"{row['note']} at N = {row['positions']}" for row in several if row["note"].startswith("form")]
        parts += [f"Ours: {', '.join(forms)}."] if forms else []
    return parts


def _time_cell(row: Row | None, ours: Row | None) -> str:
    """Median, spread and ratio to ours."""
    if row is None or not row["median"]:
        return f"could not run: {row['error']}" if row else ""
    spread = f" ({duration(row['low'])}–{duration(row['high'])})" if len(row["seconds"]) > 1 else ""
    return f"{_estimated(row)}{duration(row['median'])}{spread}{_times(row, ours, time_ratio)}"


def _memory_cell(row: Row | None, ours: Row | None) -> str:
    """Memory and ratio to ours."""
    if row is None or row["memory"] is None:
        return ""
    return f"{_estimated(row)}{size(row['memory'])}{_times(row, ours, memory_ratio)}"


def _estimated(row: Row) -> str:
    return "est. " if row["estimated"] else ""


def _times(row: Row, ours: Row | None, compare: Callable[[Row, Row], float | None]) -> str:
    ratio = compare(row, ours) if ours and row["name"] != "ours" else None
    return f", {_two_digits(ratio)}x" if ratio else ""


def _training(rows: Sequence[Row]) -> list[str]:
    """The cases, and the parts of a step of those networks that have them."""
    lines = [
        [case if place == 0 else "", row["name"], *(duration(row["parts"].get(part, 0.0)) for part in PARTS)]
        for case, several in _grouped(rows)
        for place, row in enumerate(row for row in several if row.get("parts"))
    ]
    parts = ["By part, each forward and backward:", table(["", "contestant", *PARTS], lines)] if lines else []
    return [*cases(rows), *parts]


def _loader(rows: Sequence[Row]) -> list[str]:
    lines = [
        [
            *(_words(row[key]) for key in ("what", "size", "format", "pipeline")),
            f"{row['images_per_second']:.3g}" if row.get("images_per_second") else "",
            f"{row['low']:.3g}–{row['high']:.3g}" if row.get("low") and row.get("high") else "",
            f"could not run: {row['error']}" if row.get("error") else "",
        ]
        for row in rows
    ]
    header = ["what", "size", "format", "pipeline", "images/s and core", "low–high", "remark"]
    return [table(header, lines)] if lines else []


def _words(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _profile(rows: Sequence[Row]) -> list[str]:
    lines = [
        [
            f"`{row['name']}`" if row["calls"] else row["name"],
            duration(row["median"]),
            f"{100 * row['share']:.1f} %",
            str(row["calls"] or ""),
            f"{row['rate'] / 1e9:.4g}" if row.get("rate") else "",
            f"{100 * row['of_matmul']:.0f} %" if row.get("of_matmul") else "",
        ]
        for row in rows
    ]
    header = ["operator", "own time", "share", "calls", "GFLOP/s", "of the machine's rate"]
    return [table(header, lines)] if lines else []


def _heads(rows: Sequence[Row]) -> list[str]:
    """A table for each size and direction, a line for each head."""
    header = ["head", "parameters", "GFLOPs", "time", "time / danet's", "memory", "memory / danet's", "remark"]
    parts = []
    for case, several in _grouped(rows):
        lines = []
        for row in several:
            counts = (
                [f"{row['parameters'] / 1e6:.2f} M", f"{row['operations'] / 1e9:.0f}"]
                if row["parameters"]
                else ["", ""]
            )
            time, _, _, ratio, *memory = _figures(row, several[0])
            lines.append([row["name"], *counts, time, ratio, *memory, _remark(row)])
        parts += [f"{case}:", table(header, lines)]
    return parts


TABLES = {"heads": _heads, "attention": _attention, "training": _training, "loader": _loader, "profile": _profile}


# ---- formats ---------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Such as "1.23 s" or "45.6 ms"."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{1000 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} µs"


def size(count: float | None) -> str:
    """Bytes, such as "1.23 GiB" or "45.6 MiB"."""
    if count is None:
        return ""
    return f"{count / 2**30:.3g} GiB" if count >= 1000 * 2**20 else f"{count / 2**20:.3g} MiB"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (header, *lines)]
    rows = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([rows[0], "|" + " --- |" * len(header), *rows[1:]])
