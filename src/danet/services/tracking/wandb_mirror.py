"""Mirroring a run to Weights & Biases.

The run folder's metrics.jsonl is authoritative; mirrored data may be lost without affecting the run. One daemon thread
calls wandb, through a bounded queue: the caller never waits for it, never sees its exceptions and is never prompted for
a key. Legend: H, W image height and width, K number of classes.
"""

import io
import logging
import math
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from danet.services.tracking import addresses, artifacts, connection
from danet.services.tracking.common import ScoredImage, new_id

logger = logging.getLogger(__name__)

MAX_PENDING = 256  # calls that may wait for the backend
COLUMNS = ("name", "truth", "prediction", "mIoU", "error pixels")  # of the table of predictions, before the classes
PATIENCE = 5.0  # seconds that a caller waits, once, before the mirror is switched off


Mode = Literal["auto", "online", "offline", "disabled"]
MODES: dict[str, Mode] = {  # of WANDB_MODE, with wandb's older names
    "": "auto",
    "online": "online",
    "offline": "offline",
    "disabled": "disabled",
    "run": "online",
    "dryrun": "offline",
}


class WandbMirror:
    """Sends a run's scalars, images and checkpoint to Weights & Biases.

    Every method except `finish` returns at once. The first failure is logged as a warning and switches the mirror off.

    Args:
        mode: "auto" is online if an API key is configured, else offline; the environment variable WANDB_MODE, if
            set, overrides it. "online" falls back to offline without a key or a reachable server;
            `connection.mode_problem` checks for the key in advance. "disabled" does not even import wandb.
        project: name of the project on the server; None takes WANDB_PROJECT, else "danet".
        entity: user or team; None takes WANDB_ENTITY, else the API key's default.
        name: display name of the run.
        group: name under which runs are shown together.
        tags: labels to filter runs by; none takes those in WANDB_TAGS.
        job_type: what the run does, in a word.
        folder: run folder; wandb writes to `folder`/wandb, or to WANDB_DIR/wandb with a link there.
        config: the resolved configuration, plain values.
        run_id: id of the run to continue; None starts a new one.
        alone: take the name and the id of a new run from WANDB_NAME and WANDB_RUN_ID, where they are set; False where
            several runs share these variables.
        init_timeout: seconds to wait for the server before going offline.
        finish_timeout: seconds to wait at the end of the run for unsent data.

    Attributes:
        run_id: id to store in checkpoints, so that a resumed run continues the same record: the actual id, which a
            sweep's agent may set.
    """

    def __init__(
        self,
        *,
        mode: Mode,
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        job_type: str = "train",
        folder: Path,
        config: Mapping[str, Any],
        run_id: str | None = None,
        alone: bool = True,
        init_timeout: float = 15.0,
        finish_timeout: float = 60.0,
    ) -> None:
        variables = os.environ if alone else {}
        given = run_id or variables.get("WANDB_RUN_ID")
        self.run_id = given or new_id()
        self._finish_timeout = finish_timeout
        self._calls: queue.Queue[Callable[[Any], None] | None] = queue.Queue(MAX_PENDING)
        if mode == "auto":
            mode = _mode_of_environment()
        self._active = mode != "disabled"
        self._truths: list[Any] = []  # of the validation images, as logged
        self._thread: threading.Thread | None = None
        self._how_to_sync = ""
        if not self._active:
            return
        options = {
            "project": addresses.project_name(project),
            "entity": entity,  # wandb itself reads the variables for what is None
            "name": variables.get("WANDB_NAME") or name,
            "group": group,
            "tags": list(tags) or None,
            "job_type": job_type,
            "dir": os.environ.get("WANDB_DIR") or str(folder),
            "config": dict(config),
            "id": self.run_id,
            "resume": "allow",
            "allow_val_change": True,  # a resumed run may change the configuration
        }
        self._started = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, args=(mode, folder, options, init_timeout, finish_timeout), daemon=True
        )
        self._thread.start()
        # Wait for the start, so that no data loader forks in the middle of wandb's import. The limit covers the
        # start of wandb's own process, an unresponsive server, and the second start, offline.
        if not self._started.wait(3 * init_timeout):
            self._switch_off("it did not start in time")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Mirrors scalars of optimizer step `step`."""
        # The run's own step is the x-axis: wandb's counter restarts at 0 when an offline run is resumed.
        row = {**values, "step": step}
        self._send(lambda run: run.log(row))

    def log_images(
        self, images: Sequence[ScoredImage], class_names: Sequence[str], step: int, split: str = "val"
    ) -> None:
        """Mirrors images with the prediction as an overlay, and a table of them that can be sorted by any score.

        The truths are uploaded once, as an artifact to which the tables refer.

        Args:
            images: the same ones each time.
            class_names: the K names.
            step: the optimizer step.
            split: that they are from.
        """
        from danet.interfaces import IGNORE  # imports PyTorch, which a check of the mode has no use for

        class_labels = {**dict(enumerate(class_names)), IGNORE: "ignored"}

        def overlay(**masks: np.ndarray) -> dict[str, Any]:
            return {name: {"mask_data": mask, "class_labels": class_labels} for name, mask in masks.items()}

        def call(run: Any) -> None:
            import wandb

            if not self._truths:
                pictures = [wandb.Image(i.image, caption=i.name, masks=overlay(ground_truth=i.label)) for i in images]
                self._truths = artifacts.log_truths(run, images, pictures)
            panel = [wandb.Image(i.image, caption=i.name, masks=overlay(prediction=i.prediction)) for i in images]
            by_class = [f"{name} (class)" if name in COLUMNS else name for name in class_names]
            table = wandb.Table(columns=[*COLUMNS, *by_class])
            for scored, truth in zip(images, self._truths, strict=True):
                answer = wandb.Image(truth, masks=overlay(prediction=scored.prediction))
                ious = [None if math.isnan(iou) else iou for iou in (scored.miou, *scored.iou)]
                table.add_data(scored.name, truth, answer, ious[0], scored.error_pixels, *ious[1:])
            run.log({f"{split}/images": panel, f"{split}/predictions": table, "step": step})

        if images:
            self._send(call)

    def log_pictures(self, key: str, pictures: Mapping[str, bytes], step: int) -> None:
        """Mirrors PNG files under one key.

        Args:
            key: key of the images, such as "val/attention".
            pictures: contents of the files, by caption.
            step: the optimizer step.
        """

        def call(run: Any) -> None:
            import wandb
            from PIL import Image

            images = [wandb.Image(Image.open(io.BytesIO(png)), caption=name) for name, png in pictures.items()]
            run.log({key: images, "step": step})

        self._send(call)

    def log_confusion_matrix(
        self, matrix: np.ndarray, class_names: Sequence[str], picture: Path, step: int, split: str = "val"
    ) -> None:
        """Mirrors the confusion matrix as a table of K rows and as a picture.

        Args:
            matrix: (K, K) int64, rows are the truth; a row more for void is left out.
            class_names: the K names.
            picture: an image file that shows the matrix.
            step: the optimizer step.
            split: that was scored.
        """
        matrix = matrix[: len(class_names), : len(class_names)]
        rows = [[name, *counts] for name, counts in zip(class_names, matrix.tolist(), strict=True)]

        def call(run: Any) -> None:
            import wandb

            table = wandb.Table(columns=["truth \\ prediction", *class_names], data=rows)
            run.log(
                {
                    f"{split}/confusion_matrix": wandb.Image(str(picture)),
                    f"{split}/confusion_table": table,
                    "step": step,
                }
            )

        self._send(call)

    def log_checkpoint(self, path: Path, aliases: Sequence[str], metadata: Mapping[str, Any]) -> None:
        """Uploads a checkpoint as a version of the artifact "checkpoint-<run_id>".

        The file is read later and not copied, so it must not change: call this at the end of the run.

        Args:
            path: the file.
            aliases: names of the version, such as "best". The newest version is "latest" in any case.
            metadata: facts to show beside it.
        """

        def call(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(f"checkpoint-{self.run_id}", type="model", metadata=dict(metadata))
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
            run.log_artifact(artifact, aliases=list(aliases))

        self._send(call)

    def log_inputs(self, weights: str | None, data: Mapping[str, str]) -> None:
        """Records what an online run starts from as artifacts that it uses; offline there is no such record.

        Args:
            weights: artifact of the initial weights, as `artifacts.artifact_of` gives it.
            data: fingerprints by split.
        """
        self._send(lambda run: artifacts.log_inputs(run, weights, dict(data), patience=3 * PATIENCE))

    def alert(self, title: str, text: str) -> None:
        """Sends a message to whoever follows the run, as set up on the server."""
        self._send(lambda run: run.alert(title, text))

    def set_summary(self, values: Mapping[str, Any]) -> None:
        """Sets the values shown in the list of runs, such as the best mIoU."""
        summary = dict(values)
        self._send(lambda run: run.summary.update(summary))

    def finish(self, exit_code: int = 0) -> None:
        """Ends the record and waits for unsent data, at most about `finish_timeout` seconds."""
        self._send(lambda run: run.finish(exit_code=exit_code))
        self._send(None)
        if self._thread is not None:
            self._thread.join(self._finish_timeout + PATIENCE)  # wandb's own limit comes first
            if self._thread.is_alive():
                rest = f"; `{self._how_to_sync}` uploads the rest" if self._how_to_sync else ""
                self._switch_off(f"it did not finish in time{rest}")
                self._thread.join(PATIENCE)
        self._active = False

    def _send(self, call: Callable[[Any], None] | None) -> None:
        """Queues a function to call with the run; None ends the thread."""
        if not self._active:
            return
        try:
            self._calls.put(call, timeout=PATIENCE)
        except queue.Full:
            self._switch_off("it does not answer")

    def _serve(self, mode: str, folder: Path, options: dict[str, Any], *timeouts: float) -> None:
        """The thread's main function: start the run, then make the queued calls in order until one fails."""
        try:
            run = connection.start(mode, folder, options, *timeouts)
            self.run_id = run.id
            self._how_to_sync = addresses.how_to_sync(folder, run)
            self._started.set()
            while (call := self._calls.get()) is not None:
                call(run)
        except (Exception, SystemExit) as error:  # no failure may affect the training
            self._switch_off(f"{type(error).__name__}: {error}")
        finally:
            self._started.set()

    def _switch_off(self, reason: str) -> None:
        if not self._active:
            return
        self._active = False
        logger.warning(
            "Weights & Biases is switched off for the rest of this run: %s. metrics.jsonl in the run folder keeps "
            "everything",
            reason,
        )
        # Drop wandb's process: Python would wait for it at exit, and the next run of a sweep would inherit it.
        thread = threading.Thread(target=connection.teardown, name="wandb-teardown", daemon=True)
        thread.start()
        self._thread = thread  # `finish` waits for it


def _mode_of_environment() -> Mode:
    given = os.environ.get("WANDB_MODE", "")
    if given.lower() not in MODES:
        logger.warning("Weights & Biases: WANDB_MODE=%s is none of its modes; logging offline", given)
    return MODES.get(given.lower(), "offline")
