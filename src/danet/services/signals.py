"""Signals that ask a run to save and stop.

SIGTERM, SIGUSR1 and SIGUSR2 come from schedulers, SIGINT from Ctrl-C, SIGHUP from a terminal that is closed.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

EXIT_CODE = 75  # EX_TEMPFAIL: a signal stopped the process, everything is saved, and it can be resumed

log = logging.getLogger(__name__)


class StopRequested(BaseException):
    """A signal arrived during interruptible work; not an Exception, like KeyboardInterrupt."""


def stop_signals() -> list[signal.Signals]:
    """The signals that stop this process; SIGHUP only if nohup does not ignore it."""
    names = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows lacks some
    return [n for n in numbers if n.name != "SIGHUP" or signal.getsignal(n) != signal.SIG_IGN]


class StopSignals:
    """Set `received` at the first signal instead of ending the process; a second Ctrl-C interrupts as usual.

    Inside `raising`, a signal also raises StopRequested. At the end, when everything is saved, the previous handlers
    get the scheduler's signals: submitit's requeues the Slurm job.
    """

    def __init__(self) -> None:
        """Install nothing yet: the `with` statement does."""
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
        """Restore the previous handlers, and pass the signals on to them unless there was an error."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for received in self._numbers if kind is None else []:
            if received != signal.SIGINT and callable(handler := self._before[received]):
                handler(received, None)

    @contextlib.contextmanager
    def raising(self, enabled: bool = True) -> Iterator[None]:
        """Raise StopRequested as soon as a signal arrives.

        Args:
            enabled: False does nothing, for processes that wait for each other: they must not stop one by one.

        Raises:
            StopRequested: a signal arrived before or inside the context.
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
