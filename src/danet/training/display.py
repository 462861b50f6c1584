"""What people look at while a run goes on: the log, the progress bar, pictures, Weights & Biases."""

import io
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import danet.config
from danet import metrics
from danet.analysis.attention_maps import as_predictor, attention_maps
from danet.analysis.attention_page.page import write_page
from danet.analysis.attention_sheet import plot_attention
from danet.config import RunConfig
from danet.config.sections import Alert
from danet.evaluation.evaluate import Evaluation, ScoredPicture
from danet.interfaces import SegmentationDataset
from danet.model import Segmenter
from danet.services import atomic_files, checkpoint, curves, figures
from danet.services.console import Progress
from danet.services.nonfinite import NonFiniteError
from danet.services.score_tables import print_scores
from danet.services.tracking import open_mirror
from danet.services.tracking.addresses import group_name
from danet.services.tracking.artifacts import CACHE, artifact_of
from danet.services.tracking.common import ScoredImage
from danet.training.starving import DataWait

log = logging.getLogger(__name__)


class Display:
    """The display of one run, in its main process.

    Args:
        config: the run.
        folder: its folder, which gets the pictures.
        dataset: the split that is scored: its class names and palette.
        sweep: name of the sweep that the run is part of, if any.
        name: of the run in W&B.
        run_id: of the run in W&B, if it is resumed.
        step: that the run starts from.
        total_steps: at its end.
        best_miou: so far.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        dataset: SegmentationDataset,
        *,
        sweep: str | None,
        name: str,
        run_id: str | None,
        step: int,
        total_steps: int,
        best_miou: float | None,
    ) -> None:
        self._config, self._folder, self._dataset = config, folder, dataset
        tracking, file = config.tracking, folder / "environment.json"
        environment = atomic_files.read_json(file) if file.is_file() else {}
        data = {split: facts["fingerprint"] for split, facts in environment.get("data", {}).items()}
        self.mirror = open_mirror(
            **tracking.destination(),
            name=name,
            group=group_name(tracking.group, sweep or folder.name),
            folder=folder,
            config={**asdict(config), "data": data},
            run_id=run_id,
            alone=sweep is None,
            step=step,
        )
        weights = artifact_of(Path(config.init_from), danet.config.OUTPUTS / CACHE) if config.init_from else None
        self.mirror.log_inputs(weights, data)
        self._progress, self._best_miou = Progress(total_steps, step), best_miou
        self._last_score: dict[str, Any] | None = None  # of this start's last evaluation
        self._waiting = DataWait(config.runtime)
        self._last = (step, time.monotonic())  # that was logged

    def __enter__(self) -> Self:
        """Show the progress bar."""
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the progress bar; mark a run that failed in W&B."""
        self._progress.__exit__(kind, error, trace)
        if kind is not None:
            event: Alert = "nan" if issubclass(kind, NonFiniteError) else "crash"
            self._alert(event, f"Stopped by {kind.__name__}", str(error))
            self.mirror.finish(exit_code=1)

    def waited(self, seconds: float) -> None:
        """Count time that the loop spent waiting for images."""
        self._waiting.add(seconds)

    def paused(self, seconds: float) -> None:
        """Leave time spent on evaluating and saving out of the training speed."""
        self._last = (self._last[0], self._last[1] + seconds)

    def advance(self, step: int) -> None:
        """Show that a step is done."""
        self._progress.update(step)

    def speed(self, step: int) -> dict[str, float]:
        """Images per second and the share of time spent waiting for images since the last call, by metric name."""
        now = time.monotonic()
        elapsed, steps = now - self._last[1], step - self._last[0]
        self._last = (step, now)
        return {
            "perf/images_per_second": steps * self._config.train.batch_size / elapsed,
            "perf/waiting_for_data": self._waiting.share(step, elapsed),
        }

    def metrics(self, row: dict[str, Any]) -> None:
        """Show a row of training metrics."""
        self._mirror_row(row)
        speed = row["perf/images_per_second"]
        self._progress.update(row["step"], loss=row.get("train/loss"), miou=self._best_miou, images_per_second=speed)

    def evaluated(
        self, row: dict[str, Any], evaluation: Evaluation, is_best: bool, model: Segmenter, rows: list[dict[str, Any]]
    ) -> None:
        """Show an evaluation; of the best one, keep the pictures.

        Args:
            row: its metrics.
            evaluation: what was found.
            is_best: whether it is the best so far.
            model: that was scored.
            rows: all metrics so far, for the curves.
        """
        split, step, names = self._config.evaluate.split, row["step"], self._dataset.class_names
        miou = evaluation.scores.miou
        self._last_score = {"step": step, "miou": miou}
        self._mirror_row(row)
        log.info("step %d: %s/miou %.4f%s", step, split, miou, " (best so far)" if is_best else "")
        pictures = evaluation.pictures[: self._config.tracking.images]
        self.mirror.log_images([_scored(picture, names) for picture in pictures], names, step, split)
        self._show_attention(step, evaluation, is_best, model)
        if is_best:
            self._alert("best", f"Best {split}/miou so far: {miou:.4f}", f"step {step}")
            self._best_miou = miou
            self._show_best(step, evaluation)
        curves.plot_curves(rows, self._folder / "curves.png", split=split)

    def _show_attention(self, step: int, evaluation: Evaluation, is_best: bool, model: Segmenter) -> None:
        """Sheets of the first images: every time in W&B, of the best evaluation in the run folder, with their pages."""
        sheets: dict[str, bytes] = {}
        for picture in evaluation.pictures[: self._config.tracking.attention_images]:
            maps, sheet = attention_maps(model, picture.image, every_class=True), io.BytesIO()
            classes = (self._dataset.class_names, self._dataset.palette)
            plot_attention(maps, *classes, sheet, picture.name, facts=f"step {step}", label=picture.label)
            sheets[picture.name] = sheet.getvalue()
            if is_best:
                (self._folder / "attention").mkdir(exist_ok=True)
                (self._folder / "attention" / f"{picture.name}.png").write_bytes(sheet.getvalue())
                self._write_page(step, picture, model)
        if sheets:
            self.mirror.log_pictures(f"{self._config.evaluate.split}/attention", sheets, step)

    def _write_page(self, step: int, picture: ScoredPicture, model: Segmenter) -> None:
        predictor, page = as_predictor(model), self._folder / "attention" / f"{picture.name}.html"
        predictor.class_names, predictor.palette = tuple(self._dataset.class_names), tuple(self._dataset.palette)
        try:
            write_page(predictor, picture.image, page, label=picture.label, name=picture.name, facts=f"step {step}")
        except ValueError as error:  # such as an image too large for a page; its sheet is there
            log.warning("%s is not written: %s", page.name, error)

    def _show_best(self, step: int, evaluation: Evaluation) -> None:
        names, palette = self._dataset.class_names, self._dataset.palette
        matrix = self._folder / "confusion_matrix.png"
        figures.plot_confusion_matrix(evaluation.matrix, names, matrix)
        self.mirror.log_confusion_matrix(evaluation.matrix, names, matrix, step, self._config.evaluate.split)
        (self._folder / "samples").mkdir(exist_ok=True)
        for shown in evaluation.pictures[: self._config.evaluate.samples]:
            file, title = self._folder / "samples" / f"{shown.name}.png", f"{shown.name}, step {step}"
            figures.plot_sample(shown.image, shown.label, shown.prediction, names, palette, file, title)

    def result(self, best: dict[str, Any], columns: Sequence[Any]) -> None:
        """Show the best evaluation at the run's end.

        Args:
            best: its result.
            columns: IoU, accuracy and pixels of each class.
        """
        title = f"{self._dataset.description}, {best['split']}, {best['num_images']} images, step {best['step']}"
        scores = {"miou": best["miou"], "pixel_accuracy": best["pixel_accuracy"]}
        print_scores(title, self._dataset.class_names, *columns, **scores)
        self.mirror.set_summary({f"best/{key}": best[key] for key in ("miou", "pixel_accuracy", "step")})
        if self._config.tracking.log_checkpoint:
            self._log_checkpoints(best)

    def _log_checkpoints(self, best: dict[str, Any]) -> None:
        """Upload the best checkpoint and, as the latest version, the last one; they may be the same."""
        folder, last = self._folder / "checkpoints", self._last_score or best
        commit = atomic_files.read_json(self._folder / "environment.json")["git"]["commit"]
        facts = {"commit": commit, "config": asdict(self._config)}
        scores = {key: best[key] for key in ("step", "miou")}
        self.mirror.log_checkpoint(folder / "best.pt", ["best"], {**scores, **facts})
        if last["step"] != best["step"]:
            self.mirror.log_checkpoint(checkpoint.step_file(folder, last["step"]), [], {**last, **facts})

    def _alert(self, event: Alert, title: str, text: str) -> None:
        if event in self._config.tracking.alerts:
            self.mirror.alert(title, f"{self._folder}: {text}")

    def _mirror_row(self, row: dict[str, Any]) -> None:
        self.mirror.log({k: v for k, v in row.items() if isinstance(v, int | float)}, row["step"])


def _scored(picture: ScoredPicture, class_names: Sequence[str]) -> ScoredImage:
    """A picture with its own scores."""
    scores, counts = metrics.scores(picture.matrix, class_names), picture.matrix[: len(class_names)]
    wrong = int(counts.sum() - counts.trace())
    shown = picture.name, picture.image, picture.label, picture.prediction
    return ScoredImage(*shown, list(scores.iou.values()), scores.miou, wrong)
