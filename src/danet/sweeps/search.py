"""Searches: trials whose settings Optuna chooses by the scores of those before.

A trial is a run with the folder outputs/sweeps/<search>/trial<k>. The study (see trial.py) keeps what was chosen and
scored, so the same command goes on with it.
"""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from danet.registry import NonNegativeInt, PositiveInt
from danet.schema import ConfigError, check_dataclass
from danet.services import records
from danet.sweeps.sweep import SweepConfig, check_name, default_name, ending
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
class Interval:
    """All numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False  # equally many in each power of ten
    whole: bool = False  # whole numbers only


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Some values, as they stand on a command line."""

    values: tuple[str, ...]


Space = Mapping[str, Interval | Choice]


def plan(section: Mapping[str, Any], space: Space, common: Mapping[str, str]) -> str:
    """The name of the search that a configuration and a command line describe.

    Args:
        section: the configuration's `sweep`.
        space: what is searched, by key.
        common: the command line's other keys.

    Raises:
        ConfigError: lists every problem.
    """
    problems: list[str] = []
    config = check_dataclass(SweepConfig, dict(section), problems, "sweep.")
    if not space:
        problems.append(
            "hydra/sweeper=optuna: nothing to search; give keys with several values, such as "
            "'optimizer.lr=tag(log,interval(1e-4,1e-1))' 'head.reduction=choice(1,2,4,8)'"
        )
    if "seed" in space:
        problems.append("seed: a search is of settings and has one seed; a sweep of the best ones can have several")
    if section.get("variants"):
        problems.append("sweep.variants: hydra/sweeper=optuna has no variants; leave the ablation out")
    for key, values in space.items():
        if isinstance(values, Interval) and not values.low < values.high:
            problems.append(f"{key} = {values.low:g} to {values.high:g}: must be from a lower to a higher number")
        elif isinstance(values, Interval) and values.log and values.low <= 0:
            problems.append(f"{key} = {values.low:g} to {values.high:g}: must begin above 0 where it is logarithmic")
    name = (config and config.name) or f"search_{default_name(common, space)}"
    problems += check_name(name)
    if problems:
        raise ConfigError(problems)
    return name


def corner(space: Space) -> list[str]:
    """The overrides of one point of a space: each key's first value."""
    first = {key: values.low if isinstance(values, Interval) else values.values[0] for key, values in space.items()}
    return [f"{key}={value}" for key, value in first.items()]


class Search:
    """A search in its folder.

    Args:
        folder: outputs/sweeps/<name>; made where there is none.
        options: how to search.
        space: what is searched.
        common: overrides that all trials get.

    Raises:
        ConfigError: the folder has another search, or a sweep.

    Attributes:
        folder: as given.
        wanted: trials to be made in all.
    """

    def __init__(self, folder: Path, options: SearchConfig, space: Space, common: Sequence[str]) -> None:
        self.folder, self._options, self._space, self._common = folder, options, space, list(common)
        pruner = {"n_startup_trials": options.n_startup_trials, "n_warmup_steps": options.n_warmup_evaluations + 1}
        definition = {
            "name": folder.name,
            "space": {key: asdict(values) for key, values in space.items()},
            "common": self._common,
            "sampler": options.sampler,
            "seed": options.seed,
            "pruner": pruner if options.pruner == "median" else None,
        }
        file = folder / DEFINITION
        if (folder / "sweep.json").is_file():
            raise ConfigError([f"{folder}: has a sweep that is no search; choose another sweep.name"])
        if file.is_file() and json.loads(file.read_text())["space"] != json.loads(json.dumps(definition["space"])):
            raise ConfigError([f"{folder}: has a search of something else ({DEFINITION}); choose another sweep.name"])
        folder.mkdir(parents=True, exist_ok=True)
        records.write_json(file, definition)
        self._study = open_study(folder)
        self._attempted: set[int] = set()
        for number in self._unfinished():  # some may have ended when nobody was left to note it
            self.settle(number)
        self.wanted = options.n_trials + sum(trial.state.name == "FAIL" for trial in self.trials())

    def next(self) -> list[int]:
        """The trials to run next, at most n_jobs: interrupted ones first, then new ones; empty at the end."""
        waiting = [number for number in self._unfinished() if number not in self._attempted]
        numbers = waiting[: self._options.n_jobs]
        while len(numbers) < self._options.n_jobs and len(self.trials()) < self.wanted:
            self._study.sampler = self._sampler(len(self.trials()))
            numbers.append(self._study.ask(self._distributions()).number)
        self._attempted.update(numbers)
        return numbers

    def ended(self) -> int:
        """The number of trials that nothing is left to do for."""
        return len(self.trials()) - len(self._unfinished())

    def overrides(self, number: int) -> list[str]:
        """All that a trial's run gets."""
        return [*self._common, *self.settings(number)]

    def settings(self, number: int) -> list[str]:
        """What the search chose for a trial."""
        return [f"{key}={value}" for key, value in self.trials()[number].params.items()]

    def place(self, number: int) -> Path:
        """A trial's run folder."""
        return self.folder / f"trial{number}"

    def settle(self, number: int) -> None:
        """Note how a trial ended, from what its folder has; one that has only begun stays to be gone on with."""
        from optuna.trial import TrialState

        file = self.place(number) / "result.json"
        result = json.loads(file.read_text()) if file.is_file() else {}
        if result.get("pruned"):
            self._study.tell(number, state=TrialState.PRUNED)
        elif result.get("miou") is not None:
            self._study.tell(number, result["miou"])
        elif ending(self.place(number))[0] in ("done", "failed"):  # done, but with no class to score
            self._study.tell(number, state=TrialState.FAIL)

    def trials(self) -> "list[optuna.trial.FrozenTrial]":
        """All trials, by number."""
        return self._study.get_trials(deepcopy=False)

    def _unfinished(self) -> list[int]:
        return [trial.number for trial in self.trials() if not trial.state.is_finished()]

    def _distributions(self) -> "dict[str, optuna.distributions.BaseDistribution]":
        from optuna import distributions as d

        def distribution(values: Interval | Choice) -> d.BaseDistribution:
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

        seed = int(np.random.SeedSequence((self._options.seed, number)).generate_state(1)[0])
        if self._options.sampler == "random":
            return samplers.RandomSampler(seed)
        return samplers.TPESampler(seed=seed, constant_liar=self._options.n_jobs > 1)


# ---- how it ended ----------------------------------------------------------------------------------------------------

STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "stopped", "WAITING": "stopped"}


def ranking(search: Search) -> list[tuple[int, str, str]]:
    """A line for every trial (number, how it stands, its mIoU or the last line of its error), the best first."""
    order = list(STATES)
    trials = sorted(search.trials(), key=lambda trial: (order.index(trial.state.name), -(trial.value or 0.0)))
    return [(t.number, STATES[t.state.name], ending(search.place(t.number))[1]) for t in trials]


def write_trials(search: Search) -> None:
    """Write trials.csv: every trial with its state, mIoU in [0, 1], evaluations and settings."""
    trials = search.trials()
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    lines = [
        [t.number, STATES[t.state.name], t.value if t.value is not None else math.nan, len(t.intermediate_values)]
        + [str(t.params.get(key, "")) for key in keys]
        for t in trials
    ]
    records.write_csv(search.folder / "trials.csv", ["trial", "state", "miou", "evaluations", *keys], lines)


def importance(search: Search) -> dict[str, float]:
    """How much of what tells the best tenth of the trials apart is in each key; sums to 1, the largest first.

    Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces", IJCAI 2023.
    Empty where fewer than 20 trials were finished, which say too little.
    """
    if sum(trial.state.name == "COMPLETE" for trial in search.trials()) < MIN_TRIALS:
        return {}
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(open_study(search.folder), evaluator=evaluator)
