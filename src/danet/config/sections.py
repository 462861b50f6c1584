"""The run-level sections of a configuration, with their defaults; conf/train.yaml has the same."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from danet.arguments import (
    ExistingFile,
    ExistingFolder,
    Folder,
    NonNegativeInt,
    PositiveDuration,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Text,
)
from danet.schedules import exact_steps


def _alert(value: Any) -> Any:
    return "nan" if value != value else value  # Hydra makes a number of nan


Alert = Annotated[Literal["nan", "crash", "best"], BeforeValidator(_alert)]
ImageSize = Annotated[Sequence[PositiveInt], Field(min_length=2, max_length=2)]  # [height, width] in pixels
ScaleList = Annotated[Sequence[PositiveFloat], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how to optimize. Intervals: a number is optimizer steps, "2 epochs" is epochs."""

    epochs: Annotated[float, Field(gt=0, le=1e9)] = 40  # passes over the training images
    steps: PositiveInt | None = None  # optimizer steps; replaces epochs where set (config.load: not the command line's)
    batch_size: PositiveInt = 8  # images per optimizer step, over all devices
    accumulate_steps: PositiveInt = 1  # parts in which a device works through its share of the batch
    max_grad_norm: PositiveFloat | None = None  # clip the gradients' global norm
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where the hardware computes it natively
    channels_last: bool = True
    sync_batchnorm: bool = True  # over all devices; without effect on one
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None  # evaluate and keep averaged weights
    early_stop_patience: PositiveInt | None = None  # evaluations without a new best before stopping
    on_nonfinite: Literal["stop", "skip"] = "stop"  # a loss or gradient that is NaN or infinite
    repeat_threshold: PositiveFraction | None = (
        None  # images of classes in a smaller part of all images come repeatedly
    )
    rare_share: Annotated[float, Field(gt=0, lt=1)] | None = None  # at least this part of the images have a rare class
    rare_classes: Sequence[Text] = ()  # by name
    log_every: PositiveDuration = 20
    eval_every: PositiveDuration = "1 epochs"
    save_every: PositiveDuration = "1 epochs"

    def problems(self) -> list[str]:
        """What is wrong between the keys, a line each."""
        if self.rare_share is not None and not self.rare_classes:
            return [f"rare_share = {self.rare_share}: of which classes? Name them, as train.rare_classes=[Pole]"]
        if self.rare_classes and self.rare_share is None:
            return [
                f"rare_classes = {list(self.rare_classes)}: has no effect without the share of images that are to "
                "have one of them; set train.rare_share, such as 0.5"
            ]
        return []

    def total_steps(self, num_images: int) -> int:
        """Optimizer steps of the run, where the training split has so many images."""
        return self.steps or math.ceil(exact_steps(self.epochs, num_images, self.batch_size))


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How a model looks at an image; see inference.py."""

    mode: Literal["whole", "slide"] = "whole"  # slide: by overlapping windows
    crop_size: ImageSize | None = None  # of a window, [height, width] in pixels
    stride: ImageSize | None = None  # between windows; null: two thirds of crop_size
    scales: ScaleList = (1.0,)  # several: their scores are averaged
    flip: bool = False  # look at the mirror image, too
    long_side: PositiveInt | None = None  # scale 1 has this longer side; null: the image's own
    short_side: PositiveInt | None = None  # likewise; with both, the smaller of the two sizes
    combine: Literal["probabilities", "mmseg", "official"] = "probabilities"  # windows, scales and flips

    def problems(self) -> list[str]:
        """What is wrong between the keys, a line each."""
        if self.mode == "slide" and self.crop_size is None:
            return ["crop_size: mode=slide needs the size of its windows, such as crop_size=[768,768]"]
        if self.mode == "whole" and self.crop_size is not None:
            return [f"crop_size = {list(self.crop_size)}: whole images are not cut; add mode=slide, or leave it out"]
        if self.mode == "whole" and self.stride is not None:
            return [f"stride = {list(self.stride)}: whole images have no windows; add mode=slide, or leave it out"]
        if self.crop_size and self.stride and any(s > c for s, c in zip(self.stride, self.crop_size, strict=True)):
            return [f"stride = {list(self.stride)}: leaves gaps between windows of {list(self.crop_size)}; lower it"]
        return []


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(InferenceConfig):
    """How to score."""

    split: Literal["val", "test", "train"] = "val"
    batch_size: PositiveInt = 1  # images of equal size at a time; 1 makes scores independent of everything else
    max_images: PositiveInt | None = None  # score only the first so many
    samples: NonNegativeInt = 8  # pictures (image, truth, prediction) written to the run folder


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Where to run. Nothing here changes what is computed, but for rounding."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: PositiveInt = 1  # processes on this machine, one a device; torchrun's own number wins
    rank_timeout: PositiveFloat = 30.0  # minutes that one of several processes waits for another
    num_workers: NonNegativeInt = 2  # processes that load images, for each device
    cache: Literal["auto"] | Folder | None = None  # folder for decoded images; auto: outputs/cache, None: none is kept
    cache_gib: PositiveFloat = 32.0  # the folder's size at most
    compile: bool = False  # torch.compile the model
    recompute: bool = False  # recompute most of the backbone's activations in the backward pass
    deterministic: bool = True  # the same bits at every run on the same hardware


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Where a script runs that needs one device and no other choice of RuntimeConfig's."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """What Weights & Biases or TensorBoard is told; metrics.jsonl in the run folder has it all in any case."""

    # auto: W&B, online where a key is configured
    mode: Literal["auto", "online", "offline", "disabled", "tensorboard"] = "auto"
    project: Text | None = None  # null: WANDB_PROJECT, else danet
    entity: Text | None = None  # user or team; null: WANDB_ENTITY, else the API key's default
    group: Text | None = None  # null: WANDB_RUN_GROUP, else the name of the sweep, or of the run's folder
    tags: Sequence[Text] = ()  # none: WANDB_TAGS
    images: NonNegativeInt = 4  # validation images with mask overlays, at every evaluation
    attention_images: NonNegativeInt = 0  # validation images with what DANet attends to, there and in the run folder
    alerts: Sequence[Alert] = ()  # messages at a stop by NaN or infinity, at any other error, at a new best score
    log_checkpoint: bool = False  # at the end, upload the best and the last checkpoint as an artifact

    def problems(self) -> list[str]:
        """What is wrong, a line each; nothing is connected to."""
        from danet.services.tracking import connection

        return [f"mode = {self.mode!r}: {lack}"] if (lack := connection.mode_problem(self.mode)) else []

    def destination(self) -> dict[str, Any]:
        """What tells `open_mirror` where a run goes, except its group."""
        return {"mode": self.mode, "project": self.project, "entity": self.entity, "tags": self.tags}


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a script takes its model from: a run folder or a file of weights."""

    run: ExistingFolder | None = None  # its best checkpoint
    checkpoint: ExistingFile | None = None  # or this .pt or .safetensors file
    backbone: dict[str, Any] | None = None  # for weights that come without a configuration
    head: dict[str, Any] | None = None

    def problems(self) -> list[str]:
        """What is wrong between the keys, a line each."""
        if (self.run is None) == (self.checkpoint is None):
            return ["run, checkpoint: give one of them, such as run=outputs/DATE/RUN or checkpoint=FILE"]
        return []
