"""Reads run folders and sweeps."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from danet.services.records import MetricsFile
from danet.tools.report import intervals as statistics
from danet.tools.report.formats import without_places
from danet.tools.report.study import NOT_GIVEN, Cell, ImageCounts, Run, Study, Variant

# What two runs of one variant may differ in: the seed, names and places, and what changes no number.
NO_VARIANT = (
    *("seed", "name", "resume", "dataset.root", "runtime.", "tracking.", "evaluate.samples", "evaluate.batch_size"),
    *("train.log_every", "train.save_every"),
)
MAX_KEYS = 4  # in a variant's name


def read_run(folder: Path, label: str) -> Run:
    """Read a finished run.

    Raises:
        ValueError: it has not finished, or one of its files is damaged.
    """
    result = _json(folder / "result.json", remedy="the run has not finished; go on with it by resume=<its folder>")
    if result.get("miou") is None:
        raise ValueError(f"{folder / 'result.json'}: no miou; evaluate the run again")
    rows = MetricsFile(folder / "metrics.jsonl").rows()
    key = f"{result.get('split', 'val')}/miou"
    config = _flat(yaml.safe_load(_text(folder / "config.yaml", remedy="give run folders")))
    return Run(
        label=label,
        folder=folder,
        seed=int(result.get("seed", config.get("seed", 0))),
        result=result,
        environments=[_json(file) for file in sorted(folder.glob("environment*.json"), key=_resumed_at)],
        config=config,
        curve=[(row["step"], row[key]) for row in rows if row.get(key) is not None],
        last_step=max((row["step"] for row in rows), default=None),
        images=_image_counts(folder, result["miou"]),
    )


def read_sweep(folder: Path) -> Study:
    """Read a sweep: the cells that sweep.json declares, as far as they are there.

    Raises:
        ValueError: sweep.json is missing or damaged, a file of a run is, or nothing has finished.
    """
    sweep = _json(folder / "sweep.json", remedy="give a sweep's folder, such as sweep=outputs/sweeps/attention")
    if lacking := [key for key in ("name", "seeds", "variants") if not sweep.get(key)]:
        raise ValueError(f"{folder / 'sweep.json'} has no {', '.join(lacking)}: start the sweep again to write it anew")
    seeds = [int(seed) for seed in sweep["seeds"]]
    variants = []
    for name, facts in sweep["variants"].items():
        cells = [_read_cell(folder / name / f"seed{seed}", f"{name}/seed{seed}", seed) for seed in seeds]
        published = {setting: float(value) for setting, value in (facts.get("published") or {}).items()}
        variants.append(Variant(name, cells, facts.get("marks") or [], published, facts.get("overrides") or []))
    study = Study(f"Sweep {sweep['name']}", variants, sweep.get("baseline") or variants[0].name, seeds)
    if not study.runs:
        raise ValueError(f"{folder}: no run of it has finished; there is nothing to report yet")
    return study


def _read_cell(folder: Path, label: str, seed: int) -> Cell:
    if (folder / "result.json").is_file():
        run = read_run(folder, label)
        if run.seed != seed:
            raise ValueError(f"{folder}: its result.json is of seed {run.seed}; the folder's name says {seed}")
        return Cell(seed, "done", run)
    if (folder / "error.txt").is_file():
        lines = (folder / "error.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return Cell(seed, "failed", error=lines[-1].strip() if lines else "no text")
    return Cell(seed, "stopped" if (folder / "config.yaml").is_file() else "missing")


def read_runs(folders: Sequence[Path]) -> Study:
    """Read any runs; those whose configurations differ in nothing but the seed are one variant.

    Raises:
        ValueError: a run has not finished, a file is damaged, or two runs are of one variant and seed.
    """
    runs = [read_run(folder, label) for folder, label in zip(folders, _labels(folders), strict=True)]
    groups: list[tuple[dict[str, Any], list[Run]]] = []
    for run in runs:
        config = variant_config(run)
        for known, members in groups:
            if known == config:
                if other := next((m for m in members if m.seed == run.seed), None):
                    raise ValueError(f"runs: {other.folder} and {run.folder} are one variant and seed; leave one out")
                members.append(run)
                break
        else:
            groups.append((config, [run]))
    names = _names([config for config, _ in groups], [str(members[0].config.get("name")) for _, members in groups])
    seeds = sorted({run.seed for run in runs})
    variants = []
    for name, (_, members) in zip(names, groups, strict=True):
        by_seed = {run.seed: run for run in members}
        cells = [Cell(s, "done", by_seed[s]) if s in by_seed else Cell(s, NOT_GIVEN) for s in seeds]
        variants.append(Variant(name, cells))
    return Study(f"Comparison of {len(runs)} runs", variants, variants[0].name, seeds)


def _labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    for count in range(1, max(len(folder.parts) for folder in folders) + 1):
        labels = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(labels)) == len(labels):
            return labels
    raise ValueError("runs: a folder is given twice")


def variant_config(run: Run) -> dict[str, Any]:
    """The part of a run's configuration that makes its variant."""
    return {key: value for key, value in run.config.items() if not key.startswith(NO_VARIANT)}


def _names(configs: Sequence[Mapping[str, Any]], run_names: Sequence[str]) -> list[str]:
    """Names variants by the keys that differ; where these are many, by their runs' names if these tell them apart."""
    keys = dict.fromkeys(key for config in configs for key in config)
    telling = [key for key in keys if _tells_apart(key, configs)]
    parts = [[f"{k.removesuffix('.name')}={plain(config[k])}" for k in telling if k in config] for config in configs]
    if len(telling) > MAX_KEYS and len(set(run_names)) == len(run_names):
        return list(run_names)
    names = [without_places(", ".join(words)) or "all runs" for words in parts]
    return names if len(set(names)) == len(names) else [f"{name} #{index}" for index, name in enumerate(names, 1)]


def _tells_apart(key: str, configs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a key differs; of a component's options, whether they do so between variants with that component."""
    component = f"{key.partition('.')[0]}.name"
    kinds: dict[Any, set[str]] = {}
    for config in configs:
        kinds.setdefault(None if key == component else config.get(component), set()).add(plain(config.get(key)))
    return any(len(values) > 1 for values in kinds.values())


def plain(value: Any) -> str:
    """A value of a configuration as a command line has it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _image_counts(folder: Path, miou: float) -> ImageCounts | None:
    file = folder / "confusion_matrices.npz"
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as arrays:
        names, matrices = arrays["names"], arrays["matrices"]
    order = np.argsort(names, kind="stable")
    counts = statistics.image_counts(matrices[order])
    if abs((found := float(statistics.miou(counts.sum(axis=0)))) - miou) > 1e-6:
        raise ValueError(
            f"{file} gives an mIoU of {found:.6f}, result.json one of {miou:.6f}: they are of two evaluations;"
            " delete the file to report without it"
        )
    return ImageCounts(tuple(str(name) for name in names[order]), counts)


def _text(file: Path, remedy: str) -> str:
    if not file.is_file():
        raise ValueError(f"{file} is not there: {remedy}")
    return file.read_text(encoding="utf-8")


def _json(file: Path, remedy: str = "") -> dict[str, Any]:
    try:
        read = json.loads(_text(file, remedy))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error}): repair or delete it") from None
    assert isinstance(read, dict), file
    return read


def _resumed_at(file: Path) -> int:
    """The step in a name such as environment_step_250.json; 0 for the first."""
    return int(file.stem.rpartition("_")[2]) if file.stem != "environment" else 0


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
