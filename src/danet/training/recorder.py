"""Writes the run folder: metrics, checkpoints, scores, the result. Only the main process writes.

metrics.jsonl is the truth, from which history.csv and curves.png are made; what people look at is in display.py.
"""

import functools
import logging
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self

import torch

from danet.analysis import summary
from danet.analysis.attention_maps import attention_modules
from danet.config import RunConfig, as_trained, shell_word
from danet.evaluation.evaluate import Evaluation
from danet.interfaces import SegmentationDataset
from danet.model import Segmenter
from danet.registry import extension_folders
from danet.services import atomic_files, checkpoint, hardware, metrics_file, tables
from danet.services.places import command
from danet.sweeps.trial import Trial
from danet.training.display import Display

log = logging.getLogger(__name__)

P = ParamSpec("P")


def _in_main_process(method: "Callable[Concatenate[Recorder, P], None]") -> "Callable[Concatenate[Recorder, P], None]":
    """Make a method do nothing in the other processes."""

    @functools.wraps(method)
    def wrapped(self: "Recorder", *args: P.args, **kwargs: P.kwargs) -> None:
        if self._active:
            method(self, *args, **kwargs)

    return wrapped


class Recorder:
    """The outputs of one run.

    Args:
        config: the run.
        folder: its folder, which exists.
        dataset: the split that is scored: its class names and palette.
        active: whether to write at all.
        sweep: folder of the sweep that the run is part of, if any.
        trial: the run's part in a search, if any.

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
        self._metrics = metrics_file.MetricsFile(folder / "metrics.jsonl")

    @_in_main_process
    def begin(
        self,
        model: Segmenter,
        total_steps: int,
        saved: dict[str, Any] | None,
        *,
        arithmetic: str,
        num_images: int,
    ) -> None:
        """Announce the run, and open the records where a checkpoint left them.

        Args:
            model: to be trained.
            total_steps: of the run.
            saved: the checkpoint that the run goes on from.
            arithmetic: device and precision, in words.
            num_images: in the training split.
        """
        config, step = self._config, saved["step"] if saved else 0
        # Rows after the checkpoint are written again, the same.
        score = f"{config.evaluate.split}/miou"
        self._metrics.truncate(step, evaluated=saved["run"]["evaluated"] if saved else 0, score=score)
        size = self._dataset.read_label(0).shape
        cost = summary.summarize(model, (size[0], size[1]))
        # Of one image as it is scored; a multiply-add is two operations.
        self._cost = {"parameters": cost.parameters, "gflops": cost.flops / 1e9, "flops_size": list(size)}
        self._device = model.mean.device
        self._has_attention = bool(attention_modules(model))
        hardware.reset_peak_memory(self._device)
        backbone = config.backbone.get("model", config.backbone["name"])
        log.info(
            f"{backbone}, {config.head['name']}, {cost.parameters / 1e6:.2f} M parameters; "
            f"{self._dataset.description}, {num_images} training images; {total_steps} steps of "
            f"{config.train.batch_size} images; {arithmetic}"
        )
        self._total_steps = total_steps
        self._display = Display(
            config,
            self.folder,
            self._dataset,
            sweep=self._sweep.name if self._sweep else None,
            name=str(self.folder.relative_to(self._sweep.parent)) if self._sweep else self.folder.name,
            run_id=saved["tracker_id"] if saved else None,
            step=step,
            total_steps=total_steps,
            best_miou=saved["run"]["best"].get("miou") if saved else None,
        )

    def __enter__(self) -> Self:
        """Show the progress bar."""
        if self._active:
            self._display.__enter__()
        return self

    @_in_main_process
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the progress bar; mark a run that failed."""
        self._display.__exit__(kind, error, trace)

    @_in_main_process
    def waited(self, seconds: float) -> None:
        """Count time that the loop spent waiting for images."""
        self._display.waited(seconds)

    @_in_main_process
    def paused(self, seconds: float) -> None:
        """Leave time spent on evaluating and saving out of the training speed."""
        self._display.paused(seconds)

    @_in_main_process
    def advance(self, step: int) -> None:
        """Show that a step is done."""
        self._display.advance(step)

    @_in_main_process
    def log(self, row: dict[str, Any]) -> None:
        """Record a row of training metrics."""
        row |= self._display.speed(row["step"])
        self._metrics.append(row)
        self._display.metrics(row)

    @_in_main_process
    def evaluated(self, row: dict[str, Any], evaluation: Evaluation, is_best: bool, model: Segmenter) -> None:
        """Record an evaluation; of the best one, keep the weights, the table and the pictures."""
        split, scores = self._config.evaluate.split, evaluation.scores
        row |= {
            f"{split}/miou": scores.miou,
            f"{split}/pixel_accuracy": scores.pixel_accuracy,
            f"{split}/mean_accuracy": scores.mean_accuracy,
            f"{split}/frequency_weighted_iou": scores.frequency_weighted_iou,
            **{f"{split}/iou/{name}": value for name, value in scores.iou.items()},
        }
        self._metrics.append(row)
        self._ask_search(row["step"], scores.miou)
        if is_best:
            self._keep_best(row["step"], evaluation, model)
        self._display.evaluated(row, evaluation, is_best, model, self._metrics.rows())

    def _ask_search(self, step: int, miou: float) -> None:
        """Tell the search the score; it may want the run to end before its last step."""
        if self._trial is None:
            return
        evaluations = sum(f"{self._config.evaluate.split}/miou" in row for row in self._metrics.rows())
        self.pruned = self._trial.report(evaluations, miou) and step < self._total_steps
        if self.pruned:
            log.info("step %d: pruned, others of the search were better by now", step)

    def _keep_best(self, step: int, evaluation: Evaluation, model: Segmenter) -> None:
        names = self._dataset.class_names
        best = {"step": step, "miou": evaluation.scores.miou, "model": model.state_dict(), **self._meaning()}
        checkpoint.save(self.folder / "checkpoints" / "best.pt", best)
        tables.write_per_class(self.folder / "per_class.csv", names, *_columns(evaluation.result(), names))
        if evaluation.image_matrices:
            tables.write_matrices(self.folder / "confusion_matrices.npz", evaluation.image_matrices, names)

    @_in_main_process
    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint that the run can go on from."""
        extra = {"tracker_id": self._display.mirror.run_id, **self._meaning()}
        checkpoint.save_step(self.folder / "checkpoints", {**state, **extra})

    def _meaning(self) -> dict[str, Any]:
        """What a checkpoint's weights are to be understood with."""
        names, palette = self._dataset.class_names, self._dataset.palette
        saved = self.folder / "config.yaml"  # as the run began: a resumed one no longer knows its first weights
        text = saved.read_text(encoding="utf-8") if saved.is_file() else self._config.yaml()
        return {
            "config": as_trained(text, self._config),
            "num_classes": len(names),
            "class_names": list(names),
            "palette": [list(color) for color in palette],
        }

    def how_to_resume(self) -> str:
        """The command that resumes the run."""
        return " ".join(["Resume with:", command("train"), shell_word(f"resume={self.folder}"), *_own_components()])

    def next_commands(self) -> list[str]:
        """The commands that a finished run is for."""
        run = " ".join([shell_word(f"run={self.folder}"), *_own_components()])
        return [
            f"{command('evaluate')} {run}",
            f"{command('predict')} {run} input=PHOTOS output=predictions",
            *([f"{command('attention')} {run} sample=0"] if self._has_attention else []),
        ]

    @_in_main_process
    def finish(self, best: dict[str, Any], *, finished: bool) -> None:
        """Write the result and the table, or say how to resume a run that was stopped."""
        tables.write_history(self._metrics.rows(), self.folder, split=self._config.evaluate.split)
        if finished:
            self._tell_early_stop(best["step"])
            self._write_result(best)
            self._display.result(best, _columns(best, self._dataset.class_names))
        else:
            log.info("stopped; everything is saved. %s", self.how_to_resume())
        self._display.mirror.finish(exit_code=0)
        if finished:
            log.info("run folder %s", self.folder)
            if self._sweep is None:
                log.info("next: %s", "\n      ".join(self.next_commands()))

    def _tell_early_stop(self, best_step: int) -> None:
        """Say why a run ends before its last step, where nothing else has said so."""
        step, patience = self._metrics.rows()[-1]["step"], self._config.train.early_stop_patience
        if step < self._total_steps and not self.pruned:
            why = f"no evaluation since step {best_step} was better (train.early_stop_patience={patience})"
            log.info("step %d: stopped early, %s", step, why)

    def _write_result(self, best: dict[str, Any]) -> None:
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
            **({"pruned": True} if self.pruned else {}),
        }
        atomic_files.write_json(self.folder / "result.json", result)


def _own_components() -> list[str]:
    """The argument that lets another command find the user's own components; empty where there are none."""
    folders = ",".join(map(str, extension_folders()))
    return [shell_word(f"extensions=[{folders}]" if "," in folders else f"extensions={folders}")] if folders else []


def _columns(result: dict[str, Any], class_names: Sequence[str]) -> tuple[list[float], list[float], list[int]]:
    """IoU, accuracy and pixels in the order of the classes."""
    iou, accuracy, pixels = ([result[key][name] for name in class_names] for key in ("iou", "accuracy", "pixels"))
    return iou, accuracy, pixels
