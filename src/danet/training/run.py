"""One run from its configuration to its folder: checks the data, finds what to resume, trains."""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from danet import config
from danet.config import ConfigError, RunConfig, cross_checks, data_checks
from danet.data.cache import cached
from danet.data.measure import measure
from danet.interfaces import SegmentationDataset
from danet.services import atomic_files, checkpoint, console, distributed, failures, hardware
from danet.services.compute import Compute
from danet.services.nonfinite import NonFiniteError
from danet.sweeps.sweep import sweep_of
from danet.sweeps.trial import Trial
from danet.training import loop, state
from danet.training.description import describe
from danet.training.recorder import Recorder
from danet.training.run_folder import folder_of, open_split, remove_unstarted
from danet.training.state import Outcome

log = logging.getLogger(__name__)

# The remedy where memory runs out.
MEMORY = (
    "lower train.batch_size or augment.crop_size, raise train.accumulate_steps, or set runtime.recompute=true; in an "
    "evaluation set evaluate.mode=slide"
)


def start(
    run_config: RunConfig,
    overrides: Sequence[str] = (),
    sweep_folder: str | None = None,
    placed: str | None = None,
) -> Outcome:
    """Run a configuration on all its devices.

    Args:
        run_config: what to run.
        overrides: how it differs from the defaults, for the record.
        sweep_folder: this job's folder in a multirun.
        placed: the folder that hydra.run.dir names for a single run; None: outputs/<date>/<time>_<name>.

    Raises:
        ConfigError: what is resumed is not there, or does not fit.
        ValueError: the data or a checkpoint is at fault.
        NonFiniteError: training met a loss or gradient that is not finite.
        ResourceError: there is not enough memory, or no compiler.
        ChildProcessError: one of several processes failed, with any of these or otherwise.
    """
    if sweep_folder and distributed.started_outside():
        raise ConfigError(["-m under torchrun: start the sweep without torchrun and set runtime.devices"])
    return distributed.launch(
        _run,
        run_config.runtime.devices,
        *(run_config, list(overrides), sweep_folder, placed),
        expected=(ConfigError, ValueError, OSError, NonFiniteError, failures.ResourceError),
    )


def _run(run_config: RunConfig, overrides: list[str], sweep_folder: str | None, placed: str | None) -> Outcome:
    """One process's part of the run."""
    hardware.set_determinism(run_config.runtime.deterministic)
    device = hardware.select_device(run_config.runtime.device, distributed.local_rank())
    if device.type == "cpu":
        hardware.keep_memory()
    timeout = run_config.runtime.rank_timeout
    with distributed.process_group(device, timeout) as world, contextlib.ExitStack() as open_files:
        compute = Compute(device, hardware.autocast_dtype(run_config.train.precision, device), world)
        _check_batch(run_config, world.size)
        folder, resumed = distributed.from_main(folder_of(run_config, sweep_folder, placed) if world.is_main else None)
        if world.is_main and not open_files.enter_context(atomic_files.lock(folder)):
            raise failures.BusyError([f"{folder}: another process is still writing this run"])
        try:
            console.setup_logging(folder if world.is_main else None)
            if not world.is_main:
                logging.getLogger("danet").setLevel(logging.ERROR)
            log.info("run folder %s", folder)
            if resumed and (folder / "result.json").exists():
                log.info("the run is finished already")
                return Outcome(folder, atomic_files.read_json(folder / "result.json"), finished=True)
            if resumed and world.is_main:
                atomic_files.remove_unfinished(folder)
            with failures.explained(MEMORY), distributed.lost_processes_explained(timeout):
                return _train(run_config, folder, compute, overrides, resumed, sweep_folder)
        except (Exception, SystemExit) as error:  # the latter at a signal before training
            # To train.log only: the caller tells the terminal.
            log.error("%s: %s", type(error).__name__, error, extra={"quiet": True})
            if world.is_main and not resumed and not sweep_folder and not isinstance(error, NonFiniteError):
                remove_unstarted(folder)
            raise


def _train(
    run_config: RunConfig,
    folder: Path,
    compute: Compute,
    overrides: list[str],
    resumed: bool,
    sweep_folder: str | None,
) -> Outcome:
    """Check the data, find the checkpoint to go on from, train."""
    world = compute.world
    saved = checkpoint.load_newest(folder / "checkpoints") if resumed else None
    if saved:
        state.check_saved(saved, folder / "checkpoints")
        log.info("resuming from step %d", saved["step"])
    elif resumed:
        log.warning("no checkpoint found; restarting from step 0")
    train_set, eval_set = (open_split(run_config, split) for split in ("train", run_config.evaluate.split))
    for warning in cross_checks.warnings(run_config, len(train_set)):
        log.warning(warning)
    if world.is_main:
        reports = data_checks.check_data(
            run_config, train_set, eval_set, processes=world.size, cache_dir=config.OUTPUTS / ".cache"
        )
        sets: dict[str, SegmentationDataset] = {"train": train_set, run_config.evaluate.split: eval_set}
        describe(folder, run_config, overrides, compute, sets, reports, saved)
    measured = _normalization(run_config, train_set) if world.is_main else None
    run_config = replace(run_config, normalization=distributed.from_main(measured))
    runtime, auto = run_config.runtime, config.OUTPUTS / "cache"
    train_set, eval_set = (cached(d, runtime.cache, runtime.cache_gib, auto=auto) for d in (train_set, eval_set))
    sweep = sweep_of(folder) if sweep_folder else None
    trial = Trial.of(folder) if sweep_folder and world.is_main else None
    recorder = Recorder(run_config, folder, eval_set, active=world.is_main, sweep=sweep, trial=trial)
    return loop.train(run_config, compute, train_set, eval_set, recorder, saved)


def _normalization(run_config: RunConfig, train_set: SegmentationDataset) -> Any:
    """What images are normalized by, with numbers in the place of "data"."""
    if run_config.normalization != "data":
        return run_config.normalization
    workers = run_config.runtime.num_workers
    found = measure(train_set, cache_dir=config.OUTPUTS / ".cache", workers=workers, name="train").normalization()
    log.info("normalization: mean %s, deviation %s", *(", ".join(f"{x:.4g}" for x in row) for row in found.values()))
    return found


def _check_batch(run_config: RunConfig, processes: int) -> None:
    """The batch must divide by the processes there are: torchrun may have started another number than configured."""
    parts = processes * run_config.train.accumulate_steps
    if run_config.train.batch_size % parts:
        raise ConfigError(
            [f"train.batch_size = {run_config.train.batch_size}: must be a multiple of processes * parts = {parts}"]
        )
