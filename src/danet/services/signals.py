"""Signals that mean "stop, but lose nothing".

SIGTERM, SIGUSR1 and SIGUSR2 come from schedulers, SIGINT from Ctrl-C, SIGHUP from a terminal that is closed.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

EXIT_CODE = 75  # of a process that a signal stopped after it saved everything (EX_TEMPFAIL: try again)

log = logging.getLogger(__name__)


class StopRequested(BaseException):
    """A signal arrived where waiting for its notice would take long; like KeyboardInterrupt, not an Exception."""


def stop_signals() -> list[signal.Signals]:
    """The signals to obey on this system, in this process: SIGHUP only where nohup has not had it ignored."""
    names = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows lacks some
    return [n for n in numbers if n.name != "SIGHUP" or signal.getsignal(n) != signal.SIG_IGN]


class StopSignals:
    """While active, the first such signal only sets `received`; a second Ctrl-C interrupts as usual.

    Within `raising` it also ends what is under way, by StopRequested.

    At the end, when everything is saved, a handler that was there before gets the scheduler's signal after all:
    submitit's puts the job into Slurm's queue again.
    """

    def __init__(self) -> None:
        """Nothing is installed before the `with` statement."""
        self.received = False
        self._numbers: list[signal.Signals] = []
        self._interrupted = False
        self._raises = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Install the handlers (Python allows it in the main thread only)."""
        if threading.current_thread() is threading.main_thread():
            for number in stop_signals():
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the handlers back that were there before; after an error nothing is handed on to them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for received in self._numbers if kind is None else []:
            if received != signal.SIGINT and callable(handler := self._before[received]):
                handler(received, None)

    @contextlib.contextmanager
    def raising(self, enabled: bool = True) -> Iterator[None]:
        """A context that a signal ends at once.

        Args:
            enabled: whether it does; processes that wait for each other must not be ended one by one.

        Raises:
            StopRequested: there was a signal, before or within.
        """
        self._raises = enabled
        try:
            if enabled and self.received:
                raise StopRequested
            yield
        finally:
            self._raises = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        self.received = True
        self._numbers.append(signal.Signals(number))
        log.warning("%s received: saving, then stopping", signal.Signals(number).name)
        if self._raises:
            self._raises = False
            raise StopRequested
