"""The tables of a report. A cell's text is the same in every format; the writers only escape it."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from danet.tools.report.analysis import Analysis, Row
from danet.tools.report.formats import MISSING, NONE, duration, limits, p_value, percent, points, with_limits
from danet.tools.report.study import NOT_GIVEN, Study


@dataclass(frozen=True)
class Column:
    """A column's head."""

    title: str
    unit: str = ""
    align: str = "r"  # l | c | r


@dataclass(frozen=True)
class Table:
    """Texts in rows; a row's first cell names it."""

    caption: str
    columns: list[Column]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def split(cell: str) -> tuple[str, str]:
    """A cell's value, and what qualifies it: an interval, a deviation, a difference."""
    found = re.fullmatch(r"(.*?) ?(\[.*\]|\(.*\)|± .*)", cell)
    return (found[1], found[2]) if found else (cell, "")


def _scaled(unit: float, digits: int) -> Callable[[float], str]:
    return lambda value: MISSING if math.isnan(value) else f"{value / unit:.{digits}f}"


def cost_columns(analysis: Analysis) -> list[tuple[Column, list[str]]]:
    """What the variants cost: a column's head and its cells, where any run recorded it."""
    size = analysis.flops_size
    columns: list[tuple[str, Column, Callable[[float], str]]] = [
        ("parameters", Column("Params", "M"), _scaled(1e6, 2)),
        ("gflops", Column("GFLOPs", f"{size[0]}×{size[1]}" if size else ""), _scaled(1, 1)),
        ("seconds", Column("Train", "time"), duration),
        ("peak_memory_bytes", Column("Mem.", "GiB"), _scaled(2**30, 2)),
        ("images_per_second", Column("Speed", "images/s"), _scaled(1, 1)),
    ]
    values = {key: [row.costs.get(key, math.nan) for row in analysis.rows] for key, _, _ in columns}
    return [
        (column, [written(value) for value in values[key]])
        for key, column, written in columns
        if not all(map(math.isnan, values[key]))
    ]


def main_table(analysis: Analysis) -> Table:
    """A row for each variant: check marks, mIoU, difference to the baseline, costs, published values."""
    study, compared = analysis.study, bool(analysis.compared)
    marks = list(dict.fromkeys(mark for variant in study.variants for mark in variant.marks))
    settings = list(dict.fromkeys(setting for variant in study.variants for setting in variant.published))
    costs = cost_columns(analysis)
    columns = [Column("Variant", align="l"), *(Column(mark, align="c") for mark in marks)]
    columns += [Column("Seeds", "n"), Column("mIoU", "% ± SD")]
    if compared:
        columns += [Column("Δ over seeds", "points, 95 %"), Column("p (Holm)")]
        columns += [Column("Δ over images", "95 %")]
    columns += [Column(f"Publ. {_letter(index)}", "%") for index in range(len(settings))]
    columns += [column for column, _ in costs]
    rows = []
    for index, row in enumerate(analysis.rows):
        cells = [row.name, *("✓" if mark in row.variant.marks else "" for mark in marks)]
        cells += [_count(row), _mean_and_deviation(row)]
        cells += _comparison_cells(row) if compared else []
        cells += [_published(analysis, row, setting) for setting in settings]
        cells += [written[index] for _, written in costs]
        rows.append(cells)
    notes = [
        f"Publ. {_letter(index)}: {setting}; difference to its baseline in brackets."
        for index, setting in enumerate(settings)
    ]
    notes += _pair_notes(analysis)
    return Table(_caption(analysis), columns, rows, notes)


def _caption(analysis: Analysis) -> str:
    result = analysis.study.runs[0].result
    text = (
        f"mIoU on the {result.get('num_images')} {result.get('split')} images of {result.get('dataset', 'the data')}."
    )
    return f"{text} Δ: difference to {analysis.study.baseline}." if analysis.compared else text


def _letter(index: int) -> str:
    return chr(ord("a") + index)


def _count(row: Row) -> str:
    cells = [cell for cell in row.variant.cells if cell.state != NOT_GIVEN]
    return str(row.count) if row.count == len(cells) else f"{row.count} of {len(cells)}"


def _mean_and_deviation(row: Row) -> str:
    return percent(row.miou) if math.isnan(row.deviation) else f"{percent(row.miou)} ± {percent(row.deviation)}"


def _comparison_cells(row: Row) -> list[str]:
    found = row.comparison
    if not found:
        return [NONE] * 3
    over_images = limits(found.over_images) if found.over_images else MISSING
    return [with_limits(found.over_seeds), f"{p_value(found.p)} ({p_value(found.p_holm)})", over_images]


def _published(analysis: Analysis, row: Row, setting: str) -> str:
    ours, theirs = row.variant.published.get(setting), analysis.baseline.variant.published.get(setting)
    if ours is None:
        return NONE
    is_compared = theirs is not None and row.name != analysis.study.baseline
    return f"{ours:.2f} ({points((ours - theirs) / 100)})" if is_compared else f"{ours:.2f}"  # type: ignore[operator]


def _pair_notes(analysis: Analysis) -> list[str]:
    """Which variants are compared over fewer seeds than there are, or not at all."""
    baseline, everyone = analysis.baseline, len(analysis.study.seeds)
    notes = []
    for row in analysis.rows:
        if row is baseline:
            continue
        if not row.comparison:
            why = f"it and {baseline.name} have no seed in common" if row.count else "none of its runs has finished"
            notes.append(f"{row.name} is not compared: {why}.")
        elif (count := len(row.comparison.seeds)) < everyone:
            seeds = ", ".join(map(str, row.comparison.seeds))
            notes.append(f"{row.name} is compared over {count} of {everyone} seeds, which both have: {seeds}.")
    return notes


def class_table(analysis: Analysis) -> Table:
    """IoU of the baseline by class, the differences to it, and the IoU of variants that cannot be compared."""
    baseline = analysis.baseline
    columns = [Column("Class", align="l"), Column(baseline.name, "IoU, %")]
    columns += [Column(row.name, "Δ, points") for row in analysis.compared]
    others = [row for row in analysis.rows if row.count and not row.comparison and row is not baseline]
    columns += [Column(row.name, "IoU, %") for row in others]
    rows = []
    for name in analysis.class_names:
        found = [row.comparison.classes.get(name) for row in analysis.compared if row.comparison]
        cells = [with_limits(interval, 1) if interval else MISSING for interval in found]
        cells += [percent(row.classes[name], 1) for row in others]
        rows.append([name, percent(baseline.classes[name], 1), *cells])
    caption = "IoU by class."
    if analysis.compared:
        caption = f"IoU by class of {baseline.name}, and the differences to it with 95 % intervals over seeds."
    return Table(caption, columns, rows)


def runs_table(study: Study) -> Table:
    """The mIoU of every run; what has none says why."""
    columns = [Column("Variant", align="l"), *(Column(f"seed {seed}") for seed in study.seeds)]
    states = [[percent(c.run.miou) if c.run else c.state for c in v.cells] for v in study.variants]
    rows = [[v.name, *cells] for v, cells in zip(study.variants, states, strict=True)]
    return Table("mIoU in percent of every run.", columns, rows)
