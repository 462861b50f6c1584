"""The names that a command line may have: groups with their options, and keys. They are read off the YAML files."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from danet.config.resolve import REPOSITORY

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a hundred files, before anything else happens

# Keys of other frameworks, and ours.
HABITS = {
    **{"experiment": "recipe", "logger": "tracking", "model": "head", "data": "dataset", "datamodule": "dataset"},
    **{"trainer": "train", "gpus": "runtime.devices", "max_epochs": "train.epochs", "device": "runtime.device"},
}
# Keys of other frameworks that have no counterpart.
NEEDLESS = {
    "num_classes": "the data set has its classes; for images of your own dataset.classes names them",
}


@dataclass(frozen=True)
class Names:
    """What a script's command line may name.

    Attributes:
        options: by group, as a command line names it (such as inference@evaluate), the file of each option.
        keys: dotted, sections included.
        open: those of the keys that have no keys yet but may get some: null, an empty section, a list.
        kinds: by key, what it is in the files: "list", "number" (or true, false), "text", "null" or "section".
        keys_of: by group and option, the keys of this option alone.
        primaries: the primary configurations.
        packages: by group, the section that it fills.
        defaults: by group, the option that a primary configuration begins with.
        hidden: files of the user's that are never read, because ours of the same name come first.
    """

    options: dict[str, dict[str, Path]] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    open: set[str] = field(default_factory=set)
    kinds: dict[str, set[str]] = field(default_factory=dict)
    keys_of: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    primaries: list[Path] = field(default_factory=list)
    packages: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)
    hidden: list[Path] = field(default_factory=list)

    def has(self, key: str) -> bool:
        """Whether there is such a key, in any option of a group."""
        parts = key.split(".")
        return key in self.keys or any(".".join(parts[:end]) in self.open for end in range(1, len(parts)))

    def nearest(self, key: str) -> str:
        """The end of an error text: what may have been meant, else what there is."""
        section, _, name = key.rpartition(".")
        siblings = sorted(k for k in self.keys if k.rpartition(".")[0] == section)
        habit = [habit for habit in [HABITS.get(name)] if habit in self.keys]
        within = [k for k in siblings if name in k.rpartition(".")[2]]
        near = difflib.get_close_matches(key, within, n=1, cutoff=0) if section else habit
        near = near or sorted(k for k in self.keys if name != "name" and k.rpartition(".")[2] == name and k.count("."))
        if not near and name in NEEDLESS:
            return NEEDLESS[name]
        near = near or habit
        near = near or difflib.get_close_matches(key, siblings, n=1)
        near = near or difflib.get_close_matches(key, [*self.keys], n=1)
        if near:
            return f"did you mean {' or '.join(map(repr, near[:3]))}?"
        return f"known: {', '.join(siblings or sorted(k for k in self.keys if '.' not in k))}"


def known_names(primary: str, own_folders: Sequence[Path] = (), own_primary: str | None = None) -> Names:
    """The names of a script.

    Args:
        primary: name of its primary configuration, conf/NAME.yaml.
        own_folders: with options of the user's own, besides conf/ and experiments/.
        own_primary: name of the user's own primary configuration in one of these folders, which may add names.
    """
    names, places = Names(), (REPOSITORY / "conf", REPOSITORY / "experiments", *own_folders)
    for name in (primary, own_primary):
        if name and (file := _found(name, places)):
            _add_primary(names, file, places)
    if own_primary is None and (hidden := _found(primary, own_folders)):
        names.hidden.append(hidden)
    return names


def primaries(folders: Iterable[Path]) -> list[str]:
    """The names of the primary configurations in folders of the user's."""
    return sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})


def is_global(file: Path) -> bool:
    """Whether a file's sections are places of the whole configuration, as recipes' are."""
    return "# @package _global_" in file.read_text(encoding="utf-8")[:512]  # Hydra looks no further


def _found(name: str, places: Iterable[Path]) -> Path | None:
    """The first file of a name."""
    return next((file for place in places if (file := place / f"{name.strip('/')}.yaml").is_file()), None)


def _add_primary(names: Names, file: Path, places: Sequence[Path]) -> None:
    """A primary configuration's keys, its groups, and those of the configurations that it begins with."""
    if file in names.primaries:
        return
    section = _read(file)
    for base in filter(None, (_found(name, places) for name in _bases(section))):
        _add_primary(names, base, places)
    names.primaries.append(file)
    _add(names, "", section, names.keys)
    for group, package, option in _groups(section):
        typed = group if package == group else f"{group}@{package}"
        names.keys.add(typed)
        names.defaults.setdefault(typed, option)
        if typed not in names.options:
            _add_group(names, typed, package, places)


def _read(file: Path) -> dict[str, Any]:
    """A file's sections; what is no YAML has none."""
    text = file.read_text(encoding="utf-8")
    try:
        section = yaml.load(text, LOADER)  # noqa: S506
    except yaml.YAMLError:
        section = None  # Hydra will say what is wrong with it, if it is chosen
    return section if isinstance(section, dict) else {}


def _groups(section: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The groups in a defaults list, the section that each fills, and the option."""
    entries = [entry for entry in section.get("defaults") or () if isinstance(entry, dict)]
    items = [item for entry in entries for item in entry.items() if not re.search(r"[ /]", item[0])]
    parts = [(*name.partition("@")[::2], str(option)) for name, option in items]
    return [(group, package or group, option) for group, package, option in parts]


def _bases(section: Mapping[str, Any]) -> list[str]:
    """The files that a file begins with, such as danet in `defaults: [danet]`."""
    entries = [entry.partition("@")[0] for entry in section.get("defaults") or () if isinstance(entry, str)]
    return [entry for entry in entries if entry != "_self_"]


def _add_group(names: Names, group: str, package: str, places: Iterable[Path]) -> None:
    """All options of a group, and of the groups within them."""
    places, folder = list(places), group.partition("@")[0]
    files: dict[str, Path] = {}
    for file in (file for place in places for file in sorted((place / folder).glob("*.yaml"))):
        if files.setdefault(file.stem, file) != file and file.read_bytes() != files[file.stem].read_bytes():
            names.hidden.append(file)
    names.options[group] = files
    names.packages[group] = "" if files and all(map(is_global, files.values())) else package
    for option, file in files.items():
        section = _read(file)
        prefix = "" if is_global(file) else package
        own = names.keys_of.setdefault((group, option), set())
        _add(names, prefix, section, own)
        for inner, inner_package, _ in _groups(section):
            before = set(names.keys)
            _add_group(names, f"{folder}/{inner}", f"{prefix}.{inner_package}", places)
            own |= names.keys - before
        names.keys.update(own)
    for option, file in files.items():  # now that all are known
        for base in _bases(_read(file)):
            own = names.keys_of[group, option]
            if (known := names.keys_of.get((group, base.rpartition("/")[2]))) is None:
                names.open.add(package)
            own |= known or set()


def _add(names: Names, prefix: str, section: Mapping[str, Any], keys: set[str]) -> None:
    """A section's keys below a prefix."""
    if prefix:
        keys.add(prefix)
    for name, value in section.items():
        if name == "defaults" or (name == "hydra" and not prefix):
            continue
        key = f"{prefix}.{name}" if prefix else str(name)
        keys.add(key)
        names.kinds.setdefault(key, set()).add(_kind(value))
        if isinstance(value, Mapping) and value:
            _add(names, key, value, keys)
        elif value is None or isinstance(value, Mapping | list):
            names.open.add(key)


def _kind(value: Any) -> str:
    """What a YAML value is; see `Names`."""
    if value is None:
        return "null"
    kinds = {"list": list, "section": Mapping, "number": int | float}
    return next((name for name, kind in kinds.items() if isinstance(value, kind)), "text")
