"""Hydra's side of sweeps and searches: takes the command line apart, starts the runs, says how they ended.

Hydra accepts plugins from this package only; what a sweep is stands in danet/sweep.py, what a search is in
danet/search.py.
"""

import importlib.util
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import OmegaConf

from danet.config import quoted, shell_word
from danet.schema import ConfigError, check_dataclass
from danet.services import console, records
from danet.sweeps.search import Choice, Interval, Search, SearchConfig, corner, importance, ranking, write_trials
from danet.sweeps.search import plan as plan_search
from danet.sweeps.sweep import Sweep, ending, plan, summary

SHOWN = 10  # of a search's trials, the best


class _Sweeper(BasicSweeper):
    """What the sweepers share; `_target_` names the two below."""

    def _overrides(self, arguments: list[str]) -> dict[str, Override]:
        """The command line by key, after the sweeper's own `params`; of a key given twice the last one counts."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        params = [f"{key}={value}" for key, value in (self.params or {}).items()]
        found: dict[str, Override] = {}
        for override in parser.parse_overrides([*params, *arguments]):
            key = override.get_key_element()
            found.pop(key, None)  # the last one's place, too
            found[key] = override
        return found

    def _section(self) -> dict[str, Any]:
        """The configuration's `sweep`, plain."""
        assert self.config is not None
        section = OmegaConf.to_container(self.config.get("sweep") or OmegaConf.create({}), resolve=True)
        assert isinstance(section, dict)
        return {str(key): value for key, value in section.items()}

    def _folder(self, name: str) -> Path:
        assert self.config is not None
        return Path(self.config.hydra.sweep.dir) / name

    def _problems(self, place: Path, job: list[str]) -> list[str]:
        """Why the run in a folder is not the one that would be started there. Ends where names do not exist."""
        assert self.config is not None
        assert self.hydra_context is not None
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, job)
        composed = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        if not (place / "environment.json").is_file():
            return []
        from danet import config
        from danet.training import run  # here, for a new sweep need not wait for PyTorch

        try:
            return run.resume_conflicts(
                place, config.load(composed, job), any_code=bool(self._section().get("any_code"))
            )
        except ConfigError as error:
            return [f"{place}: {line}" for line in error.problems]

    def _launch(self, jobs: list[list[str]], first: int = 0) -> Any:
        """Run jobs. What one of them died of does not end the sweep: the folders tell how each run stands."""
        assert self.launcher is not None
        try:
            return self.launcher.launch(jobs, initial_job_idx=first)
        except Exception as error:  # a job that was killed, or a launcher that cannot work
            _say(f"the launcher ended with {type(error).__name__}: {error}")
            return []

    def _say_tracking(self, folder: Path) -> None:
        """Say how to open the runs in Weights & Biases."""
        from danet.services import tracking

        assert self.config is not None
        given = self.config.tracking
        place = {"project": given.project, "entity": given.entity, "group": given.group or folder.name}
        for line in tracking.how_to_open(folder, **place):
            _say(line)


class VariantSweeper(_Sweeper):
    """Runs variants times seeds with any of Hydra's launchers; a cell that fails does not stop the others."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run the cells that are not done; exit code 1 where one is not done afterwards.

        Args:
            arguments: the command line's overrides, without those of Hydra itself.
        """
        values: dict[str, list[str]] = {}
        for key, override in self._overrides(arguments).items():
            if isinstance(override.value(), IntervalSweep):
                sys.exit(f"ConfigError: {key}: an interval cannot be enumerated; use hydra/sweeper=optuna")
            if override.is_sweep_override():
                values[key] = list(override.sweep_string_iterator())
            else:
                values[key] = [override.get_value_element_as_str()]
        found = _checked(lambda: plan(self._section(), values))
        folder = self._folder(found.name)
        jobs = self._jobs(found, folder)
        found.write(folder)
        _say(f"sweep {folder}: {len(jobs)} of {len(found.cells())} runs to do")
        returns = self._launch(jobs) if jobs else []

        lines, undone = summary(found, folder)
        for subfolder, state, detail in lines:
            _say(f"  {subfolder:32} {state:8} {detail}")
        self._say_tracking(folder)
        if undone:
            sys.exit(1)
        _say(f"table: python src/report.py {shell_word(f'sweep={folder}')}")
        return [returns]

    def _jobs(self, found: Sweep, folder: Path) -> list[list[str]]:
        """The overrides of every cell that is not done. Ends with a message where a folder holds another run."""
        jobs, problems = [], []
        for cell in found.cells():
            job = [*cell.overrides, *_placed(folder, cell.subfolder)]
            if ending(folder / cell.subfolder)[0] != "done":
                jobs.append(job)
            problems += self._problems(folder / cell.subfolder, job)
        _end_with(problems)
        return jobs


class OptunaSweeper(_Sweeper):
    """Lets Optuna choose what to run; works with any of Hydra's launchers. A trial that fails does not stop the others.

    Args:
        max_batch_size: not used; Hydra's own.
        params: as the command line's overrides.
        options: see SearchConfig.
    """

    def __init__(self, max_batch_size: int | None, params: Any = None, **options: Any) -> None:
        super().__init__(max_batch_size, params)
        self._options = options

    def sweep(self, arguments: list[str]) -> Any:
        """Run trials until there are as many as asked for; exit code 1 where none has a score.

        Args:
            arguments: the command line's overrides, without those of Hydra itself.
        """
        space: dict[str, Interval | Choice] = {}
        common: dict[str, str] = {}
        for key, override in self._overrides(arguments).items():
            if override.is_sweep_override():
                space[key] = _dimension(override)
            else:
                common[key] = override.get_value_element_as_str()
        options = _checked(lambda: _options(self._options))
        name = _checked(lambda: plan_search(self._section(), space, common))
        fixed = [f"{key}={value}" for key, value in common.items() if not key.startswith("sweep.")]
        folder = self._folder(name)
        self._problems(folder / "none", [*fixed, *corner(space)])  # names, before anything is written
        if importlib.util.find_spec("optuna") is None:
            sys.exit(
                "ConfigError: hydra/sweeper=optuna: Optuna is not installed; `pip install -e '.[search]'` does that"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with records.lock(folder) as free:
            if not free:
                sys.exit(f"ConfigError: {folder}: another process works on this search; see n_jobs")
            search = _checked(lambda: Search(folder, options, space, fixed))
            self._run(search, options)
            return self._report(search)

    def _run(self, search: Search, options: SearchConfig) -> None:
        known = len(search.trials())
        _say(f"search {search.folder}: {search.wanted - search.ended()} of {options.n_trials} trials to do")
        checked = {known - 1} if known else set()  # the code and the data must be those of the trials before
        _end_with(self._trial_problems(search, checked))
        while numbers := search.next():
            _end_with(self._trial_problems(search, set(numbers)))
            for number in numbers:
                _say(f"trial {number}: {' '.join(search.settings(number))}")
            self._launch([self._job(search, number) for number in numbers], first=numbers[0])
            for number in numbers:
                search.settle(number)

    def _job(self, search: Search, number: int) -> list[str]:
        return [*search.overrides(number), *_placed(search.folder, search.place(number).name)]

    def _trial_problems(self, search: Search, numbers: set[int]) -> list[str]:
        return [line for n in numbers for line in self._problems(search.place(n), self._job(search, n))]

    def _report(self, search: Search) -> Any:
        """Say how the trials ended; returns the settings of the best."""
        write_trials(search)
        lines = ranking(search)
        done = [number for number, state, _ in lines if state == "done"]
        for number, state, detail in lines:
            if state in ("failed", "stopped") or number in done[:SHOWN]:
                _say(f"  trial{number:<5} {state:8} {detail:12} {' '.join(search.settings(number))}")
        states = [state for _, state, _ in lines]
        _say(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))
        if weights := importance(search):
            _say("importance: " + ", ".join(f"{key} {weight:.2f}" for key, weight in weights.items()))
        self._say_tracking(search.folder)
        if not done:
            sys.exit(1)
        _say(f"best: python src/train.py {shlex.join(search.overrides(done[0]))}")
        folders = ",".join(str(search.place(number)) for number in done[:3])
        _say(f"compare: python src/report.py {shell_word(f'runs=[{folders}]')}")
        return [search.settings(done[0])]


def _options(given: dict[str, Any]) -> SearchConfig:
    problems: list[str] = []
    options = check_dataclass(SearchConfig, given, problems, "hydra.sweeper.")
    if options is None:
        raise ConfigError(problems)
    return options


def _dimension(override: Override) -> Interval | Choice:
    """What Hydra's grammar says of a key, for Optuna."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        whole = isinstance(value.start, int)  # int(interval(1,9)); a plain interval's ends are floats
        assert value.start is not None
        assert value.end is not None
        return Interval(low=value.start, high=value.end, log="log" in value.tags, whole=whole)
    return Choice(values=tuple(override.sweep_string_iterator()))


def _placed(folder: Path, subfolder: str) -> list[str]:
    return [f"hydra.sweep.dir={quoted(str(folder))}", f"hydra.sweep.subdir={quoted(subfolder)}"]


def _checked(function: Callable[[], Any]) -> Any:
    """What `function` gives; ends with the message where the configuration is wrong."""
    try:
        return function()
    except ConfigError as error:
        sys.exit(f"ConfigError: {error}")


def _end_with(problems: list[str]) -> None:
    """End where folders hold other runs."""
    if problems:
        remedy = "Choose another sweep.name, or remove these folders to run them again."
        sys.exit(f"ConfigError: {ConfigError(problems)}\n{remedy}")


def _say(text: str) -> None:
    console.print_text(text)
