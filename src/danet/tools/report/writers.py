"""A report as Markdown, LaTeX and CSV."""

import csv
import io
import math
from collections.abc import Sequence

from danet.tools.report import tables, words
from danet.tools.report.analysis import Analysis
from danet.tools.report.tables import Column, Table, split

# ---- Markdown --------------------------------------------------------------------------------------------------------


def markdown(analysis: Analysis, command: str) -> str:
    """The whole report; its pictures lie beside it."""
    study = analysis.study
    parts = [f"# {_md(study.title)}"]
    if study.mixed:
        parts += ["**Mixed: these runs differ in what they should share.**", _bullets(study.mixed)]
    if holes := words.holes(study):
        parts += ["**Incomplete: cells without a result.**", _bullets(holes)]
    parts += [_bullets(words.findings(analysis)), _markdown_table(tables.main_table(analysis))]
    parts += [_bullets(words.power_notes(analysis))]
    if analysis.compared:
        parts += ["![Differences to the baseline with their intervals](forest.png)"]
    parts += ["![Validation mIoU of all variants over the steps](curves.png)"]
    parts += ["## By class", _markdown_table(tables.class_table(analysis))]
    parts += ["## Every run", _markdown_table(tables.runs_table(study))]
    parts += [
        "## How to read this",
        _bullets([f"**{term}**: {_md(text)}" for term, text in words.how_to_read(analysis)], ""),
    ]
    settings = [
        f"**{_md(term)}**: `{line}`" for term, text in words.settings(study, command) for line in text.splitlines()
    ]
    parts += ["## What was run", _bullets(settings, "")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _md(text: str) -> str:
    for character in "\\|*_<`":
        text = text.replace(character, f"\\{character}")
    return text


def _bullets(lines: Sequence[str], escape: str = "yes") -> str:
    return "\n".join(f"- {_md(line) if escape else line}" for line in lines)


def _markdown_table(table: Table) -> str:
    rule = {"l": ":--", "c": ":-:", "r": "--:"}
    lines = [[_md(_head(column)) for column in table.columns], [rule[column.align] for column in table.columns]]
    lines += [[_md(cell) for cell in row] for row in table.rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([_md(table.caption), text, *([_bullets(table.notes)] if table.notes else [])])


def _head(column: Column) -> str:
    return f"{column.title} ({column.unit})" if column.unit else column.title


# ---- LaTeX -----------------------------------------------------------------------------------------------------------

_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": "$<$", ">": "$>$", "±": r"$\pm$", "−": "$-$", "×": r"$\times$", "Δ": r"$\Delta$", "✓": r"\checkmark"},
    **{"–": "--", "…": r"\ldots{}"},
}


def latex(analysis: Analysis) -> str:
    r"""The main table for \input; it needs the package booktabs."""
    table = tables.main_table(analysis)
    heads = [
        [_tex(c.title) for c in table.columns],
        [rf"{{\scriptsize {_tex(c.unit)}}}" if c.unit else "" for c in table.columns],
    ]
    lines = [
        r"% Needs \usepackage{booktabs}; with amssymb its check marks are used.",
        r"\providecommand{\checkmark}{\ensuremath{\surd}}",
        r"\begin{table*}",
        r"\centering\footnotesize\setlength{\tabcolsep}{2.5pt}",
        rf"\caption{{{_tex(' '.join([table.caption, *table.notes]))}}}\vspace{{3pt}}",
        rf"\begin{{tabular}}{{@{{}}{''.join(column.align for column in table.columns)}@{{}}}}",
        r"\toprule",
        *(_tex_row(head) for head in heads),
        r"\midrule",
        *(line for row in table.rows for line in _tex_rows(row)),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _tex_rows(cells: Sequence[str]) -> list[str]:
    """A table's row; intervals and deviations stand in a line of their own below, so that the table is no wider."""
    parts = [split(cell) for cell in cells]
    lines = [_tex_row([_tex(value) for value, _ in parts])]
    if any(rest for _, rest in parts):
        lines.append(_tex_row([rf"{{\scriptsize {_tex(rest)}}}" if rest else "" for _, rest in parts]))
        lines[-1] = lines[-1].removesuffix(r"\\") + r"\\[2pt]"
    return lines


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _tex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


# ---- CSV -------------------------------------------------------------------------------------------------------------


def table_csv(analysis: Analysis) -> str:
    """The main table's numbers in plain units, scores in percent; an empty cell is not known."""
    study = analysis.study
    marks = list(dict.fromkeys(mark for variant in study.variants for mark in variant.marks))
    settings = list(dict.fromkeys(setting for variant in study.variants for setting in variant.published))
    lines = []
    for row in analysis.rows:
        found = row.comparison
        line: dict[str, str] = {"variant": row.name}
        line |= {f"mark: {mark}": "1" if mark in row.variant.marks else "0" for mark in marks}
        line |= {"seeds": str(row.count), "miou": _percent(row.miou), "miou_sd": _percent(row.deviation)}
        over_seeds = found.over_seeds if found else (math.nan,) * 3
        over_images = found.over_images if found and found.over_images else (math.nan,) * 3
        line |= {"pairs": str(len(found.seeds)) if found else ""}
        names = ("difference", "difference_low", "difference_high")
        line |= {name: _percent(value) for name, value in zip(names, over_seeds, strict=True)}
        line |= {"p": _number(found.p) if found else "", "p_holm": _number(found.p_holm) if found else ""}
        names = ("images_difference", "images_low", "images_high")
        line |= {name: _percent(value) for name, value in zip(names, over_images, strict=True)}
        line |= {key: _number(value) for key, value in row.costs.items()}
        line |= {f"published: {s}": _number(row.variant.published.get(s, math.nan)) for s in settings}
        lines.append(line)
    return _csv([list(lines[0]), *(list(line.values()) for line in lines)])


def class_csv(analysis: Analysis) -> str:
    """A line for each variant and class, in percent."""
    lines = [["variant", "class", "iou", "difference", "difference_low", "difference_high"]]
    for row in analysis.rows:
        for name in analysis.class_names:
            interval = row.comparison.classes.get(name) if row.comparison else None
            lines.append([row.name, name, *(_percent(x) for x in (row.classes[name], *(interval or (math.nan,) * 3)))])
    return _csv(lines)


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.4f}"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}" if abs(value) < 1e6 else f"{value:.0f}"


def _csv(lines: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
