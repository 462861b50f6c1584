"""The curves of a run: losses, scores, learning rates."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from danet.services.figures import BLUE, GREEN, INK, ORANGE, PINK, SKY, VERMILLION, drawing, save

Row = Mapping[str, Any]

LOSS_COLORS = {"total": INK, "main": BLUE, "pam": VERMILLION, "cam": GREEN, "aux": PINK}


def plot_curves(rows: Sequence[Row], path: Path, split: str = "val") -> None:
    """Draw losses, scores, learning rates and, if there are any, the attention modules' scales over the steps.

    Args:
        rows: the rows of metrics.jsonl, with keys "step", "train/loss", "train/loss/<output>", "<split>/miou",
            "<split>/pixel_accuracy", "train/lr/<group>", "train/gamma/pam" and "train/gamma/cam".
        path: the PNG to write.
        split: the split that was scored.
    """
    from matplotlib.figure import Figure

    gammas = _series(rows, "train/gamma")
    panels: Any = [["losses", "scores"], ["rates", "gammas"]] if gammas else [["losses", "scores", "rates"]]
    with drawing():
        figure = Figure(figsize=(12, 6.75) if gammas else (15, 4.4), dpi=150, layout="constrained")
        axes = figure.subplot_mosaic(panels)
        _draw_losses(axes["losses"], rows)
        _draw_scores(axes["scores"], rows, split)
        _draw_rates(axes["rates"], rows)
        if gammas:
            axes["gammas"].set_title("Scale of the attention modules")
            for key, name in gammas.items():
                _draw_line(axes["gammas"], rows, key, name, color=LOSS_COLORS.get(name))
            axes["gammas"].axhline(0, color=INK, linewidth=0.8)
        last_step = max((row["step"] for row in rows), default=1)
        for axis in axes.values():
            axis.set_xlabel("optimizer step")
            axis.set_xlim(0, 1.02 * last_step)
            if axis.get_legend_handles_labels()[1]:  # a run that was stopped early may lack a curve
                axis.legend()
        save(figure, path)


def _series(rows: Sequence[Row], prefix: str) -> dict[str, str]:
    """Names of the curves whose keys start with a prefix, by key."""
    order = {name: index for index, name in enumerate(LOSS_COLORS)}
    keys = {key for row in rows for key in row if key.startswith(prefix)}
    names = {key: key.removeprefix(prefix).strip("/") for key in keys}
    return dict(sorted(names.items(), key=lambda item: (order.get(item[1], -1), item)))


def _draw_losses(axis: Any, rows: Sequence[Row]) -> None:
    axis.set_title("Training loss")
    losses = _series(rows, "train/loss")
    if len(losses) == 2:  # the total equals the only output's
        losses.pop("train/loss", None)
    for key, name in losses.items():
        _draw_line(axis, rows, key, name or "total", color=LOSS_COLORS.get(name or "total"), smooth=True)
    axis.set_ylim(bottom=0)


def _draw_scores(axis: Any, rows: Sequence[Row], split: str) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_title(f"Scores on {split}")
    _draw_line(axis, rows, f"{split}/pixel_accuracy", "pixel accuracy", color=SKY, marker=True)
    steps, scores = _draw_line(axis, rows, f"{split}/miou", "mIoU", color=BLUE, marker=True)
    if np.isfinite(scores).any():
        best = int(np.nanargmax(scores))
        axis.plot(steps[best], scores[best], "o", color=ORANGE, markersize=11, zorder=3)
        label = f"best mIoU {100 * scores[best]:.1f}% at step {int(steps[best])}"
        axis.plot([], [], "o", color=ORANGE, markersize=9, label=label)
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(PercentFormatter(1))


def _draw_rates(axis: Any, rows: Sequence[Row]) -> None:
    axis.set_title("Learning rate")
    for key, name in _series(rows, "train/lr").items():
        _draw_line(axis, rows, key, name or "all")
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter("{x:.3g}")


def _draw_line(
    axis: Any,
    rows: Sequence[Row],
    key: str,
    name: str,
    *,
    color: str | None = None,
    marker: bool = False,
    smooth: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the values of `key` over the steps, a long noisy curve as its running mean; return steps and values."""
    points = [(row["step"], math.nan if row[key] is None else row[key]) for row in rows if key in row]
    steps, values = np.array(points, dtype=float).reshape(-1, 2).T
    if not points:
        return steps, values
    width = len(values) // 40 if smooth else 0
    if width >= 2:
        (faint,) = axis.plot(steps, values, color=color, linewidth=1, alpha=0.25)
        # Where the window extends past the curve, the mean is over the values inside.
        window = np.ones(2 * width + 1)
        count = np.convolve(np.isfinite(values), window, "same")
        mean = np.convolve(np.nan_to_num(values), window, "same") / np.where(count, count, np.nan)
        axis.plot(steps, mean, color=faint.get_color(), label=name)
    else:
        dots = "o" if marker or len(values) == 1 else None
        axis.plot(steps, values, color=color, marker=dots, markersize=4, label=name)
    return steps, values
