"""A study as plain data: its variants, their cells, the finished runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

NOT_GIVEN = "–"  # state of a seed that nobody asked for: no hole


@dataclass(frozen=True)
class ImageCounts:
    """What the bootstrap needs of one run."""

    names: tuple[str, ...]  # of the N images, sorted
    counts: np.ndarray  # (N, 2, K), see statistics.image_counts


@dataclass(frozen=True)
class Run:
    """A finished run."""

    label: str  # how texts call it, such as "pam/seed1"
    folder: Path
    seed: int
    result: dict[str, Any]
    environments: list[dict[str, Any]]  # of its start, then of each time it was resumed
    config: dict[str, Any]  # by dotted key
    curve: list[tuple[int, float]]  # (step, mIoU) of each evaluation
    last_step: int | None
    images: ImageCounts | None

    @property
    def miou(self) -> float:
        """Of the best evaluation, as a fraction."""
        return float(self.result["miou"])

    @property
    def iou(self) -> dict[str, float]:
        """By class; NaN where the class is absent."""
        return {name: math.nan if x is None else float(x) for name, x in self.result.get("iou", {}).items()}

    def number(self, key: str) -> float:
        """A number of result.json; NaN where an older run lacks it."""
        value = self.result.get(key)
        return math.nan if value is None else float(value)

    @property
    def code(self) -> str:
        """The version of the code, or the versions, where it was resumed with another."""
        return " then ".join(dict.fromkeys(_code_version(e) for e in self.environments)) or "unknown"

    @property
    def data(self) -> str:
        """The fingerprints of the data."""
        versions = [
            ", ".join(f"{split} {facts.get('fingerprint')}" for split, facts in e["data"].items())
            for e in self.environments
            if e.get("data")
        ]
        return " then ".join(dict.fromkeys(versions)) or "unknown"


@dataclass(frozen=True)
class Cell:
    """One seed of one variant."""

    seed: int
    state: str  # done | failed | stopped | missing, or NOT_GIVEN
    run: Run | None = None
    error: str = ""  # the last line


@dataclass(frozen=True)
class Variant:
    """A row of the table."""

    name: str
    cells: list[Cell]
    marks: list[str] = field(default_factory=list)
    published: dict[str, float] = field(default_factory=dict)  # setting -> mIoU in percent
    overrides: list[str] = field(default_factory=list)

    @property
    def runs(self) -> dict[int, Run]:
        """The finished ones by seed."""
        return {cell.seed: cell.run for cell in self.cells if cell.run}


@dataclass(frozen=True)
class Study:
    """Variants, of which one is the baseline."""

    title: str
    variants: list[Variant]
    baseline: str
    seeds: list[int]
    mixed: list[str] = field(default_factory=list)  # what differs although it should not, a line each

    @property
    def runs(self) -> list[Run]:
        """All finished ones."""
        return [run for variant in self.variants for run in variant.runs.values()]


def _code_version(environment: Mapping[str, Any]) -> str:
    """A hash of the source where the run recorded one, else the commit."""
    if environment.get("code"):
        return f"source {environment['code'][:16]}"
    git = environment.get("git") or {}
    return (
        f"commit {git['commit'][:12]}{' with changes' if git.get('dirty') else ''}" if git.get("commit") else "unknown"
    )
