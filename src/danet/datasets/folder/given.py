"""Which classes a folder has: those of the options, else those that its files name, else an error that shows some."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from danet.arguments import Text
from danet.datasets.folder import classes as sources
from danet.datasets.folder.classes import ClassEntry
from danet.datasets.folder.found import classes_to_name
from danet.datasets.folder.polygons.drawing import Source
from danet.datasets.labels import peek

ClassNames = list[Text] | dict[Text, list[int]] | Text  # names by value, colors by name, or a file
Values = dict[int | str, Text | None]
MaskKind = Literal["auto", "index", "rgb"]
GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B")


def of_option(root: Path, classes: ClassNames | None) -> list[ClassEntry]:
    """Classes of `dataset.classes`; empty where it is None.

    Raises:
        ValueError: they cannot be read.
    """
    if isinstance(classes, str):
        path = Path(classes).expanduser()
        return sources.from_file(path if path.is_absolute() else root / path)
    return [] if classes is None else sources.by_names(classes)


def of_masks(
    root: Path, masks: Sequence[str], classes: ClassNames | None, values: Values | None, kind: MaskKind
) -> list[ClassEntry]:
    """Classes of a folder with masks, with their values or colors.

    Args:
        root: the folder.
        masks: paths.
        classes: see ImageFolder, as the following.
        values: by value or color.
        kind: whether masks hold class numbers or colors.

    Raises:
        ValueError: they are not named, or cannot be read; the text says what the masks hold.
    """
    found = of_option(root, classes)
    if values is not None:
        return _in_order(sources.by_values(values), found)
    if not (found := found or sources.from_folder(root)):
        raise ValueError(classes_to_name(masks))
    colored = any(isinstance(code, tuple) for entry in found for code in entry.codes)
    if colored and (kind == "index" or (kind == "auto" and masks and peek(masks[0]) in GREY_MODES)):
        return _by_place(found)
    if kind == "rgb" and not colored:
        raise ValueError("dataset.masks = 'rgb': the classes have no colors; give them as classes={road: [0,0,255]}")
    return found


def of_polygons(
    root: Path, source: Source, classes: ClassNames | None, values: Values | None, background: str | None
) -> tuple[list[ClassEntry], list[str]]:
    """Classes of a folder with polygons, and their names without a background that the tool does not know.

    Arguments as for `of_masks`, and:
        source: the annotations.
        background: the class of pixels that no shape covers.

    Raises:
        ValueError: they are not named, or cannot be read.
    """
    if values is not None:
        raise ValueError("dataset.values: is for masks, but the folder has polygons; leave it out")
    found = of_option(root, classes) or sources.by_names(source.class_names) or sources.from_folder(root)
    if not found:
        names: list[str] = getattr(source, "found_names", list)()
        listed = f": {', '.join(names)}. If they are right, set dataset.classes=[{','.join(names)}]" if names else ""
        raise ValueError(f"no classes are given for the polygons{listed or '; give them in dataset.classes'}")
    numbered: dict[int, str] = {}
    for place, entry in enumerate(found):
        code = entry.codes[0]
        numbered[code if isinstance(code, int) else place] = str(entry.name)
    names = [numbered.get(number, "") for number in range(max(numbered) + 1)]
    if background is not None and background not in names:
        found = [ClassEntry(background, (0,)), *found]
    return _by_place(found), names


def _by_place(entries: Sequence[ClassEntry]) -> list[ClassEntry]:
    return [ClassEntry(entry.name, (index,), entry.color) for index, entry in enumerate(entries)]


def _in_order(by_value: list[ClassEntry], named: list[ClassEntry]) -> list[ClassEntry]:
    """Classes of `values` in the order, and with the colors, of those that are named besides."""
    if not named:
        return by_value
    values = {entry.name: entry for entry in by_value}
    if unknown := [str(name) for name in values if name is not None and name not in {entry.name for entry in named}]:
        raise ValueError(f"dataset.values: {', '.join(unknown)} is not among dataset.classes; add it there")
    ordered = [ClassEntry(e.name, values[e.name].codes, e.color) for e in named if e.name in values]
    return ordered + [entry for entry in by_value if entry.name is None]
