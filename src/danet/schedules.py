"""Learning-rate schedules: pure functions from the optimizer step to a factor of the initial learning rate.

A schedule keeps no state, so a resumed run needs nothing but its step. A duration in the configuration is a
number of optimizer steps, or text such as "2 epochs".
"""

import fractions
import math
from collections.abc import Callable
from typing import Any

from danet.arguments import Duration, Fraction, PositiveDuration, PositiveFloat, PositiveFraction, parse_duration
from danet.registry import SCHEDULES

Schedule = Callable[[int], float]


def to_steps(value: int | str, steps_per_epoch: float) -> int:
    """A duration in optimizer steps, rounded; at least 1 unless it is zero."""
    number, unit = parse_duration(value)
    steps = number * steps_per_epoch if unit == "epochs" else number
    return max(1, round(steps)) if steps > 0 else 0


def exact_steps(epochs: float, num_images: int, batch_size: int) -> fractions.Fraction:
    """Optimizer steps in `epochs` passes over the images, without rounding.

    Args:
        epochs: means the decimal number that it was written as: 0.1 is a tenth, unlike the float.
        num_images: in one pass.
        batch_size: images per step.
    """
    return fractions.Fraction(str(epochs)) * num_images / batch_size


@SCHEDULES.register("poly")
def poly(
    total_steps: int, steps_per_epoch: float, /, *, power: PositiveFloat = 0.9, min_factor: Fraction = 0.0
) -> Schedule:
    """(1 - step / total_steps)^power, scaled to end at `min_factor`.

    Source: DANet, section 4.1.2; in the official code it falls with every step, to exactly 0.
    """

    def factor(step: int) -> float:
        remaining = 1 - min(step, total_steps) / total_steps
        return min_factor + (1 - min_factor) * remaining**power

    return factor


@SCHEDULES.register("step")
def step_decay(
    total_steps: int,
    steps_per_epoch: float,
    /,
    *,
    every: PositiveDuration = "30 epochs",
    gamma: PositiveFraction = 0.1,
) -> Schedule:
    """Multiplied by `gamma` after `every` duration."""
    interval = to_steps(every, steps_per_epoch)
    return lambda step: gamma ** (step // interval)


@SCHEDULES.register("cosine")
def cosine(total_steps: int, steps_per_epoch: float, /, *, min_factor: Fraction = 0.0) -> Schedule:
    """Half a cosine wave from 1 to `min_factor` (Loshchilov and Hutter, SGDR, ICLR 2017; no restarts)."""

    def factor(step: int) -> float:
        progress = min(step, total_steps) / total_steps
        return min_factor + (1 - min_factor) * (1 + math.cos(math.pi * progress)) / 2

    return factor


@SCHEDULES.register("constant")
def constant(total_steps: int, steps_per_epoch: float, /) -> Schedule:
    """Always 1."""
    return lambda step: 1.0


@SCHEDULES.common
def with_warmup(
    schedule: Schedule,
    steps_per_epoch: float,
    /,
    *,
    warmup: Duration = 0,
    warmup_factor: Fraction = 0.1,
) -> Schedule:
    """`schedule`, reached by a linear ramp.

    The ramp multiplies the schedule, which keeps its own clock: from the end of the warm-up on, the factor is
    what it would have been without one.

    Args:
        schedule: the schedule without warm-up.
        steps_per_epoch: optimizer steps in an epoch.
        warmup: length of the ramp; 0 for none.
        warmup_factor: where the ramp starts, at step 0.
    """
    warmup_steps = to_steps(warmup, steps_per_epoch)

    def factor(step: int) -> float:
        if step >= warmup_steps:
            return schedule(step)
        return schedule(step) * (warmup_factor + (1 - warmup_factor) * step / warmup_steps)

    return factor


def build_schedule(section: dict[str, Any], total_steps: int, steps_per_epoch: float) -> Schedule:
    """The schedule that a configuration section (name and options) describes."""
    schedule = SCHEDULES.build(section, total_steps, steps_per_epoch)
    return with_warmup(schedule, steps_per_epoch, **SCHEDULES.common_options(section))


def never_changes(schedule: Schedule, total_steps: int) -> bool:
    """Whether all of several steps have the same factor, as with a step decay that is as long as the run."""
    return total_steps > 1 and all(schedule(step) == schedule(0) for step in range(total_steps))
