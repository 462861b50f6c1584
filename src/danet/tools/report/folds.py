"""Pool the folds of a cross-validation: those of one variant and seed become one run that scores each image once."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from danet.tools.report import intervals
from danet.tools.report.study import NOT_GIVEN, ImageCounts, Run, SeedState, Study, VariantRuns, variant_config

KEY = "dataset.fold"
SUMMED = ("seconds",)  # numbers of result.json that are summed; other fractions are averaged
LARGEST = ("peak_memory_bytes",)
NOT_POOLED = ("pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "step")  # do not follow from image counts


def pooled(study: Study) -> Study:
    """Pool the folds of each variant; a study without folds is returned unchanged.

    Raises:
        ValueError: a fold has no confusion_matrices.npz.
    """
    groups: dict[str, list[VariantRuns]] = defaultdict(list)
    for variant in study.variants:
        groups[_key(variant)].append(variant)
    if not any(run.config.get(KEY) for run in study.runs):
        return study
    variants = [_pool(group, study.seeds) for group in groups.values()]
    of_baseline = next(
        index for index, group in enumerate(groups.values()) if study.baseline in {v.name for v in group}
    )
    lines = [line for group in groups.values() for line in _lines(group)]
    return replace(study, variants=variants, baseline=variants[of_baseline].name, folds=lines)


def _key(variant: VariantRuns) -> str:
    """What the folds of one variant share."""
    if any(_is_fold(override) for override in variant.overrides):
        return repr([override for override in variant.overrides if not _is_fold(override)])
    run = next(iter(variant.runs.values()), None)
    return repr(sorted((k, v) for k, v in variant_config(run).items() if k != KEY)) if run else variant.name


def _is_fold(override: str) -> bool:
    return override.lstrip("+").startswith(f"{KEY}=")


def _pool(group: Sequence[VariantRuns], seeds: Sequence[int]) -> VariantRuns:
    name = re.sub(r"(, |_)?(dataset\.)?fold[-=]\d+[-/]\d+", "", group[0].name).strip(", _") or "all folds"
    overrides = [override for override in group[0].overrides if not _is_fold(override)]
    return replace(group[0], name=name, overrides=overrides, seeds=[_seed(name, group, seed) for seed in seeds])


def _seed(name: str, group: Sequence[VariantRuns], seed: int) -> SeedState:
    """One seed's folds as one run, if all have finished."""
    states = [state for variant in group for state in variant.seeds if state.seed == seed]
    runs = sorted((state.run for state in states if state.run), key=_fold)
    wanted = {f"{k}/{n}" for run in runs for n in [_fold(run)[1]] for k in range(n)}
    missing = sorted(wanted - {str(run.config.get(KEY)) for run in runs})
    if not runs:
        return SeedState(seed, next((s.state for s in states if s.state != NOT_GIVEN), NOT_GIVEN))
    if missing:
        return SeedState(seed, "stopped", error=f"no result for fold {', '.join(missing)}")
    return SeedState(seed, "done", _joined(f"{name}/seed{seed}", runs))


def _fold(run: Run) -> tuple[int, int]:
    number, _, count = str(run.config.get(KEY) or "0/1").partition("/")
    return int(number), int(count)


def _joined(label: str, runs: Sequence[Run]) -> Run:
    first, results = runs[0], [run.result for run in runs]
    if lacking := [str(run.folder) for run in runs if run.images is None]:
        raise ValueError(f"{lacking[0]}: confusion_matrices.npz is missing, which pooling needs; evaluate it again")
    counts = np.concatenate([run.images.counts for run in runs if run.images])
    names = tuple(name for run in runs if run.images for name in run.images.names)
    right, union = counts.sum(axis=0)
    iou = {
        name: float(r / u) if u else None
        for name, r, u in zip(first.result["iou"], right.tolist(), union.tolist(), strict=True)
    }
    numbers = {key: value for key, value in first.result.items() if key not in NOT_POOLED}
    for key in numbers:
        values: list[Any] = [result.get(key) for result in results]
        if isinstance(numbers[key], float) and all(isinstance(value, float) for value in values):
            numbers[key] = sum(values) / (1 if key in SUMMED else len(values))
        elif key in LARGEST and None not in values:
            numbers[key] = max(values)
    result = {**numbers, "iou": iou, "miou": float(intervals.miou(counts.sum(axis=0))), "num_images": len(names)}
    result["dataset"] = re.sub(r"fold \d+ of (\d+)", r"\1 folds pooled", str(first.result.get("dataset")))
    return replace(
        first,
        label=label,
        result=result,
        environments=[environment for run in runs for environment in run.environments],
        config={key: value for key, value in first.config.items() if key != KEY},
        curve={step: float(np.mean([run.curve[step] for run in runs])) for step in _common_steps(runs)},
        images=ImageCounts(names, counts),
    )


def _common_steps(runs: Sequence[Run]) -> list[int]:
    return [step for step in runs[0].curve if all(step in run.curve for run in runs)]


def _lines(group: Sequence[VariantRuns]) -> list[str]:
    """The individual folds of each seed."""
    lines = []
    for seed in sorted({seed for variant in group for seed in variant.runs}):
        runs = sorted((variant.runs[seed] for variant in group if seed in variant.runs), key=_fold)
        scores = [100 * run.miou for run in runs]
        spread = f"; mean {np.mean(scores):.2f}, deviation {np.std(scores, ddof=1):.2f}" if len(scores) > 1 else ""
        shown = ", ".join(f"{run.config.get(KEY)} {score:.2f}" for run, score in zip(runs, scores, strict=True))
        lines.append(f"{_pool(group, []).name}, seed {seed}, mIoU of the folds: {shown}{spread}.")
    return lines
