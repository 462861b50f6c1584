"""The benchmark's pictures: attention by number of positions, and cost as work grows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from danet.services.figures import BLUE, GREEN, INK, ORANGE, PINK, SKY, STYLE, TIGHT, VERMILLION

Row = dict[str, Any]
COLORS = {
    "ours": BLUE,
    "ours, dense": SKY,
    "ours, blocked": GREEN,
    "ours, sdpa": PINK,
    "official formulas": ORANGE,
    "mmsegmentation": VERMILLION,
}
STYLES = {"ours": "-o", "mmsegmentation": "--s", "official formulas": ":^"}  # their curves may lie on one another
LABELS = {"ours": "ours, auto"}


def plot_attention(rows: Sequence[Row], path: Path) -> None:
    """Time and memory of position attention by N, in logarithms; what is estimated is hollow.

    Args:
        rows: of the section "attention".
        path: the PNG to write.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.get("module") == "position" and row.get("median")]
    directions = list(dict.fromkeys(row["what"] for row in rows))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 4.3 * len(directions)), dpi=150, layout="constrained")
        axes = figure.subplots(len(directions), 2, squeeze=False)
        for line, what in zip(axes, directions, strict=True):
            several = [row for row in rows if row["what"] == what]
            _draw(line[0], several, "positions", "median", 1)
            _draw(line[1], several, "positions", "memory", 1 / 2**20)
            line[0].set(title=f"Time, {what}", ylabel="seconds")
            line[1].set(title=f"Peak memory, {what}", ylabel="MiB")
            for axis in line:
                axis.set_xlabel("positions N")
                _logarithmic(axis, sorted({row["positions"] for row in several}))
        axes[0][0].plot([], [], "o", color=INK, fillstyle="none", linestyle="none", label="estimated")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.savefig(path, metadata={"Software": None}, **TIGHT)


def plot_growth(rows: Sequence[Row], path: Path) -> None:
    """Time and memory as one thing grows, a column each.

    Args:
        rows: of the section "growth".
        path: the PNG to write.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.get("median")]
    grown = list(dict.fromkeys(row["axis"] for row in rows))
    with matplotlib.rc_context(STYLE | {"font.size": 10}):
        figure = Figure(figsize=(4 * max(len(grown), 2), 7), dpi=150, layout="constrained")
        axes = figure.subplots(2, len(grown), squeeze=False)
        for place, axis in enumerate(grown):
            several = [row for row in rows if row["axis"] == axis]
            _draw(axes[0][place], several, "value", "median", 1)
            _draw(axes[1][place], several, "value", "memory", 1 / 2**20)
            what = "Scoring" if axis == "images scored" else "Training step"
            axes[0][place].set(title=f"{what}: time", ylabel="seconds" if place == 0 else "")
            axes[1][place].set(title=f"{what}: peak memory", ylabel="MiB" if place == 0 else "")
            for line in axes:
                line[place].set_xlabel(axis)
                line[place].set_xlim(left=0)
                line[place].set_ylim(0, 1.08 * max(line[place].dataLim.y1, 1e-9))
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.savefig(path, metadata={"Software": None}, **TIGHT)


def _draw(axis: Any, rows: Sequence[Mapping[str, Any]], across: str, up: str, unit: float) -> None:
    for name in dict.fromkeys(row["name"] for row in rows):
        points = sorted(
            (row[across], row[up] * unit, bool(row.get("estimated"))) for row in rows if _has(row, name, up)
        )
        if not points:
            continue
        color = COLORS.get(name, INK)
        xs, ys = [point[0] for point in points], [point[1] for point in points]
        axis.plot(xs, ys, STYLES.get(name, "-."), color=color, label=LABELS.get(name, name), markersize=5)
        guesses = [(x, y) for x, y, estimated in points if estimated]
        axis.plot(*zip(*guesses, strict=True) if guesses else ([], []), "o", color="white", markersize=4, zorder=3)
        axis.plot(
            *zip(*guesses, strict=True) if guesses else ([], []), "o", color=color, markersize=7, fillstyle="none"
        )


def _has(row: Mapping[str, Any], name: str, key: str) -> bool:
    return row["name"] == name and bool(row.get(key))  # a logarithm has no 0


def _logarithmic(axis: Any, values: Sequence[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")  # Matplotlib's own writes powers as formulas, which STYLE turns off
    axis.set_xticks(values, [str(value) for value in values])
    axis.minorticks_off()
