"""Draw what a DANet attends to: one sheet in slide format, modeled on figure 4 of the paper.

Shapes: H x W image size, h x w size of the feature map, N = h * w, M channels shown, K classes.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from danet.analysis.attention_maps import AttentionMaps, ChannelMaps, PositionMaps
from danet.services.figures import INK, Color, colored, draw_legend, drawable, drawing

PAGE = (16.0, 9.0)  # inches, like all lengths here
MARGIN, GAP = 0.3, 0.15  # around the page, between pictures
TOP, HEADING, CAPTION = 0.8, 0.75, 0.5  # heights of the title, above a group, and above each picture
LEGEND, TITLE = 0.9, 0.3  # heights in the left column
COLOR_BAR = 0.8  # width including labels
MUTED = "#666666"
PICTURE_SIZE = 720  # longer side of a picture in pixels, regardless of the image
NARROWEST = 20  # height over width, or width over height, of a picture; what is narrower is padded
EXPONENT = 0.5  # exponent of the color scale, because a few weights are large
BRIGHT = 10  # times uniform that full color stands for at least, so that weights that are all alike are not bright


def plot_attention(
    maps: AttentionMaps,
    class_names: Sequence[str],
    palette: Sequence[Color],
    target: Path | BinaryIO,
    title: str,
    *,
    facts: str = "",
    label: np.ndarray | None = None,
) -> None:
    """Draw image, prediction, truth, the maps of all points, some channels and the channel weights.

    Args:
        maps: the attention to show.
        class_names: the K names.
        palette: the K colors.
        target: the PNG to write.
        title: heading, for example the name of the image.
        facts: line about the model, opposite the title.
        label: truth, (H, W) class ids; ignored pixels (255) are hatched.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with drawing({"axes.grid": False}):
        x, y = MARGIN / PAGE[0], MARGIN / PAGE[1]
        below_title = (x, y, 1 - 2 * x, 1 - y - TOP / PAGE[1])
        layout = ConstrainedLayoutEngine(rect=below_title, w_pad=GAP / 2, h_pad=GAP / 2, wspace=0, hspace=0)
        figure: Any = Figure(figsize=PAGE, dpi=150, layout=layout)
        figure.text(x, 1 - y, drawable(title), va="top", size=20, weight="bold", color=INK)
        figure.text(1 - x, 1 - y, facts, va="top", ha="right", size=11, color=MUTED)
        sheet = _Sheet(maps, class_names, palette)
        width, height = PAGE[0] - 2 * MARGIN, PAGE[1] - TOP - MARGIN
        left_width = min(max(4.1 * sheet.aspect, 3.0), 5.0)
        left, right = figure.subfigures(1, 2, width_ratios=(left_width, width - left_width), wspace=0.03)
        sheet.draw_pictures(left, left_width, height, label)
        sheet.draw_attention(right, width - left_width, height)
        figure.savefig(target, format="png")


class _Grid(NamedTuple):
    """Equal pictures in rows and columns, with free space to the right and below."""

    width: float  # of a picture
    height: float
    columns: int
    rows: int
    right: float  # free space
    below: float

    @classmethod
    def largest(cls, count: int, width: float, height: float, aspect: float) -> "_Grid":
        """The arrangement of `count` pictures that makes them as large as possible in a rectangle."""

        def arrange(columns: int) -> _Grid:
            rows = math.ceil(count / columns)
            across = max(min(width / columns - GAP, (height / rows - CAPTION) * aspect), 0.3)
            free = (width - columns * (across + GAP), height - rows * (across / aspect + CAPTION))
            return cls(across, across / aspect, columns, rows, *(max(space, 0.01) for space in free))

        return max(map(arrange, range(1, count + 1)), key=lambda grid: grid.width)

    def axes(self, figure: Any) -> np.ndarray:
        """One axes per picture, row by row; those beyond the last picture show nothing."""
        widths, heights = [self.width] * self.columns + [self.right], [self.height] * self.rows + [self.below]
        grid = figure.add_gridspec(self.rows + 1, self.columns + 1, width_ratios=widths, height_ratios=heights)
        places = np.ndindex(self.rows, self.columns)
        axes = [figure.add_subplot(grid[place], anchor="NW", frame_on=False) for place in places]
        for axis in axes:
            axis.set_axis_off()
        return np.array(axes)


class _Sheet:
    """The page and everything its parts share."""

    def __init__(self, maps: AttentionMaps, names: Sequence[str], palette: Sequence[Color]) -> None:
        self.maps, self.names, self.palette = maps, names, palette
        height, width = maps.prediction.shape
        self.aspect = min(max(width / height, 1 / NARROWEST), NARROWEST)  # of the axes
        self.extent = (-0.5, width - 0.5, height - 0.5, -0.5)  # axes are in image pixels
        scale = PICTURE_SIZE / max(height, width)
        self.shape = (max(round(height * scale), 1), max(round(width * scale), 1))
        self.picture = _resized(maps.image / 255, self.shape)
        self.gray = self.picture @ np.array([0.299, 0.587, 0.114])

    def draw_pictures(self, figure: Any, width: float, height: float, label: np.ndarray | None) -> None:
        """Draw the image with its points, the prediction, the truth and the class colors."""
        class_maps = {"prediction": self.maps.prediction} | ({} if label is None else {"truth": label})
        tall, available = width / self.aspect, height - LEGEND - (1 + len(class_maps)) * TITLE
        lower = min((available - tall) / len(class_maps), tall)  # heights when stacked
        if label is not None and lower < tall / 2:
            panels, heights = [["image", "image"], ["prediction", "truth"], [".", "."]], [tall, tall / 2]
        else:
            panels, heights = [[name] for name in ("image", *class_maps, ".")], [tall, *len(class_maps) * [lower]]
        axes = figure.subplot_mosaic(panels, height_ratios=[*heights, max(available - sum(heights), 0.01)])
        axis = self.show(axes["image"], self.picture, "image, {} × {}".format(*self.maps.prediction.shape), width)
        for number, (row, column) in enumerate(self.maps.points, start=1):
            axis.plot(column, row, "o", color=INK, ms=15, markeredgecolor="white", mew=1.5, clip_on=False)
            axis.text(column, row, str(number), color="white", weight="bold", size=9, ha="center", va="center_baseline")
        for name, class_map in class_maps.items():
            self.show(axes[name], colored(class_map, self.palette), name, width)
        maps, names = [*class_maps.values()], [_cut(name, 18) for name in self.names]
        draw_legend(figure, maps, names, self.palette, width=width, loc="outside lower left", size=9)

    def draw_attention(self, figure: Any, width: float, height: float) -> None:
        """Draw the maps of both modules in the arrangement with the largest pictures."""
        position, channel = self.maps.position, self.maps.channel
        if position is None or channel is None:
            if position is not None:
                self.draw_position(figure, position, self.position_grid(width, height))
            if channel is not None:
                self.draw_channel(figure, channel, self.channel_grid(channel, width, height))
            return

        def arrange(share: float, stacked: bool) -> tuple[_Grid, _Grid]:
            first, second = ((width, height * s) if stacked else (width * s, height) for s in (share, 1 - share))
            return self.position_grid(*first), self.channel_grid(channel, *second)

        def quality(choice: tuple[float, bool]) -> tuple[float, float]:
            first, second = arrange(*choice)
            return min(first.width, 1.4 * second.width), first.width  # position maps matter more

        shares = np.linspace(0.4, 0.7, 13).tolist()
        beside = [share for share in shares if width * min(share / 5.5, (1 - share) / 4) > 1]  # room for the headings
        share, stacked = max([(s, True) for s in shares] + [(s, False) for s in beside], key=quality)
        grids, ratios = arrange(share, stacked), (share, 1 - share)
        if stacked:
            upper, lower = figure.subfigures(2, 1, height_ratios=ratios)
        else:
            upper, lower = figure.subfigures(1, 2, width_ratios=ratios, wspace=0.03)
        self.draw_position(upper, position, grids[0])
        self.draw_channel(lower, channel, grids[1])

    def position_grid(self, width: float, height: float) -> _Grid:
        """The best arrangement of the position maps."""
        return _Grid.largest(len(self.maps.points), width - COLOR_BAR, height - HEADING, self.aspect)

    def channel_grid(self, channel: ChannelMaps, width: float, height: float) -> _Grid:
        """The best arrangement of the channels and their weights."""
        return _Grid.largest(len(channel.channels) + 1, width, height - HEADING, self.aspect)

    def draw_position(self, figure: Any, position: PositionMaps, grid: _Grid) -> None:
        """Draw the map of each point."""
        count = position.weights[0].size
        rows, columns = self.maps.size
        note = f"Weights of each point over {rows} × {columns} positions. Uniform: {_percent(1 / count)}."
        note += f" Full color: max, or {BRIGHT}×."
        axes = grid.axes(figure)
        _write_heading(figure, axes[0], f"Position attention   γ = {position.gamma:.3f}", note)
        scaled = self.enlarged(position.weights)
        for index, (axis, point) in enumerate(zip(axes, self.maps.points, strict=False)):
            weights, shares = position.weights[index], position.class_shares[index]
            picture = _glow(_relative(scaled[index], weights) ** EXPONENT, "inferno", 0.5 * self.gray)
            largest = [i for i in shares.argsort()[::-1][:2] if shares[i] > 0.001]
            note = "from " + ", ".join(f"{self.names[i]} {_percent(shares[i])}" for i in largest)
            name = self.names[self.maps.prediction[point]]
            self.show(axis, picture, f"{index + 1}  {name}", grid.width, note)
            for color, line in (("black", 3.2), ("white", 1.6)):
                axis.plot(point[1], point[0], "o", ms=9, mfc="none", mec=color, mew=line, clip_on=False, zorder=5)
            times = f"{weights.max() * count:.3g}×{' uniform' if grid.width > 2.2 else ''}"
            self.note(axis, f"max {_percent(weights.max())} = {times}", grid.width)
        self.color_bar(figure, axes)

    def draw_channel(self, figure: Any, channel: ChannelMaps, grid: _Grid) -> None:
        """Draw some output channels and the weights between all channels."""
        note = "Output channels and their correlation with a class."
        axes = grid.axes(figure)
        _write_heading(figure, axes[0], f"Channel attention   β = {channel.beta:.3f}", note)
        scaled = self.enlarged(channel.maps)
        for index, number in enumerate(channel.channels):
            low, high = channel.maps[index].min(), channel.maps[index].max()
            picture = _glow((scaled[index] - low) / max(high - low, 1e-12), "viridis", 0.5 * self.gray)
            correlations = channel.correlations[index]
            classes = ", ".join(_correlated(self.names[i], correlations[i]) for i in channel.classes[index])
            self.show(axes[index], picture, f"channel {number}", grid.width, classes)
            self.note(axes[index], f"{low:.2f} to {high:.2f}".replace("-", "−"), grid.width)
        weights, last = channel.weights, axes[len(channel.channels)]
        picture = _glow(_relative(weights, weights[0]) ** EXPONENT, "inferno", np.full(weights.shape, 0.15))
        self.show(last, picture, f"{len(weights)} × {len(weights)} weights", grid.width, "row from column", extent=None)
        note = f"max {_percent(weights.max())} = {weights.max() * len(weights):.3g}×"
        self.note(last, note, min(grid.width, grid.height))

    def show(self, axis: Any, picture: np.ndarray, title: str, width: float, note: str = "", extent: Any = ()) -> Any:
        """Draw a picture of about this width with a title and a note below it; return its axes."""
        pixels = picture if picture.dtype == np.uint8 else (255 * picture + 0.5).astype(np.uint8)
        axis.imshow(pixels, extent=self.extent if extent == () else extent)
        axis.set_anchor("NW")
        axis.set_axis_off()
        size = min(12, max(8, 5.5 * width))
        letters = int(width * 72 / size / 0.52)
        heading = axis.set_title(_cut(title, letters) + ("\n" if note else ""), size=size, color=INK)
        _write_below(axis, heading, _first(note, int(letters * 1.05)), size=size - 1.5)
        return axis

    def note(self, axis: Any, text: str, width: float) -> None:
        """Write a line into the lower left corner of a picture."""
        box = {"facecolor": "black", "alpha": 0.55, "edgecolor": "none", "pad": 2}
        size = min(9, max(6, 2 + 3.4 * width))
        axis.text(0.03, 0.04, text, va="bottom", transform=axis.transAxes, color="white", size=size, bbox=box)

    def color_bar(self, figure: Any, axes: np.ndarray) -> None:
        """Draw the color scale of the weights beside the maps."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap, PowerNorm

        colors = ListedColormap(_glow(np.linspace(0, 1, 256), "inferno", np.full(256, 0.35)))
        scale = ScalarMappable(PowerNorm(EXPONENT, 0, 1), colors)
        bar = figure.colorbar(scale, ax=axes, ticks=[0, 0.25, 1], shrink=0.6, aspect=15, anchor=(0, 1), panchor=False)
        bar.ax.set_yticklabels(["0", "¼ max", "max"], size=9, color=MUTED)
        bar.ax.tick_params(length=0)
        bar.outline.set_visible(False)

    def enlarged(self, maps: np.ndarray) -> np.ndarray:
        """(M, h, w) maps at picture size, resized in the same way as the logits."""
        tensor = torch.from_numpy(maps)[None]
        return F.interpolate(tensor, self.shape, mode="bilinear", align_corners=self.maps.align_corners)[0].numpy()


def _write_heading(figure: Any, axis: Any, title: str, note: str) -> None:
    """Write the title of a group of pictures and a line of explanation; `axis` is that of its first picture."""
    heading = figure.suptitle(title.replace("-", "−") + "\n", x=0.01, ha="left", size=15, weight="bold", color=INK)
    _write_below(axis, heading, note, size=10)


def _write_below(axis: Any, heading: Any, text: str, *, size: float) -> None:
    """Write a muted line into the empty last line of a heading."""
    note = axis.annotate(text, (0, 0), xycoords=heading, va="bottom", size=size, color=MUTED, annotation_clip=False)
    note.set_in_layout(False)


def _relative(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Values as shares of what has full color, for weights that are scaled to sum 1: 0..1, of the same shape."""
    share: np.ndarray = values / max(values.max(), weights.max(), BRIGHT / weights.size)
    return share


def _glow(values: np.ndarray, colors: str, gray: np.ndarray) -> np.ndarray:
    """Values in 0..1 as light over a gray picture: (...) -> (..., 3)."""
    import matplotlib

    alpha = np.clip(3.5 * values, 0, 0.95)[..., None]
    light = matplotlib.colormaps[colors](0.2 + 0.8 * values)[..., :3]  # the darkest colors would not be visible
    return alpha * light + (1 - alpha) * gray[..., None]


def _resized(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    import cv2

    smaller = shape[0] < image.shape[0]
    return cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: max(letters - 1, 1)] + "…"


def _first(text: str, letters: int) -> str:
    """As many items of a list as fit, at least one."""
    while len(text) > letters and ", " in text:
        text = text.rpartition(", ")[0]
    return _cut(text, letters)


def _correlated(name: str, correlation: float) -> str:
    return name if math.isnan(correlation) else f"{name} {correlation:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 0.995 else "100%"
