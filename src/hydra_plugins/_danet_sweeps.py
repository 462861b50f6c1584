"""The common part of sweeps and searches. Hydra skips this file; it would make the class of each plugin anew."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from danet.config import OUTPUTS, quoted
from danet.schema import ConfigError
from danet.services import atomic_files, console, failures, signals


class FolderSweeper(BasicSweeper):
    """A sweeper whose runs have a folder in common that tells which are done."""

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


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
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


def placed(folder: Path, subfolder: str) -> list[str]:
    return [f"hydra.sweep.dir={quoted(str(folder))}", f"hydra.sweep.subdir={quoted(subfolder)}"]


def exit_if(conflicts: list[str]) -> None:
    """Exit if folders hold other runs."""
    if conflicts:
        remedy = "Choose another sweep.name, or remove these folders to run them again."
        sys.exit(f"ConfigError: {ConfigError(conflicts)}\n{remedy}")
