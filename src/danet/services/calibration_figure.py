"""The calibration figure: a reliability diagram and a risk-coverage curve."""

from pathlib import Path
from typing import Any

import numpy as np

from danet.metrics import CalibrationScores
from danet.services.figures import BLUE, FAINT, INK, VERMILLION, drawable, drawing, save


def plot_calibration(scores: CalibrationScores, path: Path, title: str) -> None:
    """Draw accuracy against confidence, and the error rate among the most confident pixels.

    Args:
        scores: calibration scores of at least one pixel.
        path: the PNG to write.
        title: line above the figure.
    """
    from matplotlib.figure import Figure

    with drawing({"axes.axisbelow": True}):
        figure = Figure(figsize=(12, 5.2), dpi=150, layout="constrained")
        figure.suptitle(drawable(title), x=0.01, ha="left", fontsize=13, fontweight="bold")
        panels: Any = [["reliability", "risk"], ["shares", "risk"]]
        axes = figure.subplot_mosaic(panels, height_ratios=[3, 1])
        _draw_reliability(axes["reliability"], scores)
        _draw_shares(axes["shares"], scores)
        _draw_risk(axes["risk"], scores)
        save(figure, path)


def _draw_reliability(axis: Any, scores: CalibrationScores) -> None:
    edges = np.linspace(0, 1, len(scores.share) + 1)
    filled = scores.share > 0
    axis.set_title(f"Reliability: ECE {100 * scores.ece:.2f} points")
    axis.bar(edges[:-1][filled], scores.accuracy[filled], 1 / len(scores.share), align="edge", color=BLUE, ec="white")
    axis.plot(
        scores.confidence[filled],
        scores.accuracy[filled],
        "o",
        color=INK,
        markersize=4,
        label="mean of a bin",
        clip_on=False,
    )
    axis.plot([0, 1], [0, 1], "--", color=INK, linewidth=1.2, label="perfect calibration")
    axis.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    axis.legend(loc="upper left")


def _draw_shares(axis: Any, scores: CalibrationScores) -> None:
    edges = np.linspace(0, 1, len(scores.share) + 1)
    axis.bar(edges[:-1], 100 * scores.share, 1 / len(scores.share), align="edge", color=FAINT, ec=INK, linewidth=0.6)
    axis.set(xlim=(0, 1), xlabel="confidence: probability of the predicted class", ylabel="pixels, %")


def _draw_risk(axis: Any, scores: CalibrationScores) -> None:
    axis.set_title(f"Risk over coverage: area {scores.risk_area:.3g}")
    axis.plot(100 * scores.coverage, 100 * scores.risk, color=VERMILLION)
    axis.set(xlim=(0, 100), xlabel="coverage: most confident pixels, %", ylabel="wrong among them, %")
    axis.set_ylim(bottom=0)
