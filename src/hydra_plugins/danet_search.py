"""Hydra's side of searches by Optuna, which danet/sweeps/search.py defines."""

import importlib.util
import shlex
import sys
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override

from danet.config import shell_word
from danet.schema import ConfigError
from danet.services import console
from danet.services.places import command
from danet.sweeps import search
from danet.sweeps.search import Choice, NumberRange, Search
from hydra_plugins._danet_sweeps import FolderSweeper, alone, exit_if, placed

SHOWN = 10  # best trials in a search's table


class OptunaSweeper(FolderSweeper):
    """Lets Optuna choose what to run, with any of Hydra's launchers; a trial that fails does not stop the others.

    Args:
        max_batch_size: Hydra's own; not used.
        params: overrides, as on the command line.
        options: see SearchConfig.
    """

    def __init__(self, max_batch_size: int | None, params: Any = None, **options: Any) -> None:
        super().__init__(max_batch_size, params)
        self._options = options

    def _sweep(self, overrides: dict[str, Override]) -> Any:
        space = {key: _dimension(override) for key, override in overrides.items() if override.is_sweep_override()}
        common = {key: o.get_value_element_as_str() for key, o in overrides.items() if key not in space}
        name, config = search.plan(self._section(), self._options, space, common)
        fixed = [f"{key}={value}" for key, value in common.items() if not key.startswith("sweep.")]
        if self._given("hydra.sweep.subdir"):
            raise ConfigError(["hydra.sweep.subdir: a search numbers its trials; hydra.sweep.dir places their folder"])
        folder = self._folder(name)
        self._conflicts(folder / "none", [*fixed, *search.corner(space)])  # names, before anything is written
        if importlib.util.find_spec("optuna") is None:
            raise ConfigError(["hydra/sweeper=optuna: Optuna is not installed; run pip install 'danet[search]'"])
        with alone(folder):
            searched = Search(folder, config, space, fixed)
            self._run(searched)
            return self._report(searched)

    def _run(self, searched: Search) -> None:
        known = len(searched.trials())
        console.print_text(
            f"search {searched.folder}: {searched.remaining()} of {searched.config.n_trials} trials to do"
        )
        exit_if(self._trial_conflicts(searched, list(range(known))))  # same settings, code and data as before
        while numbers := searched.next():
            exit_if(self._trial_conflicts(searched, numbers))
            for number in numbers:
                console.print_text(f"trial {number}: {' '.join(searched.settings(number))}")
            self._launch([self._job(searched, number) for number in numbers], first=numbers[0])
            for number in numbers:
                searched.settle(number)

    def _job(self, searched: Search, number: int) -> list[str]:
        return [*searched.overrides(number), *placed(searched.folder, searched.place(number).name)]

    def _trial_conflicts(self, searched: Search, numbers: list[int]) -> list[str]:
        return [line for n in numbers for line in self._conflicts(searched.place(n), self._job(searched, n))]

    def _report(self, searched: Search) -> Any:
        """Print how the trials ended; returns the settings of the best."""
        search.write_trials(searched)
        lines = search.ranking(searched)
        done = [number for number, state, _ in lines if state == "done"]
        for number, state, detail in lines:
            if state in ("failed", "stopped") or number in done[:SHOWN]:
                console.print_text(f"  trial{number:<5} {state:8} {detail:12} {' '.join(searched.settings(number))}")
        states = [state for _, state, _ in lines]
        console.print_text(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))
        if weights := search.importance(searched):
            console.print_text("importance: " + ", ".join(f"{key} {weight:.2f}" for key, weight in weights.items()))
        self._print_tracking(searched.folder)
        if not done:
            sys.exit(1)
        console.print_text(f"best: {command('train')} {shlex.join(searched.overrides(done[0]))}")
        folders = ",".join(str(searched.place(number)) for number in done[:3])
        console.print_text(f"compare: {command('report')} {shell_word(f'runs=[{folders}]')}")
        return [searched.settings(done[0])]


def _dimension(override: Override) -> NumberRange | Choice:
    """The values of a key in Hydra's grammar, for Optuna."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        whole = isinstance(value.start, int)  # int(interval(1,9)); a plain interval's ends are floats
        assert value.start is not None
        assert value.end is not None
        return NumberRange(low=value.start, high=value.end, log="log" in value.tags, whole=whole)
    return Choice(values=tuple(override.sweep_string_iterator()))
