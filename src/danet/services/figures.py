"""Pictures of a run: its curves, its confusion matrix and its segmentations, fit for a slide.

They are drawn through matplotlib's object interface, so no display is needed and nothing is kept in memory. All lengths
on the page are given, in inches: matplotlib's own layouts draw a figure two or three times to find them.
Legend of shapes: H, W image height and width, K number of classes.
"""

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from danet.interfaces import IGNORE

# Okabe and Ito's palette, which the colour-blind can tell apart; vermillion and sky blue differ in brightness too.
BLUE, ORANGE, GREEN, PINK, VERMILLION, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"
LOSS_COLORS = {"total": "#333333", "main": BLUE, "pam": VERMILLION, "cam": GREEN, "aux": PINK}
INK, FAINT = "#333333", "#D9D9D9"
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "lines.linewidth": 2,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "text.parse_math": False,  # names may have dollar signs
}
TIGHT: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.15}


@contextlib.contextmanager
def drawing(style: Mapping[Any, Any] = {}) -> Iterator[None]:
    """Our style, and what differs from it; letters that the font lacks become boxes, without a warning for each."""
    import matplotlib

    with matplotlib.rc_context({**STYLE, **style}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ ", UserWarning)
        yield


def drawable(text: str) -> str:
    """Text that can be drawn: bytes of a file's name that are not UTF-8 are written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def plot_curves(rows: Sequence[Mapping[str, Any]], path: Path, split: str = "val") -> None:
    """Draws losses, scores, learning rates and, where rows have them, the attention modules' scales over the steps.

    Args:
        rows: the rows of metrics.jsonl, with keys "step", "train/loss", "train/loss/<output>", "<split>/miou",
            "<split>/pixel_accuracy", "train/lr/<group>", "train/gamma/pam" and "train/gamma/cam".
        path: the PNG to write.
        split: the one that is scored.
    """
    from matplotlib.ticker import PercentFormatter

    order = {name: index for index, name in enumerate(LOSS_COLORS)}
    keys = sorted({key for row in rows for key in row}, key=lambda key: (order.get(key.rpartition("/")[2], -1), key))
    losses = {key: key.removeprefix("train/loss").strip("/") or "total" for key in keys if key.startswith("train/loss")}
    if len(losses) == 2:  # the total is that one output
        losses.pop("train/loss", None)
    rates = {key: key.removeprefix("train/lr").strip("/") or "all" for key in keys if key.startswith("train/lr")}
    gammas = {key: key.removeprefix("train/gamma/") for key in keys if key.startswith("train/gamma/")}

    with drawing():
        figure, axes = _panels(2, 2, (12, 6.75)) if gammas else _panels(1, 3, (15, 4.4))

        axis = axes[0]
        axis.set_title("Training loss")
        for key, name in losses.items():
            _line(axis, rows, key, name, color=LOSS_COLORS.get(name), smooth=True)
        axis.set_ylim(bottom=0)

        axis = axes[1]
        axis.set_title(f"Scores on {split}")
        _line(axis, rows, f"{split}/pixel_accuracy", "pixel accuracy", color=SKY, marker=True)
        steps, scores = _line(axis, rows, f"{split}/miou", "mIoU", color=BLUE, marker=True)
        if np.isfinite(scores).any():
            best = int(np.nanargmax(scores))
            axis.plot(steps[best], scores[best], "o", color=ORANGE, markersize=11, zorder=3)
            label = f"best mIoU {100 * scores[best]:.1f}% at step {int(steps[best])}"
            axis.plot([], [], "o", color=ORANGE, markersize=9, label=label)
        axis.set_ylim(0, 1)
        axis.yaxis.set_major_formatter(PercentFormatter(1))

        axis = axes[2]
        axis.set_title("Learning rate")
        for (key, name), color in zip(rates.items(), _cycle(len(rates)), strict=True):
            _line(axis, rows, key, name, color=color)
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter("{x:.3g}")

        if gammas:
            axis = axes[3]
            axis.set_title("Scale of the attention modules")
            for key, name in gammas.items():
                _line(axis, rows, key, name, color=LOSS_COLORS.get(name))
            axis.axhline(0, color=INK, linewidth=0.8)

        last_step = max((row["step"] for row in rows), default=1)
        for axis in axes:
            axis.set_xlabel("optimizer step")
            axis.set_xlim(0, 1.02 * last_step)
            if axis.get_legend_handles_labels()[1]:  # a run that was stopped early may lack a curve
                axis.legend()
        figure.savefig(path)


def _panels(rows: int, columns: int, page: tuple[float, float]) -> tuple[Any, list[Any]]:
    """A page of some width and height in inches, with axes row by row; labels and numbers of eight digits have room."""
    from matplotlib.figure import Figure

    figure, left, right, below, above = Figure(figsize=page, dpi=150), 0.9, 0.3, 0.6, 0.4
    cell = ((page[0] - right) / columns, page[1] / rows)
    size = (cell[0] - left, cell[1] - below - above)
    places = itertools.product(reversed(range(rows)), range(columns))
    return figure, [_place(figure, left + x * cell[0], below + y * cell[1], *size) for y, x in places]


def _place(figure: Any, left: float, bottom: float, width: float, height: float) -> Any:
    """New axes at so many inches from the page's lower left corner."""
    page_width, page_height = figure.get_size_inches()
    return figure.add_axes((left / page_width, bottom / page_height, width / page_width, height / page_height))


def _text_width(texts: Sequence[str], size: float = 11, weight: str = "normal") -> float:
    """Inches that the longest of some lines takes, in a font of `size` points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight=weight)
    with drawing():
        return max(text_to_path.get_text_width_height_descent(text, font, False)[0] for text in texts) / 72


def _line(
    axis: Any,
    rows: Sequence[Mapping[str, Any]],
    key: str,
    name: str,
    *,
    color: str | None,
    marker: bool = False,
    smooth: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the values of `key` over the steps and returns both; a long noisy curve as its running mean."""
    points = [(row["step"], math.nan if row[key] is None else row[key]) for row in rows if key in row]
    steps, values = np.array(points, dtype=float).reshape(-1, 2).T
    if not points:
        return steps, values
    width = len(values) // 40 if smooth else 0
    if width >= 2:
        (faint,) = axis.plot(steps, values, color=color, linewidth=1, alpha=0.25)
        # At the ends, where the window leaves the curve, the mean is over what is there.
        window = np.ones(2 * width + 1)
        count = np.convolve(np.isfinite(values), window, "same")
        mean = np.convolve(np.nan_to_num(values), window, "same") / np.where(count, count, np.nan)
        axis.plot(steps, mean, color=faint.get_color(), label=name)
    else:
        dots = "o" if marker or len(values) == 1 else None
        axis.plot(steps, values, color=color, marker=dots, markersize=4, label=name)
    return steps, values


def _cycle(count: int) -> list[str]:
    colors = [BLUE, VERMILLION, GREEN, ORANGE, PINK, SKY]
    return [colors[index % len(colors)] for index in range(count)]


def plot_confusion_matrix(matrix: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Draws where the pixels of each true class went, in percent; classes without a true pixel are grey.

    Args:
        matrix: (K, K) counts, rows are the truth.
        class_names: the K names.
        path: the PNG to write.
    """
    import matplotlib
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    size = len(class_names)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, 100 * matrix / np.maximum(totals, 1), np.nan)

    with drawing({"axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        side, names = min(max(0.55 * size, 2.8), 9.8), _text_width(class_names)
        left, below, above, right = names + 0.5, 0.71 * names + 0.6, 0.45, 1.0  # of the cells; the names below slope
        figure = Figure(figsize=(left + side + right, below + side + above), dpi=150)
        axis = _place(figure, left, below, side, side)
        colors = matplotlib.colormaps["Blues"].with_extremes(bad=FAINT)
        # The exponent keeps confusions of a few percent visible.
        cells = axis.imshow(shares, cmap=colors, norm=PowerNorm(0.5, vmin=0, vmax=100))
        axis.set_xticks(range(size), class_names, rotation=45, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(size), class_names)
        axis.set_xticks(np.arange(size + 1) - 0.5, minor=True)
        axis.set_yticks(np.arange(size + 1) - 0.5, minor=True)
        axis.grid(which="minor", color="white", linewidth=1)
        axis.tick_params(which="both", length=0)
        axis.set_xlabel("predicted class")
        axis.set_ylabel("true class")
        axis.set_title("Share of each true class's pixels, %")
        for index in np.flatnonzero(totals[:, 0] == 0).tolist():
            axis.get_yticklabels()[index].set_color("#888888")
            if size <= 20:
                note = axis.text((size - 1) / 2, index, "no pixels in the truth", ha="center", va="center")
                note.set(color="#666666", bbox={"facecolor": FAINT, "edgecolor": "none", "pad": 2})
        if size <= 20:
            for (row, column), share in np.ndenumerate(shares):
                if share >= 0.5:  # what would be printed as 0 is left empty
                    color = "white" if share > 45 else INK
                    axis.text(column, row, f"{share:.0f}", ha="center", va="center", color=color, fontsize=10)
        scale = _place(figure, left + side + 0.2, below + 0.2 * side, 0.3, 0.6 * side)
        bar = figure.colorbar(cells, cax=scale, ticks=[0, 1, 5, 10, 25, 50, 75, 100])
        bar.outline.set_visible(False)
        figure.savefig(path)


def plot_sample(
    image: np.ndarray,
    label: np.ndarray,
    prediction: np.ndarray,
    class_names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    path: Path,
    title: str,
    *,
    error: bool = False,
) -> None:
    """Draws image, truth and prediction side by side, with a legend of the classes that occur.

    Args:
        image: (H, W, 3) uint8.
        label: (H, W) class ids; ignored pixels (255) are striped.
        prediction: (H, W) class ids.
        class_names: the K names.
        palette: the K colours, each red, green and blue in 0..255.
        path: the PNG to write.
        title: a line above the pictures, for example the name of the sample and its score.
        error: add a fourth picture, of the pixels that are wrong.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    title = drawable(title)
    pictures = {"image": image, "truth": colored(label, palette), "prediction": colored(prediction, palette)}
    if error:
        pictures["error"] = _errors(image, label, prediction)
    count = len(pictures)
    height, width = label.shape
    shown = min(max(3.3 * width / height, 3.0), 5.0)  # inches across one picture
    present = [index for index in np.union1d(label, prediction) if index < len(class_names)]
    patches = [
        Patch(facecolor=tuple(np.array(palette[index]) / 255), edgecolor=INK, linewidth=0.5, label=class_names[index])
        for index in present
    ]
    if (label == IGNORE).any():
        patches.append(Patch(facecolor="white", edgecolor="#999999", hatch="////", linewidth=0.5, label="ignored"))
    gap, margin, above = 0.1, 0.15, 0.65  # above: title and names of the pictures
    page_width = count * (shown + gap) - gap + 2 * margin
    name_width = _text_width([str(patch.get_label()) for patch in patches]) + 0.6  # with its colour
    legend_lines = math.ceil(len(patches) / max(int((page_width - 2 * margin) / name_width), 1))
    columns = math.ceil(len(patches) / legend_lines)
    below, tall = 0.35 + 0.24 * legend_lines, shown * height / width
    title_size = min(13, 13 * (page_width - 2 * margin) / max(_text_width([title], 13, "bold"), 1))

    with drawing({"hatch.linewidth": 0.8}):
        figure = Figure(figsize=(page_width, below + tall + above), dpi=150)
        place = (margin / page_width, 1 - 0.12 / (below + tall + above))
        figure.text(*place, title, va="top", fontsize=title_size, fontweight="bold")
        for index, (name, picture) in enumerate(pictures.items()):
            axis = _place(figure, margin + index * (shown + gap), below, shown, tall)
            # Classes have no colours in between; "auto" keeps the pixels of a small image sharp, too.
            axis.imshow(picture, interpolation="auto" if name == "image" else "nearest")
            axis.set_title(name, fontweight="normal", loc="center")
            axis.set_axis_off()
        figure.legend(handles=patches, loc="lower center", ncols=columns, handlelength=1.2, columnspacing=1.4)
        figure.savefig(path)


def _errors(image: np.ndarray, label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: wrong pixels vermillion on a pale grey image; ignored pixels are neither right nor wrong."""
    pale = 255 - (255 - image.mean(axis=2, keepdims=True)) * 0.35
    picture = np.broadcast_to(pale, image.shape).round().astype(np.uint8)
    picture[(label != prediction) & (label != IGNORE)] = [int(VERMILLION[k : k + 2], 16) for k in (1, 3, 5)]
    return picture


def colored(ids: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """(H, W) class ids to (H, W, 3) uint8 colours, with diagonal stripes where there is no class."""
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(palette)] = palette
    colors = table[ids]
    row, column = np.indices(ids.shape)
    period = max(4, ids.shape[0] // 40)
    stripes = (row + column) % period < max(1, period // 4)
    colors[(ids >= len(palette)) & stripes] = 153
    return colors
