"""A study as plain data: variants, their seeds and their finished runs."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

NOT_GIVEN = "–"  # state of a seed that was not requested and therefore is not reported as missing
# Keys in which two runs of one variant may differ: seed, names, paths, and settings that do not affect any number.
NOT_OF_VARIANT = tuple(
    (
        "seed name resume dataset.root runtime. tracking. evaluate.samples evaluate.batch_size train.log_every "
        "train.save_every"
    ).split()
)


@dataclass(frozen=True)
class ImageCounts:
    """One run's counts per image, for the bootstrap."""

    names: tuple[str, ...]  # of the N images, sorted
    counts: np.ndarray  # (N, 2, K), see intervals.image_counts


@dataclass(frozen=True)
class Run:
    """A finished run."""

    label: str  # name shown in the report, such as "pam/seed1"
    folder: Path
    seed: int
    result: dict[str, Any]
    environments: list[dict[str, Any]]  # environment.json of the start, then of each resume
    config: dict[str, Any]  # by dotted key
    curve: dict[int, float]  # mIoU of each evaluation, by step
    last_step: int | None
    images: ImageCounts | None
    chosen_on: str  # the split that the curve is of and the checkpoint was selected on
    selected: bool = True  # whether the images that were scored are those that the checkpoint was selected on

    @property
    def miou(self) -> float:
        """The mIoU of the best evaluation, or of the requested one, as a fraction."""
        return float(self.result["miou"])

    @property
    def iou(self) -> dict[str, float]:
        """IoU by class; NaN where the class is absent."""
        return {name: math.nan if x is None else float(x) for name, x in self.result.get("iou", {}).items()}

    @property
    def scored(self) -> str:
        """What was scored, such as "40 val images of shapes"."""
        facts = self.result
        return f"{facts.get('num_images')} {facts.get('split')} images of {facts.get('dataset', 'the data')}"

    def number(self, key: str) -> float:
        """A number of result.json; NaN if an older run lacks it."""
        value = self.result.get(key)
        return math.nan if value is None else float(value)


@dataclass(frozen=True)
class SeedState:
    """One seed of a variant: its run, or the reason why there is none."""

    seed: int
    state: str  # done | failed | stopped | missing, or NOT_GIVEN
    run: Run | None = None
    error: str = ""  # last line of error.txt


@dataclass(frozen=True)
class VariantRuns:
    """A variant with its runs: a row of the table."""

    name: str
    seeds: list[SeedState]
    marks: list[str] = field(default_factory=list)
    published: dict[str, float] = field(default_factory=dict)  # mIoU in percent, by setting
    overrides: list[str] = field(default_factory=list)

    @property
    def runs(self) -> dict[int, Run]:
        """Finished runs by seed."""
        return {seed.seed: seed.run for seed in self.seeds if seed.run}

    @property
    def wanted(self) -> int:
        """Number of requested seeds."""
        return sum(seed.state != NOT_GIVEN for seed in self.seeds)


@dataclass(frozen=True)
class Study:
    """Variants, one of which is the baseline."""

    title: str
    variants: list[VariantRuns]
    baseline: str
    seeds: list[int]
    mixed: list[str] = field(default_factory=list)  # unintended differences between runs, a line each
    folds: list[str] = field(default_factory=list)  # scores of the pooled folds, a line each

    @property
    def runs(self) -> list[Run]:
        """All finished runs."""
        return [run for variant in self.variants for run in variant.runs.values()]

    @property
    def gaps(self) -> list[str]:
        """A line for each requested seed without a result."""
        return [
            f"{variant.name}, seed {seed.seed}: {': '.join(filter(None, (seed.state, without_places(seed.error))))}"
            for variant in self.variants
            for seed in variant.seeds
            if not seed.run and seed.state != NOT_GIVEN
        ]


def variant_config(run: Run) -> dict[str, Any]:
    """The part of a run's configuration that defines its variant."""
    return {key: value for key, value in run.config.items() if not key.startswith(NOT_OF_VARIANT)}


def without_places(text: str) -> str:
    """Shorten absolute paths to their last part, so that a report does not depend on the machine."""
    return re.sub(r"(?<![\w./…)\]])(?:~|[A-Za-z]:)?/(?:[^\s/:;,'\"()\[\]]+/)+([^\s/:;,'\"()\[\]]*)", r"…/\1", text)


def plain(value: Any) -> str:
    """A configuration value as written on a command line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
