"""Signals that ask a run to save and stop.

SIGTERM, SIGUSR1 and SIGUSR2 come from schedulers, SIGINT from Ctrl-C, SIGHUP from a terminal that is closed.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

EXIT_CODE = 75  # EX_TEMPFAIL: a signal stopped the process, everything is saved, and it can be resumed

log = logging.getLogger(__name__)


class StopRequested(BaseException):
    """A signal arrived during interruptible work; not an Exception, like KeyboardInterrupt."""


class StoppedError(Exception):
    """A signal stopped this job of a pool, and all is saved; the pool must go on until the others have saved, too."""


def stop_signals() -> list[signal.Signals]:
    """The signals that stop this process; SIGHUP only if nohup does not ignore it."""
    names = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows lacks some
    return [n for n in numbers if n.name != "SIGHUP" or signal.getsignal(n) != signal.SIG_IGN]


def end_at_signals() -> None:
    """From now on, end this process with `EXIT_CODE` at a signal: at once, or in order within `ending_in_order`."""
    if threading.current_thread() is threading.main_thread():
        for number in stop_signals():
            signal.signal(number, _end)


@contextlib.contextmanager
def ending_in_order(*, pooled: bool = False) -> Iterator[None]:
    """Let a signal end what is inside as an exception does, so that half-written files are removed.

    Args:
        pooled: whether this is a process of a pool that kills all others when one of them ends.

    Raises:
        SystemExit: Ctrl-C was pressed twice.
        StoppedError: takes the place of SystemExit in a pool, after a signal.
    """
    global _in_order, _ended, _pooled
    _pooled = pooled
    if pooled and _ended:
        raise StoppedError
    _in_order = True
    try:
        yield
    except BaseException as error:
        if pooled and isinstance(error, SystemExit) and error.code == EXIT_CODE:
            _ended = True
        if _ended:  # whatever error came of it; threads that wait for a disk, say, are not waited for
            with contextlib.suppress(OSError):  # the terminal may be gone
                sys.stdout.flush()
            if pooled and not _others_run():
                raise StoppedError from None
            time.sleep(GRACE if pooled else 0)
            os._exit(EXIT_CODE)
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(128 + signal.SIGINT) from None
        raise
    finally:
        _in_order = False


_in_order = _ended = _pooled = False
INSIST = 5  # seconds
GRACE = 15  # seconds for the other processes of a pool to save


def _others_run() -> bool:
    """Whether threads run that Python would wait for."""
    own = (threading.current_thread(), threading.main_thread())
    return any(not thread.daemon for thread in threading.enumerate() if thread not in own)


@contextlib.contextmanager
def passed_to(processes: Callable[[], Iterable[Any]]) -> Iterator[list[int]]:
    """Pass signals that mean "stop" on to other processes, as SIGTERM; yields a list of those that arrived.

    Not as SIGINT: after Ctrl-C they already have it from the terminal, and a second one would interrupt them. When
    they have ended, a handler that was there before gets the scheduler's signal.

    Args:
        processes: those of now, with a method `terminate`. Without any, a signal ends this process.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        others = list(processes())
        for other in others:
            other.terminate()
        if not others:
            stop(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {int(number): signal.signal(number, handle) for number in stop_signals()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in received:
        pass_on(number, before[number])


def _end(number: int, frame: FrameType | None) -> None:
    global _ended
    again, _ended = _ended, True
    if not _in_order and _pooled:  # between two jobs; the next one does not begin
        return
    if not _in_order:
        try:
            stop(number)
        finally:
            os._exit(EXIT_CODE)
    if again:
        raise SystemExit(EXIT_CODE)
    if hasattr(signal, "pthread_kill"):  # Windows lacks it
        threading.Thread(target=_insist, daemon=True).start()
    stop(number)


def _insist() -> None:
    """Raise SystemExit in the main thread again and again: where it arrives, it may be lost, as in a destructor."""
    time.sleep(INSIST)
    main = threading.main_thread().ident
    while main and _in_order and signal.getsignal(signal.SIGTERM) is _end:
        signal.pthread_kill(main, signal.SIGTERM)  # ends its waiting, too
        time.sleep(INSIST)


def stop(number: int) -> NoReturn:
    """Say that a signal stopped this process, unless a launcher is there to say it, and raise SystemExit."""
    if multiprocessing.current_process().name == "MainProcess":
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"{signal.Signals(number).name} received: stopped; nothing was there to save", file=sys.stderr)
    raise SystemExit(EXIT_CODE)


def pass_on(number: int, handler: Any) -> None:
    """Give a signal to the handler that was there before, once all is saved: submitit's requeues the Slurm job."""
    if number != signal.SIGINT and callable(handler) and handler is not _end:
        handler(number, None)


class StopSignals:
    """Set `received` at the first signal instead of ending the process; a second Ctrl-C interrupts as usual.

    Inside `raising`, a signal also raises StopRequested. At the end, when everything is saved, the previous handlers
    get the scheduler's signals.
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
        self.received = _ended  # by a signal whose exception was lost
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
            pass_on(received, self._before[received])

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
