"""What a run is made from: written when it starts, compared when it resumes."""

import functools
import inspect
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from danet import config
from danet.config import ConfigError, RunConfig
from danet.data.check import CheckedFiles
from danet.interfaces import SegmentationDataset
from danet.registry import HEADS
from danet.schema import COMPONENTS
from danet.services import atomic_files, hardware, places, provenance
from danet.services.compute import Compute
from danet.training.run_folder import changed_data

log = logging.getLogger(__name__)


def describe(
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
                before["precision"],
                environment["precision"],
                run_config.train.precision,
            )
        config.record_changes(folder, run_config)
        atomic_files.write_json(folder / f"environment_step_{saved['step'] if saved else 0}.json", environment)
        return
    environment["initial_values"] = run_config.initial_values()
    atomic_files.write_text(folder / "config.yaml", run_config.yaml())  # first, as it tells a run's folder
    for name, dataset in datasets.items():
        if getattr(dataset, "drawn", False):  # as a list that a data set's folder may have
            names = [f"{pair.name}\n" for pair in getattr(dataset, "files", ())]
            atomic_files.write_text(folder / f"{name}.txt", "".join(names))
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


def code_version(run_config: RunConfig) -> str:
    """A hash of the code that the run uses: of the loop, and of the components that its configuration names."""
    sections = asdict(run_config)
    components = [components[sections[kind]["name"]] for kind, components in COMPONENTS.items()]
    if run_config.auxiliary_head:
        components.append(HEADS["fcn"])
    return _hash_of(tuple(Path(inspect.getfile(component)) for component in components))


@functools.cache  # a sweep or search asks for each of its runs
def _hash_of(components: tuple[Path, ...]) -> str:
    return provenance.code_version(places.PACKAGE, components)


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
