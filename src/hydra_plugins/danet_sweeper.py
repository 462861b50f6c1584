"""Hydra's side of a sweep: takes the command line apart, starts the cells, says how they ended.

Hydra accepts plugins from this package only; what a sweep is stands in danet/sweep.py.
"""

import logging
import sys
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from danet import progress
from danet.schema import ConfigError
from danet.sweep import Sweep, ending, plan, summary

log = logging.getLogger("danet")


class VariantSweeper(BasicSweeper):
    """Runs variants times seeds with any of Hydra's launchers; a cell that fails does not stop the others."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run the cells that are not done; exit code 1 where one is not done afterwards.

        Args:
            arguments: the command line's overrides, without those of Hydra itself.
        """
        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        params = [f"{key}={value}" for key, value in self.params.items()]
        values: dict[str, list[str]] = {}
        for override in parser.parse_overrides([*params, *arguments]):
            key = override.get_key_element()
            values.pop(key, None)  # the last one counts, in its place
            if override.is_sweep_override():
                values[key] = list(override.sweep_string_iterator())
            else:
                values[key] = [override.get_value_element_as_str()]
        section = OmegaConf.to_container(self.config.get("sweep") or OmegaConf.create({}), resolve=True)
        assert isinstance(section, dict)
        try:
            found = plan({str(key): value for key, value in section.items()}, values)
        except ConfigError as error:
            sys.exit(f"ConfigError: {error}")

        folder = Path(self.config.hydra.sweep.dir) / found.name
        jobs = self._jobs(found, folder)
        found.write(folder)
        progress.console().print(f"sweep {folder}: {len(jobs)} of {len(found.cells())} runs to do", markup=False)
        returns = self.launcher.launch(jobs, initial_job_idx=0) if jobs else []

        lines, undone = summary(found, folder)
        for subfolder, state, detail in lines:
            progress.console().print(f"  {subfolder:32} {state:8} {detail}", markup=False)
        if undone:
            sys.exit(1)
        progress.console().print(f"table: python src/report.py sweep={folder}")
        return [returns]

    def _jobs(self, found: Sweep, folder: Path) -> list[list[str]]:
        """The overrides of every cell that is not done. Ends with a message where a folder holds another run."""
        assert self.config is not None
        assert self.hydra_context is not None
        jobs, problems = [], []
        for cell in found.cells():
            place = folder / cell.subfolder
            job = [*cell.overrides, f"hydra.sweep.dir='{folder}'", f"hydra.sweep.subdir='{cell.subfolder}'"]
            if ending(place)[0] != "done":
                jobs.append(job)
            composed = self.hydra_context.config_loader.load_sweep_config(self.config, job)  # names that do not exist
            composed = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
            if (place / "environment.json").is_file():
                from danet import config, run  # here, for a new sweep need not wait for PyTorch

                try:
                    problems += run.strange_cell(place, config.load(composed), any_code=found.any_code)
                except ConfigError as error:
                    problems += [f"{cell.subfolder}: {line}" for line in error.problems]
        if problems:
            remedy = "Choose another sweep.name, or remove these folders to run them again."
            sys.exit(f"ConfigError: {ConfigError(problems)}\n{remedy}")
        return jobs
