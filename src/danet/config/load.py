"""The configuration that Hydra composed for src/train.py, checked; with `resume=FOLDER`, that run's own."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from danet.config import resolve, resume
from danet.config.resolve import DictConfig
from danet.config.run_config import RunConfig, check_run_level, checked
from danet.schema import COMPONENTS, ConfigError


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
    if _given("train.epochs", overrides):
        values = _without_steps(values, overrides)
    if values.get("resume") not in (None, "", *resume.SEARCHED):
        values = resume.resumed(values, Path(values["resume"]).expanduser(), overrides)
    elif not any(re.match(rf"\W*({'|'.join(COMPONENTS)})\b", override) for override in overrides):
        check_run_level(values)  # at once; with a component's key, problems of both kinds are told together
    return checked(values, probe=probe)


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
