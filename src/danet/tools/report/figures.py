"""The two figures of a report: a forest plot of the differences and the learning curves of all variants.

Each is drawn wide for paper and screen, and narrow for a phone. The files are reproducible byte for byte.
"""

import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from danet.services.figures import BLUE, GREEN, INK, ORANGE, PINK, SKY, VERMILLION, drawing
from danet.tools.report.analysis import Analysis, Difference
from danet.tools.report.study import Study, VariantRuns
from danet.tools.report.tables import with_limits

# Colors under their names in the page's style sheet, so that the figures follow its light or dark theme.
THEME = {INK: "ink", BLUE: "blue", VERMILLION: "red", GREEN: "green", PINK: "pink", ORANGE: "orange", SKY: "sky"}
RULE = {"#E6E6E6": "rule"}  # the grid
LINES = ("-", "--", ":")  # for more variants than colors
WIDE, NARROW = 9.0, 4.2  # inches
WIDTHS = {"wide": WIDE, "narrow": NARROW}


def forest(analysis: Analysis, width: float = WIDE) -> Any:
    """Differences from the baseline: single seeds, mean with interval over seeds, interval over images."""
    differences, narrow = analysis.differences, width < 6
    with _style():
        figure = _figure(width, 1.35 + (0.85 if narrow else 0.62) * len(differences))
        axis = figure.subplots()
        axis.plot([], [], "-s", color=BLUE, markersize=7, label="mean, 95 % interval over seeds")
        for y, difference in enumerate(differences.values()):
            _draw_difference(axis, y, difference)
            axis.vlines(0, y - (0.26 if narrow else 0.5), y + 0.5, color=INK, linewidth=1)  # not through the texts
        _label(axis, differences, narrow)
        axis.set_ylim(len(differences) - 0.5, -0.65 if narrow else -0.5)
        axis.grid(axis="y", visible=False)
        axis.margins(x=0.06)
        axis.locator_params(axis="x", nbins=5 if narrow else 9)
        axis.set_xlabel(f"difference from {analysis.study.baseline}, points of mIoU")
        handles, labels = axis.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))
        figure.legend(named.values(), named, loc="outside lower center", ncols=1 if narrow else 3, fontsize=9)
    return figure


def _draw_difference(axis: Any, y: float, difference: Difference) -> None:
    mean, low, high = (100 * value for value in difference.over_seeds)
    line = {"elinewidth": 2.2, "capthick": 2.2, "capsize": 6}
    axis.errorbar(mean, y, xerr=[[mean - low], [high - mean]], fmt="s", color=BLUE, markersize=8, **line)
    if difference.over_images:
        ends = [100 * end for end in difference.over_images[1:]]
        axis.plot(ends, [y + 0.2] * 2, color=ORANGE, linewidth=2.2, label="95 % interval over images")
    by_seed = [100 * value for value in difference.by_seed]
    style = {"color": INK, "alpha": 0.45, "markersize": 4, "markeredgewidth": 0}
    axis.plot(by_seed, [y - 0.17] * len(by_seed), "o", label="single seeds", **style)


def _label(axis: Any, differences: Mapping[str, Difference], narrow: bool) -> None:
    """Write names and numbers beside the lines, or above them if there is no room."""
    names = [_short(name, 20 if narrow else 36) for name in differences]
    numbers = [with_limits(difference.over_seeds) for difference in differences.values()]
    if narrow:
        place = {"transform": axis.get_yaxis_transform(), "va": "center"}
        for y, (name, number) in enumerate(zip(names, numbers, strict=True)):
            axis.text(0, y - 0.42, name, fontweight="bold", **place)
            axis.text(1, y - 0.42, number, ha="right", **place)
        axis.set_yticks([])
    else:
        axis.set_yticks(range(len(names)), names)
        axis.secondary_yaxis("right").set_yticks(range(len(numbers)), numbers)
    for side in (axis, *axis.child_axes):
        side.tick_params(axis="y", length=0, labelsize=10)
        side.spines[["left", "right"]].set_visible(False)


def _short(name: str, length: int) -> str:
    """Shorten a long name in the middle: variants differ at the ends."""
    half = length // 2
    return name if len(name) <= length else f"{name[:half]}…{name[1 - half :]}"


def curves(analysis: Analysis, width: float = WIDE) -> Any:
    """Validation mIoU by step: the mean over each variant's seeds, and a band from the lowest to the highest."""
    narrow, colors = width < 6, list(THEME)
    with _style():
        figure = _figure(width, 4.0 if narrow else 4.6)
        axis = figure.subplots()
        for index, variant in enumerate(analysis.study.variants):
            steps, scores = seed_scores(variant)
            if len(steps) < 2:
                continue
            count, color = len(scores), colors[index % len(colors)]
            low, high = 100 * scores.min(axis=0), 100 * scores.max(axis=0)
            axis.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
            axis.plot(
                steps,
                100 * scores.mean(axis=0),
                LINES[index // len(colors) % len(LINES)],
                color=color,
                label=f"{_short(variant.name, 36)} ({count} seed{'s' if count > 1 else ''})",
            )
        axis.set_xlabel("optimizer step")
        axis.set_ylabel(f"mIoU on {analysis.study.runs[0].chosen_on}, %")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        figure.legend(loc="outside lower center", ncols=1 if narrow else 4, fontsize=9)
    return figure


def have_curves(study: Study) -> bool:
    """Whether a variant was evaluated more than once, so that there is a curve to draw."""
    return any(len(seed_scores(variant)[0]) > 1 for variant in study.variants)


def seed_scores(variant: VariantRuns) -> tuple[np.ndarray, np.ndarray]:
    """A variant's curves at the steps where all its seeds were evaluated: (T,) steps and (S, T) mIoU."""
    by_run = [run.curve for run in variant.runs.values()]
    steps = sorted(set.intersection(*map(set, by_run))) if by_run else []
    return np.array(steps), np.array([[curve[step] for step in steps] for curve in by_run], dtype=float)


def _style() -> Any:
    ink: dict[Any, Any] = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    return drawing({**ink, "svg.fonttype": "none", "svg.hashsalt": "danet", "font.size": 10})


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=200, layout="constrained")


def png(figure: Any) -> bytes:
    """The figure as PNG, without metadata of the software."""
    content = io.BytesIO()
    with _style():
        figure.savefig(content, format="png", bbox_inches="tight", pad_inches=0.15, metadata={"Software": None})
    return content.getvalue()


def svg(figure: Any, name: str) -> str:
    """The figure as an SVG element for a page, in the page's font and colors.

    Args:
        figure: the figure to draw.
        name: prefix of the element's ids, different for each figure on a page.
    """
    content = io.StringIO()
    no_marks = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with _style():
        figure.savefig(content, format="svg", bbox_inches="tight", pad_inches=0.1, transparent=True, metadata=no_marks)
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: [^;\"]*?([\d.]+px)[^;\"]*", r"font-size: \1", text)
    for color, variable in (THEME | RULE).items():
        text = re.sub(color, f"var(--{variable})", text, flags=re.IGNORECASE)
    return text
