"""What transforms do to images of ours: problems that show only when they are at work."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from danet.interfaces import IGNORE

Step = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
Size = tuple[int, int]  # height, width

# Images that transforms are tried on, each with a number of seeds: a transform that fails on a small one may need a
# larger one, as crops do.
_TRIALS = (((96, 128), 8), ((768, 1024), 2), ((2304, 3072), 1))
# Classes of these images' labels, and others of the opposite order; no argument is likely to name one.
_CLASSES, _OTHER_CLASSES = (231, 240), (241, 232)


class Part(NamedTuple):
    """A transform that is tried."""

    where: str
    step: Step
    optional: bool  # it is applied by chance
    values: dict[str, Any]  # all its arguments, with the defaults of those left out


class _Failure(NamedTuple):
    """A problem that a trial has shown."""

    text: str
    crash: bool = False  # it may work on an image of another size
    too_small: bool = False  # the library says that the image is
    received: Size = (0, 0)


def problems(parts: Sequence[Part]) -> list[str]:
    """Problems that show on some images, a line each.

    A crop that needs a larger image than these is none: the check of the data knows its images.
    """
    certain: dict[int, _Failure] = {}
    crashes: list[dict[int, _Failure]] = []  # by size
    for size, seeds in _TRIALS:
        with warnings.catch_warnings():  # such as that of an image that is RGB already
            warnings.simplefilter("ignore")
            by_part = _failures(parts, size, seeds)
        certain |= {index: failure for index, failure in by_part.items() if not failure.crash}
        crashes.append({index: failure for index, failure in by_part.items() if failure.crash})
        if not crashes[-1]:
            break
    for index in set.intersection(*(set(failures) for failures in crashes)):
        failures = [by_index[index] for by_index in crashes]
        # A crop needs an image large enough, unless larger ones reach it no larger.
        if not failures[-1].too_small or len({failure.received for failure in failures}) == 1:
            certain.setdefault(index, failures[0])
    return [failure.text for _, failure in sorted(certain.items())]


def _failures(parts: Sequence[Part], size: Size, seeds: int) -> dict[int, _Failure]:
    """The first problem of each part, by index; later parts get the image that it should have changed."""
    failures: dict[int, _Failure] = {}
    for seed in range(seeds):
        image = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
        blocks = np.add.outer(np.arange(size[0]) // 16, np.arange(size[1]) // 16) % 2
        labels = [np.array(classes, np.uint8)[blocks] for classes in (_CLASSES, _OTHER_CLASSES)]
        for index, part in enumerate(parts):
            try:
                answers = [part.step(image.copy(), label, np.random.default_rng((seed, index))) for label in labels]
            except Exception as error:  # anything may go wrong in a library
                failures.setdefault(index, _crash(part.where, image.shape[:2], error))
                continue
            (changed, first), (_, second) = answers
            if problem := _answer_problem(part, changed, first, second):
                failures.setdefault(index, _Failure(problem))
            else:
                image, labels = changed, [first, second]
    return failures


def _crash(where: str, size: tuple[int, ...], error: Exception) -> _Failure:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    text = f"{where}: fails on an image of {size[1]}x{size[0]} pixels ({reason}); change its arguments or remove it"
    return _Failure(text, True, type(error).__name__ == "CropSizeError", (size[0], size[1]))


def _answer_problem(part: Part, image: np.ndarray, label: np.ndarray, other: np.ndarray) -> str:
    """What is wrong with an image and its label, and with the label of the same pixels in other classes."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        return f"{part.where}: gives images of shape {image.shape}, {image.dtype}; they must stay 8-bit RGB"
    if label.dtype != np.uint8 or label.shape != image.shape[:2]:
        return f"{part.where}: gives a label of shape {label.shape}, {label.dtype}, for an image of {image.shape}"
    invented = np.setdiff1d(label, (*_CLASSES, IGNORE)).tolist()
    for key, value in part.values.items():
        if "mask" in key and value in invented:
            return f"{part.where}.{key}={value!r} is a class; set it to {IGNORE} (ignored)"
    if invented:
        return f"{part.where}: labels pixels with a class that was not there ({invented[0]}); change its arguments"
    renamed = np.arange(256)
    renamed[list(_CLASSES)] = _OTHER_CLASSES
    if label.shape != other.shape or (renamed[label] != other)[(label != IGNORE) & (other != IGNORE)].any():
        return f"{part.where}: the numbers of classes decide what it makes of a label (as if they were gray); remove it"
    return ""


def sizes_after(parts: Sequence[Part], size: Size, channels: int) -> set[Size]:
    """The sizes in which images of one size may leave the transforms, as far as some trials tell.

    Raises:
        ValueError: a transform fails on such images.
    """
    optional = [index for index, part in enumerate(parts) if part.optional]
    left_out: list[set[int]] = [set(), set(optional), *({index} for index in optional)]
    with warnings.catch_warnings():  # such as that of an image that is RGB already
        warnings.simplefilter("ignore")
        trials = [(skipped, seed) for skipped in left_out for seed in range(2 if skipped else 8)]
        return {_size_after(parts, (*size, channels), skipped, seed) for skipped, seed in trials}


def _size_after(parts: Sequence[Part], shape: tuple[int, int, int], skipped: set[int], seed: int) -> Size:
    image = np.broadcast_to((np.arange(shape[1]) % 256).astype(np.uint8)[None, :, None], shape).copy()
    label = np.zeros(shape[:2], np.uint8)
    for index, part in enumerate(parts):
        if index not in skipped:
            received = label.shape
            try:
                image, label = part.step(image, label, np.random.default_rng((seed, index)))
            except Exception as error:  # anything may go wrong in a library
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                channels = f" of {shape[2]} channels" if shape[2] != 3 else ""
                text = f"{part.where} fails on {received[1]}x{received[0]} pixels{channels} ({reason})"
                remedy = "put PadIfNeeded (with fill_mask: 255) before it, or let it take less"
                remedy = "remove it, or take three bands" if channels else remedy
                raise ValueError(f"{text}; {remedy}") from error
    return label.shape[0], label.shape[1]
