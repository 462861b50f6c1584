"""The classes of a folder: their names, colors, and what stands for them in the masks.

They come from the options, or from a file that a tool has left: classes.txt and its like (a name a line), labelmap.txt
(CVAT), class_dict.csv (Kaggle), label_colors.txt, data.yaml (YOLO).
"""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from danet.datasets.labels import Color
from danet.interfaces import IGNORE
from danet.registry import did_you_mean
from danet.services.palettes import voc_color
from danet.services.text import composed

MOST = 254  # classes; 254 and 255 mark other things
LABELMAP_LINE = re.compile(r"(?P<name>.+?):(?P<color>\d+,\d+,\d+):.*")
COLOR_LINE = re.compile(r"(?P<color>\d+\s+\d+\s+\d+)\s+(?P<name>.+)")
Code = int | Color


class ClassEntry(NamedTuple):
    """A class as it is given.

    Attributes:
        name: None for what is ignored.
        codes: the values or colors that stand for it in masks.
        color: to show it in; None takes one of a series.
    """

    name: str | None
    codes: tuple[Code, ...]
    color: Color | None = None


class Classes(NamedTuple):
    """Classes after merging and ignoring.

    Attributes:
        names: K.
        palette: K colors.
        train_ids: 0..K-1 or IGNORE, by what stands in masks.
    """

    names: tuple[str, ...]
    palette: tuple[Color, ...]
    train_ids: dict[Code, int]

    @property
    def colored(self) -> bool:
        """Whether colors stand for classes, not values."""
        return any(isinstance(code, tuple) for code in self.train_ids)


def by_values(values: Mapping[Any, str | None]) -> list[ClassEntry]:
    """Classes of `dataset.values`, where several values may have one name, and none means ignored.

    Raises:
        ValueError: a key is neither a value nor a color.
    """
    codes: dict[str | None, list[Code]] = {}
    for key, name in values.items():
        codes.setdefault(None if name is None else composed(name), []).append(_code(key))
    return [ClassEntry(name, tuple(c), c[0] if isinstance(c[0], tuple) else None) for name, c in codes.items()]


def _code(key: Any) -> Code:
    text = str(key).strip().strip("()[]")
    numbers = [part.strip() for part in text.replace(" ", ",").split(",") if part.strip()]
    if all(number.isdecimal() for number in numbers):
        if len(numbers) == 1 and int(text) < 1 << 16:
            return int(text)
        if len(numbers) == 3 and all(int(number) < 256 for number in numbers):
            return int(numbers[0]), int(numbers[1]), int(numbers[2])
    raise ValueError(f"dataset.values: {key!r} is neither a value (0 to 65535) nor a color such as '255,0,0'")


def by_names(classes: Sequence[str] | Mapping[str, Sequence[int]]) -> list[ClassEntry]:
    """Classes of `dataset.classes`: names whose places are their values, or colors by name."""
    if isinstance(classes, Mapping):
        colors = {composed(name): _color(name, color) for name, color in classes.items()}
        return [ClassEntry(name, (color,), color) for name, color in colors.items()]
    return [ClassEntry(composed(name), (index,)) for index, name in enumerate(classes)]


def _color(name: str, values: Sequence[int]) -> Color:
    if len(values) == 3 and all(isinstance(value, int) and 0 <= value <= 255 for value in values):
        return values[0], values[1], values[2]
    raise ValueError(f"dataset.classes.{name} = {list(values)!r}: must be a color, red, green and blue in 0..255")


# ---- files of tools --------------------------------------------------------------------------------------------------


def from_folder(root: Path) -> list[ClassEntry]:
    """Classes of the file that the folder has of those that tools leave; empty where there is none.

    Raises:
        ValueError: it cannot be read.
    """
    return next((from_file(root / name) for name in USUAL if (root / name).is_file()), [])


def from_file(path: Path) -> list[ClassEntry]:
    """Classes of one file.

    Raises:
        ValueError: there is no such file, or it cannot be read.
    """
    read = READERS.get(path.suffix.lower())
    if read is None or not path.is_file():
        raise ValueError(f"dataset.classes: {path} is no file of classes (.txt, .csv or .yaml); give names or a file")
    try:
        found = read(path)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as classes ({error or type(error).__name__}); correct it") from error
    if not found:
        raise ValueError(f"{path}: has no classes; add them, or give them in dataset.classes")
    return list(found)


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _text(path: Path) -> list[ClassEntry]:
    """A name a line; CVAT's `name:red,green,blue:parts:actions`; or CamVid's `red green blue name`."""
    lines = _lines(path)
    for form in (LABELMAP_LINE, COLOR_LINE):
        if matches := [match for line in lines if (match := form.fullmatch(line))]:
            if len(matches) < len(lines):
                raise ValueError("some lines have a color, others none")
            return [_colored(match["name"], match["color"].replace(",", " ").split()) for match in matches]
    return by_names([line.partition(":")[0] if line.endswith("::") else line for line in lines])


def _colored(name: str, numbers: Sequence[str]) -> ClassEntry:
    color = _color(name, [int(number) for number in numbers])
    return ClassEntry(composed(name.strip()), (color,), color)


def _csv(path: Path) -> list[ClassEntry]:
    """A table with the columns name, r, g, b, as on Kaggle."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [{str(key).strip().lower(): value for key, value in row.items()} for row in csv.DictReader(file)]
    return [_colored(row["name"], [row["r"], row["g"], row["b"]]) for row in rows]


def _yaml(path: Path) -> list[ClassEntry]:
    """YOLO's `names`, a list or by number; or such a mapping alone; or colors by name."""
    content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    names = content.get("names", content) if isinstance(content, dict) else content
    if isinstance(names, dict) and all(isinstance(key, int) for key in names):
        return [ClassEntry(composed(name), (key,)) for key, name in sorted(names.items())]
    return by_names(names)


USUAL = (
    "classes.txt codes.txt labels.txt labelmap.txt label_colors.txt class_dict.csv classes.csv classes.yaml data.yaml"
).split()
READERS = {".txt": _text, ".csv": _csv, ".yaml": _yaml, ".yml": _yaml}


# ---- merging and ignoring --------------------------------------------------------------------------------------------


def arrange(entries: Sequence[ClassEntry], merge: Mapping[str, Sequence[str]], ignore: Sequence[str]) -> Classes:
    """Classes with some merged into others and some ignored; a merged one stands where its first member stood.

    Raises:
        ValueError: a name or a code is there twice, unknown, or asked for twice; has a line for each.
    """
    merge = {composed(name): [composed(member) for member in members] for name, members in merge.items()}
    ignore = [composed(name) for name in ignore]
    if problems := _problems(entries, merge, ignore):
        raise ValueError("\n  ".join(problems))
    into = {member: name for name, members in merge.items() for member in members}
    names: dict[str, Color] = {}
    for entry in entries:
        if entry.name is not None and (name := into.get(entry.name, entry.name)) not in ignore:
            names.setdefault(name, entry.color or voc_color(len(names)))
    places = {name: place for place, name in enumerate(names)}
    train_ids: dict[Code, int] = {
        code: places.get(into.get(entry.name, entry.name), IGNORE) if entry.name is not None else IGNORE
        for entry in entries
        for code in entry.codes
    }
    if not any(isinstance(code, tuple) for code in train_ids):
        train_ids.setdefault(IGNORE, IGNORE)
    return Classes(tuple(names), tuple(names.values()), train_ids)


def _problems(entries: Sequence[ClassEntry], merge: Mapping[str, Sequence[str]], ignore: Sequence[str]) -> list[str]:
    names = [entry.name for entry in entries if entry.name is not None]
    codes = [code for entry in entries for code in entry.codes]
    members = [member for group in merge.values() for member in group]
    problems = [f"class {name!r} is there twice; give each its own name" for name in _twice(names)]
    problems += [f"{code} stands for two classes; give each its own value or color" for code in _twice(codes)]
    if len({isinstance(code, tuple) for code in codes}) > 1:
        problems.append("some classes have values, others colors; give all the same")
    problems += [f"dataset.merge: {name!r} is in two classes; leave it in one" for name in _twice(members)]
    problems += [
        f"dataset.merge: no class {name!r}; {did_you_mean(name, names)}" for name in members if name not in names
    ]
    problems += [
        f"dataset.merge: {name!r} is a class already, and not among those merged into it; add it, or take another name"
        for name, group in merge.items()
        if name in names and name not in group
    ]
    known = [*names, *merge]
    problems += [
        f"dataset.ignore: no class {name!r}; {did_you_mean(name, known)}" for name in ignore if name not in known
    ]
    if len(names) > MOST - 1:
        problems.append(f"{len(names)} classes are more than the {MOST - 1} that can be told apart; merge some")
    return problems


def _twice(items: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys(item for item in items if items.count(item) > 1))
