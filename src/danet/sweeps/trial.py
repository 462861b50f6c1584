"""A run as a trial of a search: it reports its scores to the study, which may end it early.

The study is two files in the search's folder: search.json describes the search, study.log is Optuna's journal, to which
several processes may write, also on a network's file system. A run finds them from its own folder, trial<k> below, so
it needs no other information, on whatever machine a launcher starts it.
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
STUDY = "search"  # its name in the journal


def open_study(folder: Path) -> "optuna.Study":
    """The study in a search's folder, created if there is none yet.

    Args:
        folder: with search.json in it.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner: dict[str, Any] = json.loads((folder / DEFINITION).read_text())["pruner"]
    return optuna.create_study(
        study_name=STUDY,
        storage=_storage(folder),
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(**pruner) if pruner else optuna.pruners.NopPruner(),
        load_if_exists=True,
    )


def _storage(folder: Path) -> "optuna.storages.JournalStorage":
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


class Trial:
    """One trial of a search, from within its run.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        import optuna

        study, storage = open_study(folder.parent), _storage(folder.parent)
        number = int(folder.name.removeprefix("trial"))
        # Optuna gives a running trial to the process that asked for it only; another one needs the storage's own id.
        id_of_trial = storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name(STUDY), number)
        self._trial = optuna.trial.Trial(study, id_of_trial)
        self._reported = set(study.get_trials(deepcopy=False)[number].intermediate_values)

    @classmethod
    def of(cls, folder: Path) -> Self | None:
        """The trial in a run's folder; None if the run is not a trial."""
        is_trial = re.fullmatch(r"trial\d+", folder.name) and (folder.parent / DEFINITION).is_file()
        return cls(folder) if is_trial else None

    def report(self, evaluation: int, miou: float) -> bool:
        """Report a score to the study; returns whether the run should end.

        Args:
            evaluation: 1 for the run's first one; trials are compared at the same evaluation. A second report of one
                evaluation, after a resume, changes nothing.
            miou: in [0, 1]; NaN, which cannot be compared, is not reported.
        """
        if math.isnan(miou):
            return False
        if evaluation not in self._reported:
            self._trial.report(miou, evaluation)
            self._reported.add(evaluation)
        return self._trial.should_prune()
