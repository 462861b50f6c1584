"""A trained model ready to use: `danet.load(...)` gives one, `predict` answers.

Shapes: H x W image size, K classes.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps

from danet import config, hardware, inference, weights
from danet.model import Segmenter, build_model
from danet.schema import ConfigError, check_dataclass
from danet.sections import InferenceConfig


class Predictor:
    """A model with its classes, its device and its way of looking at images.

    Attributes:
        model: in evaluation mode, on `device`.
        class_names: K names.
        palette: K colours, red, green and blue in 0..255.
        facts: what the file says about itself, such as "step" and "miou".
        sections: the model's configuration: "backbone", "head", "auxiliary_head".
        inference: see InferenceConfig.
        device: where it computes.
        dtype: what matrix products and convolutions compute in.
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
    ) -> None:
        self.model = model
        self.class_names, self.palette = class_names, palette
        self.sections, self.facts = sections, facts
        self.inference, self.device, self.dtype = options, device, dtype

    def predict(self, image: "np.ndarray | Image.Image | str | Path | torch.Tensor") -> np.ndarray:
        """The likeliest class of each pixel, (H, W) uint8.

        Args:
            image: RGB: an array (H, W, 3) uint8, a Pillow image, or a file, which is turned as its EXIF says; or a
                tensor (3, H, W), values 0..255.

        Raises:
            ValueError: the array has another shape or type.
        """
        tensor = self.tensor(image)
        with self.autocast():
            labels = inference.predict_labels(self.model, tensor, _size(tensor), self.inference)
        return labels[0].to(torch.uint8).cpu().numpy()

    def probabilities(self, image: "np.ndarray | Image.Image | str | Path | torch.Tensor") -> np.ndarray:
        """Every class's probability for each pixel, (K, H, W) float32; scores instead with combine=official."""
        tensor = self.tensor(image)
        with self.autocast():
            scores = inference.class_scores(self.model, tensor, _size(tensor), self.inference)
        return scores[0].float().cpu().numpy()

    def tensor(self, image: "np.ndarray | Image.Image | str | Path | torch.Tensor") -> torch.Tensor:
        """What the model takes: (1, 3, H, W) on its device. Argument and errors as for `predict`."""
        if isinstance(image, torch.Tensor):
            if image.ndim != 3 or image.shape[0] != 3:
                raise ValueError(f"image: a tensor must be (3, H, W), this is {tuple(image.shape)}")
            return image[None].to(self.device)
        if isinstance(image, str | Path):
            with Image.open(image) as file:
                image = ImageOps.exif_transpose(file)
        array = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            raise ValueError(f"image: must be (H, W, 3) uint8 RGB, this is {array.shape} {array.dtype}")
        return torch.tensor(array).permute(2, 0, 1)[None].to(self.device)

    def autocast(self) -> torch.autocast:
        """The context to call the model in."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def load(
    source: str | Path,
    *,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    backbone: dict[str, Any] | None = None,
    head: dict[str, Any] | None = None,
    **options: Any,
) -> Predictor:
    """Load a trained model.

    Args:
        source: a run folder (its best checkpoint is taken), a checkpoint (.pt) or a .safetensors file.
        device: auto takes CUDA, then MPS, then the CPU.
        precision: auto is bf16 where the hardware computes it natively, else fp32.
        backbone: configuration of the backbone, for a file that comes without one: {"name": ..., option: value}.
        head: likewise.
        options: of InferenceConfig: mode, crop_size, stride, scales, flip ...

    Raises:
        ValueError: the file is missing, damaged, or does not fit the model that its configuration describes.
        ConfigError: its configuration, or an option, is not one of this version of the code.
    """
    problems: list[str] = []
    look = check_dataclass(InferenceConfig, options, problems)
    if look is None:
        raise ConfigError(problems)
    path = checkpoint_of(Path(source).expanduser())
    found = weights.read(path)
    if found.config is not None:
        sections = config.model_sections(found.config)
    elif backbone and head:
        sections = {"backbone": backbone, "head": head, "auxiliary_head": False}
    else:
        raise ConfigError([f"{path}: has no configuration; say what it is, such as backbone=resnet101 head=danet"])
    model = build_model(**sections, num_classes=len(found.class_names))
    weights.load_into(model, path, found.tensors)
    where = hardware.select_device(device)
    model.eval().requires_grad_(False).to(where).to(memory_format=torch.channels_last)
    return Predictor(
        model,
        found.class_names,
        found.palette,
        sections=sections,
        facts={**found.facts, "checkpoint": str(path)},
        options=look,
        device=where,
        dtype=hardware.autocast_dtype(precision, where),
    )


def checkpoint_of(source: Path) -> Path:
    """The file of weights that a run folder, or the path of such a file, means.

    Raises:
        ValueError: the folder has none.
    """
    if not source.is_dir():
        return source
    best = source / "checkpoints" / "best.pt"
    if best.is_file():
        return best
    raise ValueError(f"{source}: no checkpoints/best.pt; the run has not been evaluated yet, or is no run folder")


def _size(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.shape[-2], tensor.shape[-1]
