"""Draws what a DANet attends to: one sheet of slide format, after figure 4 of the paper.

Drawn through matplotlib's object interface, as in figures.py. Lengths on the page are inches, from its upper left
corner. Shapes: H x W image size, h x w size of the feature map, N = h * w, M channels shown, K classes.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F

from danet.analysis.attention_maps import AttentionMaps
from danet.services.figures import IGNORE, INK, colored, drawable, drawing
from danet.services.layout import GAP, Box, pack, side_by_side, stacked

PAGE_WIDTH, PAGE_HEIGHT, MARGIN = 16.0, 9.0, 0.4
TOP, BOTTOM = 0.85, PAGE_HEIGHT - 0.35  # of what is below the title
IMAGE_WIDTH, IMAGE_HEIGHT = 5.0, 4.1  # at most; the left column is as wide as the image
HEADING, CAPTION, TITLE = 0.5, 0.45, 0.28  # heights above a group, above a picture with two lines and with one
MUTED = "#666666"
PICTURE_SIZE = 720  # pixels of a picture's longer side, whatever the image has
EXPONENT = 0.5  # of the weights' colour scale: a few weights are large


def plot_attention(
    maps: AttentionMaps,
    class_names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    target: Path | BinaryIO,
    title: str,
    *,
    facts: str = "",
    label: np.ndarray | None = None,
) -> None:
    """Draws image, prediction, truth, the maps of all points, channels and channel weights.

    Args:
        maps: what to show.
        class_names: the K names.
        palette: the K colours, each red, green and blue in 0..255.
        target: the PNG to write.
        title: above everything, for example the name of the image.
        facts: a line about the model, opposite the title.
        label: the truth, (H, W) class ids; ignored pixels (255) are striped.
    """
    from matplotlib.figure import Figure

    with drawing({"axes.grid": False}):
        sheet = _Sheet(Figure(figsize=(PAGE_WIDTH, PAGE_HEIGHT), dpi=150), maps, class_names, palette)
        sheet.text(MARGIN, 0.52, drawable(title), size=20, weight="bold")
        sheet.text(PAGE_WIDTH - MARGIN, 0.52, facts, size=11, color=MUTED, ha="right")
        sheet.draw_pictures(label)
        left = 2 * MARGIN + sheet.left_width
        sheet.draw_attention(Box(left, TOP, PAGE_WIDTH - MARGIN - left, BOTTOM - TOP))
        sheet.figure.savefig(target, format="png")


class _Sheet:
    """The page, and what all its parts need."""

    def __init__(
        self, figure: Any, maps: AttentionMaps, names: Sequence[str], palette: Sequence[tuple[int, int, int]]
    ) -> None:
        self.figure, self.maps, self.names, self.palette = figure, maps, names, palette
        height, width = maps.prediction.shape
        self.aspect = width / height
        self.left_width = max(min(IMAGE_WIDTH, IMAGE_HEIGHT * self.aspect), 3.0)
        self.extent = (-0.5, width - 0.5, height - 0.5, -0.5)  # axes count in pixels of the image
        scale = PICTURE_SIZE / max(height, width)
        self.shape = (max(round(height * scale), 1), max(round(width * scale), 1))
        self.picture = _resized(maps.image / 255, self.shape)
        self.grey = self.picture @ np.array([0.299, 0.587, 0.114])

    def draw_pictures(self, label: np.ndarray | None) -> None:
        """The left column: the image with its points, prediction, truth, and the classes' colours."""
        from matplotlib.patches import Patch

        ids = np.unique(self.maps.prediction) if label is None else np.union1d(self.maps.prediction, label)
        shown = [int(index) for index in ids if index < len(self.names)]
        size, letters = (9.5, 18) if len(shown) <= 12 else (8, 14)
        patches = [
            Patch(facecolor=_unit(self.palette[i]), edgecolor=INK, linewidth=0.5, label=_cut(self.names[i], letters))
            for i in shown
        ]
        if label is not None and (label == IGNORE).any():
            patches.append(Patch(facecolor="white", edgecolor="#999999", hatch="////", linewidth=0.5, label="ignored"))
        longest = max(len(str(patch.get_label())) for patch in patches)
        columns = max(int(self.left_width / (size * (0.047 + 0.008 * longest))), 1)
        legend_height = 0.022 * size * math.ceil(len(patches) / columns) + 0.1

        (image,) = pack(1, Box(MARGIN, TOP, self.left_width, TITLE + IMAGE_HEIGHT), self.aspect, TITLE)
        axis = self.show(image, self.picture, "image, {} × {}".format(*self.maps.prediction.shape))
        for number, (row, column) in enumerate(self.maps.points, start=1):
            axis.plot(column, row, "o", color=INK, ms=15, markeredgecolor="white", mew=1.5, clip_on=False)
            axis.text(column, row, str(number), color="white", weight="bold", size=9, ha="center", va="center_baseline")
        top = image.top + image.height + GAP
        pictures = {"prediction": self.maps.prediction} | ({} if label is None else {"truth": label})
        free = Box(MARGIN, top, self.left_width, BOTTOM - legend_height - top)
        boxes = pack(len(pictures), free, self.aspect, TITLE)
        for box, (name, classes) in zip(boxes, pictures.items(), strict=True):
            self.show(box, colored(classes, self.palette), name)
        corner = (MARGIN / PAGE_WIDTH, 1 - (boxes[-1].top + boxes[-1].height + 0.1) / PAGE_HEIGHT)
        options = {"ncols": columns, "fontsize": size, "handlelength": 1.2, "columnspacing": 1.2, "borderaxespad": 0}
        self.figure.legend(handles=patches, loc="upper left", bbox_to_anchor=corner, borderpad=0, **options)

    def draw_attention(self, box: Box) -> None:
        """The two groups of maps, in the arrangement that gives them the largest pictures."""
        position, channel = self.maps.position, self.maps.channel
        if position is None or channel is None:
            self.draw_position(box) if channel is None else self.draw_channel(box)
            return
        counts = (len(self.maps.points), len(channel.channels) + 1)

        def quality(split: tuple[Box, Box]) -> tuple[float, float]:
            maps, channels = (pack(n, _body(b), self.aspect, CAPTION)[0] for n, b in zip(counts, split, strict=True))
            return min(maps.width, 1.4 * channels.width), maps.width  # the maps matter more

        shares = np.linspace(0.4, 0.7, 13)
        beside = [side_by_side(box, share) for share in shares if box.width * min(share / 5.5, (1 - share) / 4) > 1]
        first, second = max([stacked(box, share) for share in shares] + beside, key=quality)
        self.draw_position(first)
        self.draw_channel(second)

    def draw_position(self, box: Box) -> None:
        """A map for each point."""
        found = self.maps.position
        assert found is not None
        count = found.weights[0].size
        rows, columns = self.maps.size
        note = f"Where each point gathers from, of {rows} × {columns} positions. Uniform: {_percent(1 / count)}."
        self.heading(box, "Position attention", f"γ = {found.gamma:.3f}", note)
        self.color_bar(box)
        tiles = pack(len(self.maps.points), _body(box), self.aspect, CAPTION)
        scaled = self.enlarged(found.weights)
        for index, (tile, point) in enumerate(zip(tiles, self.maps.points, strict=True)):
            weights = found.weights[index]
            values = (scaled[index] / weights.max()) ** EXPONENT
            shares = found.class_shares[index]
            gathers = [i for i in shares.argsort()[::-1][:2] if shares[i] > 0.001]
            note = "from " + ", ".join(f"{self.names[i]} {_percent(shares[i])}" for i in gathers)
            name = self.names[self.maps.prediction[point]]
            axis = self.show(tile, _glow(values, "inferno", 0.5 * self.grey), f"{index + 1}  {name}", note)
            for color, width in (("black", 3.2), ("white", 1.6)):
                ring: dict[str, Any] = {"ms": 9, "mfc": "none", "mec": color, "mew": width}
                axis.plot(point[1], point[0], "o", **ring, clip_on=False, zorder=5)
            times = f"{weights.max() * count:.3g}×{' uniform' if tile.width > 2.2 else ''}"
            self.note(axis, tile, f"max {_percent(weights.max())} = {times}")

    def draw_channel(self, box: Box) -> None:
        """Some channels of the output, and the weights between all of them."""
        found = self.maps.channel
        assert found is not None
        count = len(found.weights)
        note = "Channels of its output, with their correlation to a class."
        self.heading(box, "Channel attention", f"β = {found.beta:.3f}", note)
        *tiles, last = pack(len(found.channels) + 1, _body(box), self.aspect, CAPTION)
        scaled = self.enlarged(found.maps)
        for index, (tile, channel) in enumerate(zip(tiles, found.channels, strict=True)):
            low, high = found.maps[index].min(), found.maps[index].max()
            values = (scaled[index] - low) / max(high - low, 1e-12)
            classes = ", ".join(_correlated(self.names[i], found.correlations[index, i]) for i in found.classes[index])
            axis = self.show(tile, _glow(values, "viridis", 0.5 * self.grey), f"channel {channel}", classes)
            self.note(axis, tile, f"{low:.2f} to {high:.2f}".replace("-", "−"))
        largest = found.weights.max()
        square = last._replace(width=min(last.width, last.height), height=min(last.width, last.height))
        weights = _glow((found.weights / largest) ** EXPONENT, "inferno", np.full(found.weights.shape, 0.15))
        axis = self.show(square, weights, f"{count} × {count} weights", "row from column", extent=None)
        self.note(axis, square, f"max {_percent(largest)} = {largest * count:.3g}×")

    def heading(self, box: Box, title: str, scale: str, note: str) -> None:
        """A group's name, the learned scale of its module and a line of explanation."""
        self.text(box.left, box.top + 0.05, title, size=15, weight="bold")
        self.text(box.left + 2.3, box.top + 0.05, scale.replace("-", "−"), size=13)
        self.text(box.left, box.top + 0.3, note, size=10, color=MUTED)

    def color_bar(self, box: Box) -> None:
        """The colours of weights, at the right of a group's heading."""
        bar = Box(box.left + box.width - 1.6, box.top - 0.1, 1.2, 0.16)
        axis = self.axes(bar)
        values = np.linspace(0, 1, 256)
        axis.imshow(_glow(values, "inferno", np.full(256, 0.35))[None], aspect="auto", extent=(0, 1, 0, 1))
        axis.set_axis_off()
        axis.text(0.25**EXPONENT, 0.45, "¼", color="white", size=9, ha="center", va="center")
        self.text(bar.left - 0.08, box.top + 0.03, "0", size=9, color=MUTED, ha="right")
        self.text(bar.left + bar.width + 0.08, box.top + 0.03, "max", size=9, color=MUTED)

    def show(self, box: Box, picture: np.ndarray, title: str, note: str = "", extent: Any = ()) -> Any:
        """A picture with a title and a line below that; gives its axes."""
        axis = self.axes(box)
        pixels = picture if picture.dtype == np.uint8 else (255 * picture + 0.5).astype(np.uint8)
        axis.imshow(pixels, extent=self.extent if extent == () else extent, aspect="auto")
        axis.set_axis_off()
        size = min(12, max(8, 5.5 * box.width))
        letters = int(box.width * 72 / size / 0.52)
        self.text(box.left, box.top - (0.24 if note else 0.07), _cut(title, letters), size=size, weight="bold")
        self.text(box.left, box.top - 0.07, _first(note, int(letters * 1.05)), size=size - 1.5, color=MUTED)
        return axis

    def axes(self, box: Box) -> Any:
        """Empty axes that fill a box."""
        width, height = box.width / PAGE_WIDTH, box.height / PAGE_HEIGHT
        return self.figure.add_axes((box.left / PAGE_WIDTH, 1 - box.top / PAGE_HEIGHT - height, width, height))

    def note(self, axis: Any, tile: Box, text: str) -> None:
        """A line in the lower corner of a picture."""
        size = min(9, max(6, 2 + 3.4 * tile.width))
        box = {"facecolor": "black", "alpha": 0.55, "edgecolor": "none", "pad": 2}
        options: dict[str, Any] = {"transform": axis.transAxes, "color": "white", "size": size, "bbox": box}
        axis.text(0.03, 0.04, text, va="bottom", **options)

    def enlarged(self, maps: np.ndarray) -> np.ndarray:
        """(M, h, w) maps at the size of the pictures, resized as the logits are."""
        tensor = torch.from_numpy(maps)[None]
        return F.interpolate(tensor, self.shape, mode="bilinear", align_corners=self.maps.align_corners)[0].numpy()

    def text(self, x: float, y: float, text: str, *, size: float, **options: Any) -> None:
        """Text that stands on y."""
        self.figure.text(x / PAGE_WIDTH, 1 - y / PAGE_HEIGHT, text, **{"color": INK, "fontsize": size, **options})


def _body(box: Box) -> Box:
    """What is left below a group's heading."""
    return box._replace(top=box.top + HEADING, height=box.height - HEADING)


def _glow(values: np.ndarray, colors: str, grey: np.ndarray) -> np.ndarray:
    """Values in 0..1 as light over a grey picture: (...) -> (..., 3)."""
    import matplotlib

    alpha = np.clip(3.5 * values, 0, 0.95)[..., None]
    light = matplotlib.colormaps[colors](0.2 + 0.8 * values)[..., :3]  # the darkest would not show
    return alpha * light + (1 - alpha) * grey[..., None]


def _resized(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    import cv2

    smaller = shape[0] < image.shape[0]
    return cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def _unit(color: tuple[int, int, int]) -> tuple[float, float, float]:
    return color[0] / 255, color[1] / 255, color[2] / 255


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: max(letters - 1, 1)] + "…"


def _first(text: str, letters: int) -> str:
    """As many parts of a list as fit, at least one."""
    while len(text) > letters and ", " in text:
        text = text.rpartition(", ")[0]
    return _cut(text, letters)


def _correlated(name: str, correlation: float) -> str:
    return name if math.isnan(correlation) else f"{name} {correlation:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 0.995 else "100%"
