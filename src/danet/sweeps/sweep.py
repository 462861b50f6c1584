"""Sweeps: which runs belong to one, where each is kept, and how they ended.

A sweep is variants times seeds. A variant is a named list of overrides; its run with one seed is a cell, in the folder
outputs/sweeps/<sweep>/<variant>/seed<k>. sweep.json describes the sweep; the report is made from it.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danet.arguments import NonNegativeInt
from danet.schema import ConfigError, check_dataclass
from danet.services import atomic_files
from danet.sweeps.trial import DEFINITION

Name = re.compile(r"[^\W_][\w.+-]*")
# Keys that leave a sweep the same one, so that its folder is found again whatever they are.
NOT_IN_NAME = ("resume", "runtime", "tracking")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Overrides under a name: a row of the table."""

    overrides: Sequence[str] = ()  # such as head.cam=false
    marks: Sequence[str] = ()  # columns of the table with a check mark in this row
    published: dict[str, float] = dataclasses.field(default_factory=dict)  # mIoU in percent, by setting and source


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What `-m` runs, besides the keys that the command line sweeps."""

    name: str | None = None  # of its folder in outputs/sweeps; null: after the ablation, or after what is swept
    seeds: Sequence[NonNegativeInt] = (0,)  # seed=0,1,2 on the command line takes precedence
    baseline: str | None = None  # the variant that others are compared with; null: the first
    variants: dict[str, Any] | None = None  # by name: overrides, marks, published
    any_code: bool = False  # also count runs of another version of the code as done


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    variant: str
    seed: int
    overrides: tuple[str, ...]  # all of the run's, the seed included

    @property
    def subfolder(self) -> str:
        """Its folder, relative to the sweep's, unless hydra.sweep.subdir chooses another."""
        return f"{self.variant}/seed{self.seed}"


@dataclass(frozen=True)
class Sweep:
    """A checked sweep.

    Attributes:
        name: of its folder.
        baseline: the variant that others are compared with.
        variants: by name, in the table's order.
        seeds: of every variant.
        common: overrides of all cells.
        any_code: see SweepConfig.
    """

    name: str
    baseline: str
    variants: dict[str, Variant]
    seeds: tuple[int, ...]
    common: tuple[str, ...]
    any_code: bool

    def cells(self) -> list[Cell]:
        """All runs, seed by seed, so that a sweep that is stopped early has complete comparisons."""
        return [
            Cell(name, seed, (*self.common, *variant.overrides, f"seed={seed}"))
            for seed in self.seeds
            for name, variant in self.variants.items()
        ]

    def earlier_cells(self, folder: Path) -> list[Cell]:
        """The runs that earlier starts put into a folder besides this one's, with what is common to all now."""
        file = folder / "sweep.json"
        before = atomic_files.read_json(file) if file.is_file() else {"seeds": [], "variants": {}}
        variants = {name: tuple(values["overrides"]) for name, values in before["variants"].items()}
        variants |= {name: tuple(variant.overrides) for name, variant in self.variants.items()}
        seeds = sorted({*before["seeds"], *self.seeds})
        own = {cell.subfolder for cell in self.cells()}
        cells = [
            Cell(name, seed, (*self.common, *overrides, f"seed={seed}"))
            for seed in seeds
            for name, overrides in variants.items()
        ]
        return [cell for cell in cells if cell.subfolder not in own]

    def write(self, folder: Path, places: Mapping[str, str]) -> None:
        """Write sweep.json, and keep the seeds and variants of earlier starts.

        Args:
            folder: of the sweep.
            places: by cell's subfolder, where hydra.sweep.subdir puts it instead.
        """
        file = folder / "sweep.json"
        before = atomic_files.read_json(file) if file.is_file() else {"seeds": [], "variants": {}}
        variants = {name: dataclasses.asdict(variant) for name, variant in self.variants.items()}
        folder.mkdir(parents=True, exist_ok=True)
        atomic_files.write_json(
            file,
            {
                "name": self.name,
                "baseline": self.baseline,
                "seeds": sorted({*before["seeds"], *self.seeds}),
                "common": list(self.common),
                "variants": {**before["variants"], **variants},
                **({"folders": moved} if (moved := {**before.get("folders", {}), **places}) else {}),
            },
        )


def plan(section: Mapping[str, Any], arguments: Mapping[str, Sequence[str]]) -> Sweep:
    """The sweep of a configuration and a command line.

    Args:
        section: the configuration's `sweep`.
        arguments: the values of each key and group on the command line; several where it is swept.

    Raises:
        ConfigError: lists every problem.
    """
    problems: list[str] = []
    config = check_dataclass(SweepConfig, dict(section), problems, "sweep.")
    named: dict[str, Variant] = {}
    for name, values in (section.get("variants") or {}).items():
        if not Name.fullmatch(str(name)):
            problems.append(f"sweep.variants.{name}: not a valid folder name; use letters, digits and _ . + -")
        if not isinstance(values, dict):
            problems.append(f"sweep.variants.{name} = {values!r}: must be a section, such as {{overrides: [head=fcn]}}")
        elif variant := check_dataclass(Variant, values, problems, f"sweep.variants.{name}."):
            named[str(name)] = variant
    if config is None or problems:
        raise ConfigError(problems)
    arguments = {"seed" if key.lstrip("+") == "seed" else key: values for key, values in arguments.items()}
    seeds = arguments.pop("seed", None) or [str(seed) for seed in config.seeds]
    swept = {key: values for key, values in arguments.items() if len(values) > 1}
    problems += ablation_problems(swept)
    common = {key: values[0] for key, values in arguments.items() if len(values) == 1}
    variants = _crossed(named, swept)
    baseline = config.baseline or next(iter(variants))
    if baseline in named:  # its first combination
        baseline = next(iter(_crossed({baseline: named[baseline]}, swept)))
    elif baseline not in variants:
        baseline = next((name for name in variants if name.startswith(f"{baseline}_")), baseline)
    if baseline not in variants:
        problems.append(f"sweep.baseline = {baseline!r}: no such variant; choose one of {', '.join(variants)}")
    if not all(seed.isdecimal() for seed in seeds):
        problems.append(f"seed = {', '.join(seeds)}: must be whole numbers, 0 or more")
    name = config.name or default_name(common, swept)
    problems += check_name(name)
    if problems:
        raise ConfigError(problems)
    overrides = tuple(f"{key}={value}" for key, value in common.items() if not key.startswith("sweep."))
    return Sweep(name, baseline, variants, tuple(sorted({int(seed) for seed in seeds})), overrides, config.any_code)


def _crossed(named: Mapping[str, Variant], swept: Mapping[str, Sequence[str]]) -> dict[str, Variant]:
    """Every named variant with every combination of swept values.

    Raises:
        ConfigError: two of them would have the same folder.
    """
    variants = dict(named) or {"": Variant()}
    for key, values in swept.items():
        crossed: dict[str, Variant] = {}
        for name, variant in variants.items():
            for value in values:
                own = "_".join(filter(None, (name, f"{_plain(key.rpartition('.')[2])}-{_plain(value)}")))
                if own in crossed:
                    raise ConfigError([f"{key} = {', '.join(values)}: two values have the same folder, {own}"])
                overrides = (*variant.overrides, f"{key}={value}")
                crossed[own] = dataclasses.replace(variant, overrides=overrides)
        variants = crossed
    return {name or "run": variant for name, variant in variants.items()}


def ablation_problems(swept: Mapping[str, Any]) -> list[str]:
    """A line if several ablations are given: Hydra sets the variants of none of them."""
    if "ablation" not in swept:
        return []
    return ["ablation: several at once; a sweep has one ablation, so give one command for each"]


def check_name(name: str) -> list[str]:
    """Problems of a sweep's name, a line each."""
    if Name.fullmatch(name):
        return []
    return [f"sweep.name = {name!r}: not a valid folder name; use letters, digits and _ . + -"]


def default_name(common: Mapping[str, str], swept: Iterable[str]) -> str:
    """A name made of the ablation, the keys that are swept and the groups that were chosen."""
    chosen = [common[key] for key in ("ablation",) if key in common]
    chosen += [_plain(key.rpartition(".")[2]) for key in swept]
    chosen += [value for key, value in common.items() if key.isidentifier() and key not in ("ablation", *NOT_IN_NAME)]
    return "_".join(_plain(word) for word in chosen) or "seeds"


def _plain(text: str) -> str:
    words = re.sub(r"[^\w.+-]+", "-", text.strip("'\"[]{} "))
    return re.sub(r"^-+(?!\.?\d)|-+$", "", words) or "none"  # keeps the minus of a number


# ---- outcome ---------------------------------------------------------------------------------------------------------


# A run's state by the files in its folder; the first one counts.
STATES = {"result.json": "done", "error.txt": "failed", "config.yaml": "stopped"}


def state_of(folder: Path) -> str:
    """The state of the run in a folder: done, failed, stopped or missing."""
    return next((state for file, state in STATES.items() if (folder / file).is_file()), "missing")


def sweep_of(run: Path) -> Path | None:
    """The folder of the sweep or search that a run belongs to."""
    files = ("sweep.json", DEFINITION)
    return next((above for above in run.parents if any((above / file).is_file() for file in files)), None)


def cell_folder(folder: Path, sweep: Mapping[str, Any], variant: str, seed: int) -> Path:
    """The folder of a sweep's cell.

    Args:
        folder: of the sweep.
        sweep: content of its sweep.json.
        variant: name of the variant.
        seed: of the run.
    """
    usual = f"{variant}/seed{seed}"
    return folder / sweep.get("folders", {}).get(usual, usual)


def finished_runs(folder: Path) -> list[Path]:
    """The folders of a sweep's finished runs, in the table's order.

    Raises:
        ConfigError: it is no sweep's, or has none.
    """
    file = folder / "sweep.json"
    if not file.is_file():
        raise ConfigError([f"sweep = {str(folder)!r}: has no sweep.json; give a sweep's folder, as in outputs/sweeps/"])
    sweep = atomic_files.read_json(file)
    cells = [cell_folder(folder, sweep, name, seed) for name in sweep["variants"] for seed in sweep["seeds"]]
    if finished := [cell for cell in cells if state_of(cell) == "done"]:
        return finished
    raise ConfigError([f"sweep = {str(folder)!r}: no run has finished yet"])


def last_error_line(folder: Path) -> str:
    """The last line of what a failed run died of."""
    lines = (folder / "error.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def ending(folder: Path) -> tuple[str, str]:
    """The state of the run in a folder, and its mIoU or the last line of its error; "busy" while another writes it."""
    state = state_of(folder)
    if state != "done" and folder.is_dir() and atomic_files.is_locked(folder):
        return "busy", "another process is still writing this run"
    if state == "done":
        miou = atomic_files.read_json(folder / "result.json")["miou"]
        return state, "n/a" if miou is None else f"mIoU {100 * miou:.2f}"
    return state, last_error_line(folder) if state == "failed" else ""


def summary(sweep: Sweep, folder: Path, places: Mapping[str, str]) -> tuple[list[tuple[str, str, str]], int]:
    """A line for each cell (folder, state, detail), and the number of cells that are not done."""
    subfolders = [places.get(cell.subfolder, cell.subfolder) for cell in sweep.cells()]
    lines = [(subfolder, *ending(folder / subfolder)) for subfolder in subfolders]
    return lines, sum(state != "done" for _, state, _ in lines)
