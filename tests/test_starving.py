"""A run that waits for images says so once, with what helps."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

import danet.training.display
from conftest import TINY, load
from danet.config.sections import RuntimeConfig
from danet.datasets.shapes import Shapes
from danet.model import build_model
from danet.training.recorder import Recorder
from danet.training.starving import remedies


def warnings_of(shares: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> list[str]:
    """What a run says whose intervals of ten seconds are spent waiting to these shares."""
    clock = iter(range(0, 1000, 10))
    config, dataset = load(TINY), Shapes("val", size=64, val_images=2)
    recorder = Recorder(config, tmp_path, dataset, active=True)
    model = build_model(config.backbone, config.head, 9, auxiliary_head=False, seed=0)
    monkeypatch.setattr(danet.training.display, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    recorder.begin(model, 100, None, arithmetic="", num_images=24)
    with recorder, caplog.at_level(logging.WARNING, logger="danet"):
        for step, share in enumerate(shares, start=1):
            recorder.waited(10 * share)
            recorder.log({"step": step, "epoch": 0.1, "seconds": 1.0})
    return [record.getMessage() for record in caplog.records if "waiting for images" in record.getMessage()]


def test_it_is_said_once_with_the_share_and_the_remedies(tmp_path, monkeypatch, caplog):
    [warning] = warnings_of([0.9, 0.1, 0.19, 0.35, 0.8, 0.1, 0.5], tmp_path, monkeypatch, caplog)
    assert warning.startswith("step 4: 35 % of the time")
    assert "runtime.cache=auto" in warning


def test_starting_and_little_waiting_are_not_worth_a_word(tmp_path, monkeypatch, caplog):
    assert warnings_of([0.95, 0.2, 0.05], tmp_path, monkeypatch, caplog) == []


@pytest.mark.parametrize(
    ("runtime", "cores", "said", "unsaid"),
    [
        ({"num_workers": 2}, 16, ["runtime.num_workers=4 (now 2", "runtime.cache=auto"], []),
        ({"num_workers": 0}, 4, ["runtime.num_workers=1 (now 0"], []),
        ({"num_workers": 6, "devices": 2}, 16, ["runtime.num_workers=8 (now 6; there are 8 cores"], []),
        ({"num_workers": 8, "cache": "auto"}, 8, ["augment"], ["num_workers", "cache"]),
    ],
)
def test_only_what_would_help_is_named(runtime, cores, said, unsaid):
    words = remedies(0.35, RuntimeConfig(**runtime), cores=cores)
    assert all(word in words for word in said)
    assert not any(word in words for word in unsaid)
