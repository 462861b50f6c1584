"""What src/attention.py does: a trained model and an image -> the sheet (PNG) and its arrays (npz).

Shapes: H x W image size, h x w size of the feature map, P points, C channels, M channels shown, K classes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from danet.analysis.attention_maps import AttentionMaps, attention_maps
from danet.analysis.attention_sheet import plot_attention
from danet.config.sections import DeviceConfig, ModelSource
from danet.datasets.files import read_label, sample_name
from danet.evaluation.scoring import check_classes
from danet.inference.predictor import Predictor, load, read_image
from danet.interfaces import IGNORE, Sample, SegmentationDataset
from danet.registry import DATASETS, ExistingFile, Folder, NonNegativeInt, PositiveInt, did_you_mean
from danet.schema import ConfigError
from danet.services.records import replacing

log = logging.getLogger(__name__)

Pixel = Annotated[Sequence[NonNegativeInt], Field(min_length=2, max_length=2)]  # [row, column]


@dataclass(frozen=True, kw_only=True)
class PointsConfig:
    """Points besides those that are given."""

    every_class: bool = False  # one in each predicted class; also where no point is given
    max_classes: PositiveInt = 12  # those with the largest regions


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(ModelSource):
    """Whose attention to show, for which image, and where."""

    image: ExistingFile | None = None
    label: ExistingFile | None = None  # its truth: an index PNG of train ids, 255 where there is none
    sample: str | None = None  # or image and truth from the data set, by name or index
    dataset: dict[str, Any] | None = None
    split: Literal["val", "test", "train"] = "val"
    points: Sequence[Pixel] = ()
    channels: Sequence[NonNegativeInt] | None = None  # of CAM's output; null: those that follow the points' classes
    output: Folder | None = None  # null: RUN/attention/NAME, or attention_NAME here
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    attention: PointsConfig = field(default_factory=PointsConfig)
    runtime: DeviceConfig = field(default_factory=DeviceConfig)

    def problems(self) -> list[str]:
        """What is wrong between the keys, a line each."""
        lines = super().problems()
        if (self.image is None) == (self.sample is None):
            lines.append("image, sample: give one of them, such as image=photo.jpg or sample=3")
        if self.label is not None and self.image is None:
            lines.append("label: belongs to image=FILE; a sample brings its own")
        if self.sample is not None and self.dataset is None:
            lines.append("sample: from which data? add dataset=NAME, or take run=FOLDER, which knows its own")
        return lines


def run(config: AttentionConfig) -> Path:
    """Write attention.png and attention.npz.

    Returns:
        Their folder.

    Raises:
        ConfigError: the sample is not there, or model and data do not fit together.
        ValueError: a file is missing or damaged, a point lies outside the image, or the model has no attention.
    """
    predictor = load(
        config.run or str(config.checkpoint),
        device=config.runtime.device,
        precision=config.precision,
        backbone=config.backbone,
        head=config.head,
    )
    name, image, label = _picture(config, predictor)
    maps = attention_maps(
        predictor,
        image,
        [(row, column) for row, column in config.points],
        every_class=config.attention.every_class,
        max_classes=config.attention.max_classes,
        channels=config.channels,
    )
    beside_run = Path(config.run) / "attention" / name if config.run else Path(f"attention_{name}").absolute()
    folder = Path(config.output) if config.output else beside_run
    save_arrays(folder / "attention.npz", maps, predictor.class_names, label)
    with replacing(folder / "attention.png") as file:
        plot_attention(maps, predictor.class_names, predictor.palette, file, name, facts=_facts(predictor), label=label)
    for line in describe(maps, predictor.class_names):
        log.info(line)
    log.info("%s: attention.png, attention.npz", folder)
    return folder


def save_arrays(path: Path, maps: AttentionMaps, class_names: Sequence[str], label: np.ndarray | None = None) -> None:
    """Write what the sheet shows as arrays; those of an attention that the model lacks are left out.

    Keys: points, cells (P, 2), feature_size (2,), prediction and label (H, W), class_names (K,); position_maps
    (P, h, w), position_class_shares (P, K), gamma; channel_weights (C, C), channels (M,), channel_maps (M, h, w),
    channel_correlations (M, K), beta.
    """
    arrays: dict[str, Any] = {
        "points": np.array(maps.points).reshape(-1, 2),
        "cells": np.array(maps.cells).reshape(-1, 2),
        "feature_size": np.array(maps.size),
        "prediction": maps.prediction,
        "class_names": np.array(class_names),
    }
    if label is not None:
        arrays["label"] = label
    if found := maps.position:
        arrays |= {"position_maps": found.weights, "position_class_shares": found.class_shares, "gamma": found.gamma}
    if shown := maps.channel:
        arrays |= {"channel_weights": shown.weights, "channels": np.array(shown.channels, int), "beta": shown.beta}
        arrays |= {"channel_maps": shown.maps, "channel_correlations": shown.correlations}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def describe(maps: AttentionMaps, class_names: Sequence[str]) -> list[str]:
    """A line for every point: where it lies, and from where it gathers."""
    lines = []
    for index, point in enumerate(maps.points):
        line = f"{index + 1:>2} {list(point)} in cell {list(maps.cells[index])}: {class_names[maps.prediction[point]]}"
        if maps.position:
            largest, shares = float(maps.position.weights[index].max()), maps.position.class_shares[index]
            times = largest * maps.position.weights[index].size
            first = [i for i in np.argsort(-shares)[:3] if shares[i] >= 0.001]
            gathers = ", ".join(f"{class_names[i]} {shares[i]:.1%}" for i in first)
            line += f" gathers from {gathers}; largest weight {largest:.2%}, {times:.3g} times the uniform one"
        lines.append(line)
    return lines


def _picture(config: AttentionConfig, predictor: Predictor) -> tuple[str, np.ndarray, np.ndarray | None]:
    """Name, image (H, W, 3) and truth (H, W), if there is one."""
    if config.image is not None:
        image, label = read_image(config.image), None
        if config.label is not None:
            ids = {index: index for index in (*range(len(predictor.class_names)), IGNORE)}
            label = read_label(config.label, "index", ids)
            if label.shape != image.shape[:2]:
                raise ValueError(f"{config.label}: has {label.shape} rows and columns, the image {image.shape[:2]}")
        return sample_name(Path(config.image).stem), image, label
    assert config.dataset is not None
    assert config.sample is not None
    options = {key: value for key, value in config.dataset.items() if key != "name"}
    dataset = DATASETS[config.dataset["name"]](config.split, **options)
    check_classes(predictor, dataset)
    image, label, name = find_sample(dataset, config.sample)
    return name, image, label


def find_sample(dataset: SegmentationDataset, wanted: str) -> Sample:
    """The sample of a data set with this name, or else with this index.

    Raises:
        ConfigError: there is none.
    """
    count = len(dataset)
    files = getattr(dataset, "files", None)  # generated data has none
    names = [pair.name for pair in files] if files else [dataset[index].name for index in range(count)]
    for name in (wanted, sample_name(wanted)):
        if name in names:
            return dataset[names.index(name)]
    if not wanted.isdecimal():
        raise ConfigError([f"sample = {wanted!r}: the split has no image of this name; {did_you_mean(wanted, names)}"])
    if int(wanted) >= count:
        raise ConfigError([f"sample = {wanted}: the split has {count} images, counted from 0"])
    return dataset[int(wanted)]


def _facts(predictor: Predictor) -> str:
    """The model in a line."""
    parts = [predictor.sections["backbone"]["name"], predictor.sections["head"]["name"]]
    if "step" in predictor.facts:
        parts.append(f"step {predictor.facts['step']}")
    if isinstance(miou := predictor.facts.get("miou"), float):
        parts.append(f"mIoU {miou:.1%}")
    return ", ".join(parts)
