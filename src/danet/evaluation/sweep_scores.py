"""Scores the finished runs of a sweep, each on its own data set."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from danet.config.resume import read_saved
from danet.evaluation import scoring
from danet.evaluation.folder import evaluation_name, what_was_scored
from danet.evaluation.options import ScoringConfig, inference_options
from danet.inference import temperature
from danet.inference.predictor import checkpoint_of
from danet.schema import ConfigError
from danet.services import console, failures
from danet.services.nonfinite import NonFiniteError
from danet.sweeps.sweep import finished_runs

log = logging.getLogger(__name__)


def score_sweep(asked: ScoringConfig) -> None:
    """Score each finished run of a sweep that has no such evaluation of its weights yet.

    Raises:
        ConfigError: the sweep has no finished run.
        ValueError: some runs could not be scored; names them all, after the others have been scored.
    """
    console.setup_logging(None)
    runs = finished_runs(Path(str(asked.sweep)))
    first = read_saved(runs[0]).get("dataset") or {}
    changes = {key: value for key, value in asked.dataset.items() if not _same(value, first.get(key))}
    problems, already = [], 0
    for number, folder in enumerate(runs, 1):
        try:
            run = of_run(asked, folder, changes)
            if _is_scored(run):
                already += 1
                continue
            log.info("run %d of %d: %s", number, len(runs), folder)
            scoring.score(run)
        except (ConfigError, ValueError, OSError, NonFiniteError, failures.ResourceError, ChildProcessError) as error:
            log.error("%s", error)
            problems.append(f"{folder}: {error}")
    if already:
        log.info("%s: %d of %d finished runs had this evaluation already", asked.sweep, already, len(runs))
    if problems:
        lines = "\n  ".join(problems)
        raise ValueError(f"sweep = {asked.sweep}: {len(problems)} of {len(runs)} runs were not scored:\n  {lines}")


def of_run(asked: ScoringConfig, folder: Path, changes: Mapping[str, Any]) -> ScoringConfig:
    """What to score of a run: its own data set with the changes, or another one.

    Args:
        asked: what to score of the sweep.
        folder: of the run.
        changes: keys of the data set that `asked` has otherwise than the first run.
    """
    if "name" in changes:
        return replace(asked, sweep=None, run=str(folder))
    section = read_saved(folder).get("dataset") or {}
    return replace(asked, sweep=None, run=str(folder), dataset={**section, **changes})


def _same(value: Any, saved: Any) -> bool:
    """Whether two options are equal; of paths, whether they lead to the same place."""
    if isinstance(value, str) and isinstance(saved, str):
        return value == saved or Path(value).expanduser().absolute() == Path(saved).expanduser().absolute()
    return bool((list(value) if isinstance(value, tuple) else value) == saved)


def _is_scored(run: ScoringConfig) -> bool:
    """Whether there is such an evaluation of these images, and of weights and temperature as they are now."""
    file = Path(str(run.run)) / "evaluations" / evaluation_name(run) / "result.json"
    if not file.is_file():
        return False
    try:
        weights = checkpoint_of(Path(str(run.run)))
    except ValueError:  # weights that were deleted cannot be scored again
        return True
    before, inference = what_was_scored(file), inference_options(run)
    now = {"checkpoint_sha256": temperature.sha256(weights), "inference": inference, "void": run.evaluate.void}
    if any(before[key] != value for key, value in now.items()):
        return False
    applied = before["temperature"]
    if not run.evaluate.fit_temperature and applied not in (None, temperature.choose(weights, {}, run.temperature)):
        return False
    return before["dataset_fingerprint"] == scoring.open_split(run).fingerprint()
