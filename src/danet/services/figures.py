"""Figures, sized for slides: confusion matrix and segmentations; what all figures share.

They are drawn through matplotlib's object interface, so no display is needed and nothing stays in memory.
Legend of shapes: H, W image height and width, K number of classes.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from danet.interfaces import IGNORE
from danet.services.atomic_files import replacing

Color = tuple[int, int, int]  # red, green and blue in 0..255

# Okabe and Ito's color-blind-safe palette; vermillion and sky blue also differ in brightness.
BLUE, ORANGE, GREEN, PINK, VERMILLION, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"
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
    "axes.prop_cycle": f"cycler('color', {[BLUE, VERMILLION, GREEN, ORANGE, PINK, SKY]})",
    "grid.color": "#E6E6E6",
    "lines.linewidth": 2,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "text.parse_math": False,  # names may contain dollar signs
}
TIGHT: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.15}
LETTER = 0.6 / 72  # inches per point of the font size: the width of a letter, rounded up


def save(figure: Any, path: Path | BinaryIO, **options: Any) -> None:
    """Write a figure, a file whole or not at all. Options as for matplotlib's savefig."""
    if not isinstance(path, Path):
        figure.savefig(path, **options)
        return
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], **options)


@contextlib.contextmanager
def drawing(style: Mapping[Any, Any] = {}) -> Iterator[None]:
    """Apply the default style and `style`; characters that the font lacks become boxes, without a warning for each."""
    import matplotlib

    with matplotlib.rc_context({**STYLE, **style}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ ", UserWarning)
        yield


def drawable(text: str) -> str:
    """The text with bytes that are not UTF-8 (in file names) written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


# ---- confusion matrix ------------------------------------------------------------------------------------------------


def plot_confusion_matrix(matrix: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Draw how the pixels of each true class were classified, in percent; classes without pixels are gray.

    Args:
        matrix: (K, K) counts; rows are the truth.
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
        side = min(max(0.55 * size, 2.8), 9.8)  # inches; the labels around the cells add to the page
        figure = Figure(figsize=(side, side), dpi=150)
        axis = figure.add_axes((0, 0, 1, 1))
        colors = matplotlib.colormaps["Blues"].with_extremes(bad=FAINT)
        # The exponent keeps confusions of a few percent visible.
        cells = axis.imshow(shares, cmap=colors, norm=PowerNorm(0.5, vmin=0, vmax=100))
        axis.set_xticks(range(size), class_names, rotation=45, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(size), class_names)
        axis.set_xticks(np.arange(size + 1) - 0.5, minor=True)
        axis.set_yticks(np.arange(size + 1) - 0.5, minor=True)
        axis.grid(which="minor", color="white", linewidth=1)
        axis.tick_params(which="both", length=0)
        axis.set(xlabel="predicted class", ylabel="true class", title="Share of each true class's pixels, %")
        for index in np.flatnonzero(totals[:, 0] == 0).tolist():
            axis.get_yticklabels()[index].set_color("#888888")
        if size <= 20:
            _write_shares(axis, shares)
        scale = axis.inset_axes((1 + 0.2 / side, 0.2, 0.3 / side, 0.6))
        bar = figure.colorbar(cells, cax=scale, ticks=[0, 1, 5, 10, 25, 50, 75, 100])
        bar.outline.set_visible(False)
        save(figure, path, **TIGHT)


def _write_shares(axis: Any, shares: np.ndarray) -> None:
    """Write the percentages into the cells, except those that round to 0."""
    for index in np.flatnonzero(np.isnan(shares[:, 0])).tolist():
        note = axis.text((len(shares) - 1) / 2, index, "no pixels in the truth", ha="center", va="center")
        note.set(color="#666666", bbox={"facecolor": FAINT, "edgecolor": "none", "pad": 2})
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.5:
            color = "white" if share > 45 else INK
            axis.text(column, row, f"{share:.0f}", ha="center", va="center", color=color, fontsize=10)


# ---- segmentations ---------------------------------------------------------------------------------------------------


def as_rgb(image: np.ndarray) -> np.ndarray:
    """A copy of an image for display, (H, W, C) -> (H, W, 3): its first three channels; of two, the second twice."""
    return image[..., [0, 1, min(2, image.shape[2] - 1)]]


TALLEST = 16.0  # inches, of a picture


def plot_sample(
    image: np.ndarray,
    label: np.ndarray | None,
    prediction: np.ndarray,
    class_names: Sequence[str],
    palette: Sequence[Color],
    path: Path | BinaryIO,
    title: str,
    *,
    error: bool = False,
) -> None:
    """Draw image, truth and prediction side by side, with a legend of the classes that occur.

    Args:
        image: (H, W, 3) uint8.
        label: (H, W) class ids; ignored pixels (255) are striped. None where there is no truth.
        prediction: (H, W) class ids.
        class_names: the K names.
        palette: the K colors.
        path: the PNG to write, or an open file.
        title: line above the pictures, for example the name of the sample and its score.
        error: add a picture that marks the wrong pixels.
    """
    from matplotlib.figure import Figure

    title = drawable(title)
    pictures = {"image": image}
    if label is not None:
        pictures["truth"] = colored(label, palette)
    pictures["prediction"] = colored(prediction, palette)
    if error and label is not None:
        pictures["error"] = _errors(image, label, prediction)
    height, width = prediction.shape
    picture_width = min(max(3.3 * width / height, 3.0), 5.0)  # inches, as the page's size
    page = (len(pictures) * picture_width, min(picture_width * height / width, TALLEST) + 1.2)
    with drawing({"hatch.linewidth": 0.8}):
        figure = Figure(figsize=page, dpi=150, layout="compressed")
        title_size = min(13, page[0] / (1.1 * LETTER * max(len(title), 1)))
        figure.suptitle(title, x=0.01, ha="left", fontsize=title_size, fontweight="bold")
        for axis, (name, picture) in zip(figure.subplots(1, len(pictures)), pictures.items(), strict=True):
            # Classes cannot be interpolated; "auto" keeps the pixels of a small image sharp, too.
            axis.imshow(picture, interpolation="auto" if name == "image" else "nearest")
            axis.set_title(name, fontweight="normal", loc="center")
            axis.set_axis_off()
        maps = [prediction] if label is None else [label, prediction]
        draw_legend(figure, maps, class_names, palette, width=page[0], loc="outside lower center")
        save(figure, path, **TIGHT)


def draw_legend(
    figure: Any,
    class_maps: Sequence[np.ndarray],
    class_names: Sequence[str],
    palette: Sequence[Color],
    *,
    width: float,
    loc: str,
    size: float = 11,
) -> None:
    """Draw a legend of the classes that occur, in as few lines as fit.

    Args:
        figure: the figure or subfigure.
        class_maps: arrays of class ids.
        class_names: the K names.
        palette: the K colors.
        width: width of the legend [inches].
        loc: its location, in matplotlib's terms.
        size: font size [points].
    """
    from matplotlib.patches import Patch

    ids = np.unique(np.concatenate([class_map.ravel() for class_map in class_maps]))
    patches = [
        Patch(facecolor="#{:02x}{:02x}{:02x}".format(*palette[i]), edgecolor=INK, linewidth=0.5, label=class_names[i])
        for i in ids
        if i < len(class_names)
    ]
    if IGNORE in ids:
        patches.append(Patch(facecolor="white", edgecolor="#999999", hatch="////", linewidth=0.5, label="ignored"))
    longest = max(len(str(patch.get_label())) for patch in patches)
    fitting = max(int(width / (LETTER * size * (longest + 5))), 1)  # 5 letters: the color and the gaps
    lines = math.ceil(len(patches) / fitting)
    columns = math.ceil(len(patches) / lines)
    figure.legend(handles=patches, loc=loc, ncols=columns, fontsize=size, handlelength=1.2, columnspacing=1.4)


def _errors(image: np.ndarray, label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the wrong pixels in vermillion on a pale gray image; ignored pixels are never wrong."""
    pale = 255 - (255 - image.mean(axis=2, keepdims=True)) * 0.35
    picture = np.broadcast_to(pale, image.shape).round().astype(np.uint8)
    picture[(label != prediction) & (label != IGNORE)] = [int(VERMILLION[k : k + 2], 16) for k in (1, 3, 5)]
    return picture


def colored(ids: np.ndarray, palette: Sequence[Color]) -> np.ndarray:
    """(H, W) class ids to (H, W, 3) uint8 colors, with diagonal stripes where there is no class."""
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(palette)] = palette
    colors = table[ids]
    row, column = np.indices(ids.shape)
    period = max(4, ids.shape[0] // 40)
    stripes = (row + column) % period < max(1, period // 4)
    colors[(ids >= len(palette)) & stripes] = 153
    return colors
