"""Compares the variants of a study with its baseline: over seeds, over images, by class, and by cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from danet.tools.report import intervals as statistics
from danet.tools.report.intervals import Interval
from danet.tools.report.study import Run, Study, Variant


@dataclass(frozen=True)
class Comparison:
    """A variant against the baseline. Values are fractions."""

    seeds: list[int]  # that both have
    by_seed: list[float]
    over_seeds: Interval
    p: float  # exact sign-flip test
    p_holm: float  # corrected for the number of variants
    over_images: Interval | None  # by those of the seeds whose images were scored one by one
    classes: dict[str, Interval]  # over seeds, not corrected for the number of classes


@dataclass(frozen=True)
class Row:
    """A variant in numbers. Values are fractions."""

    variant: Variant
    miou: float  # mean over the seeds
    deviation: float  # standard deviation over the seeds; NaN for one
    classes: dict[str, float]  # mean IoU over the seeds
    comparison: Comparison | None  # None for the baseline, and where no seed is shared
    costs: dict[str, float] = field(default_factory=dict)  # means over the seeds of the keys in COSTS

    @property
    def name(self) -> str:
        """The variant's."""
        return self.variant.name

    @property
    def count(self) -> int:
        """Seeds that have finished."""
        return len(self.variant.runs)


# Keys of result.json. Those that a clock or the machine's load changes come second.
COUNTED = ("parameters", "gflops")
MEASURED = ("seconds", "peak_memory_bytes", "images_per_second")


@dataclass(frozen=True)
class Analysis:
    """All rows, in the order of the study's variants."""

    study: Study
    rows: list[Row]
    class_names: list[str]
    flops_size: tuple[int, int] | None  # [H, W] of the input that GFLOPs are for

    @property
    def baseline(self) -> Row:
        """The row that the others are compared with."""
        return next(row for row in self.rows if row.name == self.study.baseline)

    @property
    def compared(self) -> list[Row]:
        """The rows with a comparison."""
        return [row for row in self.rows if row.comparison]


def analyse(study: Study, *, timings: bool = True) -> Analysis:
    """Compare all variants with the baseline, by the seeds that both have.

    Args:
        study: with its baseline among the variants.
        timings: also collect what a clock measured.
    """
    baseline = next(variant for variant in study.variants if variant.name == study.baseline)
    class_names = list(dict.fromkeys(name for run in study.runs for name in run.iou))
    others = [v for v in study.variants if v is not baseline and set(v.runs) & set(baseline.runs)]
    bootstrapped = _bootstrap(study.runs) if others else {}
    comparisons = {variant.name: _compare(variant, baseline, bootstrapped, class_names) for variant in others}
    corrected = statistics.holm([comparison.p for comparison in comparisons.values()])
    for name, p_holm in zip(comparisons, corrected, strict=True):
        comparisons[name] = replace(comparisons[name], p_holm=p_holm)
    costs = COUNTED + (MEASURED if timings else ())
    rows = [_row(variant, comparisons.get(variant.name), class_names, costs) for variant in study.variants]
    sizes = {tuple(run.result["flops_size"]) for run in study.runs if run.result.get("flops_size")}
    return Analysis(study, rows, class_names, sizes.pop() if len(sizes) == 1 else None)


def _compare(
    variant: Variant, baseline: Variant, bootstrapped: dict[str, np.ndarray], class_names: Sequence[str]
) -> Comparison:
    """Compare by the seeds that both have; p is not corrected yet."""
    seeds = sorted(set(variant.runs) & set(baseline.runs))
    pairs = [(variant.runs[seed], baseline.runs[seed]) for seed in seeds]
    by_seed = [ours.miou - theirs.miou for ours, theirs in pairs]
    with_images = [(a, b) for a, b in pairs if a.label in bootstrapped and b.label in bootstrapped]
    over_images = None
    if with_images:
        draws = np.mean([bootstrapped[a.label] - bootstrapped[b.label] for a, b in with_images], axis=0)
        observed = float(np.mean([a.miou - b.miou for a, b in with_images]))
        over_images = statistics.percentile_interval(draws, observed)
    classes = {}
    for name in class_names:
        values = [a.iou.get(name, math.nan) - b.iou.get(name, math.nan) for a, b in pairs]
        if defined := [value for value in values if not math.isnan(value)]:
            classes[name] = statistics.paired_interval(defined)
    return Comparison(
        seeds=seeds,
        by_seed=by_seed,
        over_seeds=statistics.paired_interval(by_seed),
        p=statistics.sign_flip_p(by_seed),
        p_holm=math.nan,
        over_images=over_images,
        classes=classes,
    )


def _row(variant: Variant, comparison: Comparison | None, class_names: Sequence[str], costs: Sequence[str]) -> Row:
    runs = list(variant.runs.values())
    scores = [run.miou for run in runs]
    return Row(
        variant,
        miou=_mean(scores),
        deviation=float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan,
        classes={name: _mean([run.iou.get(name, math.nan) for run in runs]) for name in class_names},
        comparison=comparison,
        costs={key: _mean([run.number(key) for run in runs]) for key in costs},
    )


def _mean(values: Sequence[float]) -> float:
    """Mean of what is not NaN; NaN where there is nothing."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _bootstrap(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """Each run's mIoU on redrawn images, by its label; none where the runs were scored on different images."""
    scored = {run.label: run.images for run in runs if run.images}
    if len({images.names for images in scored.values()}) != 1 or len({i.counts.shape for i in scored.values()}) != 1:
        return {}
    scores = statistics.bootstrap_miou(np.stack([images.counts for images in scored.values()]))
    return dict(zip(scored, scores, strict=True))
