"""Batches whose content depends on the seed and the step alone.

Which image comes in which step is told by sampler.py; here it is read, augmented under its key and put into a batch.

B batch size, H, W image height and width in pixels.
"""

import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from danet.data.augment import Augmentation
from danet.data.sampler import Key, StepSampler
from danet.interfaces import Batch, Sample, SegmentationDataset
from danet.services.signals import stop_signals

log = logging.getLogger(__name__)

READING_WAITS = (0.5, 2.0)  # seconds before a sample is read again

PATIENCE = 900  # seconds that a batch may take
POLL = 5  # seconds between two looks at the loader processes
SHARED = "/dev/shm"  # where loader processes put batches
FEWER = "Lower runtime.num_workers or train.batch_size, or give the job more memory"
ROOM = "In docker give --shm-size=8g (or --ipc=host), or set runtime.num_workers=0"
# How the processes that load images start, whatever Python would choose (on Linux from 3.14 on forkserver; in a worker
# of joblib's a way that DataLoader cannot use). Forked, they are ready at once and share the data set and the modules;
# they use no GPU. On macOS a fork may hang in system libraries, and Windows has none.
START_METHOD = "fork" if sys.platform == "linux" else "spawn"


class LoadingError(ValueError):
    """Images cannot be loaded; the text has the reason alone, whichever process met it."""


class _ErrorText(NamedTuple):
    """What a loader process sends in the place of a batch: PyTorch would wrap the error in two tracebacks."""

    text: str


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
    image, label = (torch.from_numpy(np.stack([s[part] for s in samples])) for part in (0, 1))
    if torch.utils.data.get_worker_info():  # here, where an error reaches the run; later it would be lost in a thread
        image, label = image.share_memory_(), label.share_memory_()
    return Batch(image.permute(0, 3, 1, 2), label, [s.name for s in samples])


def read_patiently(dataset: SegmentationDataset, index: int) -> Sample:
    """The sample at `index`; what cannot be read is tried again, as a network disk may fail for a moment.

    Raises:
        ValueError: it still cannot be read; the error is the data set's.
    """
    for wait in (*READING_WAITS, None):
        try:
            return dataset[index]
        except (OSError, ValueError) as error:
            if wait is None:
                raise
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
    """A training split seen through the augmentation, addressed by the sampler's keys."""

    def __init__(self, dataset: SegmentationDataset, augment: Augmentation, seed: int) -> None:
        self._dataset, self._augment, self._seed = dataset, augment, seed

    def __getitem__(self, key: Key) -> Sample:
        image, label, name = read_patiently(self._dataset, key[1])
        image, label = self._augment(image, label, seed=(self._seed, *key))
        return Sample(image, label, name)


class Loader:
    """Batches from loader processes, or from this one; errors come as `LoadingError`, and no batch is awaited for ever.

    Args:
        loader: collates by `_collate`.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self._iterator: Any = None

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Batch after batch.

        Raises:
            LoadingError: an image cannot be read, or the loader processes are killed, starved or stuck.
        """
        if hasattr(self._iterator, "_timeout"):  # a second pass waits for each process's answer, which has no deadline
            self._iterator._timeout = 0
        with _handler_kept("SIGCHLD"), _deaths_told():  # PyTorch's would end a training step when a loader process dies
            self._iterator = iter(self._loader)
        if hasattr(self._iterator, "_timeout"):
            self._iterator._timeout = self._loader.timeout
        return self._batches()

    def _batches(self) -> Iterator[Batch]:
        with contextlib.suppress(StopIteration):
            while True:
                batch = self._next()
                if isinstance(batch, _ErrorText):
                    raise LoadingError(batch.text)
                yield batch

    def _next(self) -> Batch | _ErrorText:
        """The next batch, for which PyTorch waits a few seconds at a time, to look whether its processes live."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with _deaths_told():
                    return next(self._iterator)
            except RuntimeError as error:
                if "timed out" not in str(error).partition("\n")[0]:
                    raise
            if time.monotonic() > deadline:
                raise LoadingError(
                    f"no batch of images within {PATIENCE} s: is the disk or network with the data stuck?"
                )

    def close(self) -> None:
        """End the loader processes."""
        if hasattr(self._iterator, "_shutdown_workers"):  # as PyTorch does when it collects the garbage
            self._iterator._shutdown_workers()


@contextlib.contextmanager
def _deaths_told() -> Iterator[None]:
    """Turn what PyTorch raises when a loader process has died into `LoadingError`."""
    try:
        yield
    except (RuntimeError, ConnectionError, FileNotFoundError) as error:  # the latter while a batch is taken over
        text = str(error).partition("\n")[0]
        if isinstance(error, RuntimeError) and "exited unexpectedly" not in text:
            raise
        raise LoadingError(f"a loader process was killed, perhaps for want of memory ({text}). {FEWER}") from error


@contextlib.contextmanager
def _handler_kept(name: str) -> Iterator[None]:
    """Undo what is done to a signal's handler within the context."""
    usual = threading.current_thread() is threading.main_thread() and hasattr(signal, name)  # it lacks on Windows
    before = signal.getsignal(getattr(signal, name)) if usual else None
    yield
    if usual:
        signal.signal(getattr(signal, name), before)


def training_loader(
    dataset: SegmentationDataset, augment: Augmentation, sampler: StepSampler, *, seed: int, **options: Any
) -> Loader:
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
) -> Loader:
    """The images at `indices`, in this order, without augmentation; its processes serve every pass over it."""
    return _loader(
        _Chosen(dataset, indices),
        batch_size=batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        **options,
    )


@contextlib.contextmanager
def ending(*loaders: Loader) -> Iterator[None]:
    """End the processes of these loaders at the end of the context.

    They would end when nobody refers to them. After an error its traceback does, and the program could not exit: it
    would wait for processes that ignore the signal to end (see `_start_worker`).
    """
    try:
        yield
    finally:
        for loader in loaders:
            loader.close()


class _Fetching(Dataset[Any]):
    """A data set whose errors come as values."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, keys: Sequence[Any]) -> Batch | _ErrorText:
        """The batch of the samples at `keys`; PyTorch calls it with a batch's keys at once."""
        try:
            return collate([self._dataset[key] for key in keys])
        except RuntimeError as error:
            if "shared memory" not in str(error):
                raise
            return _ErrorText(f"{SHARED} has no room for a batch ({shutil.disk_usage(SHARED).total >> 20} MiB). {ROOM}")
        except (ValueError, OSError, MemoryError) as error:
            return _ErrorText(str(error) or type(error).__name__)


def _loader(dataset: Any, *, num_workers: int, device: torch.device, **options: Any) -> Loader:
    if num_workers == 0 and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        _use_one_thread()
    loader = DataLoader(
        _Fetching(dataset),
        num_workers=num_workers,
        multiprocessing_context=START_METHOD if num_workers else None,
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        timeout=POLL if num_workers else 0,
        # Its own generator: the global one would be advanced by every loader that starts.
        generator=torch.Generator().manual_seed(0),
        **options,
    )
    return Loader(loader)


def _as_it_is(batch: Any) -> Any:
    return batch


def _use_one_thread() -> None:
    """Load in one thread: where several processes share the machine, OpenCV's own would fight over the cores."""
    import cv2

    cv2.setNumThreads(0)


def _start_worker(worker: int) -> None:
    _use_one_thread()
    # Ctrl-C and schedulers signal the whole process group. The run still needs its images to finish the step and to
    # save, and ends its workers itself.
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)
