"""The check before training: open every file of a data set once, and report all bad ones together.

It also finds splits whose labels are useless for training.

K is the number of classes.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, cast

import numpy as np

from danet.data.augment import Size
from danet.datasets.images import read_image
from danet.datasets.pairing import unpaired
from danet.interfaces import IGNORE, FilePair, SegmentationDataset
from danet.services.atomic_files import write_text
from danet.services.console import track

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

RULES = 5  # increase it when the check finds more than before, to invalidate old results
MAX_LINES = 50


class DataError(ValueError):
    """A data set has bad files; the message has a line for each."""


class OnDisk(SegmentationDataset, Protocol):
    """A data set on disk."""

    files: list[FilePair]


@dataclass(frozen=True, kw_only=True)
class CheckedFiles:
    """What the check counted.

    Attributes:
        num_images: images in the split.
        sizes: number of images by "width x height".
        size_numbers: for each image, the index of its size in `sizes`.
        class_pixels: pixels of each class, K numbers.
        ignored_pixels: pixels that count neither in training nor in scores.
        notes: the data set's own remarks on its labels, one line each.
        content: a hash of what is in all files, in their order.
    """

    num_images: int
    sizes: dict[str, int]
    size_numbers: list[int]
    class_pixels: list[int]
    ignored_pixels: int
    notes: list[str]
    content: str

    def image_sizes(self) -> list[Size]:
        """Height and width of each image."""
        sizes = [(int(height), int(width)) for width, height in (size.split("x") for size in self.sizes)]
        return [sizes[number] for number in self.size_numbers]


class _Finding(NamedTuple):
    """The result for one pair of files."""

    problems: list[str]
    size: str = ""
    counts: np.ndarray = np.zeros(256, np.int64)  # pixels by label value


def check(dataset: SegmentationDataset, *, cache_dir: Path, workers: int, split: str = "") -> CheckedFiles | None:
    """Open every image and label of a split; later calls on unchanged files only compare sizes and times.

    Args:
        dataset: the split; one without `files` is generated and passes at once.
        cache_dir: folder that keeps results between runs.
        workers: number of decoding threads.
        split: name of the split, for messages.

    Returns:
        The counts, or None for a generated data set.

    Raises:
        DataError: files are missing or damaged, image and label differ in size, a mode is wrong, or labels are out of
            range; the message has a line for each.
    """
    if not hasattr(dataset, "files"):
        return None
    dataset = cast(OnDisk, dataset)
    name = f"{dataset.description}, {split}" if split else dataset.description
    cache = cache_dir / f"check-{files_key(dataset)}.json"
    report = _cached(cache)
    if report is None:
        report = _scan(dataset, workers, name)
        write_text(cache, json.dumps(asdict(report)))
    for warning in [*report.notes, *label_warnings(dataset, report)]:
        log.warning("%s: %s", name, warning)
    return report


def check_splits(
    datasets: Mapping[str, SegmentationDataset], *, cache_dir: Path, workers: int
) -> dict[str, CheckedFiles | None]:
    """Run `check` on several splits by name, and report their problems together."""
    reports: dict[str, CheckedFiles | None] = {}
    problems = []
    for split, dataset in datasets.items():
        try:
            reports[split] = check(dataset, cache_dir=cache_dir, workers=workers, split=split)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return reports


def label_warnings(dataset: SegmentationDataset, report: CheckedFiles) -> list[str]:
    """Warnings from the label counts, one line each."""
    never = [name for name, pixels in zip(dataset.class_names, report.class_pixels, strict=True) if not pixels]
    if len(never) == len(report.class_pixels) - 1:
        return [one_class_problem(dataset, report)]
    ignored = report.ignored_pixels / (report.ignored_pixels + sum(report.class_pixels))
    lines = [f"{ignored:.0%} of the pixels are ignored; are these the right labels?"] if ignored > 0.5 else []
    return lines + ([f"no pixel of {', '.join(never)}"] if never else [])


def one_class_problem(dataset: SegmentationDataset, report: CheckedFiles | None) -> str:
    """A line if all pixels that are not ignored belong to one class; empty otherwise."""
    present = [] if report is None else [n for n, p in zip(dataset.class_names, report.class_pixels, strict=True) if p]
    if report is None or len(present) != 1:
        return ""
    share = report.ignored_pixels / (report.ignored_pixels + sum(report.class_pixels))
    if not report.ignored_pixels:
        return f"all pixels are {present[0]}: one class is always right; are these the right labels?"
    return (
        f"{share:.1%} of the pixels are ignored (255 is), and only one class is left ({present[0]}): are these masks "
        "0/255? Store the foreground as its class number, or name both values: dataset=folder with "
        '"dataset.values={0: background, 255: NAME}"'
    )


def files_key(dataset: OnDisk) -> str:
    """A hash of all files' paths, sizes and times, the classes and the options that change labels."""
    digest = hashlib.sha256(repr((RULES, dataset.class_names, dataset.fingerprint())).encode())
    for path in (path for pair in dataset.files for path in (pair.image, pair.label)):
        stat = os.stat(path) if path and os.path.exists(path) else None
        digest.update(repr((path, stat and (stat.st_size, stat.st_mtime_ns))).encode())
    return digest.hexdigest()[:16]


def data_key(dataset: SegmentationDataset, version: int) -> str:
    """A hash that changes with the data of any data set, and with the version of what is stored under it."""
    stored = files_key(cast(OnDisk, dataset)) if hasattr(dataset, "files") else dataset.fingerprint()
    return hashlib.sha256(repr((version, tuple(dataset.class_names), stored)).encode()).hexdigest()[:16]


def _cached(path: Path) -> CheckedFiles | None:
    """The report of an earlier run; None if there is none or the file is damaged."""
    try:
        stored = json.loads(path.read_text())
        stored.pop("image_pixels", None)  # of older versions
        return CheckedFiles(**stored)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


@contextlib.contextmanager
def in_threads(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[Iterator[R]]:
    """The function's results in order, from several threads; after an error or signal, no further call is begun."""
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        yield pool.map(function, items)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _scan(dataset: OnDisk, workers: int, name: str) -> CheckedFiles:
    """Open all files, in threads, since images are decoded without holding the GIL."""
    num_classes = len(dataset.class_names)
    problems, paired = unpaired(dataset.files)
    sizes: Counter[str] = Counter()
    places: dict[str, int] = {}
    numbers: list[int] = []
    totals = np.zeros(256, np.int64)
    digests: dict[str, str] = {}
    with in_threads(partial(_inspect, dataset, digests), paired, workers) as findings:
        for finding in track(findings, len(dataset.files), f"checking {dataset.description}", transient=True):
            problems += finding.problems
            sizes[finding.size] += 1
            numbers.append(places.setdefault(finding.size, len(places)))
            totals += finding.counts
    if not problems and not totals[:num_classes].any():
        problems = ["every pixel of every label is ignored; are these the right labels? (255 always means ignored)"]
    notes = _notes(dataset)
    if problems:
        shown = [*notes, *problems[:MAX_LINES]]
        more = [f"... and {len(problems) - MAX_LINES} more"] if len(problems) > MAX_LINES else []
        head = f"{name}: {len(problems)} problem(s) in {len(dataset.files)} pairs of files"
        raise DataError("\n  ".join([head, *shown, *more]))
    return CheckedFiles(
        num_images=len(dataset.files),
        sizes=dict(sizes),
        size_numbers=numbers,
        class_pixels=totals[:num_classes].tolist(),
        ignored_pixels=int(totals[IGNORE]),
        notes=notes,
        content=hashlib.sha256("".join(digests.get(p, "") for p in _paths(dataset.files)).encode()).hexdigest()[:16],
    )


def _paths(pairs: Iterable[FilePair]) -> Iterator[str]:
    return (path for pair in pairs for path in (pair.image, pair.label) if path)


def _notes(dataset: OnDisk) -> list[str]:
    """The data set's remarks on its labels as a whole, once all have been read."""
    return list(getattr(dataset, "notes", list)())


def _inspect(dataset: OnDisk, digests: dict[str, str], index: int) -> _Finding:
    """Read one pair, image and label separately, so that both are named if both are bad; add their hashes to a dict."""
    pair = dataset.files[index]
    for path in _paths([pair]):
        if path not in digests:  # as several images may share a file of labels
            with contextlib.suppress(OSError), open(path, "rb") as file:
                digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
    problems: list[str] = []
    image = label = None
    if not os.path.lexists(pair.image):
        remedy = f"remove {pair.label}" if pair.label else "take its name from the list file"
        problems.append(f"{pair.image}: image is missing; add it or {remedy}")
        if pair.label is None:
            return _Finding(problems)
    else:
        try:
            own = getattr(dataset, "read_image", None)
            image = own(index, threads=True) if own else read_image(pair.image, threads=True)
        except ValueError as error:
            problems.append(str(error))
    try:
        label = dataset.read_label(index)
    except ValueError as error:
        problems.append(str(error))
    if label is None:
        return _Finding(problems)
    counts = np.bincount(label.ravel(), minlength=256)
    values = np.flatnonzero(counts)
    outside = values[(values >= len(dataset.class_names)) & (values != IGNORE)]
    if outside.size:
        problems.append(
            f"{pair.label}: label values {outside.tolist()} are neither 0..{len(dataset.class_names) - 1} "
            f"nor {IGNORE}; correct the label or the classes"
        )
    height, width = label.shape
    if image is not None and image.shape[:2] != label.shape:
        problems.append(
            f"{pair.label}: label is {width}x{height}, its image {image.shape[1]}x{image.shape[0]}; "
            "save both at the same size"
        )
    return _Finding(problems, f"{width}x{height}", counts)
