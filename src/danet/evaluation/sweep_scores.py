"""Scores the finished runs of a sweep, each on its own data set."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from danet.config.resume import read_saved
from danet.evaluation import scoring
from danet.evaluation.folder import evaluation_name, scored_weights
from danet.evaluation.options import ScoringConfig
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
    runs = of_each_run(asked)
    todo = [run for run in runs if not _is_scored(run)]
    name = evaluation_name(runs[0])
    log.info("%s: %d of %d finished runs have %s already", asked.sweep, len(runs) - len(todo), len(runs), name)
    problems = []
    for number, run in enumerate(todo, 1):
        log.info("run %d of %d: %s", number, len(todo), run.run)
        try:
            scoring.score(run)
        except (ConfigError, ValueError, OSError, NonFiniteError, failures.ResourceError, ChildProcessError) as error:
            log.error("%s", error)
            problems.append(f"{run.run}: {error}")
    if problems:
        lines = "\n  ".join(problems)
        raise ValueError(f"sweep = {asked.sweep}: {len(problems)} of {len(todo)} runs were not scored:\n  {lines}")


def of_each_run(asked: ScoringConfig) -> list[ScoringConfig]:
    """What to score of each finished run: its own data set, with what `asked` changes in the first run's."""
    runs = finished_runs(Path(str(asked.sweep)))
    sections = [read_saved(run).get("dataset") or {} for run in runs]
    changes = {key: value for key, value in asked.dataset.items() if not _same(value, sections[0].get(key))}
    return [
        replace(asked, sweep=None, run=str(run), dataset=asked.dataset if "name" in changes else {**section, **changes})
        for run, section in zip(runs, sections, strict=True)
    ]


def _same(value: Any, saved: Any) -> bool:
    """Whether two options are equal; of paths, whether they lead to the same place."""
    if isinstance(value, str) and isinstance(saved, str):
        return value == saved or Path(value).expanduser().absolute() == Path(saved).expanduser().absolute()
    return bool((list(value) if isinstance(value, tuple) else value) == saved)


def _is_scored(run: ScoringConfig) -> bool:
    """Whether there is such an evaluation, of the weights and at the temperature that the run has now."""
    file = Path(str(run.run)) / "evaluations" / evaluation_name(run) / "result.json"
    if not file.is_file():
        return False
    try:
        weights = checkpoint_of(Path(str(run.run)))
    except ValueError:  # weights that were deleted cannot be scored again
        return True
    sha256, applied = scored_weights(file)
    if sha256 != temperature.sha256(weights):
        return False
    return run.evaluate.fit_temperature or applied in (None, temperature.choose(weights, {}, run.temperature))
