"""A checkpoint is whole or not valid at all; a damaged one costs the steps since the one before, and says so."""

import itertools
import logging
import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path

import pytest
import torch

from danet.services import checkpoint


def state(step: int, value: float = 0.0) -> dict[str, object]:
    return {"step": step, "model": {"weight": torch.full((200, 300), value)}, "config": "seed: 0\n"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (10, 20, 30):
        checkpoint.save_step(tmp_path, state(step, float(step)))
    return tmp_path


def test_the_newest_two_are_kept(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [
        "step_00000020.json",
        "step_00000020.pt",
        "step_00000030.json",
        "step_00000030.pt",
    ]
    newest = checkpoint.load_newest(folder)
    assert newest is not None
    assert newest["step"] == 30
    assert newest["model"]["weight"].unique().tolist() == [30.0]


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-1000]), "bytes instead of"),
        (lambda p: p.write_bytes(bytes(p.stat().st_size)), "SHA-256"),
        (flip_bit, "SHA-256"),
        (lambda p: p.with_suffix(".json").unlink(), "not completed"),
        (lambda p: p.with_suffix(".json").write_text("{"), "damaged"),
    ],
    ids=["truncated", "zeroed", "one bit flipped", "no manifest", "half a manifest"],
)
def test_a_damaged_newest_file_is_passed_over(folder, damage, words, caplog) -> None:
    damage(folder / "step_00000030.pt")
    with caplog.at_level(logging.WARNING):
        found = checkpoint.load_newest(folder)
    assert found is not None
    assert found["step"] == 20
    assert "step_00000030.pt" in caplog.text
    assert words in caplog.text
    assert "step_00000020.pt" in caplog.text


def test_when_none_is_valid_nothing_starts_silently(folder: Path) -> None:
    for path in folder.glob("*.pt"):
        flip_bit(path)
    with pytest.raises(ValueError, match="none of 2 checkpoints is valid"):
        checkpoint.load_newest(folder)
    assert checkpoint.load_newest(folder / "empty") is None


def save_for_ever(folder: Path) -> None:
    for step in range(1, 10**6):
        checkpoint.save_step(folder, state(step, float(step)))


def test_a_kill_at_any_moment_of_a_save_leaves_a_valid_file(tmp_path: Path) -> None:
    for attempt in range(8):
        folder = tmp_path / str(attempt)
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(folder,))
        process.start()
        while not list(folder.glob("*.tmp" if attempt < 4 else "*.pt")):
            time.sleep(0.001)
        time.sleep(0.003 * (attempt % 4))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = checkpoint.load_newest(folder)
        assert found is not None or not list(folder.glob("*.pt"))
        assert found is None or found["model"]["weight"].unique().tolist() == [float(found["step"])]


@pytest.mark.parametrize("renamed", [0, 1])
def test_a_kill_in_the_first_save_leaves_no_checkpoint_and_none_that_is_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, renamed: int
) -> None:
    replace, calls = Path.replace, itertools.count()

    def killed(self: Path, target: Path) -> Path:
        if next(calls) == renamed:
            raise KeyboardInterrupt
        return replace(self, target)

    first = folder / "first"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save_step(first, state(1, 1.0))
    assert checkpoint.load_newest(first) is None
    checkpoint.save_step(first, state(1, 1.0))
    assert checkpoint.load_newest(first) is not None


def test_pickled_code_never_runs(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    path = tmp_path / "step_00000001.pt"
    checkpoint.save(path, state(1))
    path.write_bytes(pickle.dumps({"model": Payload()}))
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.load(path)
    checkpoint.save(path, {"step": 1, "model": Payload()})
    with pytest.raises(ValueError, match="the checkpoint cannot be loaded"):
        checkpoint.load(path)
    assert not (tmp_path / "executed").exists()
