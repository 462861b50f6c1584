"""Tables of a report and the format of their numbers: minus is U+2212, a missing value is n/a.

A cell has the same text in HTML, Markdown and LaTeX. The CSV files contain plain numbers.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from danet.services.tables import csv_text
from danet.tools.report.analysis import Analysis, Row
from danet.tools.report.intervals import Interval
from danet.tools.report.study import Study

MISSING, NONE = "n/a", "–"


# ---- numbers ---------------------------------------------------------------------------------------------------------


def percent(value: float, digits: int = 2) -> str:
    """A fraction as a percentage: 71.23 for 0.7123."""
    return scaled(100 * value, 1, digits)


def scaled(value: float, unit: float = 1, digits: int = 1) -> str:
    """A number in the given unit."""
    return MISSING if math.isnan(value) else f"{value / unit:.{digits}f}"


def points(value: float, digits: int = 2) -> str:
    """A signed difference in percentage points."""
    text = f"{100 * value:+.{digits}f}".replace("-", "−")
    return MISSING if math.isnan(value) else text if re.search("[1-9]", text) else text[1:]


def limits(interval: Interval, digits: int = 2) -> str:
    """The limits of an interval in percentage points."""
    return f"[{points(interval.low, digits)}, {points(interval.high, digits)}]"


def with_limits(interval: Interval, digits: int = 2) -> str:
    """A difference, followed by its interval if it has one."""
    text = points(interval.mean, digits)
    return text if math.isnan(interval.low) else f"{text} {limits(interval, digits)}"


def p_value(p: float) -> str:
    """Three significant digits, or more where they would be 0.05, so that rounding never crosses it."""
    if math.isnan(p):
        return MISSING
    if p != 0.05 and f"{p:.3g}" == "0.05":
        return next(text for digits in range(4, 18) if float(text := f"{p:.{digits}g}") != 0.05)
    return "<0.001" if p < 0.001 else f"{p:.3g}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if math.isnan(seconds):
        return MISSING
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{scaled(seconds, 60)} min" if seconds < 6000 else f"{scaled(seconds, 3600)} h"


# ---- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column header."""

    title: str
    unit: str = ""
    align: str = "r"  # l | c | r


@dataclass(frozen=True)
class Table:
    """Rows of texts; the first cell of a row is its name."""

    caption: str
    columns: list[Column]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    differences: list[list[Interval | None]] = field(default_factory=list)  # cell by cell, for the background colors


def split(cell: str) -> tuple[str, str]:
    """Split a cell into its value and the interval, deviation or difference that follows it."""
    parts = re.fullmatch(r"(.*?) ?(\[.*\]|\(.*\)|± .*)", cell)
    return (parts[1], parts[2]) if parts else (cell, "")


def cost_columns(analysis: Analysis) -> list[tuple[Column, list[str]]]:
    """Costs of the variants: a header and its cells for everything that any run recorded."""
    size = analysis.flops_size
    columns: list[tuple[str, Column, Callable[[float], str]]] = [
        ("parameters", Column("Params", "M"), lambda value: scaled(value, 1e6, 2)),
        ("gflops", Column("GFLOPs", f"{size[0]}×{size[1]}" if size else ""), scaled),
        ("seconds", Column("Train", "time"), duration),
        ("peak_memory_bytes", Column("Mem.", "GiB"), lambda value: scaled(value, 2**30, 2)),
        ("images_per_second", Column("Speed", "images/s"), scaled),
    ]
    values = {key: [row.costs.get(key, math.nan) for row in analysis.rows] for key, _, _ in columns}
    return [
        (column, [write(value) for value in values[key]])
        for key, column, write in columns
        if not all(map(math.isnan, values[key]))
    ]


def main_table(analysis: Analysis) -> Table:
    """A row per variant: check marks, mIoU, difference from the baseline, costs, published values."""
    costs = cost_columns(analysis)
    published = {setting: chr(ord("a") + index) for index, setting in enumerate(analysis.published)}
    columns = [Column("Variant", align="l"), *(Column(mark, align="c") for mark in analysis.marks)]
    columns += [Column("Seeds", "n"), Column("mIoU", "% ± SD")]
    if analysis.differences:
        columns += [Column("Δ over seeds", "points, 95 %"), Column("p (Holm)"), Column("Δ over images", "95 %")]
    columns += [Column(f"Publ. {letter}", "%") for letter in published.values()]
    columns += [column for column, _ in costs]
    rows = []
    for index, row in enumerate(analysis.rows):
        cells = [row.name, *("✓" if mark in row.variant.marks else "" for mark in analysis.marks)]
        cells += [
            _count(row),
            percent(row.miou) + ("" if math.isnan(row.deviation) else f" ± {percent(row.deviation)}"),
        ]
        cells += _difference_cells(row) if analysis.differences else []
        cells += [_published(analysis, row, setting) for setting in published]
        cells += [written[index] for _, written in costs]
        rows.append(cells)
    notes = [
        f"Publ. {letter}: {setting}; difference from its baseline in brackets." for setting, letter in published.items()
    ]
    caption = f"mIoU on the {analysis.study.runs[0].scored}."
    caption += f" Δ: difference from {analysis.study.baseline}." if analysis.differences else ""
    return Table(caption, columns, rows, notes + _pair_notes(analysis))


def _count(row: Row) -> str:
    return str(row.count) if row.count == row.variant.wanted else f"{row.count} of {row.variant.wanted}"


def _difference_cells(row: Row) -> list[str]:
    difference = row.difference
    if not difference:
        return [NONE] * 3
    over_images = limits(difference.over_images) if difference.over_images else MISSING
    return [with_limits(difference.over_seeds), f"{p_value(difference.p)} ({p_value(difference.p_holm)})", over_images]


def _published(analysis: Analysis, row: Row, setting: str) -> str:
    value, reference = (r.variant.published.get(setting) for r in (row, analysis.baseline))
    if value is None:
        return NONE
    is_compared = reference is not None and row is not analysis.baseline
    return f"{value:.2f}" + (f" ({points((value - (reference or 0)) / 100)})" if is_compared else "")


def _pair_notes(analysis: Analysis) -> list[str]:
    """Notes on variants that are compared over only some of the seeds, or not at all."""
    baseline, everyone = analysis.baseline, len(analysis.study.seeds)
    notes = []
    for row in analysis.rows:
        if row is baseline:
            continue
        if not row.difference:
            why = f"it shares no seed with {baseline.name}" if row.count else "none of its runs has finished"
            notes.append(f"{row.name} is not compared: {why}.")
        elif (count := len(row.difference.seeds)) < everyone:
            seeds = ", ".join(map(str, row.difference.seeds))
            notes.append(f"{row.name} is compared over the {count} of {everyone} seeds that both have: {seeds}.")
    return notes


def class_table(analysis: Analysis) -> Table:
    """Per-class IoU of the baseline, differences from it, and the IoU of variants that cannot be compared."""
    baseline, compared = analysis.baseline, analysis.differences
    others = [row for row in analysis.rows if row.count and not row.difference and row is not baseline]
    columns = [Column("Class", align="l"), Column(baseline.name, "IoU, %")]
    columns += [Column(name, "Δ, points") for name in compared] + [Column(row.name, "IoU, %") for row in others]
    rows, differences = [], []
    for name in analysis.class_names:
        intervals = [difference.classes.get(name) for difference in compared.values()]
        cells = [with_limits(interval, 1) if interval else MISSING for interval in intervals]
        rows.append([name, percent(baseline.classes[name], 1), *cells, *(percent(r.classes[name], 1) for r in others)])
        differences.append([None, None, *intervals, *(None for _ in others)])
    caption = "IoU by class."
    if compared:
        caption = f"IoU by class of {baseline.name}, and the differences from it with 95 % intervals over seeds."
    return Table(caption, columns, rows, differences=differences)


def runs_table(study: Study) -> Table:
    """The mIoU of every run, or the state of a run without one."""
    columns = [Column("Variant", align="l"), *(Column(f"seed {seed}") for seed in study.seeds)]
    rows = [[v.name, *(percent(s.run.miou) if s.run else s.state for s in v.seeds)] for v in study.variants]
    return Table("mIoU of every run, in percent.", columns, rows)


# ---- CSV -------------------------------------------------------------------------------------------------------------

NO_INTERVAL = Interval(math.nan, math.nan, math.nan)


def table_csv(analysis: Analysis) -> str:
    """The main table's numbers in plain units, scores in percent; unknown values are empty cells."""
    lines = []
    for row in analysis.rows:
        difference, published = row.difference, row.variant.published
        over_seeds = difference.over_seeds if difference else NO_INTERVAL
        over_images = (difference.over_images if difference else None) or NO_INTERVAL
        line = {"variant": row.name}
        line |= {f"mark: {mark}": "1" if mark in row.variant.marks else "0" for mark in analysis.marks}
        line |= {"seeds": str(row.count), "miou": _percent(row.miou), "miou_sd": _percent(row.deviation)}
        line |= {"pairs": str(len(difference.seeds)) if difference else ""}
        line |= _interval("difference", "difference", over_seeds)
        line |= {"p": _number(difference.p) if difference else ""}
        line |= {"p_holm": _number(difference.p_holm) if difference else ""}
        line |= _interval("images_difference", "images", over_images)
        line |= {key: _number(value) for key, value in row.costs.items()}
        line |= {f"published: {s}": _number(published.get(s, math.nan)) for s in analysis.published}
        lines.append(line)
    return csv_text([list(lines[0]), *(list(line.values()) for line in lines)])


def class_csv(analysis: Analysis) -> str:
    """A line per variant and class, in percent."""
    lines = [["variant", "class", "iou", "difference", "difference_low", "difference_high"]]
    for row in analysis.rows:
        for name in analysis.class_names:
            interval = row.difference.classes.get(name, NO_INTERVAL) if row.difference else NO_INTERVAL
            lines.append([row.name, name, *map(_percent, (row.classes[name], *interval))])
    return csv_text(lines)


def _interval(mean: str, ends: str, interval: Interval) -> dict[str, str]:
    """The three cells of an interval by column."""
    return dict(zip((mean, f"{ends}_low", f"{ends}_high"), map(_percent, interval), strict=True))


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.4f}"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}" if abs(value) < 1e6 else f"{value:.0f}"
