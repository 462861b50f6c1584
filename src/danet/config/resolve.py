"""OmegaConf, for the whole package: what it composed goes in, plain values come out."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig as DictConfig
from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from danet.schema import ConfigError
from danet.services import secrets_of_environment
from danet.services.places import OUTPUTS, WORK
from danet.services.places import REPOSITORY as REPOSITORY

# Paths in YAML files start from the repository, whatever the current directory is; without a checkout, from that.
OmegaConf.register_new_resolver("repo_root", lambda: str(WORK), replace=True)
OmegaConf.register_new_resolver("outputs", lambda: str(OUTPUTS), replace=True)


def plain(composed: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain values, interpolations resolved.

    Raises:
        ConfigError: an interpolation cannot be resolved, or gives a secret.
    """
    crop_size = OmegaConf.select(composed, "augment.crop_size")
    # The transforms in conf/augment interpolate its two elements.
    if isinstance(crop_size, int | float | str) or (isinstance(crop_size, ListConfig) and len(crop_size) != 2):
        raise ConfigError([f"augment.crop_size = {crop_size!r}: must be [height, width] in pixels"])
    try:
        values = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([f"{error.full_key or 'interpolation'}: {str(error).splitlines()[0]}"]) from None
    assert isinstance(values, dict)
    if problems := list(_secrets(values)):
        raise ConfigError(problems)
    return {str(key): value for key, value in values.items()}


def _secrets(value: Any, key: str = "") -> Iterator[str]:
    """A line for each value with a secret of the environment in it, as ${oc.env:WANDB_API_KEY} gives it."""
    if isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, item in items:
            yield from _secrets(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, str) and (name := secrets_of_environment.held_in([value])):
        yield (
            f"{key}: has the value of the environment variable {name}, which would be written to config.yaml, "
            "checkpoints and trackers. Leave it out: W&B and others read their variables themselves"
        )


def parse(text: str) -> dict[str, Any] | None:
    """YAML text with sections as plain values, nothing resolved; None if it is anything else."""
    try:
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, AssertionError):  # the last for a number
        return None
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else None


def read(file: Path) -> dict[str, Any]:
    """A YAML file of conf/ or experiments/ as plain values, nothing resolved."""
    return parse(file.read_text(encoding="utf-8")) or {}


def to_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(values)))
