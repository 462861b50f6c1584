"""Mirroring a run to TensorBoard: event files in its folder, by PyTorch's own writer.

Legend: H, W image height and width, K number of classes.
"""

import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from danet.services.palettes import voc_palette
from danet.services.tracking.common import ScoredImage, new_id

logger = logging.getLogger(__name__)


class TensorBoardMirror:
    """Writes a run's scalars and images for TensorBoard. The methods are those of WandbMirror.

    Checkpoints, inputs and alerts have no place in event files. The first failure is logged as a warning and switches
    the mirror off; where a file cannot be written, TensorBoard's own thread prints a traceback besides.

    Args:
        folder: run folder; the files go to `folder`/tensorboard.
        config: the resolved configuration, plain values.
        run_id: id of the run to continue; None makes one, for a resume that tracks elsewhere.
        step: optimizer step that the run continues from: what the files have of later ones is written again.
        _: options of WandbMirror that mean nothing here.
    """

    def __init__(
        self,
        *,
        folder: Path,
        config: Mapping[str, Any],
        run_id: str | None = None,
        step: int | None = None,
        **_: Any,
    ) -> None:
        self.run_id = run_id or new_id()
        self._folder, self._config = folder / "tensorboard", dict(config)
        self._purged = None if step is None else step + 1
        self._writer: Any = None
        self._active = True
        logger.info("TensorBoard: tensorboard --logdir %s", folder)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars of optimizer step `step`."""
        self._write(lambda writer: [writer.add_scalar(key, value, step) for key, value in values.items()])

    def log_images(
        self, images: Sequence[ScoredImage], class_names: Sequence[str], step: int, split: str = "val"
    ) -> None:
        """Write images, each with its truth and its prediction in colors beside it."""
        palette = np.zeros((256, 3), np.uint8)  # ignored pixels are black
        palette[: len(class_names)] = voc_palette(len(class_names))

        def call(writer: Any) -> None:
            for scored in images:
                row = np.hstack([scored.image, palette[scored.label], palette[scored.prediction]])
                writer.add_image(f"{split}/images/{scored.name}", row, step, dataformats="HWC")

        self._write(call)

    def log_pictures(self, key: str, pictures: Mapping[str, bytes], step: int) -> None:
        """Write PNG files under one key; `pictures` has their contents by caption."""

        def call(writer: Any) -> None:
            for name, png in pictures.items():
                writer.add_image(f"{key}/{name}", _pixels(io.BytesIO(png)), step, dataformats="HWC")

        self._write(call)

    def log_confusion_matrix(
        self, matrix: np.ndarray, class_names: Sequence[str], picture: Path, step: int, split: str = "val"
    ) -> None:
        """Write the picture of the confusion matrix."""
        key = f"{split}/confusion_matrix"
        self._write(lambda writer: writer.add_image(key, _pixels(picture), step, dataformats="HWC"))

    def set_summary(self, values: Mapping[str, Any]) -> None:
        """Write the run's result as text."""
        self._write(lambda writer: writer.add_text("summary", _as_text(values)))

    def log_checkpoint(self, path: Path, aliases: Sequence[str], metadata: Mapping[str, Any]) -> None:
        """Do nothing: event files hold no files."""

    def log_inputs(self, weights: str | None, data: Mapping[str, str]) -> None:
        """Do nothing: the text of the configuration has the data's fingerprints."""

    def alert(self, title: str, text: str) -> None:
        """Do nothing: TensorBoard has no alerts."""

    def finish(self, exit_code: int = 0) -> None:
        """Write what is pending."""
        if self._writer is not None:
            self._write(lambda writer: writer.close())
        self._active = False

    def _write(self, call: Callable[[Any], Any]) -> None:
        if not self._active:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self._folder), purge_step=self._purged)
                self._writer.add_text("config", _as_text(self._config))
            call(self._writer)
        except Exception as error:  # no failure may affect the training
            self._active = False
            logger.warning("TensorBoard is switched off for the rest of this run: %s", error)


def _pixels(file: Any) -> np.ndarray:
    """(H, W, 3) uint8."""
    from PIL import Image

    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def _as_text(values: Mapping[str, Any]) -> str:
    """Values as Markdown that shows their structure."""
    return "\n".join(f"    {line}" for line in json.dumps(dict(values), indent=2, default=str).splitlines())
