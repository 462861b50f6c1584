"""The two pictures of a report: a forest plot of the differences, and the curves of all variants.

Each is drawn wide for paper and screen, and narrow for a telephone. Drawing is repeatable to the byte.
"""

import io
import re
from typing import Any

import numpy as np

from danet.services.figures import BLUE, GREEN, INK, ORANGE, PINK, SKY, VERMILLION, drawing
from danet.tools.report.analysis import Analysis, Row
from danet.tools.report.formats import with_limits
from danet.tools.report.study import Run, Variant

COLORS = (INK, BLUE, VERMILLION, GREEN, PINK, ORANGE, SKY)
LINES = ("-", "--", ":")  # for more variants than colours
# Named by the page's style sheet, so that pictures follow its light or dark colours.
VARIABLES = {
    INK: "--ink",
    "#E6E6E6": "--rule",
    BLUE: "--blue",
    ORANGE: "--orange",
    VERMILLION: "--red",
    GREEN: "--green",
}
VARIABLES |= {PINK: "--pink", SKY: "--sky"}
WIDE, NARROW = 9.0, 4.2  # inches


def forest(analysis: Analysis, width: float = WIDE) -> Any:
    """Differences to the baseline: each seed, the mean with its interval over seeds, the interval over images."""
    rows = analysis.compared
    narrow = width < 6
    with _style():
        figure = _figure(width, 1.35 + (0.85 if narrow else 0.62) * len(rows))
        axis = figure.subplots()
        axis.plot([], [], "-s", color=BLUE, markersize=7, label="mean, 95 % interval over seeds")
        for y, row in enumerate(rows):
            _draw_comparison(axis, y, row)
            _label(axis, y, row, narrow)
            # The narrow form has its texts above the lines: zero is drawn only where there are none.
            axis.plot([0, 0], [y - 0.26 if narrow else y - 0.5, y + 0.5], color=INK, linewidth=1, zorder=2.5)
        axis.set_ylim(len(rows) - 0.5, -0.65 if narrow else -0.5)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        axis.grid(axis="y", visible=False)
        axis.margins(x=0.06)
        axis.locator_params(axis="x", nbins=5 if narrow else 9)
        axis.set_xlabel(f"difference to {analysis.study.baseline}, points of mIoU")
        handles, labels = axis.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))
        figure.legend(named.values(), named, loc="outside lower center", ncols=1 if narrow else 3, fontsize=9)
    return figure


def _draw_comparison(axis: Any, y: float, row: Row) -> None:
    found = row.comparison
    assert found
    over_seeds, over_images = found.over_seeds, found.over_images
    if over_images:
        ends = [100 * over_images.low, 100 * over_images.high]
        axis.plot(ends, [y + 0.2] * 2, color=ORANGE, linewidth=2.2, label="95 % interval over images")
    axis.plot(
        [100 * d for d in found.by_seed],
        [y - 0.17] * len(found.by_seed),
        "o",
        color=INK,
        alpha=0.45,
        markersize=4,
        markeredgewidth=0,
        label="single seeds",
    )
    if np.isfinite(over_seeds.low):
        axis.plot([100 * over_seeds.low, 100 * over_seeds.high], [y] * 2, color=BLUE, linewidth=2.2)
        for end in (over_seeds.low, over_seeds.high):
            axis.plot([100 * end] * 2, [y - 0.09, y + 0.09], color=BLUE, linewidth=2.2)
    axis.plot(100 * over_seeds.mean, y, "s", color=BLUE, markersize=8)


def _label(axis: Any, y: float, row: Row, narrow: bool) -> None:
    """The row's name and numbers: beside the lines, or above them where there is no room."""
    assert row.comparison
    at, numbers = axis.get_yaxis_transform(), with_limits(row.comparison.over_seeds)
    if narrow:
        axis.text(0, y - 0.42, _short(row.name, 20), transform=at, va="center", fontweight="bold", fontsize=10)
        axis.text(1, y - 0.42, numbers, transform=at, va="center", ha="right", fontsize=10)
    else:
        axis.text(-0.02, y, _short(row.name, 36), transform=at, va="center", ha="right")
        axis.text(1.02, y, numbers, transform=at, va="center")


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def curves(analysis: Analysis, width: float = WIDE) -> Any:
    """Validation mIoU over the steps: the mean of each variant's seeds, and the band from the lowest to the highest."""
    narrow = width < 6
    with _style():
        figure = _figure(width, 4.0 if narrow else 4.6)
        axis = figure.subplots()
        for index, variant in enumerate(analysis.study.variants):
            steps, scores = seed_scores(variant)
            if not len(steps):
                continue
            color, line = COLORS[index % len(COLORS)], LINES[index // len(COLORS) % len(LINES)]
            count = len(scores)
            label = f"{_short(variant.name, 36)} ({count} seed{'s' if count > 1 else ''})"
            axis.fill_between(
                steps, 100 * scores.min(axis=0), 100 * scores.max(axis=0), color=color, alpha=0.15, linewidth=0
            )
            mark = "o" if len(steps) == 1 else None
            axis.plot(steps, 100 * scores.mean(axis=0), line, color=color, label=label, marker=mark)
        axis.set_xlabel("optimizer step")
        axis.set_ylabel(f"mIoU on {analysis.study.runs[0].result.get('split')}, %")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        if axis.get_legend_handles_labels()[1]:
            figure.legend(loc="outside lower center", ncols=1 if narrow else 4, fontsize=9)
    return figure


def seed_scores(variant: Variant) -> tuple[np.ndarray, np.ndarray]:
    """A variant's curves at the steps that all its seeds were evaluated at: (T,) steps and (S, T) mIoU."""
    runs: list[Run] = list(variant.runs.values())
    shared = set.intersection(*(set(dict(run.curve)) for run in runs)) if runs else set()
    steps = sorted(shared)
    return np.array(steps), np.array([[dict(run.curve)[step] for step in steps] for run in runs], dtype=float)


def _style() -> Any:
    ink: dict[Any, Any] = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    return drawing({**ink, "svg.fonttype": "none", "svg.hashsalt": "danet", "font.size": 10})


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=200, layout="constrained")


def png(figure: Any) -> bytes:
    """The picture as PNG, without a mark of who drew it."""
    content = io.BytesIO()
    with _style():
        figure.savefig(content, format="png", bbox_inches="tight", pad_inches=0.15, metadata={"Software": None})
    return content.getvalue()


def svg(figure: Any, name: str) -> str:
    """The picture as an SVG element for a page, in the page's font and colours.

    Args:
        figure: to draw.
        name: sets the element's ids apart from those of other pictures on the page.
    """
    content = io.StringIO()
    nobody = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with _style():
        figure.savefig(content, format="svg", bbox_inches="tight", pad_inches=0.1, transparent=True, metadata=nobody)
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: [^;\"]*?([\d.]+px)[^;\"]*", r"font-size: \1", text)
    for color, variable in VARIABLES.items():
        text = re.sub(color, f"var({variable})", text, flags=re.IGNORECASE)
    return text
