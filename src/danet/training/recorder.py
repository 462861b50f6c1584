"""Writes the run folder and tells people how the run goes.

The loop says what happened; this decides which files, pictures and lines come of it. metrics.jsonl is the truth, from
which history.csv and curves.png are made; Weights & Biases gets a mirror. Only the main process has an active
recorder.
"""

import io
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from danet.analysis import summary
from danet.analysis.attention_maps import attention_maps
from danet.analysis.attention_sheet import plot_attention
from danet.config import RunConfig, shell_word
from danet.evaluation.evaluate import Evaluation
from danet.interfaces import SegmentationDataset
from danet.model import Segmenter
from danet.registry import extension_folders
from danet.services import checkpoint, figures, hardware, records
from danet.services.console import Progress, print_scores
from danet.services.tracking import WandbMirror
from danet.sweeps.trial import Trial
from danet.training.starving import DataWait

log = logging.getLogger(__name__)


class Recorder:
    """The outputs of one run.

    Args:
        config: the run.
        folder: its folder, which exists.
        dataset: the split that is scored: its class names and palette.
        active: whether to write at all.
        sweep: folder of the sweep that the run is part of, if any.
        trial: what the run is in a search, if it is one's.

    Attributes:
        folder: as given.
        pruned: whether the search wants the run to end.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        dataset: SegmentationDataset,
        *,
        active: bool,
        sweep: Path | None = None,
        trial: Trial | None = None,
    ) -> None:
        self.folder, self.pruned = folder, False
        self._sweep, self._trial = sweep, trial
        self._config, self._dataset, self._active = config, dataset, active
        self._metrics = records.MetricsFile(folder / "metrics.jsonl")
        self._waiting = DataWait(config.runtime)

    def begin(
        self,
        model: Segmenter,
        total_steps: int,
        saved: dict[str, Any] | None,
        *,
        arithmetic: str,
        num_images: int,
    ) -> None:
        """Announce the run and open the records where a checkpoint left them."""
        if not self._active:
            return
        config, step = self._config, saved["step"] if saved else 0
        # Rows after the checkpoint are written again, the same.
        score = f"{config.evaluate.split}/miou"
        self._metrics.truncate(step, evaluated=saved["run"]["evaluated"] if saved else 0, score=score)
        size = self._dataset.read_label(0).shape
        cost = summary.summarize(model, (size[0], size[1]))
        # Of one image as it is scored; a multiply-add is two operations.
        self._cost = {"parameters": cost.parameters, "gflops": cost.flops / 1e9, "flops_size": list(size)}
        self._device = model.mean.device
        hardware.reset_peak_memory(self._device)
        log.info(
            "%s, %s, %.2f M parameters; %s, %d training images; %d steps of %d images; %s",
            *(
                config.backbone["name"],
                config.head["name"],
                cost.parameters / 1e6,
                self._dataset.description,
                num_images,
            ),
            *(total_steps, config.train.batch_size, arithmetic),
        )
        tracking = config.tracking
        self._mirror = WandbMirror(
            mode=tracking.mode,
            project=tracking.project,
            entity=tracking.entity,
            name=str(self.folder.relative_to(self._sweep.parent)) if self._sweep else self.folder.name,
            group=tracking.group or (self._sweep.name if self._sweep else None),
            tags=tracking.tags,
            folder=self.folder,
            config=asdict(config),
            run_id=saved["tracker_id"] if saved else None,
        )
        self._progress, self._total_steps = Progress(total_steps, step), total_steps
        self._best_miou = saved["run"]["best"].get("miou") if saved else None
        self._last = (step, time.monotonic())

    def __enter__(self) -> Self:
        """Show the progress bar."""
        if self._active:
            self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the progress bar away; a run that failed is marked so."""
        if self._active:
            self._progress.__exit__(kind, error, trace)
            if kind is not None:
                self._mirror.finish(exit_code=1)

    def waited(self, seconds: float) -> None:
        """Count time that the loop spent waiting for images."""
        self._waiting.add(seconds)

    def paused(self, seconds: float) -> None:
        """Leave time that went to evaluating and saving out of the training speed."""
        if self._active:
            self._last = (self._last[0], self._last[1] + seconds)

    def advance(self, step: int) -> None:
        """Show that a step is done."""
        if self._active:
            self._progress.update(step)

    def log(self, row: dict[str, Any]) -> None:
        """Record a row of training metrics."""
        if not self._active:
            return
        step, now = row["step"], time.monotonic()
        elapsed = now - self._last[1]
        row["perf/images_per_second"] = (step - self._last[0]) * self._config.train.batch_size / elapsed
        row["perf/waiting_for_data"] = self._waiting.share(step, elapsed)
        self._last = (step, now)
        self._write(row)
        self._progress.update(
            step,
            loss=row.get("train/loss"),
            miou=self._best_miou,
            images_per_second=row["perf/images_per_second"],
        )

    def evaluated(self, row: dict[str, Any], found: Evaluation, is_best: bool, model: Segmenter) -> None:
        """Record an evaluation; of the best one keep the weights, the table and the pictures."""
        if not self._active:
            return
        split, scores, names = self._config.evaluate.split, found.scores, self._dataset.class_names
        self._write(
            {
                **row,
                f"{split}/miou": scores.miou,
                f"{split}/pixel_accuracy": scores.pixel_accuracy,
                f"{split}/mean_accuracy": scores.mean_accuracy,
                f"{split}/frequency_weighted_iou": scores.frequency_weighted_iou,
                **{f"{split}/iou/{name}": value for name, value in scores.iou.items()},
            }
        )
        log.info("step %d: %s/miou %.4f%s", row["step"], split, scores.miou, " (best so far)" if is_best else "")
        self._ask_search(row["step"], scores.miou)
        pictures = found.pictures[: self._config.tracking.images]
        images = [(p.name, p.image, p.prediction, p.label) for p in pictures]
        self._mirror.log_images(images, names, row["step"])
        self._show_attention(row["step"], found, is_best, model)
        if is_best:
            self._best_miou = scores.miou
            self._keep_best(row["step"], found, model)
        figures.plot_curves(self._metrics.rows(), self.folder / "curves.png", split=split)

    def _ask_search(self, step: int, miou: float) -> None:
        """Tell the search the score; it may want the run to end before its last step."""
        if self._trial is None:
            return
        evaluations = sum(f"{self._config.evaluate.split}/miou" in row for row in self._metrics.rows())
        self.pruned = self._trial.report(evaluations, miou) and step < self._total_steps
        if self.pruned:
            log.info("step %d: pruned, others of the search were better by now", step)

    def _show_attention(self, step: int, found: Evaluation, is_best: bool, model: Segmenter) -> None:
        """Sheets of the first images: every time to the mirror, of the best evaluation to the run folder."""
        sheets: dict[str, bytes] = {}
        for shown in found.pictures[: self._config.tracking.attention_images]:
            maps, sheet = attention_maps(model, shown.image, every_class=True), io.BytesIO()
            classes = (self._dataset.class_names, self._dataset.palette)
            plot_attention(maps, *classes, sheet, shown.name, facts=f"step {step}", label=shown.label)
            sheets[shown.name] = sheet.getvalue()
            if is_best:
                (self.folder / "attention").mkdir(exist_ok=True)
                (self.folder / "attention" / f"{shown.name}.png").write_bytes(sheet.getvalue())
        if sheets:
            self._mirror.log_pictures("val/attention", sheets, step)

    def _keep_best(self, step: int, found: Evaluation, model: nn.Module) -> None:
        scores, names = found.scores, self._dataset.class_names
        checkpoint.save(
            self.folder / "checkpoints" / "best.pt",
            {"step": step, "miou": scores.miou, "model": model.state_dict(), **self._meaning()},
        )
        records.write_per_class(self.folder / "per_class.csv", names, *_columns(found.result(), names))
        if found.image_matrices:
            records.write_matrices(self.folder / "confusion_matrices.npz", found.image_matrices, names)
        picture = self.folder / "confusion_matrix.png"
        figures.plot_confusion_matrix(found.matrix, names, picture)
        self._mirror.log_confusion_matrix(found.matrix, names, picture, step)
        (self.folder / "samples").mkdir(exist_ok=True)
        for shown in found.pictures[: self._config.evaluate.samples]:
            figures.plot_sample(
                shown.image,
                shown.label,
                shown.prediction,
                names,
                self._dataset.palette,
                self.folder / "samples" / f"{shown.name}.png",
                f"{shown.name}, step {step}",
            )

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint that the run can go on from."""
        if self._active:
            extra = {"tracker_id": self._mirror.run_id, **self._meaning()}
            checkpoint.save_step(self.folder / "checkpoints", {**state, **extra})

    def _meaning(self) -> dict[str, Any]:
        """What a checkpoint's weights are to be understood with."""
        names, palette = self._dataset.class_names, self._dataset.palette
        saved = self.folder / "config.yaml"  # as the run began: a resumed one no longer knows its first weights
        return {
            "config": saved.read_text(encoding="utf-8") if saved.is_file() else self._config.yaml(),
            "num_classes": len(names),
            "class_names": list(names),
            "palette": [list(colour) for colour in palette],
        }

    def how_to_resume(self) -> str:
        """The command that resumes the run."""
        folders = ",".join(map(str, extension_folders()))
        own = [shell_word(f"extensions=[{folders}]" if "," in folders else f"extensions={folders}")] if folders else []
        return " ".join(["Resume with: python src/train.py", shell_word(f"resume={self.folder}"), *own])

    def finish(self, best: dict[str, Any], *, finished: bool) -> None:
        """Write the result and the table, or say how to go on with a run that was stopped."""
        if not self._active:
            return
        records.write_history(self._metrics.rows(), self.folder, split=self._config.evaluate.split)
        if not finished:
            log.info("stopped; everything is saved. %s", self.how_to_resume())
            self._mirror.finish(exit_code=0)
            return
        rows = self._metrics.rows()
        speeds = [row["perf/images_per_second"] for row in rows if "perf/images_per_second" in row]
        result = {
            **best,
            **self._cost,
            "seconds": rows[-1]["seconds"],  # evaluations included
            "images_per_second": statistics.median(speeds) if speeds else None,
            "peak_memory_bytes": hardware.peak_memory(self._device),
            "dataset": self._dataset.description,
            "checkpoint": "checkpoints/best.pt",
            "seed": self._config.seed,
            "torch": torch.__version__,
        }
        if self.pruned:
            result["pruned"] = True
        records.write_json(self.folder / "result.json", result)
        title = f"{self._dataset.description}, {best['split']}, {best['num_images']} images, step {best['step']}"
        print_scores(
            title,
            self._dataset.class_names,
            *_columns(best, self._dataset.class_names),
            miou=best["miou"],
            pixel_accuracy=best["pixel_accuracy"],
        )
        self._mirror.set_summary({f"best/{key}": best[key] for key in ("miou", "pixel_accuracy", "step")})
        if self._config.tracking.log_checkpoint:
            self._mirror.log_checkpoint(self.folder / "checkpoints" / "best.pt", {"miou": best["miou"]})
        self._mirror.finish(exit_code=0)
        log.info("run folder %s", self.folder)

    def _write(self, row: dict[str, Any]) -> None:
        self._metrics.append(row)
        self._mirror.log({k: v for k, v in row.items() if isinstance(v, int | float)}, row["step"])


def _columns(result: dict[str, Any], class_names: Sequence[str]) -> tuple[list[float], list[float], list[int]]:
    """IoU, accuracy and pixels in the order of the classes."""
    iou, accuracy, pixels = ([result[key][name] for name in class_names] for key in ("iou", "accuracy", "pixels"))
    return iou, accuracy, pixels
