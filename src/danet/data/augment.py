"""Augmentation: a list of transforms, written as YAML.

The section `augment` lists transforms by their albumentations name, each with its arguments:

    transforms:
      - HorizontalFlip: {p: 0.5}

One name is our own: RandomScaleCrop (scale_crop.py), which does the work of four of theirs in a fraction of the time.
Image and label move together; labels are resampled by nearest and padded with 255 (ignored). Images stay uint8: they
are normalized on the device.
"""

import functools
import inspect
import itertools
import json
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from pydantic import ValidationError

from danet.data import augment_trials
from danet.data.augment_trials import Part, Size, Step
from danet.data.scale_crop import RandomScaleCrop
from danet.interfaces import IGNORE
from danet.registry import did_you_mean, keyword_parameters
from danet.schema import check_values, reason
from danet.services.text import position

_OWN = {"RandomScaleCrop": RandomScaleCrop}

KEYS = ("name", "crop_size", "classes", "transforms")  # of the section; the transforms interpolate what stands before

# Wrong for a pipeline of uint8 images, which leaves normalization to the device.
_NOT_UINT8 = ("Normalize", "ToFloat", "FromFloat", "ToTensorV2", "ToTensor3D")
_NEAREST = (0, 6)  # cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT
_BORDER_CONSTANT = 0  # cv2.BORDER_CONSTANT: the only border mode that uses a fill value


class Augmentation:
    """Applies a pipeline with randomness that is a function of the seed alone.

    Neither earlier calls nor the worker process play a part, so a sample looks the same for any number of
    workers and in a resumed run.

    Args:
        section: the `augment` section.
        class_names: the data set's, for a section that names classes.

    Raises:
        ValueError: the section has problems (see `augment_problems` and `class_problems`).
    """

    def __init__(self, section: dict[str, Any], class_names: Sequence[str] = ()) -> None:
        if problems := [*augment_problems(section), *class_problems(section, class_names)]:
            raise ValueError("\n".join(problems))
        self._steps: list[Step] = []
        entries = (_numbered(*_parts(entry), class_names) for entry in section["transforms"])
        for own, neighbors in itertools.groupby(entries, lambda entry: entry[0] in _OWN):
            group = list(neighbors)
            self._steps += [_OWN[name](**options) for name, options in group] if own else [_Albumentations(group)]

    def __call__(self, image: np.ndarray, label: np.ndarray, *, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8 and (H, W) uint8 -> the same kinds, of the pipeline's size.

        Args:
            image: RGB.
            label: train ids or 255.
            seed: non-negative numbers, such as (run seed, epoch, sample index).
        """
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
        for step in self._steps:
            image, label = step(image, label, generator)
        return image, label


class _Albumentations:
    """Transforms of albumentations that follow each other, as one step.

    Args:
        entries: their names and arguments.
        always: apply all of them, whatever their probability (but 0).
    """

    def __init__(self, entries: list[tuple[str, dict[str, Any]]], *, always: bool = False) -> None:
        library = _albumentations()
        transforms = [getattr(library, name)(**arguments) for name, arguments in entries]
        self.optional = any(transform.p < 1 for transform in transforms)
        for transform in transforms if always else ():
            transform.p = float(transform.p > 0)
        self._compose = library.Compose(transforms)

    def __call__(
        self, image: np.ndarray, label: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Image and label transformed, drawn from `generator`."""
        # Seeding by Compose(seed=...) would give every transform the same numbers: flips would follow crops.
        self._compose.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        result = self._compose(image=image, mask=label)
        return result["image"], result["mask"]


def augment_problems(section: dict[str, Any]) -> list[str]:
    """Everything that is wrong with an `augment` section, a line each."""
    unknown = [key for key in section if key not in KEYS]
    problems = [f"augment.{key}: unknown key; known: {', '.join(KEYS)}" for key in unknown]
    transforms = section.get("transforms")
    if not isinstance(transforms, list):
        return [*problems, f"augment.transforms={transforms!r} must be a list (`[]` for none)"]
    for index, entry in enumerate(transforms):
        where = f"augment.transforms[{index}]"
        if not isinstance(entry, dict) or len(entry) != 1:
            problems.append(
                f"{where}={entry!r} must be one transform with its arguments, as `HorizontalFlip: {{p: 0.5}}`"
            )
            continue
        name, arguments = _parts(entry)
        if not isinstance(arguments, dict):
            problems.append(f"{where}.{name}={arguments!r} must be the transform's arguments, as `{name}: {{p: 0.5}}`")
            continue
        problems += _transform_problems(f"{where}.{name}", name, arguments)
    problems += _crop_size_problems(section)
    # What is our own works on every image.
    if not problems and any(_parts(entry)[0] not in _OWN for entry in transforms):
        problems += _trial_problems(json.dumps(transforms))
    return problems


def class_problems(section: dict[str, Any], class_names: Sequence[str]) -> list[str]:
    """Classes that an `augment` section names and the data set does not have, a line each.

    Args:
        section: without problems of other kinds.
        class_names: K names.
    """
    problems = []
    for where, given in named_classes(section):
        place = given if isinstance(given, int) else position(given, class_names)
        if place is None or not 0 <= place < len(class_names):
            hint = did_you_mean(str(given), list(class_names)) if class_names else "give the data set's class names"
            problems.append(f"{where} = {given!r}: no class of the data set; {hint}")
    return problems


def named_classes(section: dict[str, Any]) -> list[tuple[str, int | str]]:
    """The classes that an `augment` section names, by name or number, each with its place in the section."""
    return [
        (f"augment.transforms[{index}].{name}.classes", given)
        for index, (name, arguments) in enumerate(map(_parts, section["transforms"]))
        if name in _OWN
        for given in arguments.get("classes") or ()
    ]


def _numbered(name: str, arguments: dict[str, Any], class_names: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """A transform of our own with numbers in the place of its classes' names; others as they are."""
    if name not in _OWN or not arguments.get("classes"):
        return name, arguments
    numbers = [given if isinstance(given, int) else position(given, class_names) for given in arguments["classes"]]
    return name, {**arguments, "classes": numbers}


def _albumentations() -> ModuleType:
    """The library: imported late, as it takes seconds, and told not to ask the network for updates."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations


def _parts(entry: dict[str, Any]) -> tuple[str, Any]:
    """Name and arguments of a list entry; `HorizontalFlip:` alone takes the defaults."""
    ((name, arguments),) = entry.items()
    return name, {} if arguments is None else arguments


def _transform_problems(where: str, name: str, arguments: dict[str, Any]) -> list[str]:
    if name in _OWN:  # without albumentations, which takes seconds to import
        return _own_problems(where, name, arguments)
    known: dict[str, Any] = {
        key: value
        for key, value in vars(_albumentations()).items()
        if inspect.isclass(value) and value.__module__.startswith("albumentations.augmentations.")
    }
    if name in _NOT_UINT8:
        return [f"{where}: images stay uint8 and are normalized on the device; remove it"]
    if name not in known:
        return [f"{where}: unknown transform; {did_you_mean(name, [*known, *_OWN])}"]

    parameters = dict(inspect.signature(known[name]).parameters)
    problems = [  # albumentations itself only warns of arguments that it does not know
        f"{where}.{key}: unknown argument; {did_you_mean(key, list(parameters))}"
        for key in arguments
        if key not in parameters
    ] + [
        f"{where}.{key}: missing; give it a value"
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty and key not in arguments
    ]
    if problems:
        return problems
    try:
        with warnings.catch_warnings():
            # A warning here means that defaults are about to replace what was asked for.
            warnings.simplefilter("error", UserWarning)
            transform = known[name](**arguments)
    except (ValueError, TypeError, UserWarning) as error:
        return _value_problems(where, arguments, error)
    needed = set(transform.targets_as_params) - {"image", "mask"}
    if needed:
        return [f"{where}: needs {', '.join(sorted(needed))}; only images and labels are given"]
    values = {key: parameter.default for key, parameter in parameters.items()} | arguments
    return [f"{where}.{problem}" for problem in _label_problems(values)]


def _own_problems(where: str, name: str, arguments: dict[str, Any]) -> list[str]:
    problems: list[str] = []
    checked = check_values(arguments, keyword_parameters(_OWN[name]), f"{where}.", problems)
    return problems or [f"{where}.{line}" for line in _OWN[name].problems(checked)]


def _value_problems(where: str, arguments: dict[str, Any], error: Exception) -> list[str]:
    """A line for each argument that albumentations refuses; a union of types gives one several reasons."""
    if not isinstance(error.__cause__, ValidationError):
        return [f"{where}: {error}"]
    reasons: dict[str, list[str]] = {}
    for detail in error.__cause__.errors():
        key = str(detail["loc"][0]) if detail["loc"] else ""
        value = f".{key}={arguments.get(key)!r}" if key else ""
        reasons.setdefault(value, []).append(reason(detail))
    return [f"{where}{value}: {', or: '.join(dict.fromkeys(texts))}" for value, texts in reasons.items()]


def _label_problems(values: dict[str, Any]) -> list[str]:
    """What would invent labels, given all of a transform's arguments with the defaults of those left out."""
    problems = []
    pads = values.get("pad_if_needed", True) and values.get("border_mode", _BORDER_CONSTANT) == _BORDER_CONSTANT
    if pads and values.get("fill_mask") not in (None, IGNORE):
        problems.append(f"fill_mask={values['fill_mask']!r} is a class; set it to {IGNORE} (ignored)")
    if values.get("mask_interpolation", 0) not in _NEAREST:
        problems.append(f"mask_interpolation={values['mask_interpolation']!r} mixes classes; set it to 0 (nearest)")
    if values.get("area_for_downscale") == "image_mask":
        problems.append("area_for_downscale='image_mask' mixes classes; set it to 'image'")
    return problems


def _crop_size_problems(section: dict[str, Any]) -> list[str]:
    """crop_size is [height, width] of some transform's output, or null where none takes it."""
    crop_size = section.get("crop_size")
    if crop_size is None:
        return []
    if not isinstance(crop_size, list) or len(crop_size) != 2:
        return [f"augment.crop_size={crop_size!r} must be [height, width] in pixels, or null"]
    for entry in section["transforms"]:
        if isinstance(entry, dict):
            for arguments in entry.values():
                if isinstance(arguments, dict) and [arguments.get("height"), arguments.get("width")] == crop_size:
                    return []
    return [f"augment.crop_size={crop_size} has no effect: no transform uses it; choose augment=standard or null"]


def _tried(transforms: list[dict[str, Any]]) -> Iterator[Part]:
    """The transforms one by one, each applied whatever its probability."""
    for index, entry in enumerate(transforms):
        name, arguments = _parts(entry)
        where = f"augment.transforms[{index}].{name}"
        if name in _OWN:
            yield Part(where, _OWN[name](**arguments), False, arguments)
        else:
            step = _Albumentations([(name, arguments)], always=True)
            defaults = {
                key: parameter.default
                for key, parameter in inspect.signature(getattr(_albumentations(), name)).parameters.items()
            }
            yield Part(where, step, step.optional, defaults | arguments)


@functools.lru_cache(maxsize=64)
def _trial_problems(transforms: str) -> tuple[str, ...]:
    """Problems of transforms, given as JSON, that show only when they are at work, a line each."""
    return tuple(augment_trials.problems(list(_tried(json.loads(transforms)))))


def output_sizes(section: dict[str, Any], size: Size, channels: int = 3) -> set[Size]:
    """The sizes in which images of one size may leave the transforms, as far as some trials tell.

    Args:
        section: the `augment` section, without problems.
        size: of the images.
        channels: of the images.

    Raises:
        ValueError: a transform fails on such images.
    """
    return augment_trials.sizes_after(list(_tried(section["transforms"])), size, channels)
