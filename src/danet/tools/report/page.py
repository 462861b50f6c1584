"""A report as one HTML page that needs no other file and no network."""

import base64
import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from danet.tools.report import figures, tables, words
from danet.tools.report.analysis import Analysis, analyse
from danet.tools.report.formats import MISSING, NONE, percent, without_places
from danet.tools.report.study import Cell, Run, Study, Variant
from danet.tools.report.style import CSS
from danet.tools.report.tables import Column, Table

_e = html.escape


def comparison_page(analysis: Analysis, command: str) -> str:
    """The page of a study: main table, forest plot, curves, classes, every run, how to read it, what was run."""
    study = analysis.study
    parts = [f"<header><h1>{_e(study.title)}</h1>\n{_lead(analysis)}</header>"]
    parts += [_alert("Mixed", "these runs differ in what they should share.", study.mixed)]
    parts += [_alert("Incomplete", "cells without a result.", words.holes(study))]
    parts += [f'<div class="findings">{_list(words.findings(analysis))}</div>']
    parts += [_table(tables.main_table(analysis), "cards stacked", "Table 1.")]
    parts += [f'<p class="note">{_e(line)}</p>' for line in words.power_notes(analysis)]
    if analysis.compared:
        parts += ["<h2>Differences</h2>", _plot(analysis, figures.forest, "forest", FOREST)]
    parts += ["<h2>Training</h2>", _plot(analysis, figures.curves, "curves", CURVES)]
    parts += ["<h2>By class</h2>", _heat_table(analysis)]
    parts += ["<h2>Every run</h2>", _table(tables.runs_table(study), "runs", "Table 3.")]
    reading = [f"<b>{_e(term)}</b>: {_e(text)}" for term, text in words.how_to_read(analysis)]
    parts += ["<h2>How to read this</h2>", _list(reading, escape=False)]
    parts += [f"<footer><h2>What was run</h2>{_settings(words.settings(study, command))}</footer>"]
    return _page(study.title, parts)


FOREST = (
    "Differences to the baseline. Square and line through it: the mean over paired seeds with its interval; dots:"
    " single seeds; line below: interval over images, the trained models fixed."
)
CURVES = "mIoU at each evaluation: the mean over the seeds, and the band from the lowest to the highest seed."


def run_page(run: Run, command: str, *, timings: bool = True) -> str:
    """The page of a single run: scores, classes, curves, pictures, configuration."""
    variant = Variant(run.label, [Cell(run.seed, "done", run)])
    study = Study(run.label, [variant], run.label, [run.seed])
    result = run.result
    lead = f"{result.get('dataset', '')}, {result.get('split')}, {result.get('num_images')} images; seed {run.seed}"
    scores = [
        ("mIoU, %", percent(run.miou)),
        ("Pixel accuracy, %", percent(run.number("pixel_accuracy"))),
        ("Mean accuracy, %", percent(run.number("mean_accuracy"))),
        ("Best at step", str(result.get("step"))),
    ]
    costs = tables.cost_columns(analyse(study, timings=timings))
    scores += [(f"{column.title}, {column.unit}", cell) for column, (cell,) in costs]
    tiles = "".join(f"<div><dt>{_e(term)}</dt><dd>{_e(text)}</dd></div>" for term, text in scores if text != MISSING)
    parts = [f'<header><h1>{_e(run.label)}</h1><p class="lead">{_e(lead)}</p></header><dl class="scores">{tiles}</dl>']
    parts += ["<h2>By class</h2>", _bars(run)]
    for title, name in (("Training", "curves.png"), ("Confusion", "confusion_matrix.png")):
        if (file := run.folder / name).is_file():
            kind = f"plot scroll {title.lower()}"
            parts += [f'<h2>{title}</h2>\n<figure class="{kind}">{_image(file, title)}</figure>']
    if samples := sorted((run.folder / "samples").glob("*.png")):
        pictures = "".join(f'<div class="scroll">{_image(file, file.stem)}</div>' for file in samples)
        parts += ["<h2>Samples</h2>", f'<div class="pictures">{pictures}</div>']
    config = without_places((run.folder / "config.yaml").read_text(encoding="utf-8"))
    parts += [f"<footer><h2>What was run</h2>{_settings(words.settings(study, command))}"]
    parts += [f"<details><summary>Configuration</summary><pre>{_e(config)}</pre></details></footer>"]
    return _page(run.label, parts)


# ---- parts -----------------------------------------------------------------------------------------------------------


def _page(title: str, parts: Iterable[str]) -> str:
    body = "\n".join(part for part in parts if part)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_e(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{CSS}</style>\n</head>\n'
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _lead(analysis: Analysis) -> str:
    study = analysis.study
    result, count = study.runs[0].result, len(study.seeds)
    where = f"the {result.get('num_images')} {result.get('split')} images of {result.get('dataset', 'the data')}"
    seeds = f"{count} seed{'s' if count > 1 else ''}"
    text = f"{len(study.variants)} variants, {seeds}, {len(study.runs)} finished runs, scored on {where}."
    return f'<p class="lead">{_e(text)}</p>'


def _alert(word: str, text: str, lines: Sequence[str]) -> str:
    return f'<div class="alert" role="note"><b>{word}:</b> {_e(text)}{_list(lines)}</div>' if lines else ""


def _list(lines: Sequence[str], *, escape: bool = True) -> str:
    items = "".join(f"<li>{_e(line) if escape else line}</li>" for line in lines)
    return f"<ul>{items}</ul>" if lines else ""


def _table(table: Table, kind: str, number: str, styles: Sequence[Sequence[str]] | None = None) -> str:
    """A table; `styles` are attributes of the cells after the first."""
    head = "".join(_head(column) for column in table.columns)
    body = []
    for index, (name, *cells) in enumerate(table.rows):
        of_row = styles[index] if styles else [""] * len(cells)
        columns = table.columns[1:]
        tds = "".join(_cell(c, cell, style) for c, cell, style in zip(columns, cells, of_row, strict=True))
        body.append(f'<tr><th scope="row">{_name(name)}</th>{tds}</tr>')
    notes = "".join(f'<p class="note">{_e(note)}</p>' for note in table.notes)
    lines = "\n".join(body)
    return (
        f'<p class="caption"><b>{number}</b> {_e(table.caption)}</p>\n<div class="scroll"><table class="{kind}">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>\n{notes}"
    )


def _name(text: str) -> str:
    """A name that may break where its words end."""
    return _e(text).replace("_", "_<wbr>").replace("=", "=<wbr>")


def _head(column: Column) -> str:
    unit = f"<small>{_e(column.unit)}</small>" if column.unit else ""
    return f'<th scope="col" class="{column.align}">{_name(column.title)}{unit}</th>'


def _cell(column: Column, text: str, style: str) -> str:
    label = f"{column.title}, {column.unit}" if column.unit else column.title
    value, rest = tables.split(text)
    shown = f'{_e(value)} <span class="ci">{_e(rest)}</span>' if rest else _e(text)
    if text in ("failed", "missing", "stopped"):
        shown = f'<span class="hole">{shown}</span>'
    shown = f"<span>{shown}</span>" if text else ""
    kind = f"{column.align} none" if text == NONE else column.align
    return f'<td class="{kind}" data-label="{_e(label)}"{style}>{shown}</td>'


def _heat_table(analysis: Analysis) -> str:
    """Differences by class on tones from the lowest to the highest; in bold where the interval excludes 0."""
    table = tables.class_table(analysis)
    comparisons = [row.comparison for row in analysis.compared if row.comparison]
    largest = max((abs(i.mean) for c in comparisons for i in c.classes.values()), default=0) or 1
    styles = []
    for name in analysis.class_names:
        of_row = [""]  # the baseline
        for found in comparisons:
            interval = found.classes.get(name)
            if interval is None:
                of_row.append("")
                continue
            tone, alpha = "up" if interval.mean > 0 else "down", 0.4 * abs(interval.mean) / largest
            clear = interval.low > 0 or interval.high < 0  # false for NaN
            of_row.append(f' style="--tone:var(--{tone});--a:{alpha:.2f}"' + (' data-clear="1"' if clear else ""))
        styles.append(of_row + [""] * (len(table.columns) - 1 - len(of_row)))
    note = (
        '<p class="note">Bold: the interval excludes 0, not corrected for the number of classes.</p>'
        if comparisons
        else ""
    )
    return _table(table, "heat", "Table 2.", styles) + note


def _plot(analysis: Analysis, draw: object, name: str, caption: str) -> str:
    assert callable(draw)
    number = 2 if name == "curves" and analysis.compared else 1
    wide = figures.svg(draw(analysis, figures.WIDE), f"{name}-wide")
    narrow = figures.svg(draw(analysis, figures.NARROW), f"{name}-narrow")
    pictures = f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'
    return f'<figure class="plot">{pictures}<figcaption><b>Figure {number}.</b> {_e(caption)}</figcaption></figure>'


def _bars(run: Run) -> str:
    rows = [
        f'<tr><th scope="row">{_e(name)}</th><td>{percent(value)}</td>'
        f'<td class="bar"><span style="--v:{0 if math.isnan(value) else 100 * value:.2f}"></span></td></tr>'
        for name, value in run.iou.items()
    ]
    head = '<th scope="col" class="l">Class</th><th scope="col">IoU<small>%</small></th><th></th>'
    body = "\n".join(rows)
    return f'<table class="bars"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>'


def _image(file: Path, text: str) -> str:
    content = base64.b64encode(file.read_bytes()).decode("ascii")
    return f'<img alt="{_e(text)}" src="data:image/png;base64,{content}">'


def _settings(lines: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<dt>{_e(term)}</dt><dd>{_e(text)}</dd>" for term, text in lines)
    return f'<dl class="settings">{items}</dl>'
