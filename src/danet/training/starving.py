"""How much of its time a run waits for images, and what helps where that is much."""

import logging
import os

from danet.config.sections import RuntimeConfig

log = logging.getLogger(__name__)

STARVING = 0.2  # share of the time spent waiting for images that is worth a word


class DataWait:
    """Adds up a run's waiting between two lines of its log.

    Args:
        runtime: how the run loads images.
    """

    def __init__(self, runtime: RuntimeConfig) -> None:
        self._runtime = runtime
        self._seconds, self._intervals, self._advised = 0.0, 0, False

    def add(self, seconds: float) -> None:
        """Count time that the loop spent waiting for images."""
        self._seconds += seconds

    def share(self, step: int, elapsed: float) -> float:
        """The share of the `elapsed` seconds since the last call; warns once where it is large.

        Args:
            step: that the warning names.
            elapsed: in seconds.
        """
        share, self._seconds = self._seconds / elapsed, 0.0
        # In the first interval the loader only starts.
        if self._intervals and not self._advised and share > STARVING:
            log.warning("step %d: %s", step, remedies(share, self._runtime, cores=_cores()))
            self._advised = True
        self._intervals += 1
        return share


def remedies(waiting: float, runtime: RuntimeConfig, *, cores: int) -> str:
    """What to do about a run that waits for images.

    Args:
        waiting: share of the time.
        runtime: how the run loads them.
        cores: of this machine's processors.
    """
    share = max(1, cores // runtime.devices)  # of the cores, for each device
    more = min(share, 2 * runtime.num_workers or 1)
    words = []
    if more > runtime.num_workers:
        words.append(f"runtime.num_workers={more} (now {runtime.num_workers}; there are {share} cores a device)")
    if runtime.cache is None:
        words.append("runtime.cache=auto (keeps decoded images on disk)")
    words.append("an augment with less to compute")
    return f"{100 * waiting:.0f} % of the time went into waiting for images. What helps: {', '.join(words)}"


def _cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
