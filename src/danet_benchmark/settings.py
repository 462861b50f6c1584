"""What a benchmark measures, and for how long; conf/benchmark.yaml and conf/device/ have the same."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from danet.arguments import NonNegativeFloat, NonNegativeInt, PositiveInt
from danet.config.sections import ImageSize

Section = Literal[
    "attention", "training", "inference", "loader", "metrics", "startup", "growth", "profile", "heads", "deployed"
]
ON_REQUEST: tuple[Section, ...] = ("heads", "deployed")  # they take long
SECTIONS: tuple[Section, ...] = tuple(name for name in get_args(Section) if name not in ON_REQUEST)
Counts = Annotated[Sequence[PositiveInt], Field(min_length=1)]
Sizes = Annotated[Sequence[ImageSize], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """The attention modules alone, one image."""

    positions: Counts = (2048, 4096, 9216, 32768)  # N
    channels: PositiveInt = 512
    seconds: NonNegativeFloat = 5  # for repeats, of each N forward and backward
    longest: NonNegativeFloat = 3  # seconds; a run that would take longer is estimated, but for ours


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Training steps of whole models."""

    size: ImageSize = (360, 480)
    batch_size: PositiveInt = 2
    num_classes: Counts = (19,)
    seconds: NonNegativeFloat = 180  # for each number of classes
    at_least: NonNegativeInt = 3  # runs of each
    compiled: bool = False  # ours by torch.compile, too


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """One whole image, labels out."""

    sizes: Sizes = ((360, 480), (1024, 2048))
    num_classes: PositiveInt = 19
    seconds: NonNegativeFloat = 20  # for each size
    at_least: NonNegativeInt = 0  # runs of each; 0: at least the first


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """Images decoded and augmented."""

    seconds: NonNegativeFloat = 40


@dataclass(frozen=True, kw_only=True)
class MetricSettings:
    """Adding an image to the scores."""

    size: ImageSize = (1024, 2048)
    num_classes: Counts = (19, 150, 171)
    seconds: NonNegativeFloat = 3  # for each number of classes


@dataclass(frozen=True, kw_only=True)
class StartupSettings:
    """Starting a process."""

    seconds: NonNegativeFloat = 10
    at_least: NonNegativeInt = 1


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """Heads alone, one image."""

    names: Annotated[Sequence[str], Field(min_length=1)] = tuple(
        (
            "danet fcn nonlocal dnl gcnet ccnet emanet ann isanet psanet encnet ocrnet dranet linear danet_gated "
            "danet_clgd"
        ).split()
    )
    sizes: Sizes = ((512, 1024), (1024, 2048))  # of the image; forward and backward of the first alone
    num_classes: PositiveInt = 19
    seconds: NonNegativeFloat = 60  # for each size and direction


@dataclass(frozen=True, kw_only=True)
class GrowthSettings:
    """A training step's cost as one thing grows; the others stay at their first value."""

    batch_sizes: Counts = (1, 2, 4)
    sizes: Sizes = ((96, 128), (144, 192), (192, 256))
    num_classes: Counts = (19, 150, 171)
    images: Counts = (1, 3, 9)  # that are scored one after the other
    seconds: NonNegativeFloat = 1  # for each value
    at_least: NonNegativeInt = 0


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Everything; the network is mmsegmentation's, so that both do the same work."""

    backbone: dict[str, Any]
    head: dict[str, Any]
    loss: dict[str, Any]
    optimizer: dict[str, Any]
    auxiliary_head: bool = True
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    sections: Sequence[Section] = SECTIONS
    output: str | None = None  # folder; null: experiments/results
    matmul_size: PositiveInt | None = None  # rows of the matrices that tell how fast the device is; null: by device
    attention: AttentionSettings = field(default_factory=AttentionSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    metrics: MetricSettings = field(default_factory=MetricSettings)
    startup: StartupSettings = field(default_factory=StartupSettings)
    growth: GrowthSettings = field(default_factory=GrowthSettings)
    heads: HeadSettings = field(default_factory=HeadSettings)
