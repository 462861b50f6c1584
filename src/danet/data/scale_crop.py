"""Random scale, padding and crop in one step that resizes no more of the image than the crop shows.

Resizing comes first in the usual chain, at the cost of the whole image: 8 million pixels for a 2048x1024 image at scale
2, of which a 768x768 crop keeps 7 %. Here the crop is drawn first and its source region alone is resized.

OpenCV resizes from a region's corner, so the region must begin where the resized image's pixel grid meets the source's.
With an arbitrary scale they meet at the image's corner only. Therefore the scale is rounded to a fraction with a small
numerator or denominator: with steps of p/q source pixels the grids meet at every q-th resized pixel.

Shapes: H, W image height and width in pixels, h, w those of the crop.
"""

import fractions
import functools
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, cast

import numpy as np
from pydantic import Field

from danet.arguments import Fraction, NonNegativeInt, PositiveFraction, PositiveInt, Text
from danet.data.crop_choice import largest_share, pixel_of_class
from danet.interfaces import IGNORE

# Scales are rounded by 0.05 % on average, by 0.8 % at most (0.992 to 1.008 become 1). The resized region is wider and
# higher than the crop by at most so many pixels.
MAX_DENOMINATOR = 64
TRIES = 10  # a crop is drawn again so often at most, as mmsegmentation's RandomCrop does

Factor = Annotated[float, Field(ge=1 / MAX_DENOMINATOR, le=MAX_DENOMINATOR)]
Interval = Annotated[Sequence[Factor], Field(min_length=2, max_length=2)]
Color = Annotated[Sequence[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]


class RandomScaleCrop:
    """Resize by a random factor, pad where too small, crop at a random place, mirror.

    The label is exactly the crop of the whole label resized as by cv2.INTER_NEAREST_EXACT and Pillow (the center of
    resized pixel x lies in pixel floor((x + 1/2) * p / q); on the edge of two they take either), the image within 1 of
    255 the crop of the whole image resized by cv2.INTER_LINEAR. Both go by the centers of pixels, so they stay aligned
    at every scale. cv2.INTER_NEAREST would move the label by up to half a pixel.

    Args:
        scale: the smallest and the largest factor; all between are equally likely.
        short_side: the short side of an image at factor 1, in pixels; None for its own.
        height: h of the crop.
        width: w of the crop.
        flip: probability of the mirror image.
        fill: RGB of the padding; ImageNet's mean color is about 0 once normalized. Labels get 255 (ignored).
        max_share: the place is drawn again, up to 10 times, while one class has this share of the crop's labeled
            pixels or more (mmsegmentation's cat_max_ratio); 1 for any crop.
        class_crop: probability of a crop around a pixel of a drawn class: the class is drawn among those in the image,
            its pixel among all that the resized image shows, then the crop among all within the image that contain it.
            It is taken whatever its shares: around small things they are large, and such crops would become fewer.
        classes: names or numbers of the classes that are drawn from; None for all. An image without one of them is
            cropped anywhere.
    """

    def __init__(
        self,
        *,
        scale: Interval,
        height: PositiveInt,
        width: PositiveInt,
        short_side: PositiveInt | None = None,
        flip: Fraction = 0.5,
        fill: Color = (124, 116, 104),
        max_share: PositiveFraction = 1.0,
        class_crop: Fraction = 0.0,
        classes: Annotated[Sequence[NonNegativeInt | Text], Field(min_length=1)] | None = None,
    ) -> None:
        self._scale, self._short_side, self._flip, self._fill = tuple(scale), short_side, flip, tuple(fill)
        self._height, self._width = height, width
        self._max_share, self._class_crop, self._classes = max_share, class_crop, classes

    @staticmethod
    def problems(values: dict[str, Any]) -> list[str]:
        """What is wrong between the arguments, a line each."""
        low, high = values["scale"]
        problems = [] if low <= high else [f"scale = {[low, high]}: the smallest factor comes first"]
        if values["classes"] and not values["class_crop"]:
            problems.append(
                f"classes = {list(values['classes'])}: no crop is around a class; set class_crop to the share of crops "
                "that are, such as 0.5"
            )
        return problems

    def __call__(
        self, image: np.ndarray, label: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8 and (H, W) uint8 -> (h, w, 3) and (h, w), drawn from `generator`."""
        scale, y, x, mirror = generator.random(4)
        low, high = self._scale
        factor = low + (high - low) * scale
        if self._short_side:
            factor = min(factor * self._short_side / min(label.shape), MAX_DENOMINATOR)
        step = fractions.Fraction(1 / factor).limit_denominator(MAX_DENOMINATOR)
        image, label = _at_least(image, step), _at_least(label, step)
        rows, columns, label = self._choose(label, step, (y, x), generator)
        finish = functools.partial(_finish, rows=rows, columns=columns, mirror=bool(mirror < self._flip))
        return finish(_linear(image, rows, columns, step), self._fill), finish(label, IGNORE)

    def _choose(
        self, label: np.ndarray, step: fractions.Fraction, place: tuple[float, float], generator: np.random.Generator
    ) -> tuple["_Span", "_Span", np.ndarray]:
        """Rows and columns of the crop, and its label without padding. Only what the options need is drawn.

        Args:
            label: (H, W).
            step: from one resized pixel to the next, in source pixels.
            place: two numbers in [0, 1), of the first try.
            generator: drawn from.
        """
        row, column = self._around(label, step, generator)
        tries = TRIES if self._max_share < 1 and row is None else 0
        for left in range(tries, -1, -1):
            rows = _draw(label.shape[0], self._height, step, place[0], row)
            columns = _draw(label.shape[1], self._width, step, place[1], column)
            crop = _nearest(label, rows, columns, step)
            if not left or largest_share(crop) < self._max_share:
                break
            place = (generator.random(), generator.random())
        return rows, columns, crop

    def _around(
        self, label: np.ndarray, step: fractions.Fraction, generator: np.random.Generator
    ) -> tuple[int | None, int | None]:
        """Row and column, in the resized image, of a pixel that the crop is to contain; None, None for any crop."""
        if not self._class_crop:
            return None, None
        chance, *draws = generator.random(3)
        if chance >= self._class_crop:
            return None, None
        sizes = [size * step.denominator // step.numerator for size in label.shape]
        if step > 1:  # the resized label is the smaller one, and does not show all of the source's pixels
            rows, columns = (_Span(0, size, 0, 0) for size in sizes)
            return pixel_of_class(_nearest(label, rows, columns, step), self._classes, draws) or (None, None)
        # A last row or column may be left out by the rounding of the size.
        height, width = (int((size - fractions.Fraction(1, 2)) * step) + 1 for size in sizes)
        found = pixel_of_class(label[:height, :width], self._classes, draws)
        if found is None:
            return None, None
        row, column = (
            min(size - 1, int((at + fractions.Fraction(1, 2)) / step)) for size, at in zip(sizes, found, strict=True)
        )
        return row, column


def _at_least(pixels: np.ndarray, step: fractions.Fraction) -> np.ndarray:
    """An image or label with its last row and column repeated where it is too small for one resized pixel."""
    needed = -(-step.numerator // step.denominator)
    below, beside = (max(0, needed - size) for size in pixels.shape[:2])
    if not below and not beside:
        return pixels
    import cv2

    return cv2.copyMakeBorder(pixels, 0, below, 0, beside, cv2.BORDER_REPLICATE)


class _Span(NamedTuple):
    """What a crop takes along one side, in pixels of the resized image."""

    first: int
    length: int  # without padding
    before: int  # padding
    after: int


def _draw(size: int, wanted: int, step: fractions.Fraction, place: float, around: int | None = None) -> _Span:
    """The span of a crop.

    Args:
        size: of the image.
        wanted: length of the crop.
        step: from one resized pixel to the next, in source pixels.
        place: in [0, 1), of the crop within the image, or of the image within the padding.
        around: a pixel of the resized image that the crop contains; None for any crop.
    """
    resized = size * step.denominator // step.numerator
    free = abs(resized - wanted)
    if resized > wanted:
        low, high = (0, free) if around is None else (max(0, around - wanted + 1), min(around, free))
        return _Span(low + int(place * (high - low + 1)), wanted, 0, 0)
    position = int(place * (free + 1))
    return _Span(0, resized, position, free - position)


def _linear(image: np.ndarray, rows: _Span, columns: _Span, step: fractions.Fraction) -> np.ndarray:
    """The crop of the image resized by cv2.INTER_LINEAR, without padding."""
    import cv2

    factor = step.denominator / step.numerator
    (top, above), (left, beside) = _region(rows, step), _region(columns, step)
    region = image[top, left]
    height, width = region.shape[:2]
    if step != 1 and (round(height * factor), round(width * factor)) == (height, width):
        # OpenCV would copy what does not change its size; a repeated last row changes nothing but that.
        below = max(0, int(0.5 / abs(factor - 1)) + 2 - height)
        region = cv2.copyMakeBorder(region, 0, below, 0, 0, cv2.BORDER_REPLICATE)
    resized = cv2.resize(region, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    return resized[above : above + rows.length, beside : beside + columns.length]


def _region(span: _Span, step: fractions.Fraction) -> tuple[slice, int]:
    """The source pixels behind a span, from where the grids meet, and where the span begins once they are resized."""
    p, q = step.numerator, step.denominator
    # The first pixel's left neighbor must be in the region, unless there is none.
    margin = max(0, -((p - q) // (2 * p)))
    start = max(0, (span.first - margin) // q * q)
    stop = -(-(span.first + span.length) * p // q) + 1
    return slice(start * p // q, stop), span.first - start


def _nearest(label: np.ndarray, rows: _Span, columns: _Span, step: fractions.Fraction) -> np.ndarray:
    """The crop of the label resized by nearest, without padding."""
    import cv2

    p, q = step.numerator, step.denominator
    y, x = ((2 * np.arange(s.first, s.first + s.length) + 1) * p // (2 * q) for s in (rows, columns))
    # Whole rows are copied fast, single pixels slowly: columns are gathered as rows of the transpose.
    gathered = label[y, x[0] : x[-1] + 1]
    return cv2.transpose(cv2.transpose(gathered)[x - x[0]])


def _padded(crop: np.ndarray, borders: tuple[int, int, int, int], fill: int | Sequence[int]) -> np.ndarray:
    import cv2

    if crop.ndim == 3 and crop.shape[2] > 4:  # more than OpenCV has values for
        channels = zip(np.moveaxis(crop, 2, 0), cast(Sequence[int], fill), strict=True)
        return np.stack([_padded(np.ascontiguousarray(channel), borders, value) for channel, value in channels], axis=2)
    return cv2.copyMakeBorder(crop, *borders, cv2.BORDER_CONSTANT, value=fill)


def _finish(crop: np.ndarray, fill: int | tuple[int, ...], *, rows: _Span, columns: _Span, mirror: bool) -> np.ndarray:
    import cv2

    borders = (rows.before, rows.after, columns.before, columns.after)
    if any(borders):
        values = fill if isinstance(fill, int) or crop.shape[2] == 3 else np.resize(fill, crop.shape[2]).tolist()
        crop = _padded(crop, borders, values)
    return cv2.flip(crop, 1) if mirror else np.ascontiguousarray(crop)
