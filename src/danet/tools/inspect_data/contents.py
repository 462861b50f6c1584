"""What the page shows, from the measurements of the splits.

K classes, N images of a split, C channels.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from danet import config as configuration
from danet.config import RunConfig
from danet.data.augment import Augmentation
from danet.data.check import CheckedFiles
from danet.data.loader import Loader, LoadingError, training_loader
from danet.data.measure import Measurements, nearest, read_pair
from danet.data.rare_classes import factors_of
from danet.data.sampler import StepSampler
from danet.interfaces import IGNORE, SegmentationDataset
from danet.model import build_model
from danet.services.figures import Color
from danet.tools.inspect_data import pictures
from danet.tools.inspect_data.findings import Finding
from danet.tools.inspect_data.pictures import Picture

MOST_SIZES = 12  # rows of a table
MOST_TOGETHER = 32  # classes of the co-occurrence table
MOST_EXAMPLES = 300  # close-ups on a page
MOST_IGNORED = 0.4  # of the crops' pixels
NEAREST = 2  # pairs that are shown where none is similar
QUANTILES = (1.0, 0.5, 0.1)  # of the class's pixels in an image: the largest, a usual and a small one


class Split(NamedTuple):
    """One split.

    Attributes:
        name: "train", "val" or "test".
        dataset: its images.
        measured: what they hold.
        report: of the check; None where it found problems, or where there are no files.
    """

    name: str
    dataset: SegmentationDataset
    measured: Measurements
    report: CheckedFiles | None

    def names(self) -> list[str]:
        """Of the samples."""
        files: Any = getattr(self.dataset, "files", None)
        return [pair.name for pair in files] if files else [f"{self.name} {i}" for i in range(len(self.dataset))]


# ---- classes ---------------------------------------------------------------------------------------------------------


class Amount(NamedTuple):
    """How much there is of a class in a split."""

    share: float  # of the pixels that are not ignored
    images: int
    total: int  # images of the split
    bar: float = 0  # width in percent


@dataclass(frozen=True)
class ClassRow:
    """A class of the data set."""

    name: str
    color: Color
    amounts: dict[str, Amount]  # by split
    examples: list[Picture]


def classes(splits: Mapping[str, Split], examples: int) -> list[ClassRow]:
    """The classes with their amounts by split and some close-ups."""
    first = next(iter(splits.values())).dataset
    shares = {name: _shares(split.measured) for name, split in splits.items()}
    largest = max(float(values.max()) for values in shares.values()) or 1
    examples = min(examples, max(1, MOST_EXAMPLES // len(first.class_names)) if examples else 0)
    rows = []
    for number, (name, color) in enumerate(zip(first.class_names, first.palette, strict=True)):
        amounts = {
            split.name: Amount(
                share := float(shares[split.name][number]),
                int(split.measured.presence[:, number].sum()),
                int(split.measured.readable.sum()),
                100 * float(np.sqrt(share / largest)),
            )
            for split in splits.values()
        }
        red, green, blue = color
        rows.append(ClassRow(name, (red, green, blue), amounts, _examples(splits, number, examples)))
    return rows


def ignored(splits: Mapping[str, Split]) -> dict[str, Amount]:
    """By split, how much is ignored, of all pixels."""
    amounts = {}
    for split in splits.values():
        pixels = split.measured.pixels
        share = pixels[:, -1].sum() / max(pixels.sum(), 1)
        amounts[split.name] = Amount(float(share), int((pixels[:, -1] > 0).sum()), int(split.measured.readable.sum()))
    return amounts


def _shares(measured: Measurements) -> np.ndarray:
    return measured.class_pixels / max(measured.class_pixels.sum(), 1)


def _examples(splits: Mapping[str, Split], number: int, count: int) -> list[Picture]:
    """Close-ups of a class, from the first split that has it: of much, usual and little of it."""
    for split in splits.values():
        pixels = split.measured.pixels[:, number]
        order = np.argsort(pixels, kind="stable")[(pixels == 0).sum() :]
        if not len(order):
            continue
        quantiles = [*QUANTILES, *np.linspace(0.9, 0.2, max(count - len(QUANTILES), 0))][:count]
        chosen = dict.fromkeys(int(order[round(quantile * (len(order) - 1))]) for quantile in quantiles)
        return [_example(split, index, number) for index in chosen]
    return []


def _example(split: Split, index: int, number: int) -> Picture:
    image, label = read_pair(split.dataset, index)
    share = float((label == number).mean())
    name = split.names()[index]
    return pictures.spotlight(
        image, label, number, split.dataset.palette[number], name, f"{100 * share:.2g} % of the image"
    )


class Together(NamedTuple):
    """Which classes occur in one image."""

    names: list[str]
    images: list[int]  # with the class of the row
    shares: list[list[float | None]]  # of these, that have the class of the column, too; None for the class itself
    left_out: int  # classes that the table has no room for


def co_occurrence(split: Split) -> Together:
    """The share of the images with one class that also have another."""
    presence = split.measured.presence.astype(float)
    images = presence.sum(0)
    there = [int(i) for i in np.argsort(-images, kind="stable") if images[i]]
    chosen = sorted(there[:MOST_TOGETHER])
    shared = (presence.T @ presence)[np.ix_(chosen, chosen)] / images[chosen][:, None]
    rows = [[None if i == j else float(x) for j, x in enumerate(row)] for i, row in enumerate(shared)]
    names = [split.dataset.class_names[i] for i in chosen]
    return Together(names, [int(images[i]) for i in chosen], rows, len(there) - len(chosen))


# ---- images ----------------------------------------------------------------------------------------------------------


def sizes(splits: Mapping[str, Split]) -> tuple[list[tuple[str, list[int]]], int]:
    """The commonest image sizes with their number by split, and how many more there are."""
    counts = {}
    for name, split in splits.items():
        found = split.measured.sizes[split.measured.readable].tolist()
        counts[name] = Counter(f"{width} x {height}" for height, width in found)
    total = sum(counts.values(), Counter[str]())
    rows = [(size, [count[size] for count in counts.values()]) for size, _ in total.most_common(MOST_SIZES)]
    return rows, len(total) - len(rows)


class Channels(NamedTuple):
    """Mean and deviation of the images' channels, in units of the 0..255 scale."""

    title: str
    mean: list[float]
    std: list[float]
    digits: str = "%.1f"


def channels(config: RunConfig, splits: Mapping[str, Split]) -> list[Channels]:
    """Of each split, then what the backbone subtracts and divides by, then what the network gets of train."""
    rows = [Channels(name, s.measured.mean.tolist(), s.measured.std.tolist()) for name, s in splits.items()]
    mean, std = normalization(config)
    train = rows[0]
    return [
        *rows,
        Channels("normalized by", mean, std),
        Channels(
            "train, normalized",
            [(a - b) / c for a, b, c in zip(train.mean, mean, std, strict=True)],
            [a / b for a, b in zip(train.std, std, strict=True)],
            "%.2f",
        ),
    ]


def normalization(config: RunConfig) -> tuple[list[float], list[float]]:
    """What the network subtracts from images and divides them by; built without memory, and without weights."""
    backbone = {key: False if key == "pretrained" else value for key, value in config.backbone.items()}
    with torch.device("meta"):
        model = build_model(backbone, config.head, 2, in_channels=config.in_channels, normalization=config.mean_and_std)
    return list(model.backbone.mean), list(model.backbone.std)


# ---- similar images --------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """Two images that look alike, and the share of their hashes' bits that differ."""

    pictures: tuple[Picture, Picture]
    share: float
    copy: bool


class Compared(NamedTuple):
    """One split beside another."""

    split: str
    other: str
    total: int  # images of the split
    copies: int  # that the other has pixel by pixel
    similar: int  # that look like one of the other, copies included
    pairs: list[Pair]  # the most similar ones, or the nearest two


def similar_pairs(splits: Mapping[str, Split], most: float, count: int) -> list[Compared]:
    """Every two splits: images of the later one that look like one of the earlier.

    Args:
        splits: by name.
        most: share of the bits in which similar images differ.
        count: pairs to show of each two splits.
    """
    return [_compare(split, other, most, count) for other, split in itertools.combinations(splits.values(), 2)]


def _compare(split: Split, other: Split, most: float, count: int) -> Compared:
    here, there = (np.flatnonzero(s.measured.readable) for s in (split, other))
    index, share = nearest(split.measured.hashes[here], other.measured.hashes[there])
    copy = np.isin(split.measured.images[here], other.measured.images[there])
    order = np.argsort(share, kind="stable")[:count]
    shown = [place for place in order if share[place] <= most] or order[:NEAREST]
    pairs = [
        Pair(
            (_whole(split, int(here[place])), _whole(other, int(there[index[place]]))),
            float(share[place]),
            bool(copy[place]),
        )
        for place in shown
    ]
    return Compared(split.name, other.name, len(here), int(copy.sum()), int((share <= most).sum()), pairs)


def _whole(split: Split, index: int) -> Picture:
    name = split.names()[index]
    return pictures.labeled(*read_pair(split.dataset, index), split.dataset.palette, name, split.name)


# ---- training crops --------------------------------------------------------------------------------------------------


def crops(
    config: RunConfig, dataset: SegmentationDataset, count: int, workers: int
) -> tuple[list[Picture], list[Finding]]:
    """The first training crops of the run, and what is wrong with them.

    Args:
        config: of the run.
        dataset: the training split.
        count: how many are shown.
        workers: threads that read labels.
    """
    shown: list[Picture] = []
    ignored = []
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in normalization(config))
    try:
        for batch in _batches_of_one(config, dataset, count, workers):
            image, label, name = batch.image[0], batch.label[0].numpy(), batch.names[0]
            seen = ((image - mean) / std * std + mean).round().clamp(0, 255).to(torch.uint8)  # as the network gets it
            ignored.append(pictures.ignored_share(label))
            text = _largest(label, dataset.class_names)
            shown.append(pictures.labeled(seen.permute(1, 2, 0).numpy(), label, dataset.palette, name, text))
    except (LoadingError, ValueError) as error:
        return shown, [Finding("problem", "Training crops cannot be made", str(error))]
    if not ignored or (share := float(np.mean(ignored))) <= MOST_IGNORED:
        return shown, []
    remedy = "Crops that are larger than the images are padded: lower augment.crop_size, or raise the smallest scale."
    return shown, [Finding("note", f"{share:.0%} of the training crops' pixels are ignored", remedy)]


def _batches_of_one(config: RunConfig, dataset: SegmentationDataset, count: int, workers: int) -> Loader:
    """The run's first crops, one by one, since their sizes may differ."""
    sampler = StepSampler(
        len(dataset),
        batch_size=1,
        parts=1,
        rank=0,
        world_size=1,
        seed=config.seed,
        first_step=0,
        total_steps=count,
        factors=factors_of(config.train, dataset, cache_dir=configuration.OUTPUTS / ".cache", workers=workers),
    )
    augment = Augmentation(config.augment, dataset.class_names)
    return training_loader(dataset, augment, sampler, seed=config.seed, num_workers=0, device=torch.device("cpu"))


def _largest(label: np.ndarray, names: Sequence[str]) -> str:
    """The three largest classes of a crop, in words."""
    values, pixels = np.unique(label[label != IGNORE], return_counts=True)
    order = np.argsort(-pixels, kind="stable")[:3]
    words = [f"{names[values[place]]} {100 * pixels[place] / label.size:.0f} %" for place in order]
    return ", ".join(words) or "all ignored"
