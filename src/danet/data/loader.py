"""Batches whose content depends on the seed and the step alone.

The training images form one endless stream: the seed's permutation of epoch 0, then that of epoch 1, and so on.
Optimizer step s takes the images s*B to (s+1)*B of the stream, and each image is augmented under the key (seed,
epoch, index). So any step's batch is known without having run the steps before, whatever the number of workers or
processes; every image is seen once an epoch and none is dropped.

B batch size, H, W image height and width in pixels.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from danet.data.augment import Augmentation
from danet.data.sample import DataError, Sample, SegmentationDataset

log = logging.getLogger(__name__)

READING_WAITS = (0.5, 2.0)  # seconds before a sample is read again

Key = tuple[int, int]  # (epoch, index)


class Batch(NamedTuple):
    """Images of one size with their labels."""

    image: torch.Tensor  # (B, 3, H, W) uint8
    label: torch.Tensor  # (B, H, W) uint8, 255 ignored
    names: list[str]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples.

    Raises:
        ValueError: their sizes differ.
    """
    if len({s.image.shape for s in samples}) > 1:
        sizes = ", ".join(f"{s.name} {s.image.shape[1]}x{s.image.shape[0]}" for s in samples)
        raise ValueError(
            f"images of different sizes in one batch ({sizes}): use an augment that crops, or batches of one"
        )
    image = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2)
    return Batch(image, torch.from_numpy(np.stack([s.label for s in samples])), [s.name for s in samples])


class StepSampler(Sampler[list[Key]]):
    """The keys of one process's part of every batch, from `first_step` to `total_steps`.

    Args:
        num_images: images in the training split.
        batch_size: images per optimizer step, over all processes.
        parts: into how many batches a process divides its share (accumulation).
        rank: this process.
        world_size: number of processes.
        seed: the run's seed.
        first_step: the step to begin with.
        total_steps: the step to end before.
    """

    def __init__(
        self,
        num_images: int,
        *,
        batch_size: int,
        parts: int,
        rank: int,
        world_size: int,
        seed: int,
        first_step: int,
        total_steps: int,
    ) -> None:
        self._num_images = num_images
        self._batch_size = batch_size
        self._size = batch_size // (world_size * parts)
        self._offsets = [(part * world_size + rank) * self._size for part in range(parts)]
        self._seed = seed
        self._steps = range(first_step, total_steps)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._steps) * len(self._offsets)

    def __iter__(self) -> Iterator[list[Key]]:
        """Keys of batch after batch."""
        for step in self._steps:
            for offset in self._offsets:
                first = step * self._batch_size + offset
                yield [self._key(position) for position in range(first, first + self._size)]

    def _key(self, position: int) -> Key:
        epoch, place = divmod(position, self._num_images)
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self._seed, epoch]).permutation(self._num_images))
        return epoch, int(self._order[1][place])


def read_patiently(dataset: SegmentationDataset, index: int) -> Sample:
    """The sample at `index`; what cannot be read is tried again, as a network disk may fail for a moment.

    Raises:
        DataError: it still cannot be read; the text is the data set's.
    """
    for wait in (*READING_WAITS, None):
        try:
            return dataset[index]
        except (OSError, ValueError) as error:
            if wait is None:
                raise DataError(str(error)) from error
            log.warning("reading it again in %g s: %s", wait, error)
            time.sleep(wait)
    raise AssertionError


class _Chosen(Dataset[Sample]):
    """Some images of a split, addressed by their place among these."""

    def __init__(self, dataset: SegmentationDataset, indices: Sequence[int]) -> None:
        self._dataset, self._indices = dataset, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, place: int) -> Sample:
        return read_patiently(self._dataset, self._indices[place])


class _Augmented(Dataset[Sample]):
    """A training split seen through the augmentation, addressed by (epoch, index)."""

    def __init__(self, dataset: SegmentationDataset, augment: Augmentation, seed: int) -> None:
        self._dataset, self._augment, self._seed = dataset, augment, seed

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        image, label, name = read_patiently(self._dataset, index)
        image, label = self._augment(image, label, seed=(self._seed, epoch, index))
        return Sample(image, label, name)


def training_loader(
    dataset: SegmentationDataset, augment: Augmentation, sampler: StepSampler, *, seed: int, **options: Any
) -> DataLoader[Batch]:
    """Batches in the sampler's order.

    Args:
        dataset: the training split.
        augment: applied to every image.
        sampler: decides the order.
        seed: the run's seed.
        options: of `_loader`.
    """
    return _loader(_Augmented(dataset, augment, seed), batch_sampler=sampler, **options)


def evaluation_loader(
    dataset: SegmentationDataset, indices: Sequence[int], *, batch_size: int, num_workers: int, **options: Any
) -> DataLoader[Batch]:
    """The images at `indices`, in this order, without augmentation; its processes serve every pass over it."""
    return _loader(
        _Chosen(dataset, indices),
        batch_size=batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        **options,
    )


@contextlib.contextmanager
def ending(*loaders: Any) -> Iterator[None]:
    """End the processes of these loaders, or iterators over loaders, at the end of the context.

    They would end when nobody refers to them. After an error its traceback does, and the program could not exit: it
    would wait for processes that ignore the signal to end (see `_start_worker`).
    """
    try:
        yield
    finally:
        for loader in loaders:
            iterator = getattr(loader, "_iterator", loader)
            if hasattr(iterator, "_shutdown_workers"):  # as PyTorch does when it collects the garbage
                iterator._shutdown_workers()


def _loader(dataset: Any, *, num_workers: int, device: torch.device, **options: Any) -> DataLoader[Batch]:
    # A worker of joblib's (Hydra's launcher) starts processes in a way of its own, which DataLoader cannot use.
    usual = multiprocessing.get_start_method() in ("fork", "spawn", "forkserver")
    if num_workers == 0 and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        _use_one_thread()
    return DataLoader(
        dataset,
        num_workers=num_workers,
        multiprocessing_context=None if usual or num_workers == 0 else "fork",
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        # Its own generator: the global one would be advanced by every loader that starts.
        generator=torch.Generator().manual_seed(0),
        **options,
    )


def _use_one_thread() -> None:
    """Load in one thread: where several processes share the machine, OpenCV's own would fight over the cores."""
    import cv2

    cv2.setNumThreads(0)


def _start_worker(worker: int) -> None:
    _use_one_thread()
    # Ctrl-C and schedulers signal the whole process group. The run still needs its images to finish the step and to
    # save, and ends its workers itself.
    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"):
        if hasattr(signal, name):  # SIGUSR1 and 2 do not exist on Windows
            signal.signal(getattr(signal, name), signal.SIG_IGN)
