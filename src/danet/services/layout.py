"""Where pictures go on a page. Lengths are inches, from the page's upper left corner."""

import math
from typing import NamedTuple

GAP = 0.15  # between pictures


class Box(NamedTuple):
    """A rectangle on the page."""

    left: float
    top: float
    width: float
    height: float


def pack(count: int, box: Box, aspect: float, above: float) -> list[Box]:
    """Equal pictures in rows, as large as the box allows; each has `above` inches for its title."""

    def width(columns: int) -> float:
        rows = math.ceil(count / columns)
        wide = (box.width - (columns - 1) * GAP) / columns
        high = (box.height - (rows - 1) * GAP) / rows - above
        return min(wide, high * aspect)

    columns = max(range(1, count + 1), key=width)
    across = max(width(columns), 0.3)
    down = across / aspect
    return [
        Box(
            box.left + index % columns * (across + GAP),
            box.top + above + index // columns * (down + above + GAP),
            across,
            down,
        )
        for index in range(count)
    ]


def stacked(box: Box, share: float) -> tuple[Box, Box]:
    """A box in two parts, one above the other; the upper one has this share of the height, less some space."""
    upper = box.height * share
    return box._replace(height=upper - 2 * GAP), box._replace(top=box.top + upper, height=box.height - upper)


def side_by_side(box: Box, share: float) -> tuple[Box, Box]:
    """A box in two parts, the left one with this share of the width, less some space."""
    left = box.width * share
    return box._replace(width=left - 2 * GAP), box._replace(left=box.left + left, width=box.width - left)
