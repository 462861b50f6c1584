"""Compare the variants of a study with its baseline: over seeds, over images, by class and by cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from danet.tools.report import intervals
from danet.tools.report.intervals import Interval
from danet.tools.report.study import Run, Study, VariantRuns

# Keys of result.json: exact counts, and measurements that depend on the machine and its load.
COUNTED = ("parameters", "gflops")
MEASURED = ("seconds", "peak_memory_bytes", "images_per_second")


@dataclass(frozen=True)
class Difference:
    """A variant's difference from the baseline, as fractions."""

    seeds: list[int]  # shared with the baseline
    by_seed: list[float]
    over_seeds: Interval
    p: float  # exact sign-flip test
    p_holm: float  # Holm-corrected for the number of variants
    over_images: Interval | None  # from the seeds that have image counts
    classes: dict[str, Interval]  # over seeds, uncorrected for the number of classes


@dataclass(frozen=True)
class Row:
    """A variant's numbers. Scores are fractions."""

    variant: VariantRuns
    miou: float  # mean over the seeds
    deviation: float  # standard deviation over the seeds; NaN for a single seed
    classes: dict[str, float]  # mean IoU over the seeds
    costs: dict[str, float]  # means over the seeds, by key of result.json
    difference: Difference | None  # None for the baseline and where no seed is shared

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.variant.name

    @property
    def count(self) -> int:
        """Number of finished seeds."""
        return len(self.variant.runs)


@dataclass(frozen=True)
class Analysis:
    """All rows, in the order of the study's variants."""

    study: Study
    rows: list[Row]
    class_names: list[str]
    flops_size: tuple[int, int] | None  # [H, W] of the input that GFLOPs are for

    @property
    def baseline(self) -> Row:
        """The row that all others are compared with."""
        return next(row for row in self.rows if row.name == self.study.baseline)

    @property
    def differences(self) -> dict[str, Difference]:
        """Differences by variant, for all variants that can be compared with the baseline."""
        return {row.name: row.difference for row in self.rows if row.difference}

    @property
    def marks(self) -> list[str]:
        """Columns with check marks."""
        return list(dict.fromkeys(mark for variant in self.study.variants for mark in variant.marks))

    @property
    def published(self) -> list[str]:
        """Settings for which there are published values; none beside scores on the built-in scenes."""
        if any(run.config.get("dataset.name") == "shapes" for run in self.study.runs):
            return []
        return list(dict.fromkeys(setting for variant in self.study.variants for setting in variant.published))

    @property
    def bounds(self) -> list[tuple[int, float, float]]:
        """The smallest p possible for each number of seeds: (seeds, p, p after Holm's correction)."""
        counts = [len(difference.seeds) for difference in self.differences.values()]
        smallest = [intervals.smallest_p(count) for count in counts]
        return sorted(set(zip(counts, smallest, intervals.holm(smallest), strict=True)))


def analyze(study: Study, *, timings: bool = True) -> Analysis:
    """Compare all variants with the baseline over the seeds they share.

    Args:
        study: its baseline is one of the variants.
        timings: whether to include measured times, memory and speed.
    """
    baseline = next(variant for variant in study.variants if variant.name == study.baseline)
    class_names = list(dict.fromkeys(name for run in study.runs for name in run.iou))
    others = [v for v in study.variants if v is not baseline and set(v.runs) & set(baseline.runs)]
    draws = _bootstrap(study.runs) if others else {}
    uncorrected = {variant.name: _difference(variant, baseline, draws, class_names) for variant in others}
    corrected = intervals.holm([difference.p for difference in uncorrected.values()])
    differences = {n: replace(d, p_holm=p) for (n, d), p in zip(uncorrected.items(), corrected, strict=True)}
    costs = COUNTED + (MEASURED if timings else ())
    rows = [_row(variant, differences.get(variant.name), class_names, costs) for variant in study.variants]
    sizes = {tuple(run.result["flops_size"]) for run in study.runs if run.result.get("flops_size")}
    return Analysis(study, rows, class_names, sizes.pop() if len(sizes) == 1 else None)


def _difference(
    variant: VariantRuns, baseline: VariantRuns, draws: dict[str, np.ndarray], class_names: Sequence[str]
) -> Difference:
    """Compare over the shared seeds; p is not yet corrected."""
    seeds = sorted(set(variant.runs) & set(baseline.runs))
    pairs = [(variant.runs[seed], baseline.runs[seed]) for seed in seeds]
    by_seed = [ours.miou - theirs.miou for ours, theirs in pairs]
    over_images = None
    if all(run.label in draws for pair in pairs for run in pair):  # else it would be about other seeds than the mean
        drawn = np.mean([draws[ours.label] - draws[theirs.label] for ours, theirs in pairs], axis=0)
        over_images = intervals.percentile_interval(drawn, float(np.mean(by_seed)))
    classes = {}
    for name in class_names:
        values = [ours.iou.get(name, math.nan) - theirs.iou.get(name, math.nan) for ours, theirs in pairs]
        if defined := [value for value in values if not math.isnan(value)]:
            classes[name] = intervals.paired_interval(defined)
    return Difference(
        seeds=seeds,
        by_seed=by_seed,
        over_seeds=intervals.paired_interval(by_seed),
        p=intervals.sign_flip_p(by_seed),
        p_holm=math.nan,
        over_images=over_images,
        classes=classes,
    )


def _row(variant: VariantRuns, difference: Difference | None, class_names: Sequence[str], costs: Sequence[str]) -> Row:
    runs = list(variant.runs.values())
    scores = [run.miou for run in runs]
    return Row(
        variant,
        miou=_mean(scores),
        deviation=float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan,
        classes={name: _mean([run.iou.get(name, math.nan) for run in runs]) for name in class_names},
        costs={key: _mean([run.number(key) for run in runs]) for key in costs},
        difference=difference,
    )


def _mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _bootstrap(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """The mIoU on resampled images by run label; empty if the runs were scored on different images."""
    scored = {run.label: run.images for run in runs if run.images}
    if len({(images.names, images.counts.shape) for images in scored.values()}) != 1:
        return {}
    scores = intervals.bootstrap_miou(np.stack([images.counts for images in scored.values()]))
    return dict(zip(scored, scores, strict=True))
