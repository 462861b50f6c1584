"""Whatever ends a run, its last finished step is saved, the reason is one line, and nothing waits for ever."""

import errno
import json
import os
import pty
import resource
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import TINY, environment, load, run_folders, train_command
from danet.config import ConfigError
from danet.data import loader
from danet.data.loader import LoadingError, evaluation_loader
from danet.evaluation import evaluate as evaluation
from danet.interfaces import Sample
from danet.losses.segmentation_loss import SegmentationLoss
from danet.services import checkpoint
from danet.services.metrics_file import MetricsFile
from danet.services.nonfinite import NonFiniteError
from danet.training import run
from test_resume import assert_same_run, go_on

pytestmark = pytest.mark.usefixtures("without_pictures")

RUN = [*TINY, "train.save_every=5", "train.eval_every=4"]  # evaluated at 4, 8 and 12; saved at 5, 10 and 12


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("danet.config.OUTPUTS", tmp_path_factory.mktemp("reference"))
        return run.start(load(RUN)).folder


def at_call(number: int, function: Any, event: Any) -> Any:
    """`function`, with `event` before its n-th call."""
    calls: list[int] = []

    def wrapped(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            event()
        return function(*arguments, **options)

    return wrapped


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("number", "step"),
    [
        pytest.param(2, 4, id="in an evaluation whose step is not saved otherwise"),
        pytest.param(14, 12, id="in the last"),
    ],
)
def test_a_signal_breaks_an_evaluation_off(outputs, reference, monkeypatch, number, step) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "predict_labels", at_call(number, evaluation.predict_labels, terminate))
        stopped = run.start(load(RUN))
    assert not stopped.finished
    saved = checkpoint.load_newest(stopped.folder / "checkpoints")
    assert saved is not None
    assert saved["step"] == step
    assert all(row["step"] < step for row in MetricsFile(stopped.folder / "metrics.jsonl").rows() if "val/miou" in row)
    assert go_on(stopped.folder).finished
    assert_same_run(stopped.folder, reference)


def test_a_signal_breaks_off_waiting_for_images(outputs, reference, monkeypatch) -> None:
    with monkeypatch.context() as patch:  # in the batch of step 7, of 4 images
        patch.setattr(loader._Augmented, "__getitem__", at_call(7 * 4, loader._Augmented.__getitem__, terminate))
        stopped = run.start(load(RUN))
    saved = checkpoint.load_newest(stopped.folder / "checkpoints")
    assert saved is not None
    assert saved["step"] == 6
    assert go_on(stopped.folder).finished
    assert_same_run(stopped.folder, reference)


def unreadable() -> None:
    raise ValueError("data/scene.png: cannot be decoded")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_saves_the_last_finished_step(outputs, reference, monkeypatch, workers, capsys) -> None:
    """With a loader process, too, the reason is one line."""
    with monkeypatch.context() as patch:
        patch.setattr(loader._Augmented, "__getitem__", at_call(7 * 4, loader._Augmented.__getitem__, unreadable))
        with pytest.raises(LoadingError, match=r"\Adata/scene\.png: cannot be decoded\Z"):
            run.start(load([*RUN, f"runtime.num_workers={workers}"]))
    (folder,) = run_folders(outputs)
    saved = checkpoint.load_newest(folder / "checkpoints")
    assert saved is not None
    assert saved["step"] == 6
    assert f"step 6 is saved. Resume with: python src/train.py resume={folder}" in capsys.readouterr().out
    assert go_on(folder).finished
    assert_same_run(folder, reference)


def test_an_error_within_a_step_saves_the_step_before(outputs, reference, monkeypatch) -> None:
    """The forward pass of step 7 has changed the batch statistics when its loss fails."""

    def fail() -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationLoss, "forward", at_call(7, SegmentationLoss.forward, fail))
        with pytest.raises(RuntimeError, match=r"can't allocate memory\); lower train\.batch_size"):
            run.start(load(RUN))
    (folder,) = run_folders(outputs)
    saved = checkpoint.load_newest(folder / "checkpoints")
    assert saved is not None
    assert saved["step"] == 6
    assert go_on(folder).finished
    assert_same_run(folder, reference)


def test_a_failing_evaluation_loses_no_step(outputs, reference, monkeypatch) -> None:
    def fail() -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "predict_labels", at_call(8, evaluation.predict_labels, fail))
        with pytest.raises(RuntimeError, match="can't allocate"):
            run.start(load(RUN))
    (folder,) = run_folders(outputs)
    saved = checkpoint.load_newest(folder / "checkpoints")
    assert saved is not None
    assert saved["step"] == 8
    assert go_on(folder).finished
    assert_same_run(folder, reference)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_weights_that_a_finite_gradient_destroyed_are_never_saved(outputs, policy) -> None:
    huge = ["optimizer=sgd", "optimizer.lr=1e38", "optimizer.head_lr_factor=1e9", "schedule.warmup=0"]
    with pytest.raises(NonFiniteError, match=r"step 1: model\.head\S+, .* not finite; this step was not saved"):
        run.start(load([*RUN, *huge, f"train.on_nonfinite={policy}", "train.save_every=1"]))
    (folder,) = run_folders(outputs)
    assert not list(folder.rglob("*.pt"))


def test_a_run_that_stops_before_its_first_logged_row_has_a_result(outputs) -> None:
    still = ["optimizer.lr=1e-30", "train.log_every=1000", "train.eval_every=2", "train.early_stop_patience=1"]
    outcome = run.start(load([*TINY, *still]))
    assert outcome.finished
    result = json.loads((outcome.folder / "result.json").read_text())
    assert result["step"] == 2
    assert result["images_per_second"] > 0
    rows = [row for row in MetricsFile(outcome.folder / "metrics.jsonl").rows() if "train/loss" in row]
    assert [row["step"] for row in rows] == [4]


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(tmp_path) -> None:
    """A limit on the size of files stands for a full disk: the write fails in its midst."""
    checkpoint.save_step(tmp_path, {"step": 1, "model": {}})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large.*step_00000002\.pt") as raised:
            checkpoint.save_step(tmp_path, {"step": 2, "model": {"weight": torch.ones(10**6)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.filename == str(tmp_path / "step_00000002.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001.json", "step_00000001.pt"]


@pytest.mark.parametrize("call", [1, 2, 3], ids=["file", "manifest", "folder"])
@pytest.mark.parametrize("again", [False, True], ids=["new", "written again"])
def test_a_disk_that_fills_at_any_point_of_a_save_is_told_and_keeps_the_one_before(
    tmp_path, monkeypatch, call, again
) -> None:
    path, calls = tmp_path / "best.pt", []
    if again:
        checkpoint.save(path, {"step": 1, "model": {}})
    sync = os.fsync

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="free some space there") as raised:
        checkpoint.save(path, {"step": 2, "model": {}})
    assert raised.value.filename == str(path)
    renamed = again or call == 3  # the disk was full after both were in their places
    assert sorted(file.name for file in tmp_path.iterdir()) == (["best.json", "best.pt"] if renamed else [])
    if renamed:
        assert checkpoint.load(path)["step"] == (2 if call == 3 else 1)


def test_temporary_files_of_killed_processes_are_removed(outputs, reference) -> None:
    folder = outputs / "copy"
    for file in reference.rglob("*"):
        if file.is_file():
            (folder / file.relative_to(reference)).parent.mkdir(parents=True, exist_ok=True)
            (folder / file.relative_to(reference)).write_bytes(file.read_bytes())
    (folder / "result.json").unlink()
    left = [folder / "checkpoints" / "step_00000099.tmp", folder / ".history.csv.123.tmp"]
    for file in left:
        file.write_text("half")
    assert go_on(folder).finished
    assert not [file for file in left if file.exists()]


class Scenes:
    """A data set with something that happens when an image is read, in the process that reads it."""

    def __init__(self, event: Any) -> None:
        self.event = event

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        self.event()
        return Sample(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8), str(index))


def no_shared_memory(*_: object) -> None:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


@pytest.mark.parametrize(
    ("event", "text"),
    [
        pytest.param(lambda: os.kill(os.getpid(), signal.SIGKILL), "a loader process was killed", id="killed"),
        pytest.param(lambda: time.sleep(60), "no batch of images within 2 s", id="stuck"),
        pytest.param(lambda: None, "--shm-size", id="without shared memory"),
    ],
)
def test_a_loader_process_in_trouble_is_told_not_waited_for(monkeypatch, event, text) -> None:
    monkeypatch.setattr(loader, "POLL", 1)
    monkeypatch.setattr(loader, "PATIENCE", 2)
    if "shm" in text:
        monkeypatch.setattr(torch.Tensor, "share_memory_", no_shared_memory)
    handler = signal.getsignal(signal.SIGCHLD)
    batches = evaluation_loader(Scenes(event), range(2), batch_size=1, num_workers=1, device=torch.device("cpu"))
    began = time.monotonic()
    try:
        with pytest.raises(LoadingError, match=text):
            list(batches)
    finally:
        batches.close()
    assert time.monotonic() - began < 20
    assert signal.getsignal(signal.SIGCHLD) == handler


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("nohup", [False, True], ids=["plain", "nohup"])
def test_a_closed_terminal_stops_a_run_unless_nohup_says_otherwise(tmp_path, devices, nohup) -> None:
    outputs = tmp_path / "outputs"
    process = subprocess.Popen(
        train_command(
            *RUN, "train.steps=5000", "train.eval_every=5000", "train.batch_size=4", f"runtime.devices={devices}"
        ),
        env=environment(outputs),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=(lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) if nohup else None,
    )

    def steps() -> int:
        return max(
            (row["step"] for file in outputs.rglob("metrics.jsonl") for row in MetricsFile(file).rows()), default=0
        )

    while not steps():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGHUP)  # what the kernel does
    if nohup:
        seen = steps()
        while steps() < seen + 20:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
    text, _ = process.communicate(timeout=100)
    assert process.returncode == 75, text
    (folder,) = run_folders(outputs)
    assert checkpoint.load_newest(folder / "checkpoints") is not None


@pytest.mark.slow
def test_a_terminal_that_is_gone_costs_nothing(tmp_path) -> None:
    """Nothing can be written to it any more, by the progress bar least of all."""
    terminal, end = pty.openpty()
    command = train_command(*RUN, "train.steps=5000", "train.eval_every=5000", "train.save_every=5000")
    process = subprocess.Popen(
        command, env=environment(tmp_path / "outputs"), stdin=end, stdout=end, stderr=end, start_new_session=True
    )
    os.close(end)
    while not list(tmp_path.rglob("metrics.jsonl")):
        assert process.poll() is None
        if select.select([terminal], [], [], 0.1)[0]:
            os.read(terminal, 4096)
    os.close(terminal)
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(60) == 75
    (folder,) = run_folders(tmp_path / "outputs")
    assert checkpoint.load_newest(folder / "checkpoints") is not None


@pytest.mark.parametrize("place", ["file/below", "readonly"])
def test_outputs_that_cannot_be_written_are_told_in_a_line(tmp_path, monkeypatch, place) -> None:
    (tmp_path / "file").write_text("")
    if place == "readonly":
        monkeypatch.setattr(Path, "mkdir", refuse)  # root may write everywhere
    monkeypatch.setattr("danet.config.OUTPUTS", tmp_path / place)
    with pytest.raises(ConfigError, match=r"cannot be made \(.+\)\. DANET_OUTPUTS"):
        run.start(load(TINY))


def refuse(*_: object, **__: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")
