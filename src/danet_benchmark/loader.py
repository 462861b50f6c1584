"""Images decoded and augmented per second by one core: ours, mmsegmentation's pipeline and torchvision's transforms.

Every pipeline reads an image and its label, scales them by 0.5 to 2, pads (but for mmsegmentation, which leaves that to
its model), crops, flips half of them and ends with uint8 tensors of one image. Batches are not part of it.

Shapes: H, W image height and width in pixels.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from danet.data.augment import Augmentation
from danet.data.cache import GIB, DecodedCache
from danet.datasets.files import fingerprint
from danet.datasets.images import read_image
from danet.datasets.labels import read_label
from danet.interfaces import IGNORE, FilePair, Sample, SegmentationDataset
from danet_benchmark.peers import mmseg_module
from danet_benchmark.timing import Contestant, contest

SCALE = (0.5, 2.0)
NUM_CLASSES = 19
FILL = (124, 116, 104)  # of the padding


class Case(NamedTuple):
    """What is loaded.

    Attributes:
        size: W, H.
        crop_size: [height, width].
        suffix: of the images' files; labels are PNG in any case.
        files: different images.
        images: loaded in each timed run.
    """

    size: tuple[int, int]
    crop_size: tuple[int, int]
    suffix: str
    files: int
    images: int


CASES = [
    Case(size, crop_size, suffix, files, images)
    for size, crop_size, files, images in (
        ((480, 360), (360, 480), 16, 48),
        ((2048, 1024), (768, 768), 4, 12),
    )
    for suffix in ("jpg", "png")
]


def loader_rows(seconds: float) -> list[dict[str, Any]]:
    """Measure all cases.

    Args:
        seconds: for all of them, about; every pipeline runs three times at least.

    Returns:
        Rows with "what", "size", "format", "pipeline", "images_per_second" (the median), "low", "high", "seconds" and
        "median" of the runs, and "error": why the pipeline could not run, which then has no figures; None otherwise.
    """
    with _one_thread(), tempfile.TemporaryDirectory() as folder:
        return [row for case in CASES for row in _case_rows(case, Path(folder), seconds / len(CASES))]


def _case_rows(case: Case, folder: Path, seconds: float) -> list[dict[str, Any]]:
    dataset = _Files(folder / f"{case.size[0]}x{case.size[1]}.{case.suffix}", case)
    pipelines = {
        "ours": lambda: _ours(dataset, case),
        "ours, from the cache": lambda: _ours(_decoded(dataset, folder / "cache"), case),
        "mmsegmentation": lambda: _mmsegmentation(dataset, case),
        "torchvision v2": lambda: _torchvision(dataset, case),
    }
    contestants = [Contestant(name, partial(_repeat, build, case)) for name, build in pipelines.items()]
    rows = []
    for timing in contest(contestants, device=torch.device("cpu"), seconds=seconds):
        speeds = sorted(case.images / taken for taken in timing.seconds)
        figures = (float(np.median(speeds)), speeds[0], speeds[-1]) if speeds and not timing.error else (None,) * 3
        rows.append(
            {
                "what": f"scale {SCALE[0]}-{SCALE[1]}, pad, crop {case.crop_size[0]}x{case.crop_size[1]}, flip",
                "size": f"{case.size[0]}x{case.size[1]}",
                "format": case.suffix,
                "pipeline": timing.name,
                **dict(zip(("images_per_second", "low", "high"), figures, strict=True)),
                "seconds": timing.seconds,
                "median": timing.median,
                "error": timing.error,
            }
        )
    return rows


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    import cv2

    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


def _repeat(build: Callable[[], Callable[[int], Any]], case: Case) -> Callable[[], None]:
    """What a timed run does: every file as often as the others, the random numbers going on from run to run."""
    load = build()
    load(0)  # so that the first timed run does not pay for imports and tables

    def run() -> None:
        for number in range(case.images):
            load(number % case.files)

    return run


# ---- pipelines: each gives a function from a file's number to tensors ------------------------------------------------


def _ours(dataset: Any, case: Case) -> Callable[[int], Any]:
    height, width = case.crop_size
    options = {"scale": list(SCALE), "height": height, "width": width, "flip": 0.5, "fill": list(FILL)}
    augment = Augmentation({"transforms": [{"RandomScaleCrop": options}]})
    calls = iter(range(2**31))

    def load(index: int) -> Any:
        image, label, _ = dataset[index]
        image, label = augment(image, label, seed=(0, next(calls), index))
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(label)

    return load


def _decoded(dataset: "_Files", folder: Path) -> DecodedCache:
    """The data set with all its images in the cache already."""
    kept = DecodedCache(cast(SegmentationDataset, dataset), folder, 64 * GIB)
    for index in range(len(kept)):
        for _ in ("written", "checked"):
            kept[index]
    return kept


def _mmsegmentation(dataset: "_Files", case: Case) -> Callable[[int], Any]:
    """Mmsegmentation's training pipeline; OpenCV, its fastest backend here, decodes labels too."""
    mmcv, mmseg = (mmseg_module(f"{name}.transforms") for name in ("mmcv", "mmseg.datasets"))
    np.random.seed(0)
    steps = [
        mmcv.LoadImageFromFile(),
        mmseg.LoadAnnotations(imdecode_backend="cv2"),
        mmcv.RandomResize(scale=case.size, ratio_range=SCALE, keep_ratio=True),
        mmseg.RandomCrop(crop_size=case.crop_size),
        mmcv.RandomFlip(prob=0.5),
        mmseg.PackSegInputs(),
    ]

    def load(index: int) -> Any:
        pair = dataset.files[index]
        result: Any = {"img_path": pair.image, "seg_map_path": pair.label, "reduce_zero_label": False, "seg_fields": []}
        for step in steps:
            result = step(result)
        return result

    return load


def _torchvision(dataset: "_Files", case: Case) -> Callable[[int], Any]:
    from torchvision import tv_tensors
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    torch.manual_seed(0)
    fill = {tv_tensors.Image: list(FILL), tv_tensors.Mask: IGNORE}
    augment = v2.Compose(
        [
            v2.ScaleJitter(case.size[::-1], scale_range=SCALE, antialias=False),  # as OpenCV does, and faster
            v2.RandomCrop(case.crop_size, pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(0.5),
        ]
    )

    def load(index: int) -> Any:
        pair = dataset.files[index]
        image = tv_tensors.Image(decode_image(pair.image, mode=ImageReadMode.RGB))
        return augment(image, tv_tensors.Mask(decode_image(pair.label)[0]))

    return load


# ---- images ----------------------------------------------------------------------------------------------------------


class _Files:
    """Synthetic photographs with labels, written to a folder.

    Args:
        folder: appears.
        case: their size, number and format.
    """

    description = "synthetic photographs"

    def __init__(self, folder: Path, case: Case) -> None:
        import cv2

        folder.mkdir()
        self._folder, self.files = folder, []
        for index in range(case.files):
            image, label = _photograph(*case.size, np.random.default_rng(index))
            paths = str(folder / f"{index}.{case.suffix}"), str(folder / f"{index}_label.png")
            cv2.imwrite(paths[0], image, [cv2.IMWRITE_JPEG_QUALITY, 92] if case.suffix == "jpg" else [])
            cv2.imwrite(paths[1], label)
            self.files.append(FilePair(*paths, str(index)))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        pair = self.files[index]
        assert pair.label is not None
        label = read_label(pair.label, "index", {value: value for value in range(NUM_CLASSES)})
        return Sample(read_image(pair.image), label, pair.name)

    def fingerprint(self) -> str:
        return fingerprint(self._folder, self.files, {})


def _photograph(width: int, height: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) of smooth shades, shapes with hard edges and a camera's noise, and its label (H, W)."""
    import cv2

    image = np.full((height, width, 3), 110, np.float32)
    label = np.zeros((height, width), np.uint8)
    for cell in (16, 48, 160):
        coarse = rng.normal(0, 15, (height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(60):
        center = int(rng.integers(width)), int(rng.integers(height))
        axes = int(rng.integers(4, width // 8)), int(rng.integers(4, height // 6))
        ellipse = (center, axes, float(rng.uniform(0, 180)), 0, 360)
        shade = np.zeros_like(label)
        cv2.ellipse(shade, *ellipse, 1, -1)
        image[shade > 0] += rng.normal(0, 40, 3)
        label[shade > 0] = rng.integers(1, NUM_CLASSES)
    image += rng.normal(0, 2.5, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), label
