"""Which images are for training, validation and test: as folders or lists say, or drawn by a seed.

A draw ranks images (or groups of them) by a hash of the seed and their name. So it is the same on every machine, and an
image that is added changes the place of few others.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from danet.datasets.files import IMAGE_SUFFIXES, sample_name
from danet.datasets.folder.listing import SPLITS
from danet.datasets.folder.matching import Entry

LIST_FOLDERS = (".", "ImageSets/Segmentation", "ImageSets/Main", "ImageSets", "splits", "lists")


class Draw(NamedTuple):
    """How missing splits are drawn.

    Attributes:
        val: share of the images for validation.
        test: share for the test.
        seed: of the draw.
        group: "folder" or a regular expression; images of one group stay together. None: each is its own.
        fold: (k, n): the k-th of n parts is for validation, all others for training.
    """

    val: float
    test: float
    seed: int
    group: str | None
    fold: tuple[int, int] | None


class Splits(NamedTuple):
    """Entries by split, how they came about, in words, and what may be a mistake in what is given, a line each."""

    by_name: dict[str, list[Entry]]
    description: str
    notes: list[str]


def split(root: Path, entries: list[Entry], draw: Draw) -> Splits:
    """Divide a folder's images into splits.

    Raises:
        ValueError: a list names an image that is not there, two list one split, or there are too few images.
    """
    given = _listed(root, entries) or {
        name: chosen for name in ("train", "val", "test") if (chosen := [e for e in entries if e.split == name])
    }
    words = []
    if given and "train" not in given:
        taken = {entry.pair for chosen in given.values() for entry in chosen}
        rest = [entry for entry in entries if entry.pair not in taken]
        given = {"train": rest, **given} if rest else given
    given = given or {"train": entries}
    notes = _notes(entries, given)
    if draw.test and "test" not in given:
        given["test"], given["train"] = _draw(given["train"], draw, draw.test, "test")
        words.append(f"{draw.test:.0%} drawn for test")
    if draw.fold:
        pool = [*given.get("train", []), *given.get("val", [])]
        given["val"], given["train"] = _fold(pool, draw)
        words.append(f"fold {draw.fold[0]} of {draw.fold[1]}")
    elif "val" not in given and given.get("train"):
        given["val"], given["train"] = _draw(given["train"], draw, draw.val, "val")
        words.append(f"{draw.val:.0%} drawn for val")
    if words and draw.group:
        words.append(f"grouped by {draw.group}")
    if words and draw.seed:
        words.append(f"split seed {draw.seed}")
    return Splits({name: _named_apart(chosen) for name, chosen in given.items()}, ", ".join(words), notes)


def _notes(entries: list[Entry], given: dict[str, list[Entry]]) -> list[str]:
    """What is given and may be a mistake: images in no split, and images that are trained on and scored."""
    pairs = {name: {entry.pair for entry in chosen} for name, chosen in given.items()}
    lines = []
    if left_out := len({entry.pair for entry in entries if entry.pair.label}.difference(*pairs.values())):
        lines.append(f"{left_out} images of the folder are in none of {', '.join(given)} and are left out")
    for name in ("val", "test"):
        if both := pairs.get("train", set()) & pairs.get(name, set()):
            first = min(pair.name for pair in both)
            lines.append(
                f"{len(both)} images are in train and in {name}, such as {first}: they are trained on and scored"
            )
    return lines


def _named_apart(entries: list[Entry]) -> list[Entry]:
    """The entries of a split; those that were in train/ and in val/ under one name get these words before it."""
    count = Counter(entry.pair.name for entry in entries)

    def named(entry: Entry) -> Entry:
        if count[entry.pair.name] == 1 or not entry.split:
            return entry
        return entry._replace(pair=entry.pair._replace(name=f"{entry.split}_{entry.pair.name}"))

    return [named(entry) for entry in entries]


def _listed(root: Path, entries: list[Entry]) -> dict[str, list[Entry]]:
    """Entries by split as the folder's lists say; empty where it has none."""
    for folder in LIST_FOLDERS:
        files: dict[str, Path] = {}
        for path in sorted((root / folder).glob("*.txt")):
            if name := SPLITS.get(path.stem.lower()):
                if name in files:
                    raise ValueError(f"{files[name]} and {path}: both list {name}; remove one")
                files[name] = path
        if files:
            return {name: _read_list(root, path, entries) for name, path in files.items()}
    return {}


def _read_list(root: Path, path: Path, entries: list[Entry]) -> list[Entry]:
    """The entries that a list names: a path, a path and its label's, or a name a line."""
    known: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        names = {entry.key, entry.pair.name, entry.key.rpartition("/")[2]}
        image = Path(entry.pair.image)
        if image.is_relative_to(root):
            names.add(sample_name(image.relative_to(root).with_suffix("").as_posix()))
        for name in names:
            known[name].append(entry)
    found, problems = {}, []
    for line in path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines():
        if not line.strip():
            continue
        matches = next(
            (known[name] for text in (line.strip(), line.split()[0]) for name in _names(text) if name in known), []
        )
        if len(matches) == 1:
            found[matches[0].pair] = matches[0]
        else:
            problems.append(
                f"{path}: {line.strip()!r} names {'several images' if matches else 'no image of this folder'}"
            )
    if problems:
        more = [f"... and {len(problems) - 5} more"] if len(problems) > 5 else []
        raise ValueError("\n  ".join([*problems[:5], *more, "correct the list, or add the images"]))
    return sorted(found.values(), key=lambda entry: entry.pair.name)


def _names(text: str) -> list[str]:
    """What a list's word may mean: a path, its end, its last part, each without a suffix."""
    stem = text[: -len(Path(text).suffix)] if Path(text).suffix.lower() in IMAGE_SUFFIXES else text
    return [sample_name(stem.removeprefix("./").lstrip("/")), sample_name(stem.rpartition("/")[2])]


def groups(entries: Sequence[Entry], group: str | None) -> dict[str, list[Entry]]:
    """Entries by the name of their group.

    Raises:
        ValueError: a name does not match the regular expression.
    """
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if group is None:
            name = entry.key
        elif group == "folder":
            name = entry.key.rpartition("/")[0]
        elif match := re.search(group, entry.key):
            name = match[1] if match.re.groups else match[0]
        else:
            raise ValueError(f"dataset.group = {group!r}: does not occur in {entry.key!r}; every image needs a group")
        found[name].append(entry)
    return dict(found)


def _ranked(entries: Sequence[Entry], draw: Draw, purpose: str) -> list[list[Entry]]:
    """Groups in the order of a hash of seed and name."""
    found = groups(entries, draw.group)
    return [found[name] for name in sorted(found, key=lambda name: _hash(f"{draw.seed} {purpose} {name}"))]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _draw(entries: list[Entry], draw: Draw, share: float, name: str) -> tuple[list[Entry], list[Entry]]:
    """About a share of the entries, at least one group, and the rest."""
    ranked = _ranked(entries, draw, name)
    if len(ranked) < 2:
        what = f"group (dataset.group = {draw.group!r})" if draw.group else "image"
        raise ValueError(
            f"one {what} cannot be divided into train and {name}; add images, or put one into {name}/ by hand"
        )
    wanted, chosen = max(1, round(share * len(entries))), list[Entry]()
    for group in ranked[:-1]:
        if chosen and len(chosen) + len(group) / 2 > wanted:
            break
        chosen += group
    taken = {entry.pair for entry in chosen}
    return _sorted(chosen), [entry for entry in entries if entry.pair not in taken]


def _fold(entries: list[Entry], draw: Draw) -> tuple[list[Entry], list[Entry]]:
    """The k-th of n parts, as equal as groups allow, and the rest."""
    assert draw.fold is not None
    number, count = draw.fold
    ranked = _ranked(entries, draw, "fold")
    if len(ranked) < count:
        what = "groups" if draw.group else "images"
        raise ValueError(f"dataset.fold = {number}/{count}: there are only {len(ranked)} {what}; take fewer folds")
    parts: list[list[Entry]] = [[] for _ in range(count)]
    for group in sorted(ranked, key=len, reverse=True):
        min(parts, key=len).extend(group)
    rest = [entry for index, part in enumerate(parts) if index != number for entry in part]
    return _sorted(parts[number]), _sorted(rest)


def _sorted(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry.pair.name)
