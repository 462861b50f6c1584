"""Write the attention sheet (PNG) of a trained model for each image, and its arrays (npz); or a page of all of them.

Shapes: H x W image size, h x w size of the feature map, P points, C channels, M channels shown, K classes.
"""

import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from danet.analysis.attention_maps import AttentionMaps, attention_maps
from danet.analysis.attention_options import AttentionConfig
from danet.analysis.attention_page.page import PagePicture, Shown, page_file, write_comparison
from danet.analysis.attention_sheet import plot_attention
from danet.datasets.files import sample_name
from danet.datasets.labels import read_label
from danet.evaluation.scoring import check_classes
from danet.inference.predictor import Predictor, checkpoint_of, load
from danet.interfaces import IGNORE, Sample, SegmentationDataset
from danet.registry import DATASETS, did_you_mean
from danet.schema import ConfigError
from danet.services.atomic_files import read_json, replacing
from danet.sweeps.sweep import cell_folder, state_of

log = logging.getLogger(__name__)


def run(config: AttentionConfig) -> list[Path]:
    """Write attention.png and attention.npz of each image, or the page.

    Returns:
        The images' folders, or the page.

    Raises:
        ConfigError: the sample does not exist, or model and data set have different classes.
        ValueError: a file is missing or damaged, a point lies outside the image, or the model has no attention.
    """
    predictor = load_model(config)
    shown = pictures(config, predictor)
    if config.page is not None:
        entries = [PagePicture(image=i, name=name, label=label, points=config.points) for name, i, label in shown]
        file = page_file(str(config.page), shown[0][0])
        return [write_comparison(models(config, predictor), entries, file, page_size=config.attention.page_size)]
    folders = []
    for name, image, label in shown:
        name = name if config.images or config.split == "val" else f"{config.split}_{name}"
        beside_run = Path(config.run) / "attention" / name if config.run else Path(f"attention_{name}").absolute()
        folder = beside_run if config.output is None else Path(config.output, *([name] if len(shown) > 1 else []))
        write_sheet(config, predictor, name, image, label, folder)
        folders.append(folder)
    return folders


def write_sheet(
    config: AttentionConfig, predictor: Predictor, name: str, image: np.ndarray, label: np.ndarray | None, folder: Path
) -> None:
    """Write attention.png and attention.npz of one image."""
    maps = attention_maps(
        predictor,
        image,
        [(row, column) for row, column in config.points],
        every_class=config.attention.every_class,
        max_classes=config.attention.max_classes,
        channels=config.channels,
    )
    save_arrays(folder / "attention.npz", maps, predictor.class_names, label)
    with replacing(folder / "attention.png") as file:
        plot_attention(maps, predictor.class_names, predictor.palette, file, name, facts=facts(predictor), label=label)
    for line in describe(maps, predictor.class_names):
        log.info(line)
    log.info("%s: attention.png, attention.npz", folder)


def load_model(config: AttentionConfig, source: str | Path | None = None) -> Predictor:
    """Load the requested model, or one that it is compared with."""
    return load(
        source or config.run or str(config.checkpoint),
        device=config.runtime.device,
        precision=config.precision,
        backbone=config.backbone,
        head=config.head,
    )


def models(config: AttentionConfig, first: Predictor) -> Iterator[Shown]:
    """Load the models of the page one at a time."""
    given = [Path(config.run or str(config.checkpoint))]
    given += [source for path in config.compare for source in sources_of(Path(path))]
    once: dict[Path, Path] = {}  # a run and its best checkpoint are the same weights
    for source in given:
        once.setdefault(checkpoint_of(source), source)
    sources = list(once.values())
    names = short_names(sources)
    yield Shown(model=first, name=names[0], facts=facts(first))
    for path, name in zip(sources[1:], names[1:], strict=True):
        predictor = load_model(config, path)
        yield Shown(model=predictor, name=name, facts=facts(predictor))


def sources_of(path: Path) -> list[Path]:
    """List the run folders or weights files that a path stands for.

    A run folder or a weights file stands for itself, a sweep's folder for each variant's finished run with the lowest
    seed, any other folder for the weights files in it.

    Raises:
        ValueError: there are none.
    """
    if path.is_file() or (path / "config.yaml").is_file():
        return [path]
    if (path / "sweep.json").is_file():
        sweep = read_json(path / "sweep.json")
        runs = [[cell_folder(path, sweep, name, seed) for seed in sorted(sweep["seeds"])] for name in sweep["variants"]]
        found = [done[0] for seeds in runs if (done := [run for run in seeds if state_of(run) == "done"])]
    else:
        found = sorted(path.glob("*.pt")) + sorted(path.glob("*.safetensors"))
    if not found:
        raise ValueError(f"{path}: no run folder, no sweep with finished runs, and has no .pt or .safetensors files")
    return found


def short_names(paths: Sequence[Path]) -> list[str]:
    """Name each path by the fewest last parts that make the names unique, with seeds only where needed."""
    plain = [path.with_suffix("") if path.suffix in (".pt", ".safetensors") else path for path in paths]
    for left_out in (r"checkpoints|seed\d+", "checkpoints"):
        parts = [[part for part in path.parts if not re.fullmatch(left_out, part)] for path in plain]
        for count in range(1, max(map(len, parts)) + 1):
            names = ["/".join(each[-count:]) for each in parts]
            if len(set(names)) == len(names):
                return names
    return [str(path) for path in paths]


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


def pictures(config: AttentionConfig, predictor: Predictor) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
    """Name, image (H, W, 3) and truth (H, W) or None of each requested file or sample."""
    found = []
    for file in config.images:
        image, label = predictor.read_image(file), None
        if config.label is not None:
            ids = {index: index for index in (*range(len(predictor.class_names)), IGNORE)}
            label = read_label(config.label, "index", ids)
            if label.shape != image.shape[:2]:
                raise ValueError(f"{config.label}: label is {label.shape}, its image {image.shape[:2]} (rows, columns)")
        found.append((image, label))
    if found:
        names = _told_apart([sample_name(Path(file).stem) for file in config.images])
        return [(name, *pair) for name, pair in zip(names, found, strict=True)]
    assert config.dataset is not None
    assert config.sample is not None
    dataset = DATASETS.build(config.dataset, config.split)
    check_classes(predictor, dataset)
    return [(sample.name, sample.image, sample.label) for sample in find_samples(dataset, config.sample)]


def _told_apart(names: Sequence[str]) -> list[str]:
    """The names, with a number behind those that came before, in capital letters or small ones."""
    taken: set[str] = set()
    apart = []
    for name in names:
        numbered = (f"{name}_{number}" if number > 1 else name for number in itertools.count(1))
        apart.append(next(each for each in numbered if each.casefold() not in taken))
        taken.add(apart[-1].casefold())
    return apart


def find_samples(dataset: SegmentationDataset, wanted: str) -> list[Sample]:
    """Find a sample by name or index, or several, comma-separated.

    Raises:
        ConfigError: there is no such sample.
    """
    files = getattr(dataset, "files", None)  # a generated data set has none
    names = [pair.name for pair in files] if files else [dataset[index].name for index in range(len(dataset))]
    whole = {wanted, sample_name(wanted)} & set(names)  # a name may have commas
    return [find_sample(dataset, names, each.strip()) for each in ([wanted] if whole else wanted.split(","))]


def find_sample(dataset: SegmentationDataset, names: list[str], wanted: str) -> Sample:
    """Find a sample by name, otherwise by index.

    Raises:
        ConfigError: there is no such sample.
    """
    count = len(names)
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
