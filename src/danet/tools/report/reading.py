"""Read run folders into a study: those of a sweep, or any."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from danet.config.identity import flat
from danet.services.atomic_files import read_json
from danet.services.metrics_file import MetricsFile
from danet.services.places import command
from danet.sweeps.sweep import cell_folder, last_error_line, state_of
from danet.tools.report import intervals
from danet.tools.report.study import (
    NOT_GIVEN,
    ImageCounts,
    Run,
    SeedState,
    Study,
    VariantRuns,
    plain,
    variant_config,
    without_places,
)

MAX_KEYS = 4  # shown in a variant's name

# ---- one run ---------------------------------------------------------------------------------------------------------


def read_run(folder: Path, label: str, evaluation: str | None = None) -> Run:
    """Read a finished run.

    Args:
        folder: the run folder.
        label: see Run.
        evaluation: name of a folder in evaluations/; its scores replace those of the training run.

    Raises:
        ValueError: the run is not finished or not evaluated, or one of its files is damaged.
    """
    result = read_json(
        _existing(folder / "result.json", "the run has not finished; resume it with resume=<its folder>")
    )
    if result.get("miou") is None:
        raise ValueError(f"{folder / 'result.json'}: no miou; evaluate the run again")
    config = flat(yaml.safe_load(_existing(folder / "config.yaml", "give run folders").read_text(encoding="utf-8")))
    rows = MetricsFile(folder / "metrics.jsonl").rows()
    chosen_on = result.get("split", "val")
    run = Run(
        label=label,
        folder=folder,
        seed=int(result.get("seed", config.get("seed", 0))),
        result=result,
        environments=[read_json(file) for file in sorted(folder.glob("environment*.json"), key=_resumed_at)],
        config=config,
        curve={row["step"]: row[f"{chosen_on}/miou"] for row in rows if row.get(f"{chosen_on}/miou") is not None},
        last_step=max((row["step"] for row in rows), default=None),
        images=_image_counts(folder, result),
        chosen_on=chosen_on,
    )
    return run if evaluation is None else _as_evaluated(run, folder / "evaluations" / evaluation)


def _as_evaluated(run: Run, folder: Path) -> Run:
    """Replace the run's scores, data and settings by those of a later evaluation of its best checkpoint.

    Raises:
        ValueError: the evaluation does not exist or is of another checkpoint.
    """
    how = f"as in {command('evaluate')} run={run.folder} split=test"
    scored = read_json(_existing(folder / "result.json", f"evaluate the run first, {how}"))
    if scored.get("step") != run.result.get("step"):
        raise ValueError(
            f"{folder / 'result.json'}: scores step {scored.get('step')}, but the run's best checkpoint is step"
            f" {run.result.get('step')}; evaluate it again"
        )
    own = ("split", "num_images", "miou", "iou", "accuracy", "pixels", "pixel_accuracy", "mean_accuracy", "protocol")
    split, scored_data = scored["split"], {"fingerprint": scored["dataset_fingerprint"]}
    before = [each.get("data", {}).get(split, scored_data).get("fingerprint") for each in run.environments]
    same = all(fingerprint == scored_data["fingerprint"] for fingerprint in before)
    data = {split if same else f"scored {split}": scored_data}
    settings = {key: value for key, value in run.config.items() if not key.startswith("evaluate.")}
    settings |= {f"evaluate.{key}": value for key, value in scored["inference"].items()}
    settings |= {"evaluate.void": "count"} if scored.get("void") == "count" else {}
    return replace(
        run,
        result={**run.result, **{key: scored[key] for key in (*own, "dataset") if key in scored}},
        environments=[{**each, "data": {**each.get("data", {}), **data}} for each in run.environments],
        config=settings,
        images=_image_counts(folder, scored),
        selected=same and split == run.chosen_on,
    )


def _existing(file: Path, remedy: str) -> Path:
    if not file.is_file():
        raise ValueError(f"{file}: no such file; {remedy}")
    return file


def _resumed_at(file: Path) -> int:
    """The step in a name such as environment_step_250.json; 0 for the first."""
    return int(file.stem.rpartition("_")[2]) if file.stem != "environment" else 0


def _image_counts(folder: Path, result: Mapping[str, Any]) -> ImageCounts | None:
    file = folder / "confusion_matrices.npz"
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as arrays:
        names, matrices = arrays["names"], arrays["matrices"]
    order = np.argsort(names, kind="stable")
    counts = intervals.image_counts(matrices[order])
    counts = counts[..., : len(result.get("iou", ())) or None]  # a last column for void does not enter the mean
    miou = result["miou"]
    if abs((own := float(intervals.miou(counts.sum(axis=0)))) - miou) > 1e-6:
        raise ValueError(
            f"{file} yields an mIoU of {own:.6f}, but result.json says {miou:.6f}: the files come from different"
            " evaluations; delete the former to report without it"
        )
    return ImageCounts(tuple(str(name) for name in names[order]), counts)


# ---- sweeps ----------------------------------------------------------------------------------------------------------


def read_sweep(folder: Path, evaluation: str | None = None) -> Study:
    """Read a sweep: the finished runs of the variants and seeds that sweep.json declares.

    Args:
        folder: the sweep's folder.
        evaluation: see read_run.

    Raises:
        ValueError: sweep.json or a run's file is missing or damaged, or no run has finished.
    """
    file = folder / "sweep.json"
    sweep = read_json(_existing(file, "give a sweep's folder, such as sweep=outputs/sweeps/attention"))
    if lacking := [key for key in ("name", "seeds", "variants") if not sweep.get(key)]:
        raise ValueError(f"{file}: {', '.join(lacking)} missing; start the sweep again to rewrite it")
    seeds = [int(seed) for seed in sweep["seeds"]]
    variants = []
    for name, facts in sweep["variants"].items():
        states = [
            _read_seed(cell_folder(folder, sweep, name, seed), f"{name}/seed{seed}", seed, evaluation) for seed in seeds
        ]
        published = {setting: float(value) for setting, value in (facts.get("published") or {}).items()}
        variants.append(VariantRuns(name, states, facts.get("marks") or [], published, facts.get("overrides") or []))
    study = Study(f"Sweep {sweep['name']}", variants, sweep.get("baseline") or variants[0].name, seeds)
    if not study.runs:
        raise ValueError(f"{folder}: nothing to report, no run has finished yet")
    return study


def _read_seed(folder: Path, label: str, seed: int, evaluation: str | None) -> SeedState:
    state = state_of(folder)
    if state != "done":
        return SeedState(seed, state, error=last_error_line(folder) if state == "failed" else "")
    run = read_run(folder, label, evaluation)
    if run.seed != seed:
        raise ValueError(f"{folder}: result.json says seed {run.seed}, the folder's name says seed {seed}")
    return SeedState(seed, state, run)


# ---- any runs --------------------------------------------------------------------------------------------------------


def read_runs(folders: Sequence[Path], evaluation: str | None = None) -> Study:
    """Read any runs; runs that differ only in the seed form one variant.

    Args:
        folders: the run folders.
        evaluation: see read_run.

    Raises:
        ValueError: a run is not finished, a file is damaged, or two runs have the same variant and seed.
    """
    runs = [read_run(folder, label, evaluation) for folder, label in zip(folders, _labels(folders), strict=True)]
    groups: list[dict[int, Run]] = []  # by seed
    for run in runs:
        config = variant_config(run)
        group = next((g for g in groups if variant_config(next(iter(g.values()))) == config), None)
        if group is None:
            groups.append(group := {})
        if run.seed in group:
            raise ValueError(
                f"runs: {group[run.seed].folder} and {run.folder} have the same variant and seed; leave one out"
            )
        group[run.seed] = run
    seeds = sorted({run.seed for run in runs})
    variants = [
        VariantRuns(name, [SeedState(s, "done", group[s]) if s in group else SeedState(s, NOT_GIVEN) for s in seeds])
        for name, group in zip(_names([next(iter(group.values())) for group in groups]), groups, strict=True)
    ]
    return Study(f"Comparison of {len(runs)} runs", variants, variants[0].name, seeds)


def _labels(folders: Sequence[Path]) -> list[str]:
    """The shortest path endings that are all different."""
    for count in range(1, max(len(folder.parts) for folder in folders) + 1):
        labels = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(labels)) == len(labels):
            return labels
    raise ValueError("runs: a folder is given twice")


def _names(runs: Sequence[Run]) -> list[str]:
    """Name variants after the keys that differ; if there are many, after the runs' names where these are distinct."""
    configs = [variant_config(run) for run in runs]
    keys = [key for key in dict.fromkeys(key for config in configs for key in config) if _differs(key, configs)]
    run_names = [str(run.config.get("name")) for run in runs]
    if len(keys) > MAX_KEYS and len(set(run_names)) == len(run_names):
        return run_names
    parts = [[f"{k.removesuffix('.name')}={plain(config[k])}" for k in keys if k in config] for config in configs]
    names = [without_places(", ".join(words)) or "all runs" for words in parts]
    return names if len(set(names)) == len(names) else [f"{name} #{index}" for index, name in enumerate(names, 1)]


def _differs(key: str, configs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a key differs between variants; a component's option is compared only where that component is used."""
    component = f"{key.partition('.')[0]}.name"
    kinds: dict[Any, set[str]] = {}
    for config in configs:
        kinds.setdefault(None if key == component else config.get(component), set()).add(plain(config.get(key)))
    return any(len(values) > 1 for values in kinds.values())
