"""Searches: Optuna chooses the settings of each trial by the scores of earlier ones.

A trial is a run in the folder outputs/sweeps/<search>/trial<k>. The study (see trial.py) records what was chosen and
scored, so the same command continues the search.
"""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from danet.arguments import NonNegativeInt, PositiveInt
from danet.schema import ConfigError, check_dataclass
from danet.services import atomic_files, tables
from danet.sweeps.sweep import SweepConfig, ablation_problems, check_name, default_name, ending
from danet.sweeps.trial import DEFINITION, open_study

if TYPE_CHECKING:
    import optuna

MIN_TRIALS = 20  # finished, for a statement about importance


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How Optuna searches: the keys of hydra/sweeper=optuna."""

    n_trials: PositiveInt = 20  # in all, with those of earlier starts that have not failed
    n_jobs: PositiveInt = 1  # trials that the launcher gets at a time
    sampler: Literal["tpe", "random"] = "tpe"
    seed: NonNegativeInt = 0  # of the sampler
    pruner: Literal["median", "none"] = "median"
    n_startup_trials: NonNegativeInt = 5  # finished trials before the first is pruned
    n_warmup_evaluations: NonNegativeInt = 0  # of a trial before it may be pruned


@dataclass(frozen=True, kw_only=True)
class NumberRange:
    """All numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False  # uniform in the logarithm
    whole: bool = False  # whole numbers only


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Several values, as written on a command line."""

    values: tuple[str, ...]


Space = Mapping[str, NumberRange | Choice]


def plan(
    section: Mapping[str, Any], options: Mapping[str, Any], space: Space, common: Mapping[str, str]
) -> tuple[str, SearchConfig]:
    """Check a search: its name, and how to search.

    Args:
        section: the configuration's `sweep`.
        options: the configuration's `hydra.sweeper`.
        space: what is searched, by key.
        common: the command line's other keys.

    Raises:
        ConfigError: lists every problem.
    """
    problems: list[str] = []
    config = check_dataclass(SweepConfig, dict(section), problems, "sweep.")
    search = check_dataclass(SearchConfig, dict(options), problems, "hydra.sweeper.")
    if not space:
        problems.append(
            "hydra/sweeper=optuna: nothing to search; give keys with several values, such as "
            "'optimizer.lr=tag(log,interval(1e-4,1e-1))' 'head.reduction=choice(1,2,4,8)'"
        )
    if "seed" in space:
        problems.append("seed: a search has one seed; sweep over several seeds with the best settings afterwards")
    problems += ablation_problems(space)
    if section.get("variants"):
        problems.append("sweep.variants: not supported by hydra/sweeper=optuna; leave the ablation out")
    for key, values in space.items():
        if not isinstance(values, NumberRange):
            continue
        if not values.low < values.high:
            problems.append(f"{key} = {values.low:g} to {values.high:g}: the first number must be the lower one")
        elif values.log and values.low <= 0:
            problems.append(f"{key} = {values.low:g} to {values.high:g}: a logarithmic range must start above 0")
    name = (config and config.name) or f"search_{default_name(common, space)}"
    problems += check_name(name)
    if problems or search is None:
        raise ConfigError(problems)
    return name, search


def corner(space: Space) -> list[str]:
    """The overrides of one point of a space: each key's first value."""
    return [f"{k}={v.low if isinstance(v, NumberRange) else v.values[0]}" for k, v in space.items()]


class Search:
    """A search in its folder.

    Args:
        folder: outputs/sweeps/<name>; created if missing.
        config: how to search.
        space: what is searched.
        common: overrides of all trials.

    Raises:
        ConfigError: the folder holds another search, or a sweep.

    Attributes:
        folder, config: as given.
        wanted: number of trials at the end, those that failed included.
    """

    def __init__(self, folder: Path, config: SearchConfig, space: Space, common: Sequence[str]) -> None:
        self.folder, self.config, self._space, self._common = folder, config, space, list(common)
        pruner = {"n_startup_trials": config.n_startup_trials, "n_warmup_steps": config.n_warmup_evaluations + 1}
        definition = {
            "name": folder.name,
            "space": {key: asdict(values) for key, values in space.items()},
            "common": self._common,
            "sampler": config.sampler,
            "seed": config.seed,
            "pruner": pruner if config.pruner == "median" else None,
        }
        file = folder / DEFINITION
        if (folder / "sweep.json").is_file():
            raise ConfigError([f"{folder}: holds a sweep, not a search; choose another sweep.name"])
        if file.is_file() and atomic_files.read_json(file)["space"] != json.loads(json.dumps(definition["space"])):
            raise ConfigError([f"{folder}: holds a search of other keys ({DEFINITION}); choose another sweep.name"])
        folder.mkdir(parents=True, exist_ok=True)
        atomic_files.write_json(file, definition)
        self._study = open_study(folder)
        self._attempted: set[int] = set()
        for number in self._unfinished():  # some may have ended after the search was killed
            self.settle(number)
        self.wanted = config.n_trials + sum(trial.state.name == "FAIL" for trial in self.trials())

    def next(self) -> list[int]:
        """The trials to run next, at most n_jobs: interrupted ones first, then new ones; empty at the end."""
        waiting = [number for number in self._unfinished() if number not in self._attempted]
        numbers = waiting[: self.config.n_jobs]
        while len(numbers) < self.config.n_jobs and len(self.trials()) < self.wanted:
            self._study.sampler = self._sampler(len(self.trials()))
            numbers.append(self._study.ask(self._distributions()).number)
        self._attempted.update(numbers)
        return numbers

    def remaining(self) -> int:
        """Number of trials that are still to be run or finished."""
        return max(0, self.wanted - len(self.trials())) + len(self._unfinished())

    def overrides(self, number: int) -> list[str]:
        """All overrides of a trial's run."""
        return [*self._common, *self.settings(number)]

    def settings(self, number: int) -> list[str]:
        """The overrides that the search chose for a trial."""
        return [f"{key}={value}" for key, value in self.trials()[number].params.items()]

    def place(self, number: int) -> Path:
        """A trial's run folder."""
        return self.folder / f"trial{number}"

    def settle(self, number: int) -> None:
        """Record how a trial ended, from the files in its folder; an interrupted one stays open to be resumed."""
        from optuna.trial import TrialState

        file = self.place(number) / "result.json"
        result = atomic_files.read_json(file) if file.is_file() else {}
        if result.get("pruned"):
            self._study.tell(number, state=TrialState.PRUNED)
        elif result.get("miou") is not None:
            self._study.tell(number, result["miou"])
        elif ending(self.place(number))[0] in ("done", "failed"):  # done without any class to score
            self._study.tell(number, state=TrialState.FAIL)

    def trials(self) -> "list[optuna.trial.FrozenTrial]":
        """All trials, by number."""
        return self._study.get_trials(deepcopy=False)

    def _unfinished(self) -> list[int]:
        return [trial.number for trial in self.trials() if not trial.state.is_finished()]

    def _distributions(self) -> "dict[str, optuna.distributions.BaseDistribution]":
        from optuna import distributions as d

        def distribution(values: NumberRange | Choice) -> d.BaseDistribution:
            if isinstance(values, Choice):
                return d.CategoricalDistribution(values.values)
            if values.whole:
                return d.IntDistribution(int(values.low), int(values.high), log=values.log)
            return d.FloatDistribution(values.low, values.high, log=values.log)

        return {key: distribution(values) for key, values in self._space.items()}

    def _sampler(self, number: int) -> "optuna.samplers.BaseSampler":
        """A sampler whose choice is a function of the seed, the trial's number and the trials before it."""
        import numpy as np
        from optuna import samplers

        seed = int(np.random.SeedSequence((self.config.seed, number)).generate_state(1)[0])
        if self.config.sampler == "random":
            return samplers.RandomSampler(seed)
        return samplers.TPESampler(seed=seed, constant_liar=self.config.n_jobs > 1)


# ---- outcome ---------------------------------------------------------------------------------------------------------

TRIAL_STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "stopped", "WAITING": "stopped"}


def ranking(search: Search) -> list[tuple[int, str, str]]:
    """A line for each trial (number, state, mIoU or last line of its error), the best first."""
    order = list(TRIAL_STATES)
    trials = sorted(search.trials(), key=lambda trial: (order.index(trial.state.name), -(trial.value or 0.0)))
    return [(t.number, TRIAL_STATES[t.state.name], ending(search.place(t.number))[1]) for t in trials]


def write_trials(search: Search) -> None:
    """Write trials.csv: each trial with its state, mIoU in [0, 1], number of evaluations and settings."""
    trials = search.trials()
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    lines = []
    for trial in trials:
        miou = trial.value if trial.value is not None else math.nan
        settings = [str(trial.params.get(key, "")) for key in keys]
        lines.append([trial.number, TRIAL_STATES[trial.state.name], miou, len(trial.intermediate_values), *settings])
    tables.write_csv(search.folder / "trials.csv", ["trial", "state", "miou", "evaluations", *keys], lines)


def importance(search: Search) -> dict[str, float]:
    """The share of each key in what distinguishes the best tenth of the trials; sums to 1, the largest first.

    Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces", IJCAI 2023.
    Empty if fewer than 20 trials were finished, which are too few for an estimate.
    """
    if sum(trial.state.name == "COMPLETE" for trial in search.trials()) < MIN_TRIALS:
        return {}
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(open_study(search.folder), evaluator=evaluator)
