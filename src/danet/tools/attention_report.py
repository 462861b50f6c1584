"""Write the attention sheet (PNG) of a trained model for one image, and its arrays (npz).

Shapes: H x W image size, h x w size of the feature map, P points, C channels, M channels shown, K classes.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from danet.analysis.attention_maps import AttentionMaps, attention_maps
from danet.analysis.attention_options import AttentionConfig
from danet.analysis.attention_sheet import plot_attention
from danet.datasets.files import sample_name
from danet.datasets.labels import read_label
from danet.evaluation.scoring import check_classes
from danet.inference.predictor import Predictor, load
from danet.interfaces import IGNORE, Sample, SegmentationDataset
from danet.registry import DATASETS, did_you_mean
from danet.schema import ConfigError
from danet.services.atomic_files import replacing

log = logging.getLogger(__name__)


def run(config: AttentionConfig) -> Path:
    """Write attention.png and attention.npz.

    Returns:
        Their folder.

    Raises:
        ConfigError: the sample does not exist, or model and data set have different classes.
        ValueError: a file is missing or damaged, a point lies outside the image, or the model has no attention.
    """
    predictor = load_model(config)
    name, image, label = picture(config, predictor)
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
        plot_attention(maps, predictor.class_names, predictor.palette, file, name, facts=facts(predictor), label=label)
    for line in describe(maps, predictor.class_names):
        log.info(line)
    log.info("%s: attention.png, attention.npz", folder)
    return folder


def load_model(config: AttentionConfig) -> Predictor:
    """Load the requested model."""
    return load(
        config.run or str(config.checkpoint),
        device=config.runtime.device,
        precision=config.precision,
        backbone=config.backbone,
        head=config.head,
    )


def save_arrays(path: Path, maps: AttentionMaps, class_names: Sequence[str], label: np.ndarray | None = None) -> None:
    """Write the values behind the sheet as arrays; those of a missing module are omitted.

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
    if pam := maps.position:
        arrays |= {"position_maps": pam.weights, "position_class_shares": pam.class_shares, "gamma": pam.gamma}
    if cam := maps.channel:
        arrays |= {"channel_weights": cam.weights, "channels": np.array(cam.channels, int), "beta": cam.beta}
        arrays |= {"channel_maps": cam.maps, "channel_correlations": cam.correlations}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def describe(maps: AttentionMaps, class_names: Sequence[str]) -> list[str]:
    """A line per point: where it lies, and the classes it attends to most."""
    lines = []
    for index, point in enumerate(maps.points):
        line = f"{index + 1:>2} {list(point)} in cell {list(maps.cells[index])}: {class_names[maps.prediction[point]]}"
        if maps.position:
            largest, shares = float(maps.position.weights[index].max()), maps.position.class_shares[index]
            times = largest * maps.position.weights[index].size
            first = [i for i in np.argsort(-shares)[:3] if shares[i] >= 0.001]
            classes = ", ".join(f"{class_names[i]} {shares[i]:.1%}" for i in first)
            line += f" attends to {classes}; largest weight {largest:.2%}, {times:.3g} times the uniform weight"
        lines.append(line)
    return lines


def picture(config: AttentionConfig, predictor: Predictor) -> tuple[str, np.ndarray, np.ndarray | None]:
    """Name, image (H, W, 3) and truth (H, W) or None of the requested file or sample."""
    if config.image is not None:
        image, label = predictor.read_image(config.image), None
        if config.label is not None:
            ids = {index: index for index in (*range(len(predictor.class_names)), IGNORE)}
            label = read_label(config.label, "index", ids)
            if label.shape != image.shape[:2]:
                raise ValueError(f"{config.label}: label is {label.shape}, its image {image.shape[:2]} (rows, columns)")
        return sample_name(Path(config.image).stem), image, label
    assert config.dataset is not None
    assert config.sample is not None
    options = {key: value for key, value in config.dataset.items() if key != "name"}
    dataset = DATASETS[config.dataset["name"]](config.split, **options)
    check_classes(predictor, dataset)
    image, label, name = find_sample(dataset, config.sample)
    return name, image, label


def find_sample(dataset: SegmentationDataset, wanted: str) -> Sample:
    """Find a sample by name, otherwise by index.

    Raises:
        ConfigError: there is no such sample.
    """
    count = len(dataset)
    files = getattr(dataset, "files", None)  # generated data sets have none
    names = [pair.name for pair in files] if files else [dataset[index].name for index in range(count)]
    for name in (wanted, sample_name(wanted)):
        if name in names:
            return dataset[names.index(name)]
    if not wanted.isdecimal():
        raise ConfigError([f"sample = {wanted!r}: no such image in the split; {did_you_mean(wanted, names)}"])
    if int(wanted) >= count:
        raise ConfigError([f"sample = {wanted}: the split has {count} images, numbered from 0"])
    return dataset[int(wanted)]


def facts(predictor: Predictor) -> str:
    """A line about the model."""
    backbone, head = (predictor.sections[kind] for kind in ("backbone", "head"))
    parts = [backbone.get("model", backbone["name"]), head["name"]]
    if "step" in predictor.facts:
        parts.append(f"step {predictor.facts['step']}")
    if isinstance(miou := predictor.facts.get("miou"), float):
        parts.append(f"mIoU {miou:.1%}")
    return ", ".join(parts)
