"""What is wrong with the data, or worth knowing, in words.

N images of a split, K classes.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from danet import config as configuration
from danet.config import ConfigError, RunConfig
from danet.config.data_checks import check_data
from danet.data import check
from danet.data.measure import nearest

if TYPE_CHECKING:
    from danet.tools.inspect_data.contents import Split

LEVELS = ("problem", "warning", "note")
FEW_IMAGES = 5  # a class in fewer is hardly learned
SHIFT = 4.0  # times a class's share differs between splits
ALIKE = 0.1  # of a split's images, that look like another one
FRAMES = 0.2  # of the images of a series that look like their neighbors, where it is a video


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        level: problem: training refuses it; warning: it trains, but scores may mislead; note: worth knowing.
        title: in a few words.
        text: a sentence or two: what follows, what to do.
        lines: details.
    """

    level: Literal["problem", "warning", "note"]
    title: str
    text: str = ""
    lines: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """Place of its level."""
        return LEVELS.index(self.level)

    @classmethod
    def of_data_error(cls, split: str, text: str) -> "Finding":
        """The problems in the files of a split, from the check's error."""
        head, *lines = text.split("\n")
        count = re.search(r"(\d+) problem", head)
        title = f"Files of {split}: {count[1] if count else len(lines)} problem(s)"
        return cls("problem", title, "", tuple(map(str.strip, lines)))


def find(config: RunConfig, splits: Mapping[str, "Split"], similar: float, *, files_are_good: bool) -> list[Finding]:
    """Everything found besides files that cannot be read.

    Args:
        config: of the run.
        splits: by name.
        similar: share of the bits in which the hashes of similar images differ at most.
        files_are_good: whether it can be checked what training makes of them.
    """
    found = _of_training(config, splits) if files_are_good else []
    found += [
        Finding("warning", f"Labels of {split.name}", warning)
        for split in splits.values()
        if split.report is not None
        for warning in [*split.report.notes, *check.label_warnings(split.dataset, split.report)]
    ]
    return [
        *found,
        *_few_images(splits),
        *_shifts(splits),
        *_between_splits(splits, similar),
        *_within_splits(splits, similar),
        *_input_range(config, splits),
    ]


def _of_training(config: RunConfig, splits: Mapping[str, "Split"]) -> list[Finding]:
    """What src/train.py would refuse with these arguments."""
    quiet = logging.getLogger(check.__name__)
    quiet.disabled = True  # its warnings have been told
    try:
        check_data(
            config,
            splits["train"].dataset,
            splits[config.evaluate.split].dataset,
            processes=config.runtime.devices,
            cache_dir=configuration.OUTPUTS / ".cache",
        )
    except check.DataError as error:
        return [Finding("problem", "Training would stop", str(error))]
    except ConfigError as error:
        return [Finding("problem", "Training would stop", line) for line in error.problems]
    finally:
        quiet.disabled = False
    return []


def _few_images(splits: Mapping[str, "Split"]) -> list[Finding]:
    """Classes that hardly occur in training, though they do, or in validation, where their score is chance."""
    findings = []
    for split in (splits[name] for name in ("train", "val") if name in splits):
        images = split.measured.presence.sum(0).tolist()
        if len(split.dataset) <= FEW_IMAGES:
            count = len(split.dataset)
            title = f"{split.name} has {count} image{'s' * (count != 1)}"
            findings.append(Finding("warning", title, "Scores are chance."))
            continue
        rare = [
            f"{name} ({n})" for name, n in zip(split.dataset.class_names, images, strict=True) if 0 < n < FEW_IMAGES
        ]
        if rare:
            title = f"Classes in fewer than {FEW_IMAGES} images of {split.name}: {len(rare)}"
            text = {
                "train": "They will hardly be learned; docs/rare_classes.md says how they come more often.",
                "val": "Their scores rest on these few images.",
            }[split.name]
            findings.append(Finding("note", title, text, tuple(rare)))
    return findings


def _shifts(splits: Mapping[str, "Split"]) -> list[Finding]:
    """Classes whose share differs much between training and validation."""
    if not {"train", "val"} <= splits.keys():
        return []
    names = splits["train"].dataset.class_names
    train, val = (
        splits[name].measured.class_pixels / max(splits[name].measured.class_pixels.sum(), 1)
        for name in ("train", "val")
    )
    lines = [
        f"{name}: {100 * a:.2g} % of the pixels of train, {100 * b:.2g} % of val"
        for name, a, b in zip(names, train, val, strict=True)
        if a and b and max(a / b, b / a) > SHIFT
    ]
    title = f"Classes whose share differs more than {SHIFT:g} times between train and val"
    return [Finding("note", title, "", tuple(lines))] if lines else []


# ---- the same image twice --------------------------------------------------------------------------------------------


def _between_splits(splits: Mapping[str, "Split"], most: float) -> list[Finding]:
    """Images of one split that another has, too: the score is then that of images seen in training."""
    findings = []
    names = list(splits)
    for place, later in enumerate(names):
        for earlier in names[:place]:
            a, b = splits[later].measured, splits[earlier].measured
            hashes, others = a.hashes[a.readable], b.hashes[b.readable]
            similar = int((nearest(hashes, others)[1] <= most).sum())
            copies = int(np.isin(a.images[a.readable], b.images[b.readable]).sum())
            text = f"Their scores say little about new images. The pairs are shown below ({later} beside {earlier})."
            if copies:
                title = f"Images of {later} that are in {earlier}, too: {copies} of {len(hashes)}"
                findings.append(Finding("warning", title, text))
            if similar > copies:
                title = f"Images of {later} that look like one of {earlier}: {similar - copies} of {len(hashes)}"
                findings.append(Finding("warning", title, text))
            findings += _shared_series(splits[later], splits[earlier], most)
    return findings


def _within_splits(splits: Mapping[str, "Split"], most: float) -> list[Finding]:
    """Copies within a split, and how many of its images look like another."""
    findings, alike = [], []
    for split in splits.values():
        measured, names = split.measured, split.names()
        rows = np.flatnonzero(measured.readable)
        groups: dict[int, list[int]] = {}
        for row in rows.tolist():
            groups.setdefault(int(measured.images[row]), []).append(row)
        copies = [group for group in groups.values() if len(group) > 1]
        conflicts = [group for group in copies if len({int(measured.labels[row]) for row in group}) > 1]
        for level, found, title in (
            ("warning", conflicts, "image(s) with several labels that differ"),
            ("note", [group for group in copies if group not in conflicts], "image(s) more than once"),
        ):
            if found:
                lines = tuple(", ".join(names[row] for row in group) for group in found[:10])
                findings.append(Finding(level, f"{split.name} has {len(found)} {title}", "", lines))  # type: ignore[arg-type]
        if len(rows) > 1:
            similar = int((nearest(measured.hashes[rows])[1] <= most).sum())
            alike += [f"{similar} of {len(rows)} images of {split.name}"] if similar > len(rows) * ALIKE else []
    if alike:
        text = "Such as frames of a video: there is less variety than the number of images says."
        findings.append(Finding("note", "Images that look like another one of their split", text, tuple(alike)))
    return findings


def _shared_series(split: "Split", other: "Split", most: float) -> list[Finding]:
    """Names of one numbered series in two splits; frames of one video if neighbors look alike in one of them."""
    here, there = _series(split.names()), _series(other.names())
    shared = sorted(name for name in here.keys() & there.keys() if here[name] > 1 and there[name] > 1)
    if not shared or len(here.keys() | there.keys()) == 1 or "" in shared:
        return []
    listed = tuple(f"{name}…: {there[name]} in {other.name}, {here[name]} in {split.name}" for name in shared[:10])
    if len(shared) > 10:
        listed = (*listed, f"... and {len(shared) - 10} more")
    title = f"{other.name} and {split.name} share series of names"
    remedy = "keep them in one split, such as by dataset.group of dataset=folder"
    if any(_is_video(side, shared, most) for side in (split, other)):
        text = f"Neighbors look alike, as frames of one video do, so the score on {split.name} flatters: {remedy}."
        return [Finding("warning", title, text, listed)]
    return [Finding("note", title, f"If these are frames of one video or parts of one scan, {remedy}.", listed)]


def _series(names: Iterable[str]) -> Counter[str]:
    """How often names begin alike, up to their last number."""
    return Counter(_beginning(name) for name in names)


def _beginning(name: str) -> str:
    found = re.match(r"(.*?)\d+\D*$", name)
    return found[1] if found else name


def _is_video(split: "Split", series: Sequence[str], most: float) -> bool:
    """Whether many images of these series look like another one of the same series in their split."""
    names = [_beginning(name) for name in split.names()]
    rows = [row for row in np.flatnonzero(split.measured.readable).tolist() if names[row] in series]
    if len(rows) < 2:
        return False
    index, share = nearest(split.measured.hashes[rows])
    alike = [share[place] <= most and names[rows[index[place]]] == names[row] for place, row in enumerate(rows)]
    return float(np.mean(alike)) >= FRAMES


# ---- normalization ---------------------------------------------------------------------------------------------------


def _input_range(config: RunConfig, splits: Mapping[str, "Split"]) -> list[Finding]:
    """Whether the network gets values of a usual range."""
    from danet.tools.inspect_data.contents import normalization

    mean, std = (np.array(values) for values in normalization(config))
    measured = splits["train"].measured
    if len(mean) != len(measured.mean):
        return []
    seen_mean, seen_std = (measured.mean - mean) / std, measured.std / std
    if np.abs(seen_mean).max() <= 1.5 and seen_std.min() >= 0.33 and seen_std.max() <= 3:
        return []
    listed = ", ".join(f"{m:.2g} ± {s:.2g}" for m, s in zip(seen_mean, seen_std, strict=True))
    text = (
        "Values of about 0 ± 1 are usual. If dataset.range is right and nothing is pretrained, normalization=data "
        "takes the training images' own mean and deviation."
    )
    return [Finding("note", f"The network's input has channels of {listed}", text)]
