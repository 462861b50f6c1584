"""The check before training: every file of a data set is opened once, and all bad ones are named together.

K is the number of classes.
"""

import hashlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np

from danet.data.files import read_image
from danet.data.sample import IGNORE, FilePair, SegmentationDataset

log = logging.getLogger(__name__)

RULES = 1  # raise it when the check finds more than before, so that old results no longer count
MAX_LINES = 50


class DataError(ValueError):
    """A data set with bad files, a line each."""


class FileDataset(SegmentationDataset, Protocol):
    """A data set on disk."""

    files: list[FilePair]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the check counted.

    Attributes:
        num_images: images in the split.
        sizes: number of images by "width x height".
        class_pixels: pixels of each class, K numbers.
        image_pixels: for each class, all pixels (ignored ones too) of the images that contain it. The ratio
            class_pixels / image_pixels is the frequency of median-frequency weights (Eigen and Fergus,
            ICCV 2015).
        ignored_pixels: pixels that neither train nor score.
    """

    num_images: int
    sizes: dict[str, int]
    class_pixels: list[int]
    image_pixels: list[int]
    ignored_pixels: int


class _Finding(NamedTuple):
    """What one pair of files gave."""

    problems: list[str]
    size: str = ""
    counts: np.ndarray = np.zeros(256, np.int64)  # pixels by label value


def check(dataset: SegmentationDataset, *, cache_dir: Path, workers: int) -> Report | None:
    """Open every image and label of a split; later calls, on unchanged files, only ask for sizes and times.

    Args:
        dataset: one without `files` is generated and passes at once.
        cache_dir: where results are kept between runs.
        workers: threads that decode.

    Returns:
        What was counted, or None for a generated data set.

    Raises:
        DataError: files are missing, damaged, of unequal sizes or of another mode, or labels are out of
            range; the text has a line for each.
    """
    if not hasattr(dataset, "files"):
        return None
    dataset = cast(FileDataset, dataset)
    cache = cache_dir / f"check-{_key(dataset)}.json"
    report = _cached(cache)
    if report is None:
        report = _scan(dataset, max(1, workers))
        cache_dir.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(asdict(report)))
        os.replace(temporary, cache)
    never = [name for name, pixels in zip(dataset.class_names, report.class_pixels, strict=True) if not pixels]
    if never:
        log.warning("%s: no pixel of %s", dataset.description, ", ".join(never))
    return report


def _key(dataset: FileDataset) -> str:
    """Changes with any file's path, size or time, the classes and the options that change labels."""
    digest = hashlib.sha256(repr((RULES, dataset.class_names, dataset.fingerprint())).encode())
    for path in (path for pair in dataset.files for path in (pair.image, pair.label)):
        stat = os.stat(path) if path and os.path.exists(path) else None
        digest.update(repr((path, stat and (stat.st_size, stat.st_mtime_ns))).encode())
    return digest.hexdigest()[:16]


def _cached(path: Path) -> Report | None:
    """The report of an earlier run; None where there is none, or where the file is damaged."""
    try:
        return Report(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _scan(dataset: FileDataset, workers: int) -> Report:
    """Open all files; threads do, since images are decoded outside Python's lock."""
    num_classes = len(dataset.class_names)
    problems: list[str] = []
    sizes: Counter[str] = Counter()
    totals, image_pixels = np.zeros(256, np.int64), np.zeros(256, np.int64)
    with ThreadPoolExecutor(workers) as pool:
        findings = pool.map(partial(_inspect, dataset), range(len(dataset.files)))
        for finding in _with_progress(findings, dataset):
            problems += finding.problems
            sizes[finding.size] += 1
            totals += finding.counts
            image_pixels += (finding.counts > 0) * finding.counts.sum()
    if not problems and not totals[:num_classes].any():
        problems = ["every pixel of every label is ignored"]
    if problems:
        shown = problems[:MAX_LINES]
        more = [f"... and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        head = f"{dataset.description}: {len(problems)} problem(s) in {len(dataset.files)} pairs of files"
        raise DataError("\n  ".join([head, *shown, *more]))
    return Report(
        num_images=len(dataset.files),
        sizes=dict(sizes),
        class_pixels=totals[:num_classes].tolist(),
        image_pixels=image_pixels[:num_classes].tolist(),
        ignored_pixels=int(totals[IGNORE]),
    )


def _inspect(dataset: FileDataset, index: int) -> _Finding:
    """Read one pair; image and label separately, so that both are named where both are bad."""
    pair = dataset.files[index]
    problems: list[str] = []
    image = label = None
    if not os.path.exists(pair.image):
        remedy = f"remove {pair.label}" if pair.label else "take its name from the list file"
        problems.append(f"{pair.image}: image is missing; add it or {remedy}")
        if pair.label is None:
            return _Finding(problems)
    else:
        try:
            image = read_image(pair.image, threads=True)
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
            "save both in one size"
        )
    return _Finding(problems, f"{width}x{height}", counts)


def _with_progress(findings: Iterable[_Finding], dataset: FileDataset) -> Iterable[_Finding]:
    """The same findings, with a progress bar where there is a terminal."""
    from rich.console import Console
    from rich.progress import track

    return track(
        findings,
        f"checking {dataset.description}",
        total=len(dataset.files),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
