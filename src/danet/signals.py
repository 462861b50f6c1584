"""Signals that mean "stop, but lose nothing": SIGTERM and SIGUSR1 from schedulers, SIGINT from Ctrl-C."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

EXIT_CODE = 75  # of a process that a signal stopped after it saved everything (EX_TEMPFAIL: try again)

log = logging.getLogger(__name__)


class StopSignals:
    """While active, the first such signal only sets `received`; a second Ctrl-C interrupts as usual."""

    def __init__(self) -> None:
        """Nothing is installed before the `with` statement."""
        self.received = False
        self._interrupted = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Install the handlers (Python allows it in the main thread only)."""
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
                if hasattr(signal, name):  # SIGUSR1 does not exist on Windows
                    number = getattr(signal, name)
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        self.received = True
        log.warning("%s received: saving after this step, then stopping", signal.Signals(number).name)
