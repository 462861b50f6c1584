"""Contests: several ways to do the same thing, timed in turns in one process.

Turns, for a processor that heats up or is shared slows whoever runs last. Each round runs every contestant once, and
every other round in reverse.
"""

import contextlib
import ctypes
import gc
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from danet.services import hardware

log = logging.getLogger(__name__)

LONG = 1.0  # seconds; a first run of that length is no longer than the next ones, and counts
WARM_UP = 2  # further runs before memory is measured on CUDA, whose libraries try out algorithms in the first


@dataclass(frozen=True)
class Contestant:
    """One way to do it.

    Attributes:
        name: in the tables.
        build: makes the function that is timed. What it holds (weights, input) counts as memory.
        note: what a reader should know of it.
        at_most: runs, where it need not run as often as the others.
    """

    name: str
    build: Callable[[], Callable[[], Any]]
    note: str = ""
    at_most: int | None = None


@dataclass
class Timing:
    """What came of a contestant.

    Attributes:
        name: the contestant's.
        seconds: of each run, in order.
        memory: bytes that it held at most while it ran, what it was built with included, over what the process had
            before; None where it cannot be told.
        error: why it could not run, or not to the end.
        note: the contestant's.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    memory: int | None = None
    error: str | None = None
    note: str = ""

    @property
    def median(self) -> float | None:
        """Seconds; None if it never ran."""
        return statistics.median(self.seconds) if self.seconds else None

    def row(self, **more: Any) -> dict[str, Any]:
        """As a row of the results."""
        spread = {"low": min(self.seconds), "high": max(self.seconds)} if self.seconds else {}
        return {**more, **vars(self), "median": self.median, **spread}


def time_ratio(row: dict[str, Any], other: dict[str, Any]) -> float | None:
    """How many times as long as another contestant of the same contest.

    The median over the rounds that both ran, for whatever slows a shared machine slows a round; where there are none,
    the quotient of the medians.
    """
    if not row["median"] or not other["median"]:
        return None
    rounds = [mine / theirs for mine, theirs in zip(row["seconds"], other["seconds"], strict=False)]
    return statistics.median(rounds) if rounds else row["median"] / other["median"]


def memory_ratio(row: dict[str, Any], other: dict[str, Any]) -> float | None:
    """How many times as much memory as another contestant of the same contest."""
    return row["memory"] / other["memory"] if row["memory"] and other["memory"] else None


def contest(
    contestants: Sequence[Contestant],
    *,
    device: torch.device,
    seconds: float,
    at_least: int = 3,
    at_most: int = 30,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Build the contestants one after the other, then run them in turns.

    A contestant that fails is out, and the others go on.

    Args:
        contestants: with different names.
        device: where they compute; its work is waited for.
        seconds: no further round begins that would exceed them.
        at_least: runs of each that are timed whatever they take.
        at_most: runs of each.
        clock: seconds.
    """
    began = clock()
    timings = {c.name: Timing(c.name, note=c.note) for c in contestants}
    assert len(timings) == len(contestants), "contestants need names of their own"
    runs: dict[str, Callable[[], Any]] = {}
    first: dict[str, float] = {}
    for contestant in contestants:
        timing = timings[contestant.name]
        with _named(timing, runs):
            runs[contestant.name], first[contestant.name], timing.memory = _build(contestant, device, clock)
    # All or none: with a run more or less, medians would not compare.
    counts = all(first[name] >= LONG for name in runs) or at_least == 0
    for name in runs if counts else ():
        timings[name].seconds.append(first[name])
    rounds, last = int(counts), sum(first[name] for name in runs)
    order = list(contestants)
    while runs and rounds < at_most and (rounds < at_least or clock() - began + last <= seconds):
        begin = clock()
        order.reverse()
        for contestant in order:
            name, enough = contestant.name, contestant.at_most
            if name in runs and (enough is None or len(timings[name].seconds) < enough):
                with _named(timings[name], runs):
                    timings[name].seconds.append(_time(runs[name], device, clock))
        last = clock() - begin
        rounds += 1
    return list(timings.values())


@contextlib.contextmanager
def _named(timing: Timing, runs: dict[str, Callable[[], Any]]) -> Iterator[None]:
    """A contestant's failure is noted, and it does not run again."""
    try:
        yield
    except Exception as error:  # whatever a foreign library raises
        timing.error = in_words(error)
        runs.pop(timing.name, None)
        log.warning("%s: %s", timing.name, timing.error)


def in_words(error: BaseException) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


def _build(
    contestant: Contestant, device: torch.device, clock: Callable[[], float]
) -> tuple[Callable[[], Any], float, int | None]:
    """What the contestant is to run, the seconds of its first run, and its memory."""
    release_memory()
    before = hardware.process_memory()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
    run = contestant.build()
    release_memory()
    hardware.reset_peak_memory(device)
    taken = _time(run, device, clock)
    if device.type == "cuda":
        for _ in range(WARM_UP):
            taken = _time(run, device, clock)
        hardware.reset_peak_memory(device)
        _time(run, device, clock)
    peak = hardware.peak_memory(device)
    return run, taken, None if peak is None else max(0, peak - before)


def _time(run: Callable[[], Any], device: torch.device, clock: Callable[[], float]) -> float:
    wait(device)
    begin = clock()
    run()
    wait(device)
    return clock() - begin


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release_memory() -> None:
    """Give back what nobody uses; what stays would hide the memory of whoever comes next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
