"""The configuration that Hydra composed for src/train.py, checked; with `resume=FOLDER`, that run's own."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import danet.config
from danet.config import resolve, resume
from danet.config.resolve import DictConfig
from danet.config.run_config import RunConfig, checked, problems_at_once
from danet.schema import COMPONENTS, ConfigError

ARTIFACT = "wandb:"  # begins the name of weights that are an artifact of Weights & Biases


def load(composed: DictConfig, overrides: Sequence[str] = (), *, probe: bool = False) -> RunConfig:
    """Check a composed configuration.

    Args:
        composed: what Hydra composed.
        overrides: the command line's overrides; with `resume=<run folder>` they apply to that run's configuration.
        probe: also check whether the data set finds its files (none is opened) and whether the parts fit together.

    Raises:
        ConfigError: lists every problem.
    """
    values = resolve.plain(composed)
    if str(values.get("init_from")).startswith(ARTIFACT):
        values = {**values, "init_from": _downloaded(values["init_from"])}
    if _given("train.epochs", overrides):
        values = _without_steps(values, overrides)
    if _resumes(values):
        values = resume.resumed(values, Path(values["resume"]).expanduser(), overrides)
    elif problems := problems_at_once(values, _named(overrides)):
        raise ConfigError(problems)
    return checked(values, probe=probe)


def check_beside(composed: DictConfig, overrides: Sequence[str]) -> None:
    """Check the rest of a command line that has unknown names.

    Args:
        composed: what Hydra composed without the unknown names.
        overrides: those whose names are known.

    Raises:
        ConfigError: lists every problem.
    """
    values = resolve.plain(composed)
    problems = None if _resumes(values) else problems_at_once(values, _named(overrides))
    if problems is None:
        load(composed, overrides)
    elif problems:
        raise ConfigError(problems)


def _resumes(values: Mapping[str, Any]) -> bool:
    return values.get("resume") not in (None, "", *resume.SEARCHED)


def _named(overrides: Sequence[str]) -> list[str]:
    """The sections that PyTorch or albumentations check, of those that a command line names."""
    sections = (*COMPONENTS, "augment")
    return [name for name in sections if any(re.match(rf"\W*{name}\b", override) for override in overrides)]


def _downloaded(name: str) -> str:
    """The file of weights in an artifact of Weights & Biases.

    Raises:
        ConfigError: it cannot be had.
    """
    from danet.services.tracking import artifacts

    try:
        return str(artifacts.download(name.removeprefix(ARTIFACT), danet.config.OUTPUTS / artifacts.CACHE))
    except ValueError as error:
        raise ConfigError([f"init_from = {name!r}: {error}"]) from None


def _without_steps(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration without a recipe's train.steps, which train.epochs on the command line replaces.

    Raises:
        ConfigError: train.steps is on the command line, too.
    """
    if _given("train.steps", overrides):
        raise ConfigError(
            ["train.epochs, train.steps: both are on the command line and say how long; give one of them"]
        )
    section = values.get("train")
    return {**values, "train": {**section, "steps": None}} if isinstance(section, dict) else values


def _given(name: str, overrides: Sequence[str]) -> bool:
    """Whether a command line sets a key of a section to something, by itself or as section={key: value, ...}."""
    section, key = name.split(".")
    pattern = rf"\+*{section}(?:\.{key}\s*=|=\{{(?:.*[ ,])?{key}\s*:)\s*(?P<value>.*)"
    values = [match["value"] for override in overrides if (match := re.match(pattern, override))]
    return bool(values) and not re.match(r"null\b", values[-1])
