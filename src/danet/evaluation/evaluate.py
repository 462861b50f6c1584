"""Scoring: one confusion matrix over the whole split, at the label's own resolution.

The result does not depend on the number of processes: every image is scored once (no padded sampler), and the integer
matrices are added.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from danet import metrics
from danet.arguments import Void
from danet.config.sections import InferenceConfig
from danet.data.loader import Batch
from danet.evaluation.share import Share
from danet.inference.views import labels_and_probabilities, predict_labels
from danet.model import Segmenter
from danet.services import console, distributed
from danet.services.compute import Compute
from danet.services.figures import as_rgb
from danet.services.nonfinite import FiniteScores, scores_error
from danet.services.signals import StopRequested

# Called with a batch's indices in the split, its probabilities (B, K, H, W), predictions and labels, (B, H, W).
WatchConfidence = Callable[[Sequence[int], torch.Tensor, torch.Tensor, torch.Tensor], None]

MATRIX_CELLS = 2**26  # of images' confusion matrices that are kept at most: 256 MiB


@dataclass(frozen=True)
class ScoredPicture:
    """An image with its truth, the model's answer, and how they agree."""

    name: str
    image: np.ndarray  # (H, W, 3) uint8
    label: np.ndarray  # (H, W) uint8
    prediction: np.ndarray  # (H, W) uint8
    matrix: np.ndarray  # (K, K) int32, rows truth, columns prediction; see ConfusionMatrix.matrix


@dataclass(frozen=True)
class Evaluation:
    """The result of scoring a split."""

    scores: metrics.Scores
    matrix: np.ndarray  # (K, K) int64, rows truth, columns prediction; see ConfusionMatrix.matrix
    num_images: int
    pictures: list[ScoredPicture]
    image_matrices: dict[str, np.ndarray]  # (K, K) int32 by image name, in the split's order; empty where too large

    def result(self) -> dict[str, Any]:
        """The scores as plain values, as result.json has them."""
        return {**asdict(self.scores), "num_images": self.num_images}


@torch.inference_mode()
def evaluate(
    model: Segmenter,
    share: Share,
    *,
    inference: InferenceConfig | None = None,
    void: Void = "ignore",
    num_pictures: int = 0,
    each: Callable[[int, ScoredPicture], None] | None = None,
    confidence: WatchConfidence | None = None,
    title: str | None = None,
    interruptible: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Evaluation:
    """Score `model` on a split.

    Args:
        model: on the share's device; left in evaluation mode. One with a class more than the data predicts void by it.
        share: this process's images; every process gets the result of all.
        inference: how the model looks at an image; None: whole, as it is.
        void: what ignored pixels do; see metrics.ConfusionMatrix.
        num_pictures: number of images to keep, spread evenly over the split.
        each: called with the index and the picture of every image that this process scores.
        confidence: called with every batch that this process scores.
        title: show the progress under this name.
        interruptible: gives a context which may end by StopRequested; then all processes give up.

    Raises:
        StopRequested: a process was interrupted.
        NonFiniteError: the scores of an image are not finite; in every process, and names these images of all.
    """
    inference = inference or InferenceConfig()
    model.eval()
    tally = _Tally(share, void=void, predicts_void=model.num_classes > len(share.dataset.class_names))
    tally.choose(num_pictures, each)
    batches: Iterable[Batch] = share.loader
    if title:
        batches = console.track(batches, len(share.loader), title, enabled=share.compute.world.is_main)
    interrupted = False
    try:
        with interruptible():
            for batch in batches:
                _score(model, batch, tally, share.compute, inference, confidence)
    except StopRequested:
        interrupted = True
    if distributed.any_process(interrupted)[0]:
        raise StopRequested
    images = f"{share.num_images} images"
    _require_finite(model, tally.names, tally.finite, images if title is None else f"{images} ({title})")
    return tally.everyones()


def _score(
    model: Segmenter,
    batch: Batch,
    tally: "_Tally",
    compute: Compute,
    inference: InferenceConfig,
    confidence: WatchConfidence | None,
) -> None:
    """Predict and count one batch."""
    image, label = (part.to(compute.device, non_blocking=True) for part in (batch.image, batch.label))
    finite = FiniteScores()
    look = model, image, (label.shape[-2], label.shape[-1]), inference, finite
    with compute.autocast():
        if confidence is None:
            prediction = predict_labels(*look)
        else:
            prediction, probabilities = labels_and_probabilities(*look)
            confidence(tally.next_indices(batch), probabilities, prediction, label)
    tally.add(batch, prediction, label, finite)


class _Tally:
    """Counts of a process's share, in the order of its images.

    Args:
        share: the images.
        void: see metrics.ConfusionMatrix.
        predicts_void: likewise.
    """

    def __init__(self, share: Share, *, void: Void, predicts_void: bool) -> None:
        self._share = share
        confusion = metrics.ConfusionMatrix(len(share.dataset.class_names), void=void, predicts_void=predicts_void)
        self._confusion = confusion.to(share.compute.device)
        self._keeps_matrices = share.num_images * confusion.num_classes**2 <= MATRIX_CELLS
        self._matrices: dict[int, tuple[str, torch.Tensor]] = {}
        self._pictures: dict[int, ScoredPicture] = {}
        self.names: list[str] = []
        self.finite: list[torch.Tensor] = []  # by image, on the device: read only at the end

    def choose(self, num_pictures: int, each: Callable[[int, ScoredPicture], None] | None) -> None:
        """Keep so many pictures, and hand every picture to `each`."""
        count = self._share.num_images
        self._shown = set(np.linspace(0, count - 1, min(num_pictures, count)).round().astype(int).tolist())
        self._each = each

    def next_indices(self, batch: Batch) -> Sequence[int]:
        """Indices in the split of the batch that is to be added next."""
        return self._share.indices[len(self.names) :][: len(batch.names)]

    def add(self, batch: Batch, prediction: torch.Tensor, label: torch.Tensor, finite: FiniteScores) -> None:
        """Count a batch; `prediction` and `label` (B, H, W) are on the device."""
        indices = self.next_indices(batch)
        self.names += batch.names
        self.finite += [finite.each] if finite.each is not None else []
        for row, (index, name) in enumerate(zip(indices, batch.names, strict=True)):
            before = self._confusion.between_classes.clone()
            self._confusion.update(prediction[row], label[row])
            matrix = (self._confusion.between_classes - before).to(torch.int32)
            if self._keeps_matrices:
                self._matrices[index] = name, matrix
            if self._each is None and index not in self._shown:
                continue
            # Copies, so that a stored picture does not hold on to the loader's shared memory.
            pixels, truth = as_rgb(batch.image[row].permute(1, 2, 0).numpy()), batch.label[row].numpy().copy()
            answer = prediction[row].to(torch.uint8).cpu().numpy()
            picture = ScoredPicture(name, pixels, truth, answer, matrix.cpu().numpy())
            if self._each is not None:
                self._each(index, picture)
            if index in self._shown:
                self._pictures[index] = picture

    def everyones(self) -> Evaluation:
        """Combine the counts of all processes, in each of them."""
        with self._confusion.sync_context():
            matrix = self._confusion.matrix().numpy()
        on_cpu = {index: (name, counts.cpu().numpy()) for index, (name, counts) in self._matrices.items()}
        pictures = {index: p for part in distributed.gather(self._pictures) for index, p in part.items()}
        matrices = {index: entry for part in distributed.gather(on_cpu) for index, entry in part.items()}
        return Evaluation(
            metrics.scores(matrix, self._share.dataset.class_names),
            matrix,
            self._share.num_images,
            [pictures[index] for index in sorted(pictures)],
            dict(matrices[index] for index in sorted(matrices)),
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
