"""The folder of an evaluation: written under a temporary name, and renamed when it is complete."""

import itertools
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from danet import config
from danet.config.resume import read_saved
from danet.evaluation.evaluate import Evaluation
from danet.evaluation.image_scores import ImageScores
from danet.evaluation.options import ScoringConfig, look
from danet.schema import ConfigError
from danet.services import atomic_files, figures, tables

log = logging.getLogger(__name__)


def evaluation_name(scoring: ScoringConfig) -> str:
    """Name of the folder in a run's evaluations/, such as test_whole: all that the command line changes."""
    options = scoring.evaluate
    words = [*_other_data(scoring), scoring.split, look(scoring)]
    words += [f"first {options.max_images}"] if options.max_images else []
    words += [scoring.precision] if scoring.precision != "auto" else []
    words += [f"temperature {scoring.temperature}"] if scoring.temperature != "auto" else []
    words += [key for key in ("calibration", "fit_temperature") if getattr(options, key)]
    words += ["predictions"] if options.save_predictions else []
    return re.sub(r"[^\w.-]+", "_", " ".join(words))


def _other_data(scoring: ScoringConfig) -> list[str]:
    """What is not as in the data set that the run was trained on: its name, else its options but for paths."""
    if not scoring.run or not (Path(scoring.run) / "config.yaml").is_file():
        return []
    own, given = read_saved(Path(scoring.run)).get("dataset", {}), scoring.dataset
    if own.get("name") != given["name"]:
        return [given["name"]]
    changed = {key: str(value) for key, value in given.items() if key in own and str(own[key]) != str(value)}
    return [f"{key}-{value}" for key, value in changed.items() if "/" not in value or re.fullmatch(r"\d+/\d+", value)]


def open_folder(scoring: ScoringConfig) -> tuple[Path, Path]:
    """Where the result is to be, and the folder beside it, newly made, where it is put together.

    Raises:
        ConfigError: the folder cannot be made.
    """
    name = evaluation_name(scoring)
    if scoring.output:
        final = Path(scoring.output)
    elif scoring.run:
        final = Path(scoring.run) / "evaluations" / name
    else:
        final = config.OUTPUTS / "evaluations" / f"{Path(str(scoring.checkpoint)).stem}_{name}"
    part = atomic_files.temporary_name(final, ".part")
    try:
        part.mkdir(parents=True)
        atomic_files.remove_abandoned(final.parent)
    except OSError as error:
        raise ConfigError([f"output: {final} cannot be created ({error}); set another output=FOLDER"]) from None
    return final, part


def publish(part: Path, final: Path) -> Path:
    """Move the complete folder to its place; where that is taken, one of the two gets a number behind its name.

    That is the earlier one if it is of the same checkpoint with other weights, data or options: what the name does not
    tell apart, such as another root, is then that of the latest evaluation.
    """
    places = itertools.chain([final], (final.with_name(f"{final.name}_{number}") for number in itertools.count(2)))
    free = next(place for place in places if not place.exists())
    if free != final and _is_outdated(final / "result.json", part / "result.json"):
        log.info("%s is of other weights, data or options: moved to %s", final, free.name)
        final.rename(free)
        free = final
    return part.rename(free)


def _is_outdated(earlier: Path, new: Path) -> bool:
    """Whether a result.json is of the checkpoint of another, as it was before."""
    try:
        of_one_file = atomic_files.read_json(earlier).get("checkpoint") == atomic_files.read_json(new).get("checkpoint")
        return of_one_file and what_was_scored(earlier) != what_was_scored(new)
    except (ValueError, OSError):  # the earlier one is damaged or missing
        return False


def what_was_scored(file: Path) -> dict[str, Any]:
    """What decides the scores of a result.json: the weights by their SHA-256, the data, the options."""
    result = atomic_files.read_json(file) if file.is_file() else {}
    keys = ("checkpoint_sha256", "dataset_fingerprint", "inference", "void")
    return {key: result.get(key) for key in keys} | {
        "temperature": (result.get("calibration") or {}).get("temperature")
    }


def rows(scored: Evaluation, class_names: Sequence[str]) -> list[str]:
    """Names of the confusion matrix's rows: the classes and, where it is counted, void."""
    return [*class_names, "void"][: len(scored.matrix)]


def write_tables(
    folder: Path, scored: Evaluation, images: ImageScores, boundary_iou: Sequence[float], class_names: Sequence[str]
) -> None:
    """Write per_image.csv, confusion_matrices.npz and per_class.csv."""
    images.write(folder)
    if scored.image_matrices:
        names = rows(scored, class_names)
        tables.write_matrices(folder / "confusion_matrices.npz", scored.image_matrices, names)
    by_class = (scored.scores.iou, scored.scores.accuracy)
    columns = [*(list(x.values()) for x in by_class), boundary_iou, list(scored.scores.pixels.values())]
    header = ("class", "iou", "accuracy", "boundary_iou", "pixels")
    tables.write_csv(folder / "per_class.csv", header, list(zip(class_names, *columns, strict=True)))


def draw(folder: Path, scored: Evaluation, images: ImageScores, class_names: Sequence[str], *, is_main: bool) -> None:
    """Draw this process's images and, in the main one, the confusion matrix."""
    images.draw(folder, show_progress=is_main)
    if is_main and scored.matrix.any():
        figures.plot_confusion_matrix(scored.matrix, rows(scored, class_names), folder / "confusion_matrix.png")
