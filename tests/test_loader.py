"""Which image comes in which step, and how it is augmented, depends on the seed and the step alone."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter

import cv2
import numpy as np
import pytest
import torch

from conftest import load
from danet.data import loader
from danet.data.augment import Augmentation
from danet.data.loader import LoadingError, collate, evaluation_loader, training_loader
from danet.data.sampler import StepSampler
from danet.datasets.shapes import Shapes
from danet.evaluation.evaluate import Share, evaluate
from danet.interfaces import Sample
from danet.model import build_model
from danet.services.compute import Compute

DATA = Shapes("train", size=64, train_images=10)
AUGMENT = Augmentation(load(["augment=strong", "augment.crop_size=[48,56]"]).augment)


def keys(world_size: int, parts: int, *, first: int = 0, total: int = 9, batch_size: int = 6, seed: int = 5):
    """The keys of every step, over all processes and parts, in the order of the stream."""
    streams = [
        list(
            StepSampler(
                10,
                batch_size=batch_size,
                parts=parts,
                rank=rank,
                world_size=world_size,
                seed=seed,
                first_step=first,
                total_steps=total,
            )
        )
        for rank in range(world_size)
    ]
    return [
        [key for part in range(parts) for stream in streams for key in stream[step * parts + part]]
        for step in range(total - first)
    ]


def test_every_image_is_seen_once_an_epoch_and_none_is_dropped() -> None:
    stream = [key for step in keys(1, 1, total=10) for key in step]
    assert [epoch for epoch, _ in stream] == [position // 10 for position in range(60)]
    for epoch in range(6):
        assert sorted(index for e, index in stream if e == epoch) == list(range(10))
    orders = {tuple(index for e, index in stream if e == epoch) for epoch in range(6)}
    assert len(orders) == 6  # another order each epoch


def test_the_stream_does_not_depend_on_processes_parts_or_the_step_begun_with() -> None:
    whole = keys(1, 1)
    for world_size, parts in ((2, 1), (3, 1), (1, 3), (2, 3)):
        assert keys(world_size, parts) == whole
    assert keys(1, 1, first=4) == whole[4:]
    assert keys(1, 1, seed=6) != whole


def batches(num_workers: int, first: int = 0):
    sampler = StepSampler(10, batch_size=4, parts=1, rank=0, world_size=1, seed=3, first_step=first, total_steps=5)
    return list(training_loader(DATA, AUGMENT, sampler, seed=3, num_workers=num_workers, device=torch.device("cpu")))


def test_batches_are_the_same_for_any_number_of_workers_and_after_a_resume() -> None:
    alone = batches(0)
    assert alone[0].image.dtype == torch.uint8
    assert alone[0].image.shape == (4, 3, 48, 56)
    for others, offset in ((batches(2), 0), (batches(3), 0), (batches(1, first=2), 2)):
        assert len(others) == 5 - offset
        for one, other in zip(alone[offset:], others, strict=True):
            assert one.names == other.names
            assert torch.equal(one.image, other.image)
            assert torch.equal(one.label, other.label)


def test_an_image_is_augmented_otherwise_in_the_next_epoch() -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    for batch in batches(0):
        for name, image in zip(batch.names, batch.image, strict=True):
            seen.setdefault(name, []).append(image)
    assert Counter(len(images) for images in seen.values()) == {2: 10}
    assert not any(torch.equal(first, second) for first, second in seen.values())


def test_evaluation_keeps_order_and_pixels() -> None:
    loader = evaluation_loader(DATA, range(1, 10, 3), batch_size=2, num_workers=1, device=torch.device("cpu"))
    images = [image for batch in loader for image in batch.image.permute(0, 2, 3, 1).numpy()]
    for image, index in zip(images, (1, 4, 7), strict=True):
        np.testing.assert_array_equal(image, DATA[index].image)


class Processes:
    """Images whose names tell which process loaded them."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8), str(os.getpid()))


def test_the_processes_of_an_evaluation_serve_the_next_one() -> None:
    loader = evaluation_loader(Processes(), range(6), batch_size=1, num_workers=2, device=torch.device("cpu"))
    first, second = ({name for batch in loader for name in batch.names} for _ in range(2))
    assert len(first) == 2
    assert str(os.getpid()) not in first
    assert first == second


@pytest.mark.skipif(sys.platform != "linux", reason="sends signals")
def test_a_second_pass_waits_for_slow_processes_and_tells_of_dead_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("danet.data.loader.POLL", 1)
    loader = evaluation_loader(Processes(), range(6), batch_size=1, num_workers=1, device=torch.device("cpu"))
    (process,) = {int(name) for batch in loader for name in batch.names}
    os.kill(process, signal.SIGSTOP)
    threading.Timer(2, os.kill, (process, signal.SIGCONT)).start()
    assert {int(name) for batch in loader for name in batch.names} == {process}
    os.kill(process, signal.SIGKILL)
    with pytest.raises(LoadingError, match=r"a loader process was killed, .*Lower runtime\.num_workers"):
        list(loader)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are spawned")
def test_processes_are_forked_whatever_python_would_choose() -> None:
    """Python 3.14 would use a server of forks, to which this data set could not be sent."""
    data = Processes()
    data.cannot_be_pickled = lambda: None  # type: ignore[attr-defined]
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        loader = evaluation_loader(data, range(2), batch_size=1, num_workers=1, device=torch.device("cpu"))
        assert len({name for batch in loader for name in batch.names}) == 1
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_a_share_of_a_split_can_be_scored_again() -> None:
    config = load()
    model = build_model(config.backbone, config.head, 9, auxiliary_head=False, seed=0)
    options = {"compute": Compute(torch.device("cpu")), "max_images": 3}
    kept = Share(DATA, **options, num_workers=1)
    expected = evaluate(model, Share(DATA, **options))
    for _ in range(2):
        found = evaluate(model, kept)
        np.testing.assert_array_equal(found.matrix, expected.matrix)
        assert list(found.image_matrices) == list(expected.image_matrices)


def test_opencv_takes_one_thread_where_processes_share_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        evaluation_loader(DATA, range(2), batch_size=1, num_workers=0, device=torch.device("cpu"))
        assert cv2.getNumThreads() == 2
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        evaluation_loader(DATA, range(2), batch_size=1, num_workers=0, device=torch.device("cpu"))
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)


def test_images_of_different_sizes_are_refused_by_name() -> None:
    samples = [Sample(np.zeros((h, 8, 3), np.uint8), np.zeros((h, 8), np.uint8), f"image{h}") for h in (8, 9)]
    with pytest.raises(ValueError, match="image8 8x8, image9 8x9"):
        collate(samples)


class Flaky:
    """A data set on a disk that fails a number of times."""

    class_names, palette, description = ("a", "b"), ((0, 0, 0), (9, 9, 9)), "flaky"

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error, self.asked = failures, error, 0

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        self.asked += 1
        if self.asked <= self.failures:
            raise self.error
        return Sample(np.full((4, 4, 3), index, np.uint8), np.zeros((4, 4), np.uint8), f"image{index}")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("a.png: cannot be decoded")])
@pytest.mark.parametrize("training", [False, True])
def test_what_cannot_be_read_is_tried_again(monkeypatch, caplog, error: Exception, training: bool) -> None:
    waited: list[float] = []
    monkeypatch.setattr(loader.time, "sleep", waited.append)

    def batches(data: Flaky) -> list[torch.Tensor]:
        options = {"num_workers": 0, "device": torch.device("cpu")}
        if not training:
            return [batch.image for batch in evaluation_loader(data, range(1), batch_size=1, **options)]
        step = {"batch_size": 1, "parts": 1, "rank": 0, "world_size": 1, "seed": 0, "first_step": 0, "total_steps": 1}
        sampler, augment = StepSampler(3, **step), Augmentation(load(["augment=none"]).augment)
        return [batch.image for batch in training_loader(data, augment, sampler, seed=0, **options)]

    [image] = batches(Flaky(2, error))
    assert image.shape == (1, 3, 4, 4)
    assert waited == [0.5, 2.0]
    assert caplog.text.count(f"reading it again in 0.5 s: {error}") == 1
    data = Flaky(99, error)
    with pytest.raises(ValueError, match=str(error).replace("[", r"\[")):
        batches(data)
    assert data.asked == 3
