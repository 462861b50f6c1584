"""Hydra's side of sweeps: parses the command line, starts the runs, prints how they ended.

Hydra finds plugins in this package only; danet/sweeps/sweep.py defines what a sweep is.
"""

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException

from danet.config import shell_word
from danet.schema import ConfigError
from danet.services import atomic_files, console
from danet.services.places import command
from danet.sweeps import sweep
from danet.sweeps.sweep import Sweep
from hydra_plugins._danet_sweeps import FolderSweeper, alone, exit_if, placed


class VariantSweeper(FolderSweeper):
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
        with alone(folder):
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
            job = [*cell.overrides, *placed(folder, place)]
            if sweep.state_of(folder / place) != "done":
                jobs.append(job)
            conflicts += self._conflicts(folder / place, job)
        for cell in planned.earlier_cells(folder):
            place = places.get(cell.subfolder, cell.subfolder)
            if sweep.state_of(folder / place) != "missing":
                with contextlib.suppress(HydraException, ConfigError):  # it needs files that need not be here any more
                    conflicts += self._conflicts(folder / place, [*cell.overrides, *placed(folder, place)], told=False)
        exit_if(conflicts)
        return jobs
