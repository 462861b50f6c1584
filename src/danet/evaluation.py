"""Scoring: one confusion matrix over the whole split, at the label's own resolution.

The result does not depend on the number of processes: every image is scored once (no padded sampler), and the integer
matrices are added.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from danet import distributed, metrics, progress
from danet.data.loader import Batch, evaluation_loader
from danet.data.sample import SegmentationDataset
from danet.distributed import World
from danet.inference import predict_labels
from danet.model import Segmenter
from danet.sections import InferenceConfig

MATRIX_CELLS = 2**26  # of images' confusion matrices that are kept at most: 256 MiB


@dataclass(frozen=True)
class Picture:
    """An image with its truth and the model's answer."""

    name: str
    image: np.ndarray  # (H, W, 3) uint8
    label: np.ndarray  # (H, W) uint8
    prediction: np.ndarray  # (H, W) uint8


@dataclass(frozen=True)
class Evaluation:
    """What scoring a split gives."""

    scores: metrics.Scores
    matrix: np.ndarray  # (K, K) int64, rows truth, columns prediction
    num_images: int
    pictures: list[Picture]
    image_matrices: dict[str, np.ndarray]  # (K, K) int32 by image name, in the split's order; empty where too large

    def result(self) -> dict[str, Any]:
        """The scores as plain values, as result.json has them."""
        return {**asdict(self.scores), "num_images": self.num_images}


def split_loader(
    dataset: SegmentationDataset,
    *,
    device: torch.device,
    world: World | None = None,
    batch_size: int = 1,
    max_images: int | None = None,
    num_workers: int = 0,
) -> DataLoader[Batch]:
    """This process's share of a split, as `evaluate` takes it; arguments as there."""
    world = world or World()
    indices = range(world.rank, min(len(dataset), max_images or len(dataset)), world.size)
    return evaluation_loader(dataset, indices, batch_size=batch_size, num_workers=num_workers, device=device)


@torch.inference_mode()
def evaluate(
    model: Segmenter,
    dataset: SegmentationDataset,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    world: World | None = None,
    inference: InferenceConfig | None = None,
    batch_size: int = 1,
    max_images: int | None = None,
    num_pictures: int = 0,
    num_workers: int = 0,
    loader: DataLoader[Batch] | None = None,
    each: Callable[[int, Picture], None] | None = None,
    title: str | None = None,
) -> Evaluation:
    """Score `model` on a split.

    Args:
        model: on `device`; left in evaluation mode.
        dataset: the split.
        device: where to compute.
        dtype: autocast's type; float32 means none.
        world: this process among several, each of which takes its share and gets the whole result.
        inference: how the model looks at an image; None: whole, as it is.
        batch_size: images at a time, which must then be of one size.
        max_images: score only the first so many.
        num_pictures: keep so many of the images, spread evenly over the split.
        num_workers: processes that load images.
        loader: what `split_loader` gives for the same arguments: keeping it from one evaluation to the next keeps its
            processes, too.
        each: called with the index and the picture of every image that this process scores.
        title: show the progress under this name.
    """
    world, inference = world or World(), inference or InferenceConfig()
    model.eval()
    count = min(len(dataset), max_images or len(dataset))
    shown = set(np.linspace(0, count - 1, min(num_pictures, count)).round().astype(int).tolist())
    indices = range(world.rank, count, world.size)
    confusion = metrics.ConfusionMatrix(len(dataset.class_names), device)
    keeps_matrices = count * confusion.num_classes**2 <= MATRIX_CELLS
    matrices: dict[int, tuple[str, torch.Tensor]] = {}
    pictures: dict[int, Picture] = {}
    batches: Iterable[Batch] = loader or split_loader(
        dataset,
        device=device,
        world=world,
        batch_size=batch_size,
        max_images=max_images,
        num_workers=num_workers,
    )
    if title:
        batches = progress.track(batches, math.ceil(len(indices) / batch_size), title, enabled=world.is_main)
    done = 0
    for batch in batches:
        image, label = (part.to(device, non_blocking=True) for part in (batch.image, batch.label))
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            prediction = predict_labels(model, image, (label.shape[-2], label.shape[-1]), inference)
        for row, name in enumerate(batch.names):
            index = indices[done + row]
            single = metrics.ConfusionMatrix(confusion.num_classes, device)
            single.update(prediction[row], label[row])
            confusion.counts += single.counts
            if keeps_matrices:
                matrices[index] = name, single.between_classes.to(torch.int32)
            if each is None and index not in shown:
                continue
            # Copies: whoever keeps a picture must not keep the loader's shared memory.
            pixels, truth = batch.image[row].permute(1, 2, 0).numpy().copy(), batch.label[row].numpy().copy()
            picture = Picture(name, pixels, truth, prediction[row].to(torch.uint8).cpu().numpy())
            if each is not None:
                each(index, picture)
            if index in shown:
                pictures[index] = picture
        done += len(batch.names)
    distributed.sum_over_processes(confusion.counts)
    matrix = confusion.matrix.numpy()
    on_cpu = {index: (name, counts.cpu().numpy()) for index, (name, counts) in matrices.items()}
    everyones = {index: p for part in distributed.gather(pictures) for index, p in part.items()}
    all_matrices = {index: entry for part in distributed.gather(on_cpu) for index, entry in part.items()}
    return Evaluation(
        metrics.scores(matrix, dataset.class_names),
        matrix,
        count,
        [everyones[index] for index in sorted(everyones)],
        dict(all_matrices[index] for index in sorted(all_matrices)),
    )
