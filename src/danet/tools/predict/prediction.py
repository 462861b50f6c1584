"""From files to predictions: images, folders, globs, videos and lists of paths -> labels, colors and overlays.

An input gives NAME_labels.png (class ids, 8-bit gray), NAME_color.png (the classes' colors) and NAME_overlay.jpg
(colors over the image), or NAME_overlay.mp4 for a video; where they are asked for, the files of confidence.py, and a
video's NAME_labels/000000.png, ... classes.json names ids and colors. All have the size of the image when it is turned
as its EXIF says.

Shapes: H x W image size, K classes.
"""

import contextlib
import importlib.util
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from danet.arguments import Folder, Fraction, Temperature, Text
from danet.config.sections import DeviceConfig, InferenceConfig, ModelSource
from danet.schema import ConfigError
from danet.services.atomic_files import FULL, naming, remove_abandoned, replacing, temporary_name, write_json
from danet.services.console import track
from danet.services.failures import first_line, in_words, is_out_of_memory
from danet.services.figures import as_rgb
from danet.tools.predict import confidence
from danet.tools.predict.inputs import Item, find_inputs, settled
from danet.tools.predict.pictures import overlay, save_image
from danet.tools.predict.video import VideoReader, VideoWriter

if TYPE_CHECKING:
    from danet.inference.predictor import Predictor

log = logging.getLogger(__name__)

ENDINGS = {"labels": "_labels.png", "color": "_color.png", "overlay": "_overlay.jpg", **confidence.ENDINGS}
VIDEO_ENDING = "_overlay.mp4"
FRAMES_ENDING = "_labels"  # a folder with the labels of a video's frames: 000000.png, 000001.png, ...

Output = Literal["labels", "color", "overlay", "probabilities", "entropy", "margin"]


@dataclass(frozen=True, kw_only=True)
class PredictConfig(ModelSource):
    """What to predict, how, and where to write it."""

    input: Text  # see inputs.find_inputs
    output: Folder  # gets the input's subfolders, too; what a run before has written is replaced
    write: Annotated[Sequence[Output], Field(min_length=1)] = ("labels", "color", "overlay")
    opacity: Fraction = 0.5  # of the colors over the image
    video_labels: bool = False  # of a video, write every frame's labels, too
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where the hardware computes it natively
    temperature: Temperature = "auto"  # of the probabilities; auto: as fitted to the weights, else 1
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    runtime: DeviceConfig = field(default_factory=DeviceConfig)

    def problems(self) -> list[str]:
        """Problems between the keys, one line each."""
        empty = [] if self.input else ["input = '': name an image, a video, a folder, a glob, or - for a list of paths"]
        unknown = [kind for kind in self.write if kind in confidence.ENDINGS and self.inference.combine == "official"]
        text = "inference.combine=official has scores, not probabilities; use combine=probabilities or mmseg"
        return [*super().problems(), *empty, *(f"write: {kind}: {text}" for kind in unknown[:1])]


def run(config: PredictConfig) -> list[str]:
    """Predict everything that `config.input` means, a file at a time.

    Returns:
        A line for every input that could not be done; they are logged, too.

    Raises:
        ConfigError: nothing to do, or nothing that may be written; no file has been touched.
        ValueError: the model cannot be loaded.
        OSError: an output cannot be written.
    """
    output = Path(config.output).expanduser().resolve()
    items = find_inputs(config.input, output)
    _check(config, items, output)

    from danet.inference import predictor  # here, for what is wrong so far must not wait for PyTorch

    model = predictor.load(
        config.run or str(config.checkpoint),
        device=config.runtime.device,
        precision=config.precision,
        backbone=config.backbone,
        head=config.head,
        temperature=config.temperature,
        **asdict(config.inference),
    )
    if model.reading and (video := next((item.path.name for item in items if item.is_video), None)):
        raise ConfigError([f"input: {video} is a video, but the model reads other bands than red, green and blue"])
    log.info("%s: %s", config.run or config.checkpoint, ", ".join(model.class_names))
    write_json(output / "classes.json", describe_classes(model))
    job, start = Job(config, model, output), time.monotonic()
    failed = job.images([item for item in items if not item.is_video])
    for item in items:
        if item.is_video:
            failed += job.video(item)
    log.info("%d of %d done in %.1f s: %s", len(items) - len(failed), len(items), time.monotonic() - start, output)
    if failed:
        log.error("not done:\n  %s", "\n  ".join(failed))
    return failed


def _check(config: PredictConfig, items: list[Item], output: Path) -> None:
    """Refuse what cannot be done, before the output folder is made.

    Raises:
        ConfigError: lists every problem.
    """
    problems = []
    videos = [item for item in items if item.is_video]
    if videos and importlib.util.find_spec("av") is None:
        problems.append(f"input: {videos[0].path.name} is a video, which needs PyAV: pip install 'danet[video]'")
    if videos and "overlay" not in config.write and not config.video_labels:
        problems.append("write: a video needs overlay, or video_labels=true; add one of them")
    endings = [*(ENDINGS[kind] for kind in config.write), VIDEO_ENDING]
    targets = {settled(output / f"{item.name}{ending}") for item in items for ending in endings}
    if over := sorted(targets & {settled(item.path) for item in items}):
        problems.append(f"output = {str(output)!r}: would overwrite the input {over[0].name}; take another folder")
    if problems:
        raise ConfigError(problems)
    try:
        there = next(folder for folder in (output, *output.parents) if folder.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ConfigError([f"output = {str(output)!r}: cannot be written to ({error.strerror})"]) from None


# ---- outputs ---------------------------------------------------------------------------------------------------------


class Job:
    """Runs a model on files."""

    def __init__(self, config: PredictConfig, model: "Predictor", output: Path) -> None:
        self._config, self._model, self._output = config, model, output
        self._colors = np.array(model.palette, np.uint8)

    def images(self, items: Sequence[Item]) -> list[str]:
        """Predict images; return a line for each one that failed."""
        return [line for item in track(items, len(items), "images") if (line := self._tried(self._image, item))]

    def video(self, item: Item) -> list[str]:
        """Predict a video; return a line if that failed. Its sound is dropped.

        Of a file that is cut short, the frames that could be read are predicted; any other failure leaves nothing.
        """
        line = self._tried(self._video, item)
        return [line] if line else []

    def _tried(self, work: Callable[[Item], None], item: Item) -> str | None:
        """Process an input; return a line for any failure, so that the other inputs are still processed.

        Raises:
            OSError: nothing more can be written.
        """
        try:
            work(item)
        except OSError as error:
            if error.errno in FULL:
                raise
            return _line(item, in_words(error))
        except (ValueError, ArithmeticError) as error:
            return _line(item, str(error))
        except Exception as error:  # libraries raise any exception
            if is_out_of_memory(error):
                return _line(item, f"needs more memory than there is ({first_line(error)})")
            log.debug("%s", item.path, exc_info=True)
            return _line(item, f"{type(error).__name__}: {first_line(error)}")
        return None

    def _image(self, item: Item) -> None:
        image = self._model.read_image(item.path)
        asked = [kind for kind in self._config.write if kind in confidence.ENDINGS]
        if asked:
            labels, probabilities = self._tried_on_device(self._model.labels_and_probabilities, image, item)
            for kind in asked:
                path = self._output / f"{item.name}{ENDINGS[kind]}"
                confidence.save(kind, path, probabilities, self._model.class_names)
        else:
            labels = self._labels(image, item)
        for kind in self._config.write:
            if kind not in asked:
                save_image(self._output / f"{item.name}{ENDINGS[kind]}", self._picture(kind, image, labels))

    def _video(self, item: Item) -> None:
        overlays = self._output / f"{item.name}{VIDEO_ENDING}" if "overlay" in self._config.write else None
        folder = self._output / f"{item.name}{FRAMES_ENDING}" if self._config.video_labels else None
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(VideoReader(item.path))
            numbered = stack.enter_context(replacing_frames(folder)) if folder else None
            writer = None
            if overlays:
                writer = stack.enter_context(VideoWriter(stack.enter_context(replacing(overlays)), reader.rate))
            for index, frame in enumerate(track(reader, reader.count, f"frames of {item.path.name}")):
                labels = self._labels(frame, item)
                if writer:
                    writer.add(self._picture("overlay", frame, labels), reader.time)
                if numbered:
                    save_image(numbered / f"{index:06d}.png", labels)
        if reader.cut:
            kept = " and ".join(path.name for path in (overlays, folder) if path)
            raise ValueError(f"{reader.cut}; these are in {kept}")

    def _labels(self, image: np.ndarray, item: Item) -> np.ndarray:
        return self._tried_on_device(self._model.predict, image, item)

    def _tried_on_device(self, work: Callable[[np.ndarray], Any], image: np.ndarray, item: Item) -> Any:
        """`work(image)`.

        Raises:
            ValueError: there is not enough memory; says what needs less.
        """
        try:
            return work(image)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        size = "x".join(map(str, image.shape[:2]))
        slides = self._config.inference.mode == "slide"
        remedy = "a smaller inference.crop_size" if slides else "inference.mode=slide"
        raise ValueError(f"{item.path}: {size} is too large for the device; try {remedy}")

    def _picture(self, kind: Output, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        if kind == "labels":
            return labels
        colors = self._colors[labels]
        return colors if kind == "color" else overlay(as_rgb(image), colors, self._config.opacity)


@contextlib.contextmanager
def replacing_frames(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder for numbered frames; they replace those in `folder` at the end, or go after an error.

    What else lies in `folder`, as the predictions of images in a subfolder of that name, stays.
    """
    temporary = temporary_name(folder, ".tmp")
    try:
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)  # before the work, for it may be a file
            remove_abandoned(folder.parent)
            yield temporary
            written = {frame.name for frame in temporary.iterdir()}
            for name in written:
                (temporary / name).replace(folder / name)
            for frame in folder.iterdir():
                if re.fullmatch(r"\d{6,}\.png", frame.name) and frame.name not in written:
                    frame.unlink()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # if it is empty: nothing was made


def _line(item: Item, text: str) -> str:
    """What is said of an input that could not be done, with its path at the beginning."""
    return text if text.startswith(str(item.path)) else f"{item.path}: {text}"


def describe_classes(model: "Predictor") -> dict[str, Any]:
    """What ids and colors in the outputs mean, and which weights found them."""
    classes = [
        {"id": index, "name": name, "color": list(color)}
        for index, (name, color) in enumerate(zip(model.class_names, model.palette, strict=True))
    ]
    scales = {"entropy": confidence.ENTROPY_SCALE, "margin": confidence.MARGIN_SCALE}
    return {**model.facts, "inference": asdict(model.inference), "scales": scales, "classes": classes}
