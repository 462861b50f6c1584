"""What makes a run the same run: everything that decides its result, and the weights that it starts from."""

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danet.arguments import ExistingFile, Folder, takes
from danet.schema import COMPONENTS

# What may change when a run is resumed; anything else would make it another run. So may paths to data, whose
# fingerprint is compared, and paths to weights, whose content is.
MAY_CHANGE = (
    *("name", "resume", "runtime.", "tracking.", "evaluate.samples", "evaluate.batch_size"),
    *("train.log_every", "train.save_every"),
)
# What may change as long as the run is unfinished: it decides when the run ends, and nothing before.
UNTIL_FINISHED = ("train.early_stop_patience",)

# Options of data sets that may be a file whose content is in the data's fingerprint, by name.
DESCRIBED_BY_FILE = {("folder", "classes")}

# Options that came later: where they are off, a run is the one it was before there were such options.
OFF: dict[str, Any] = {
    **{"train.repeat_threshold": None, "train.rare_share": None, "train.rare_classes": []},
    "normalization": "backbone",
    "train.early_stop_patience": None,
}


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted key, what decides a run's result besides the content of the files that it reads."""
    paths = {*starting(config), *_options_of_type(config, ExistingFile), *_options_of_type(config, Folder)}
    left_out = {*paths, *_files_of_data(config), "init_from"}
    return {
        key: value
        for key, value in flat(config).items()
        if not key.startswith(MAY_CHANGE) and key not in left_out and not (key in OFF and value == OFF[key])
    }


def _files_of_data(config: Mapping[str, Any]) -> list[str]:
    """The dotted keys of DESCRIBED_BY_FILE that name a file here, which may lie elsewhere when the run goes on."""
    section = config.get("dataset")
    given = section if isinstance(section, Mapping) else {}
    return [
        f"dataset.{key}"
        for name, key in DESCRIBED_BY_FILE
        if given.get("name") == name and isinstance(given.get(key), str)
    ]


def initial_values(config: Mapping[str, Any]) -> dict[str, str]:
    """By dotted key, the SHA-256 of each file that the weights start from, or a name such as "imagenet"."""
    return {key: _content(value) for key, value in starting(config).items()}


def starting(config: Mapping[str, Any]) -> dict[str, str]:
    """By dotted key, the files (or names, such as "imagenet") that a configuration's weights start from."""
    values = {**_options_of_type(config, ExistingFile), "init_from": config.get("init_from")}
    return {key: value for key, value in values.items() if value}


def without_files(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with random initial values."""
    values = copy.deepcopy(dict(config))
    for key in starting(config):
        kind, _, option = key.partition(".")
        values.pop(kind) if not option else values[kind].pop(option)
    return values


def _options_of_type(config: Mapping[str, Any], wanted: Any) -> dict[str, Any]:
    """By dotted key, the values of the components' options whose annotation has `wanted` among its alternatives."""
    values = {}
    for kind, components in COMPONENTS.items():
        section = config.get(kind)
        if isinstance(section, Mapping) and section.get("name") in components:
            options = [k for k, p in components.schema(section["name"]).items() if takes(p.annotation, wanted)]
            values.update({f"{kind}.{key}": section[key] for key in options if key in section})
    return values


def _content(value: str | bool) -> str:
    """A hash of a file's content, or the value itself if it is not a path."""
    if isinstance(value, bool):  # a component's own weights, whatever they are called
        return "its own"
    file = Path(value).expanduser()
    if not file.is_file():
        return f"{value} (no such file)" if file.is_absolute() else value
    with file.open("rb") as opened:
        return f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; lists are values."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return values
