"""Hydra's side of sweeps and searches: parses the command line, starts the runs, prints how they ended.

Hydra finds plugins in this package only; danet/sweeps/ defines what a sweep and what a search is.
"""

import contextlib
import importlib.util
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from danet.config import OUTPUTS, quoted, shell_word
from danet.schema import ConfigError
from danet.services import atomic_files, console, failures, signals
from danet.services.places import command
from danet.sweeps import search, sweep
from danet.sweeps.search import Choice, NumberRange, Search
from danet.sweeps.sweep import Sweep

SHOWN = 10  # best trials in a search's table


class _Sweeper(BasicSweeper):
    """The common part of the two sweepers below, which `_target_` names."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run what is not done; exit code 1 if it is not done afterwards.

        Args:
            arguments: the command line's overrides, without those of Hydra itself.
        """
        with failures.one_line():
            return self._sweep(self._overrides(arguments))

    def _sweep(self, overrides: dict[str, Override]) -> Any:
        raise NotImplementedError

    def _overrides(self, arguments: list[str]) -> dict[str, Override]:
        """The command line by key, after the sweeper's own `params`; the last override of a key counts."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        params = [f"{key}={value}" for key, value in (self.params or {}).items()]
        overrides: dict[str, Override] = {}
        for override in parser.parse_overrides([*params, *arguments]):
            key = override.get_key_element()
            overrides.pop(key, None)  # the last one's position counts, too
            overrides[key] = override
        return overrides

    def _section(self) -> dict[str, Any]:
        """The `sweep` section as plain values."""
        assert self.config is not None
        section = OmegaConf.to_container(self.config.get("sweep") or OmegaConf.create({}), resolve=True)
        assert isinstance(section, dict)
        return {str(key): value for key, value in section.items()}

    def _folder(self, name: str) -> Path:
        """The sweep's folder: what hydra.sweep.dir says, else outputs/sweeps/NAME."""
        assert self.config is not None
        given = Path(self.config.hydra.sweep.dir).absolute()
        return given / name if given == OUTPUTS / "sweeps" else given

    def _given(self, key: str) -> bool:
        """Whether the command line sets one of Hydra's own keys."""
        assert self.config is not None
        lines = OmegaConf.to_container(self.config.hydra.overrides.hydra, resolve=False)
        return any(str(line).lstrip("+").partition("=")[0] == key for line in lines or ())

    def _conflicts(self, folder: Path, job: list[str], *, told: bool = True) -> list[str]:
        """Why the run in a folder is not the one that the job would start there.

        Args:
            folder: of the run.
            job: its overrides.
            told: whether a configuration that does not hold is a reason, or raised.

        Raises:
            ConfigCompositionException: the job has names that do not exist.
            ConfigError: see `told`.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, job)
        composed = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        if not (folder / "environment.json").is_file():
            return []
        from danet import config
        from danet.training import description  # imported here, so that a new sweep does not wait for PyTorch

        try:
            run_config = config.load(composed, job)
        except ConfigError as error:
            if not told:
                raise
            return [f"{folder}: {line}" for line in error.problems]
        return description.resume_conflicts(folder, run_config, any_code=bool(self._section().get("any_code")))

    def _launch(self, jobs: list[list[str]], first: int = 0) -> Any:
        """Run jobs. An error of one does not end the sweep: the folders tell how each run ended."""
        assert self.launcher is not None
        pooled = "joblib" in type(self.launcher).__module__  # its processes outlive this one
        with contextlib.ExitStack() as stack:
            received = stack.enter_context(signals.passed_to(_pool)) if pooled else []
            try:
                returns = self.launcher.launch(jobs, initial_job_idx=first)
            except Exception as error:  # a job that was killed, or a launcher that does not work here
                if not received:
                    console.print_text(f"the launcher ended with {type(error).__name__}: {error}")
                returns = []
        if received:
            name = signal.Signals(received[0]).name
            console.print_text(f"{name} received: the runs have saved and stopped; the same command goes on")
            sys.exit(signals.EXIT_CODE)
        return returns

    def _print_tracking(self, folder: Path) -> None:
        """Print how to open the runs in Weights & Biases."""
        from danet.services.tracking import addresses

        assert self.config is not None
        given = self.config.tracking
        group = addresses.group_name(given.group, folder.name)
        place = {"project": given.project, "entity": given.entity, "group": str(group)}
        for line in addresses.how_to_open(folder, **place):
            console.print_text(line)


class VariantSweeper(_Sweeper):
    """Runs variants times seeds with any of Hydra's launchers; a run that fails does not stop the others."""

    def _sweep(self, overrides: dict[str, Override]) -> Any:
        values: dict[str, list[str]] = {}
        for key, override in overrides.items():
            if isinstance(override.value(), IntervalSweep):
                remedy = "list them: seed=0,1,2" if key == "seed" else "use hydra/sweeper=optuna"
                raise ConfigError([f"{key}: an interval cannot be enumerated; {remedy}"])
            swept = override.is_sweep_override()
            values[key] = list(override.sweep_string_iterator()) if swept else [override.get_value_element_as_str()]
        planned = sweep.plan(self._section(), values)
        folder = self._folder(planned.name)
        places = self._places(planned, folder)
        jobs = self._jobs(planned, folder, places)
        with _alone(folder):
            planned.write(folder, places)
            console.print_text(f"sweep {folder}: {len(jobs)} of {len(planned.cells())} runs to do")
            returns = self._launch(jobs) if jobs else []

        lines, undone = sweep.summary(planned, folder, places)
        for subfolder, state, detail in lines:
            console.print_text(f"  {subfolder:32} {state:8} {detail}")
        self._print_tracking(folder)
        if undone:
            sys.exit(1)
        console.print_text(f"table: {command('report')} {shell_word(f'sweep={folder}')}")
        return [returns]

    def _places(self, planned: Sweep, folder: Path) -> dict[str, str]:
        """The folders of cells by hydra.sweep.subdir, where the command line has one; an earlier start's stay.

        Raises:
            ConfigError: two cells have the same, or the folder has another sweep.
        """
        before = atomic_files.read_json(folder / "sweep.json") if (folder / "sweep.json").is_file() else {}
        if before.get("name", planned.name) != planned.name:
            raise ConfigError([f"{folder}: holds the sweep {before['name']}, this one is {planned.name}"])
        places: dict[str, str] = dict(before.get("folders", {}))
        for number, cell in enumerate(planned.cells() if self._given("hydra.sweep.subdir") else ()):
            if cell.subfolder not in places:
                place = self._subdir(list(cell.overrides), number)
                if place in places.values():
                    raise ConfigError([f"hydra.sweep.subdir: several runs have the same folder, {place}"])
                places[cell.subfolder] = place
        return places

    def _subdir(self, job: list[str], number: int) -> str:
        """What hydra.sweep.subdir is in a job."""
        assert self.config is not None
        assert self.hydra_context is not None
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, job)
        composed.hydra.job.num = number
        return str(composed.hydra.sweep.subdir)

    def _jobs(self, planned: Sweep, folder: Path, places: Mapping[str, str]) -> list[list[str]]:
        """The overrides of each cell that is not done.

        Exits if a folder holds another run, or an earlier start's differs in more than its variant and seed: the report
        would compare them.
        """
        jobs, conflicts = [], []
        for cell in planned.cells():
            place = places.get(cell.subfolder, cell.subfolder)
            job = [*cell.overrides, *_placed(folder, place)]
            if sweep.state_of(folder / place) != "done":
                jobs.append(job)
            conflicts += self._conflicts(folder / place, job)
        for cell in planned.earlier_cells(folder):
            place = places.get(cell.subfolder, cell.subfolder)
            if sweep.state_of(folder / place) != "missing":
                with contextlib.suppress(HydraException, ConfigError):  # it needs files that need not be here any more
                    conflicts += self._conflicts(folder / place, [*cell.overrides, *_placed(folder, place)], told=False)
        _exit_if(conflicts)
        return jobs


class OptunaSweeper(_Sweeper):
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
        with _alone(folder):
            searched = Search(folder, config, space, fixed)
            self._run(searched)
            return self._report(searched)

    def _run(self, searched: Search) -> None:
        known = len(searched.trials())
        console.print_text(
            f"search {searched.folder}: {searched.remaining()} of {searched.config.n_trials} trials to do"
        )
        _exit_if(self._trial_conflicts(searched, list(range(known))))  # same settings, code and data as before
        while numbers := searched.next():
            _exit_if(self._trial_conflicts(searched, numbers))
            for number in numbers:
                console.print_text(f"trial {number}: {' '.join(searched.settings(number))}")
            self._launch([self._job(searched, number) for number in numbers], first=numbers[0])
            for number in numbers:
                searched.settle(number)

    def _job(self, searched: Search, number: int) -> list[str]:
        return [*searched.overrides(number), *_placed(searched.folder, searched.place(number).name)]

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


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make a sweep's folder, and lock it.

    Raises:
        BusyError: another process has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_files.lock(folder) as free:
        if not free:
            remedy = "for more at a time take a launcher, or n_jobs of a search; other seeds need another sweep.name"
            raise failures.BusyError([f"{folder}: another process is running this sweep; {remedy}"])
        yield


def _pool() -> list[Any]:
    """The processes in which joblib runs jobs, several at a time."""
    import psutil

    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "--process-name" in child.cmdline():
                found.append(child)
    return found


def _placed(folder: Path, subfolder: str) -> list[str]:
    return [f"hydra.sweep.dir={quoted(str(folder))}", f"hydra.sweep.subdir={quoted(subfolder)}"]


def _exit_if(conflicts: list[str]) -> None:
    """Exit if folders hold other runs."""
    if conflicts:
        remedy = "Choose another sweep.name, or remove these folders to run them again."
        sys.exit(f"ConfigError: {ConfigError(conflicts)}\n{remedy}")
