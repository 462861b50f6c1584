"""Signals that mean "stop, but lose nothing": SIGTERM, SIGUSR1 and SIGUSR2 from schedulers, SIGINT from Ctrl-C."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

EXIT_CODE = 75  # of a process that a signal stopped after it saved everything (EX_TEMPFAIL: try again)

log = logging.getLogger(__name__)


class StopSignals:
    """While active, the first such signal only sets `received`; a second Ctrl-C interrupts as usual.

    At the end, when everything is saved, a handler that was there before gets the scheduler's signal after all:
    submitit's puts the job into Slurm's queue again.
    """

    def __init__(self) -> None:
        """Nothing is installed before the `with` statement."""
        self.received = False
        self._numbers: list[signal.Signals] = []
        self._interrupted = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Install the handlers (Python allows it in the main thread only)."""
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"):
                if hasattr(signal, name):  # SIGUSR1 and 2 do not exist on Windows
                    number = getattr(signal, name)
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

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        self.received = True
        self._numbers.append(signal.Signals(number))
        log.warning("%s received: saving after this step, then stopping", signal.Signals(number).name)
