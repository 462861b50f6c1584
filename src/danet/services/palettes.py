"""Colors of classes that bring none."""

Color = tuple[int, int, int]  # red, green, blue in 0..255


def voc_palette(count: int) -> tuple[Color, ...]:
    """PASCAL VOC's colors of class numbers 0 to `count` - 1: black, then colors far apart; 256 are distinct.

    The number's bits 0, 3, 6 make up red from the highest bit down, bits 1, 4, 7 green, bits 2, 5 blue.
    """
    return tuple(map(voc_color, range(count)))


def voc_color(number: int) -> Color:
    """PASCAL VOC's color of one class number."""
    red, green, blue = (
        sum((number >> bit & 1) << (7 - place) for place, bit in enumerate(range(channel, 24, 3)))
        for channel in range(3)
    )
    return red, green, blue
