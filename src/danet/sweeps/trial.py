"""A run as a trial of a search: its scores go to the study, which may end it before its time.

The study is two files in the search's folder: search.json says what the search is, study.log is Optuna's journal, to
which several processes may write, on a network's file system, too. A run finds them from its own folder, trial<k>
below; so it needs nothing else to be told, on whatever machine a launcher starts it.
"""

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import optuna

DEFINITION = "search.json"
JOURNAL = "study.log"


def open_study(folder: Path) -> "optuna.Study":
    """The study in a search's folder, made where there is none yet.

    Args:
        folder: with search.json in it.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner: dict[str, Any] = json.loads((folder / DEFINITION).read_text())["pruner"]
    return optuna.create_study(
        study_name="search",
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(**pruner) if pruner else optuna.pruners.NopPruner(),
        load_if_exists=True,
    )


class Trial:
    """One trial of a search, from within its run.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        import optuna

        study = open_study(folder.parent)
        known = study.get_trials(deepcopy=False)[int(folder.name.removeprefix("trial"))]
        self._reported = set(known.intermediate_values)
        self._trial = optuna.trial.Trial(study, known._trial_id)

    @classmethod
    def of(cls, folder: Path) -> Self | None:
        """The trial that a run in this folder is; None where it is none."""
        is_one = re.fullmatch(r"trial\d+", folder.name) and (folder.parent / DEFINITION).is_file()
        return cls(folder) if is_one else None

    def report(self, evaluation: int, miou: float) -> bool:
        """Tell the study a score; whether it wants the run to end.

        Args:
            evaluation: 1 for the run's first one; trials are compared at the same evaluation. What a run reports
                again, since it goes on from a checkpoint, changes nothing.
            miou: in [0, 1]; NaN, which compares with nothing, is not reported.
        """
        if math.isnan(miou):
            return False
        if evaluation not in self._reported:
            self._trial.report(miou, evaluation)
            self._reported.add(evaluation)
        return self._trial.should_prune()
