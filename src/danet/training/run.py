"""One run from its configuration to its folder: checks the data, finds what to resume, trains."""

import contextlib
import datetime
import inspect
import itertools
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from danet import config
from danet.config import ConfigError, RunConfig
from danet.config import cross_checks as problems
from danet.config.resume import SEARCHED
from danet.data.cache import cached
from danet.data.check import CheckedFiles
from danet.data.measure import measure
from danet.interfaces import SegmentationDataset
from danet.registry import DATASETS, HEADS
from danet.schema import COMPONENTS
from danet.services import atomic_files, checkpoint, console, distributed, failures, hardware, places, provenance
from danet.services.compute import Compute
from danet.services.nonfinite import NonFiniteError
from danet.sweeps.sweep import sweep_of
from danet.sweeps.trial import Trial
from danet.training import loop, state
from danet.training.recorder import Recorder
from danet.training.state import Outcome

log = logging.getLogger(__name__)

# What a run that was killed at its very beginning leaves, and what Hydra writes.
UNSTARTED = {".hydra", ".lock", "train.log"}

# Where that runs out.
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
    with distributed.process_group(device) as world, contextlib.ExitStack() as open_files:
        compute = Compute(device, hardware.autocast_dtype(run_config.train.precision, device), world)
        _check_batch(run_config, world.size)
        folder, resumed = distributed.from_main(_folder(run_config, sweep_folder, placed) if world.is_main else None)
        if world.is_main and not open_files.enter_context(atomic_files.lock(folder)):
            raise failures.BusyError([f"{folder}: another process is still writing this run"])
        console.setup_logging(folder if world.is_main else None)
        if not world.is_main:
            logging.getLogger("danet").setLevel(logging.ERROR)
        log.info("run folder %s", folder)
        if resumed and (folder / "result.json").exists():
            log.info("the run is finished already")
            return Outcome(folder, atomic_files.read_json(folder / "result.json"), finished=True)
        if resumed and world.is_main:
            atomic_files.remove_unfinished(folder)
        try:
            with failures.explained(MEMORY):
                return _train(run_config, folder, compute, overrides, resumed, sweep_folder)
        except (Exception, SystemExit) as error:  # the latter at a signal before training
            # To train.log only: the caller tells the terminal.
            log.error("%s: %s", type(error).__name__, error, extra={"quiet": True})
            if world.is_main and not resumed and not sweep_folder and not isinstance(error, NonFiniteError):
                _remove_unstarted(folder)
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
    train_set, eval_set = (_open(run_config, split) for split in ("train", run_config.evaluate.split))
    for warning in problems.warnings(run_config, len(train_set)):
        log.warning(warning)
    if world.is_main:
        reports = problems.check_data(
            run_config, train_set, eval_set, processes=world.size, cache_dir=config.OUTPUTS / ".cache"
        )
        sets: dict[str, SegmentationDataset] = {"train": train_set, run_config.evaluate.split: eval_set}
        _describe(folder, run_config, overrides, compute, sets, reports, saved)
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


def _remove_unstarted(folder: Path) -> None:
    """Remove the folder of a new run that failed before it trained; the error has been reported."""
    if not any((folder / name).exists() for name in ("metrics.jsonl", "checkpoints", "wandb")):
        shutil.rmtree(folder, ignore_errors=True)


def _open(run_config: RunConfig, split: str) -> SegmentationDataset:
    options = {key: value for key, value in run_config.dataset.items() if key != "name"}
    return DATASETS[run_config.dataset["name"]](split, **options)


def _folder(run_config: RunConfig, sweep_folder: str | None, placed: str | None) -> tuple[Path, bool]:
    """The run folder, and whether it is that of an earlier start."""
    if placed:
        return _placed_folder(run_config, Path(placed))
    if run_config.resume in SEARCHED:
        if earlier := newest_run(run_config) or newest_run(run_config, finished=True):
            return earlier, True
        if run_config.resume == "required":
            remedy = "resume=auto starts one where there is none"
            raise ConfigError([f"resume = 'required': no run of this configuration in outputs/; {remedy}"])
        console.print_text("resume=auto: no run of this configuration in outputs/, so a new one starts")
    elif run_config.resume:
        return Path(run_config.resume), True
    if sweep_folder:
        folder = Path(sweep_folder)
        folder.mkdir(parents=True, exist_ok=True)
        config.remember(folder, config.OUTPUTS)
        return folder, (folder / "config.yaml").is_file()
    return new_run_folder(run_config), False


def _placed_folder(run_config: RunConfig, folder: Path) -> tuple[Path, bool]:
    """The folder that hydra.run.dir names, and whether it has the run to resume.

    Raises:
        ConfigError: it has another run or other files, or not the run to resume.
    """
    given, resume = f"hydra.run.dir = {str(folder)!r}", run_config.resume
    is_run = (folder / "config.yaml").is_file()
    if resume and resume not in SEARCHED and not (folder.is_dir() and folder.samefile(resume)):
        raise ConfigError([f"{given}: resume names another folder, {resume}; leave out one of them"])
    if resume == "required" and not is_run:
        raise ConfigError([f"{given}: holds no run to resume; resume=auto starts one"])
    if is_run and not resume:
        raise ConfigError([f"{given}: holds a run; resume={folder} resumes it, another folder starts a new one"])
    if is_run and (changes := config.changes_of_run(folder, run_config)):
        raise ConfigError([f"{given}: holds a run of another configuration: {'; '.join(changes[:4])}"])
    folder.mkdir(parents=True, exist_ok=True)
    if not is_run and (others := sorted({path.name for path in folder.iterdir()} - UNSTARTED)):
        raise ConfigError([f"{given}: is not empty (it has {', '.join(others[:3])}); name a new folder"])
    config.remember(folder, config.OUTPUTS)
    return folder, is_run


def new_run_folder(run_config: RunConfig) -> Path:
    """Create outputs/<date>/<time>_<name>, with a number where that second already has one.

    Raises:
        ConfigError: the folder cannot be made.
    """
    now = datetime.datetime.now()
    base = config.OUTPUTS / now.strftime("%Y-%m-%d") / f"{now.strftime('%H-%M-%S')}_{run_config.name}"
    for attempt in itertools.count():
        folder = base.with_name(f"{base.name}_{attempt}") if attempt else base
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except OSError as error:
            remedy = "DANET_OUTPUTS=FOLDER in the environment takes another place"
            raise ConfigError([f"{folder}: cannot be made ({error.strerror}). {remedy}"]) from None
    return folder


def newest_run(run_config: RunConfig, *, finished: bool = False) -> Path | None:
    """The newest run folder with a checkpoint whose configuration has the same identity, unfinished or finished."""
    folders = [folder for folder in config.run_folders(config.OUTPUTS) if (folder / "checkpoints").is_dir()]
    for folder in sorted(folders, key=lambda folder: (folder / "checkpoints").stat().st_mtime, reverse=True):
        if (folder / "result.json").exists() == finished and not atomic_files.is_locked(folder):
            with contextlib.suppress(ConfigError):  # of another version of the code
                if config.identity_of_run(folder) == run_config.identity() and not changed_data(folder, run_config):
                    return folder
    return None


def resume_conflicts(folder: Path, run_config: RunConfig, *, any_code: bool = False) -> list[str]:
    """Why the run in a sweep's folder is not the one that the sweep would start there; empty where it is.

    Args:
        folder: of an earlier start.
        run_config: of the run that would be started.
        any_code: take a run of another version of the code for the same.
    """
    if not (folder / "environment.json").is_file():
        return []  # stopped before it began
    try:
        if changes := config.changes_of_run(folder, run_config):
            return [f"{folder}: has another configuration: {'; '.join(changes[:4])}"]
    except ConfigError as error:
        return [f"{folder}: its configuration is not one of this version of the code ({error.problems[0]})"]
    code = atomic_files.read_json(folder / "environment.json").get("code")
    if not any_code and code != code_version(run_config):
        return [f"{folder}: was run by another version of the code (sweep.any_code=true takes it nevertheless)"]
    return changed_data(folder, run_config)


def code_version(run_config: RunConfig) -> str:
    """A hash of the code that the run uses: of the loop, and of the components that its configuration names."""
    sections = asdict(run_config)
    components = [components[sections[kind]["name"]] for kind, components in COMPONENTS.items()]
    if run_config.auxiliary_head:
        components.append(HEADS["fcn"])
    return provenance.code_version(places.PACKAGE, [Path(inspect.getfile(c)) for c in components])


def changed_data(folder: Path, run_config: RunConfig) -> list[str]:
    """A line for each split whose data are not those of the run in `folder`."""
    return [
        f"{folder}: the {split} data have changed since"
        for split, data in atomic_files.read_json(folder / "environment.json")["data"].items()
        if data["fingerprint"] != _open(run_config, split).fingerprint()
    ]


def _check_batch(run_config: RunConfig, processes: int) -> None:
    """The batch must divide by the processes there are: torchrun may have started another number than configured."""
    parts = processes * run_config.train.accumulate_steps
    if run_config.train.batch_size % parts:
        raise ConfigError(
            [f"train.batch_size = {run_config.train.batch_size}: must be a multiple of processes * parts = {parts}"]
        )


def _describe(
    folder: Path,
    run_config: RunConfig,
    overrides: list[str],
    compute: Compute,
    datasets: Mapping[str, SegmentationDataset],
    reports: Mapping[str, CheckedFiles | None],
    saved: dict[str, Any] | None,
) -> None:
    """Write what the run is made from. A resumed run keeps its first description and adds one of the new start."""
    environment = {
        **provenance.environment(config.REPOSITORY),
        "code": code_version(run_config),
        "shared_code": provenance.code_version(places.PACKAGE, []),  # what runs of other components use, too
        "device": hardware.describe(compute.device),
        "precision": str(compute.dtype).removeprefix("torch."),
        "devices": int(os.environ.get("WORLD_SIZE", "1")),
        "data": {name: _described(dataset, reports[name]) for name, dataset in datasets.items()},
    }
    first = folder / "environment.json"
    if first.exists():
        before = atomic_files.read_json(first)
        if changes := _changes(before["data"], environment["data"]):
            raise ValueError(
                f"the data has changed since this run began ({first}): {'; '.join(changes)}. Restore it, or start a "
                "new run"
            )
        if before.get("precision", environment["precision"]) != environment["precision"]:
            log.warning(
                "the run began in %s and goes on in %s, as train.precision=%s chooses on this machine: from here on "
                "the numbers differ from those of an uninterrupted run. train.precision cannot change on resume",
                *(before["precision"], environment["precision"], run_config.train.precision),
            )
        atomic_files.write_json(folder / f"environment_step_{saved['step'] if saved else 0}.json", environment)
        return
    environment["initial_values"] = run_config.initial_values()
    for name, dataset in datasets.items():
        if getattr(dataset, "drawn", False):  # as a list that a data set's folder may have
            names = [f"{pair.name}\n" for pair in getattr(dataset, "files", ())]
            atomic_files.write_text(folder / f"{name}.txt", "".join(names))
    atomic_files.write_text(folder / "config.yaml", run_config.yaml())
    atomic_files.write_text(folder / "overrides.yaml", "".join(f"- {override}\n" for override in overrides) or "[]\n")
    atomic_files.write_json(first, environment)


def _described(dataset: SegmentationDataset, report: CheckedFiles | None) -> dict[str, Any]:
    """What a run records of a split: names and sizes of its files in the fingerprint, what is in them in `content`."""
    facts = {"description": dataset.description, "images": len(dataset), "fingerprint": dataset.fingerprint()}
    return {**facts, "content": report.content} if report else facts


def _changes(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What was recorded of the data and is different now, a line each."""
    return [
        f"{split}: {key} {value!r} became {now.get(split, {}).get(key)!r}"
        for split, facts in before.items()
        for key, value in facts.items()
        if value != now.get(split, {}).get(key)
    ]
