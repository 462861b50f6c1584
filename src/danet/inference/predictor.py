"""A trained model ready to use: `danet.load(...)` returns one, `predict` segments an image.

Shapes: H x W image size, K classes.
"""

import contextlib
import io
import textwrap
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from danet import config
from danet.config.sections import InferenceConfig
from danet.datasets.images import read_bands
from danet.inference import temperature as scaling
from danet.inference import views as inference
from danet.inference.images import read_image, rgb
from danet.model import Segmenter, build_model
from danet.schema import ConfigError, check_dataclass
from danet.services import figures, hardware, weights
from danet.services.compute import Compute
from danet.services.nonfinite import FiniteScores
from danet.services.places import command

ImageLike = np.ndarray | Image.Image | torch.Tensor | str | Path


class Predictor:
    """A model with its classes, device and inference options.

    Attributes:
        model: the model, in evaluation mode, on `device`.
        class_names: K names.
        palette: K colors, red, green and blue in 0..255.
        facts: metadata of the file, such as "step" and "miou".
        sections: the model's configuration: "backbone", "head", "auxiliary_head".
        reading: how image files are read: "bands" and "range" as in dataset=folder; empty for 8-bit RGB.
        inference: see InferenceConfig.
        device: device to compute on.
        dtype: type for matrix products and convolutions.
        temperature: temperature of the probabilities; labels do not depend on it.
    """

    def __init__(
        self,
        model: Segmenter,
        class_names: tuple[str, ...],
        palette: tuple[tuple[int, int, int], ...],
        *,
        sections: dict[str, Any],
        facts: dict[str, Any],
        options: InferenceConfig,
        device: torch.device,
        dtype: torch.dtype,
        reading: dict[str, Any] | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.model = model
        self.class_names, self.palette = class_names, palette
        self.sections, self.facts, self.reading = sections, facts, reading or {}
        self.inference, self.device, self.dtype = options, device, dtype
        self.temperature = temperature

    def __repr__(self) -> str:
        """Name the networks, the classes, the score, where it computes, and the file."""
        facts, names = self.facts, ", ".join(self.class_names)
        networks = " + ".join(str(self.sections[part]["name"]) for part in ("backbone", "head"))
        score = f"mIoU {100 * facts['miou']:.1f} % at step {facts['step']}" if facts.get("miou") is not None else ""
        parts = [networks, f"{len(self.class_names)} classes: {textwrap.shorten(names, 80, placeholder=' ...')}", score]
        place = f"{self.device}, {str(self.dtype).removeprefix('torch.')}"
        return f"Predictor({'; '.join(filter(None, [*parts, place, str(facts.get('checkpoint', ''))]))})"

    def show(self, image: ImageLike, label: np.ndarray | None = None) -> Image.Image:
        """Draw an image beside its prediction, with a legend. A notebook displays the result; its `show()` opens it.

        Args:
            image: as for `predict`.
            label: the truth, (H, W) class ids, to draw between both; 255 is ignored.

        Raises:
            ValueError: as for `predict`, or the truth has another size than the image.
        """
        tensor = self.tensor(image)
        if label is not None and label.shape != _size(tensor):
            raise ValueError(f"label: must have the image's size {_size(tensor)}; got {label.shape}")
        pixels = figures.as_rgb(tensor[0].permute(1, 2, 0).cpu().numpy())
        title = Path(image).name if isinstance(image, str | Path) else ""
        file = io.BytesIO()
        figures.plot_sample(pixels, label, self.predict(image), self.class_names, self.palette, file, title)
        return Image.open(file)

    def predict(self, image: ImageLike) -> np.ndarray:
        """Predict the most likely class of each pixel, (H, W) uint8.

        Args:
            image: 8-bit RGB, of any size: an array (H, W, 3) or a tensor (3, H, W), both uint8; a Pillow image, whose
                EXIF orientation is ignored; or a file, see `read_image`.

        Raises:
            ValueError: the array or tensor has the wrong shape or type, or the file cannot be read.
            NonFiniteError: the model's scores are NaN or infinite.
        """
        tensor, finite = self.tensor(image), FiniteScores()
        with self.autocast():
            labels = inference.predict_labels(self.model, tensor, _size(tensor), self.inference, finite)
        finite.require(self.model)
        return labels[0].to(torch.uint8).cpu().numpy()

    def probabilities(self, image: ImageLike) -> np.ndarray:
        """Every class's probability for each pixel, (K, H, W) float32, at the model's temperature.

        Argument and errors as for `predict`; with combine=official, scores instead.
        """
        if self.inference.combine != "official":
            return self.labels_and_probabilities(image)[1]
        tensor, finite = self.tensor(image), FiniteScores()
        with self.autocast():
            scores = inference.class_scores(self.model, tensor, _size(tensor), self.inference, watch=finite)
        finite.require(self.model)
        return scores[0].float().cpu().numpy()

    def labels_and_probabilities(self, image: ImageLike) -> tuple[np.ndarray, np.ndarray]:
        """Labels and probabilities, as from `predict` and `probabilities`, in one pass over the image.

        Argument and errors as for `predict`; also a ValueError with combine=official, which has no probabilities.
        """
        if self.inference.combine == "official":
            raise ValueError("combine = 'official': has no probabilities; use combine=probabilities or mmseg")
        tensor, finite = self.tensor(image), FiniteScores()
        with self.autocast():
            found = inference.labels_and_probabilities(self.model, tensor, _size(tensor), self.inference, finite)
        finite.require(self.model)
        labels, probabilities = found[0][0], scaling.calibrated(found[1], self.temperature)[0]
        return labels.to(torch.uint8).cpu().numpy(), probabilities.float().cpu().numpy()

    def tensor(self, image: ImageLike) -> torch.Tensor:
        """The model's input: (1, C, H, W) uint8 on its device. Argument and errors as for `predict`."""
        if isinstance(image, str | Path):
            image = self.read_image(image)
        elif isinstance(image, Image.Image) and not self.reading:
            image = rgb(image)
        count = self.model.in_channels
        kind = "8-bit RGB" if count == 3 else f"8-bit with {count} channels"
        wanted = f"image: must be {kind}: an array (H, W, {count}) or a tensor ({count}, H, W) of uint8"
        wanted += ", or a path" if count != 3 or self.reading else ", a Pillow image or a path"
        if not isinstance(image, np.ndarray | torch.Tensor):
            raise ValueError(f"{wanted}; got a {type(image).__name__}")
        channels_at = -1 if isinstance(image, np.ndarray) else 0
        fits = image.ndim == 3 and image.shape[channels_at] == count and 0 not in image.shape
        if not fits or image.dtype not in (np.uint8, torch.uint8):
            raise ValueError(f"{wanted}; got {tuple(image.shape)} {image.dtype}")
        if isinstance(image, np.ndarray):  # PyTorch rejects views with negative strides, such as image[..., ::-1]
            image = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)
        return image[None].to(self.device)

    def read_image(self, path: str | Path) -> np.ndarray:
        """An image file as (H, W, 3) uint8, with the bands and the range of values that the model was trained on.

        Raises:
            ValueError: it cannot be read.
        """
        bands, value_range = self.reading.get("bands"), self.reading.get("range")
        return read_bands(path, bands, value_range, turned=True) if bands or value_range else read_image(path)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The context in which to call the model."""
        return Compute(self.device, self.dtype).autocast()


def load(
    source: str | Path,
    *,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    backbone: str | dict[str, Any] | None = None,
    head: str | dict[str, Any] | None = None,
    temperature: Literal["auto"] | float = "auto",
    **options: Any,
) -> Predictor:
    """Load a trained model.

    Args:
        source: a run folder (for its best checkpoint), a checkpoint (.pt) or a .safetensors file.
        device: auto prefers CUDA, then MPS, then the CPU.
        precision: auto is bf16 where the hardware computes it natively, else fp32.
        backbone: name of the backbone, or its configuration {"name": ..., option: value}, for a file without one. It
            replaces the one in the file.
        head: likewise.
        temperature: temperature of the probabilities; auto is the one fitted to these weights, else 1.
        options: options of InferenceConfig: mode, crop_size, stride, scales, flip ...

    Raises:
        ValueError: the file is missing, damaged, or does not fit the model that its configuration describes; precision
            or temperature is none.
        ConfigError: its configuration, or an option, is not valid in this version of the code.
    """
    problems: list[str] = []
    look = check_dataclass(InferenceConfig, options, problems)
    if look is None:
        raise ConfigError(problems)
    path = checkpoint_of(Path(source).expanduser())
    stored = weights.read(path)
    sections = _sections(path, stored, {"backbone": backbone, "head": head})
    applied = scaling.choose(path, stored.facts, temperature)
    where = hardware.select_device(device)
    model = build_model(**sections, num_classes=len(stored.class_names))
    weights.load_into(model, path, stored.tensors)
    model.eval().requires_grad_(False).to(where).to(memory_format=torch.channels_last)
    return Predictor(
        model,
        stored.class_names,
        stored.palette,
        sections=sections,
        facts={**stored.facts, "checkpoint": str(path), "temperature": applied},
        options=look,
        device=where,
        dtype=hardware.autocast_dtype(precision, where),
        reading=config.image_reading(stored.config),
        temperature=applied,
    )


def checkpoint_of(source: Path) -> Path:
    """The weights file for a run folder, or for the path of a weights file.

    Raises:
        ValueError: the folder has none.
    """
    if not source.is_dir():
        return source
    best = source / "checkpoints" / "best.pt"
    if best.is_file():
        return best
    raise ValueError(
        f"{source}: no checkpoints/best.pt; the run has not been evaluated yet, or this is not a run folder"
    )


def _sections(path: Path, stored: weights.Weights, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `build_model`, from the file or as given."""
    as_sections = {key: {"name": value} if isinstance(value, str) else value for key, value in given.items()}
    if stored.config is None and None in given.values():
        raise ConfigError([f"{path}: has no configuration; give its model, such as backbone=resnet101 head=danet"])
    if not stored.class_names:
        text = "neither names its classes nor has a head.classifier to count them by; "
        text += f"{command('convert')} reads such files"
        raise ConfigError([f"{path}: {text}"])
    try:
        return config.model_sections(stored.config, **as_sections)
    except ConfigError as error:
        raise ConfigError([f"{path}: {line}" for line in error.problems]) from None


def _size(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.shape[-2], tensor.shape[-1]
