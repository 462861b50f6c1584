"""The run-level sections of a configuration, with their defaults; conf/train.yaml has the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from danet.registry import NonNegativeInt, PositiveFloat, PositiveInt
from danet.schedules import PositiveDuration


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how to optimise. Intervals: a number is optimizer steps, "2 epochs" is epochs."""

    epochs: PositiveFloat = 40  # passes over the training images
    steps: PositiveInt | None = None  # optimizer steps; replaces epochs when set
    batch_size: PositiveInt = 8  # images per optimizer step, over all devices
    accumulate_steps: PositiveInt = 1  # parts in which a device works through its share of the batch
    max_grad_norm: PositiveFloat | None = None  # clip the gradients' global norm
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where the hardware computes it natively
    channels_last: bool = True
    sync_batchnorm: bool = True  # over all devices; without effect on one
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None  # evaluate and keep averaged weights
    early_stop_patience: PositiveInt | None = None  # evaluations without a new best before stopping
    on_nonfinite: Literal["stop", "skip"] = "stop"  # a loss or gradient that is NaN or infinite
    log_every: PositiveDuration = 20
    eval_every: PositiveDuration = "1 epochs"
    save_every: PositiveDuration = "1 epochs"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
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
    num_workers: NonNegativeInt = 2  # processes that load images, for each device
    compile: bool = False  # torch.compile the model
    deterministic: bool = True  # the same bits at every run on the same hardware


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """What Weights & Biases is told; metrics.jsonl in the run folder has it all in any case."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"  # auto: online where a key is configured
    project: str = "danet"
    entity: str | None = None
    group: str | None = None  # null: the sweep's name in a multirun
    tags: Sequence[str] = ()
    images: NonNegativeInt = 4  # validation images with mask overlays, at every evaluation
    log_checkpoint: bool = False  # upload the best checkpoint as an artifact
