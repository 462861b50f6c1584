"""Schedules against PyTorch's own and the published formula."""

import itertools

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch.optim import lr_scheduler

from danet.arguments import Duration, PositiveDuration, parse_duration
from danet.config.sections import TrainConfig
from danet.schedules import build_schedule, exact_steps, never_changes, to_steps

TOTAL, EPOCH = 60, 12.5  # optimizer steps of the run and of an epoch
NAMES = {"poly": {}, "step": {"every": 20}, "cosine": {}, "constant": {}}


def pytorch_factors(scheduler, **options):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = scheduler(optimizer, **options)
    factors = []
    for _ in range(TOTAL + 1):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return factors


@pytest.mark.parametrize(
    ("section", "scheduler", "options"),
    [
        ({"name": "poly", "power": 0.9}, lr_scheduler.PolynomialLR, {"total_iters": TOTAL, "power": 0.9}),
        ({"name": "step", "every": 25, "gamma": 0.2}, lr_scheduler.StepLR, {"step_size": 25, "gamma": 0.2}),
        ({"name": "step", "every": "2 epochs"}, lr_scheduler.StepLR, {"step_size": 25}),
        (
            {"name": "cosine", "min_factor": 0.1},
            lr_scheduler.CosineAnnealingLR,
            {"T_max": TOTAL, "eta_min": 0.1},
        ),
        (
            {"name": "constant", "warmup": "1.6 epochs", "warmup_factor": 0.25},
            lr_scheduler.LinearLR,
            {"start_factor": 0.25, "total_iters": 20},
        ),
    ],
)
def test_as_pytorch(section, scheduler, options):
    schedule = build_schedule(section, TOTAL, EPOCH)
    assert [schedule(step) for step in range(TOTAL + 1)] == pytest.approx(pytorch_factors(scheduler, **options))


def test_poly_ends_exactly():
    schedule = build_schedule({"name": "poly"}, TOTAL, EPOCH)
    assert schedule(0) == 1
    assert schedule(45) == (1 - 45 / 60) ** 0.9
    assert schedule(TOTAL - 1) > 0
    assert schedule(TOTAL) == schedule(TOTAL + 5) == 0
    assert build_schedule({"name": "poly", "min_factor": 0.01}, TOTAL, EPOCH)(TOTAL) == 0.01


@pytest.mark.parametrize("name", NAMES)
def test_warmup_only_scales_the_beginning(name):
    plain = build_schedule({"name": name} | NAMES[name], TOTAL, EPOCH)
    warm = build_schedule({"name": name, "warmup": 10, "warmup_factor": 0.2} | NAMES[name], TOTAL, EPOCH)
    assert warm(0) == pytest.approx(0.2 * plain(0))
    assert warm(5) == pytest.approx(0.6 * plain(5))
    assert [warm(step) for step in range(10, TOTAL + 1)] == [plain(step) for step in range(10, TOTAL + 1)]


def test_a_step_decay_longer_than_the_run_is_found():
    """The article's StepLR(50) over 50 epochs."""
    section = {"name": "step", "every": "50 epochs", "gamma": 0.1}
    assert never_changes(build_schedule(section, 50 * 46, 46), 50 * 46)
    assert not never_changes(build_schedule(section, 50 * 46 + 1, 46), 50 * 46 + 1)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "constant"])
def test_a_short_run_changes_its_rate_too(name):
    section = {"name": name} | ({"every": 1} if name == "step" else {})
    for steps in (1, 2, 3):  # a single step has nothing to change
        assert not never_changes(build_schedule(section, steps, 2.0), steps)
    assert never_changes(build_schedule({"name": "step", "every": 2}, 2, 2.0), 2)


def test_steps_of_epochs_are_exact():
    """CamVid's 367 images by 10: 200 epochs are 7340 steps; 367 / 10 as a float would make it 7341."""
    assert exact_steps(200, 367, 10) == 7340
    for images, batch, epochs in itertools.product((7, 100, 367, 2975), range(1, 33), (1, 3, 40, 200, 240)):
        assert TrainConfig(epochs=epochs, batch_size=batch).total_steps(images) == -(-epochs * images // batch)
    for epochs, tenths in ((0.1, 1), (0.3, 3), (1.1, 11), (0.5, 5), (1.5, 15), (2.7, 27), (1e-1, 1)):
        for images, batch in itertools.product((10, 30, 100, 367), (1, 3, 7, 10)):
            steps = TrainConfig(epochs=epochs, batch_size=batch).total_steps(images)
            assert steps == -(-tenths * images // (10 * batch))
    assert TrainConfig(epochs=200, steps=9).total_steps(367) == 9


def test_durations_of_whole_steps_are_exact():
    for images, batch, epochs in itertools.product((7, 100, 367, 2975), range(1, 33), (1, 3, 40, 200, 240)):
        if epochs * images % batch == 0:
            assert to_steps(f"{epochs} epochs", images / batch) == epochs * images // batch


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (500, 500),
        ("500", 500),
        ("500 steps", 500),
        ("2 epochs", 25),
        ("1 epoch", 12),
        (".5 epochs", 6),
        (0, 0),
    ],
)
def test_durations(text, steps):
    assert to_steps(text, EPOCH) == steps
    assert TypeAdapter(Duration).validate_python(text, strict=True) == text


def test_the_shortest_duration_is_one_step():
    assert to_steps("0.01 epochs", EPOCH) == 1
    assert parse_duration("0.01 epochs") == (0.01, "epochs")


@pytest.mark.parametrize("text", [-1, "-1 epochs", "1.5", "1.5 steps", "two epochs", "2 weeks", "", "epochs"])
def test_no_durations(text):
    with pytest.raises(ValueError, match=r"not a valid duration: .* Use a number of steps \(500\) or epochs"):
        parse_duration(text)
    with pytest.raises(ValidationError):
        TypeAdapter(Duration).validate_python(text, strict=True)


def test_an_interval_is_not_zero():
    with pytest.raises(ValidationError, match="not a positive duration"):
        TypeAdapter(PositiveDuration).validate_python("0 epochs", strict=True)
