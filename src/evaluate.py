"""Score a trained model: `python src/evaluate.py run=FOLDER` or `checkpoint=FILE dataset=NAME`; `--help` says more."""

from collections.abc import Sequence
from pathlib import Path

import command_line

from omegaconf import DictConfig

from danet import config

PATHS = (
    "run",
    "sweep",
    "checkpoint",
    "output",
    "dataset.root",
    "dataset.images",
    "dataset.labels",
    "dataset.group",
    "runtime.cache",
)


def main(composed: DictConfig) -> float | None:
    """Score a model, or all of a sweep; returns the mIoU of a single one."""
    from danet.evaluation.options import ScoringConfig

    section = config.load_as(ScoringConfig, composed)

    from danet.evaluation import scoring, sweep_scores  # with PyTorch, which takes seconds: errors have been told

    if section.sweep:
        sweep_scores.score_sweep(section)
        return None
    result, _ = scoring.score(section)
    return float(result["miou"])


def with_runs(overrides: Sequence[str]) -> list[str]:
    """The overrides with the first run of a sweep, and with a run's data set."""
    given = dict(override.partition("=")[::2] for override in overrides)
    if "sweep" in given and "run" not in given:
        from danet.sweeps.sweep import finished_runs

        run = finished_runs(Path(config.unquoted(given["sweep"])).expanduser())[0]
        overrides = [*overrides, f"run={config.quoted(str(run))}"]
    elif not given.keys() & {"run", "checkpoint"}:
        raise config.ConfigError(["run, checkpoint, sweep: give one of them, such as run=latest or checkpoint=FILE"])
    return config.with_dataset_of_run(overrides)


if __name__ == "__main__":
    command_line.start(main, "evaluate", PATHS, adapt=with_runs)
