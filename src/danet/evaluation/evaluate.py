"""Scoring: one confusion matrix over the whole split, at the label's own resolution.

The result does not depend on the number of processes: every image is scored once (no padded sampler), and the integer
matrices are added.
"""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from danet import metrics
from danet.config.sections import InferenceConfig
from danet.data.loader import Batch, evaluation_loader
from danet.inference.views import predict_labels
from danet.interfaces import SegmentationDataset
from danet.model import Segmenter
from danet.services import console, distributed
from danet.services.compute import Compute
from danet.services.figures import as_rgb
from danet.services.nonfinite import FiniteScores, scores_error
from danet.services.signals import StopRequested

MATRIX_CELLS = 2**26  # of images' confusion matrices that are kept at most: 256 MiB


@dataclass(frozen=True)
class Picture:
    """An image with its truth, the model's answer, and how they agree."""

    name: str
    image: np.ndarray  # (H, W, 3) uint8
    label: np.ndarray  # (H, W) uint8
    prediction: np.ndarray  # (H, W) uint8
    matrix: np.ndarray  # (K, K) int32, rows truth, columns prediction


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


class Share:
    """A process's share of a split, to be scored any number of times; the processes that load it stay.

    Args:
        dataset: the split.
        compute: where and in which precision, and which of several processes, each of which takes its share.
        batch_size: images at a time, which must then be of one size.
        max_images: of the split, only the first so many.
        num_workers: processes that load images.

    Attributes:
        num_images: of all processes.
        indices: of this process's images in the split.
        loader: gives them in this order.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        *,
        compute: Compute,
        batch_size: int = 1,
        max_images: int | None = None,
        num_workers: int = 0,
    ) -> None:
        self.dataset, self.compute = dataset, compute
        self.num_images = min(len(dataset), max_images or len(dataset))
        self.indices = range(compute.world.rank, self.num_images, compute.world.size)
        self.loader = evaluation_loader(
            dataset, self.indices, batch_size=batch_size, num_workers=num_workers, device=compute.device
        )


@torch.inference_mode()
def evaluate(
    model: Segmenter,
    share: Share,
    *,
    inference: InferenceConfig | None = None,
    num_pictures: int = 0,
    each: Callable[[int, Picture], None] | None = None,
    title: str | None = None,
    interruptible: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Evaluation:
    """Score `model` on a split.

    Args:
        model: on the share's device; left in evaluation mode.
        share: this process's images; every process gets the result of all.
        inference: how the model looks at an image; None: whole, as it is.
        num_pictures: keep so many of the images, spread evenly over the split.
        each: called with the index and the picture of every image that this process scores.
        title: show the progress under this name.
        interruptible: gives a context which may end by StopRequested; then all processes give up.

    Raises:
        StopRequested: a process was interrupted.
        NonFiniteError: the scores of an image are not finite; in every process, and names these images of all.
    """
    dataset, device, count = share.dataset, share.compute.device, share.num_images
    inference = inference or InferenceConfig()
    model.eval()
    shown = set(np.linspace(0, count - 1, min(num_pictures, count)).round().astype(int).tolist())
    confusion = metrics.ConfusionMatrix(len(dataset.class_names)).to(device)
    keeps_matrices = count * confusion.num_classes**2 <= MATRIX_CELLS
    matrices: dict[int, tuple[str, torch.Tensor]] = {}
    pictures: dict[int, Picture] = {}
    names: list[str] = []
    finite: list[torch.Tensor] = []  # by image, on the device: nobody waits for it before the end
    batches: Iterable[Batch] = share.loader
    if title:
        batches = console.track(batches, len(share.loader), title, enabled=share.compute.world.is_main)
    done, interrupted = 0, False
    try:
        with interruptible():
            for batch in batches:
                image, label = (part.to(device, non_blocking=True) for part in (batch.image, batch.label))
                with share.compute.autocast():
                    scores = FiniteScores()
                    prediction = predict_labels(model, image, (label.shape[-2], label.shape[-1]), inference, scores)
                names += batch.names
                finite += [scores.each] if scores.each is not None else []
                for row, name in enumerate(batch.names):
                    index = share.indices[done + row]
                    before = confusion.between_classes.clone()
                    confusion.update(prediction[row], label[row])
                    image_matrix = (confusion.between_classes - before).to(torch.int32)
                    if keeps_matrices:
                        matrices[index] = name, image_matrix
                    if each is None and index not in shown:
                        continue
                    # Copies: whoever keeps a picture must not keep the loader's shared memory.
                    pixels, truth = as_rgb(batch.image[row].permute(1, 2, 0).numpy()), batch.label[row].numpy().copy()
                    answer = prediction[row].to(torch.uint8).cpu().numpy()
                    picture = Picture(name, pixels, truth, answer, image_matrix.cpu().numpy())
                    if each is not None:
                        each(index, picture)
                    if index in shown:
                        pictures[index] = picture
                done += len(batch.names)
    except StopRequested:
        interrupted = True
    if distributed.any_process(interrupted)[0]:
        raise StopRequested
    _require_finite(model, names, finite, f"{count} images" if title is None else f"{count} images ({title})")
    with confusion.sync_context():  # the counts of all processes
        matrix = confusion.matrix().numpy()
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


def _require_finite(model: Segmenter, names: list[str], finite: list[torch.Tensor], all_images: str) -> None:
    """Refuse, in every process, scores that are not finite in one of them.

    Args:
        model: whose scores they are.
        names: of this process's images.
        finite: whether their scores are, a tensor a batch.
        all_images: of all processes, in words.

    Raises:
        NonFiniteError: names the images.
    """
    flags = torch.cat(finite).tolist() if finite else []
    own = [name for name, is_finite in zip(names, flags, strict=True) if not is_finite]
    if broken := sorted(name for part in distributed.gather(own) for name in part):
        shown = ", ".join(broken[:4]) + (" ..." if len(broken) > 4 else "")
        raise scores_error(model, f"{shown}: {len(broken)} of {all_images}")
