"""The terminal: progress bars, log lines and tables.

All output goes through one rich console, which prints log lines above the bar. Without a terminal (a file, a batch job)
the bar becomes plain lines at intervals.
"""

import functools
import io
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar, cast

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and line feeds


def printable(text: str) -> str:
    """A text with its control characters spelled out, so that no name in it commands the terminal."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


@functools.cache
def _console() -> "Console":
    """The console of the process; it follows sys.stdout."""
    from rich.console import Console

    return Console(file=cast(IO[str], _Stdout()), highlight=False, soft_wrap=True)


class _Stdout(io.TextIOBase):
    """The current sys.stdout. Once its terminal or pipe is closed, output is discarded and the work continues."""

    encoding = property(lambda self: self._file.encoding)

    @property
    def _file(self) -> Any:
        return getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # a progress bar replaces sys.stdout with a proxy

    def write(self, text: str) -> int:
        return self._attempt(lambda: self._file.write(text))

    def flush(self) -> None:
        self._attempt(lambda: self._file.flush())

    def isatty(self) -> bool:
        return self._file.isatty()

    def fileno(self) -> int:
        return self._file.fileno()

    def _attempt(self, write: Callable[[], Any]) -> Any:
        try:
            return write()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # so that Python can flush the rest at exit
            os.close(null)
            return 0


class Progress:
    """A progress bar with the time left; for training also loss, mIoU and images per second.

    A context manager. Without a terminal it writes lines to the log: of training one for each row of metrics, of other
    tasks at intervals.

    Args:
        total: steps, items or bytes of the whole task; None if unknown.
        start: number already done, by the run that is resumed.
        task: name of the task, such as "scoring val"; None for training, whose lines begin with the first loss.
        interval: time between two lines of a task [s].
        enabled: False for no output, as in all but the main process of a distributed run.
        transient: remove the bar at the end, and write no lines without a terminal.
        in_bytes: show the amounts in kB, MB, ...
    """

    def __init__(
        self,
        total: int | None,
        start: int = 0,
        *,
        task: str | None = None,
        interval: float = 10.0,
        enabled: bool = True,
        transient: bool = False,
        in_bytes: bool = False,
    ) -> None:
        self._total, self._start, self._task, self._interval = total, start, task, interval
        self._enabled, self._transient, self._in_bytes = enabled, transient, in_bytes
        self._values: dict[str, str] = {}
        self._last_line = ""
        self._bar: Any = None

    def __enter__(self) -> Self:
        """Start the clock and show the bar."""
        self._start_time = self._next_show = time.monotonic()
        if self._enabled and _console().is_terminal:
            self._bar = self._new_bar()
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it is, or remove a transient one."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()

    def update(
        self,
        done: int,
        *,
        loss: float | None = None,
        miou: float | None = None,
        images_per_second: float | None = None,
    ) -> None:
        """Advance the bar to `done`. Values that are not given stay as they were.

        Args:
            done: optimizer steps, items or bytes done so far, including those before the start.
            loss: training loss.
            miou: validation score in [0, 1].
            images_per_second: training speed.
        """
        if not self._enabled:
            return
        if loss is not None:
            self._values["loss"] = f"loss {loss:.3f}"
        if miou is not None:
            self._values["miou"] = f"best mIoU {miou:.3f}"
        if images_per_second is not None:
            self._values["speed"] = f"{images_per_second:.1f} img/s"
        now = time.monotonic()
        timed = now >= self._next_show or done == self._total
        due = timed if self._task or self._bar is not None else loss is not None
        values = [self._values[key] for key in ("loss", "miou", "speed") if key in self._values]
        text = "  ".join([*values, f"{self._time_left(done, now)} left"])
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, description=text, refresh=due)
            if due:
                self._next_show = now + 0.2
        elif due and (self._values or self._task) and not self._transient:
            line = f"{self._task or 'step'} {done:{len(str(self._total))}}/{self._total}  {text}"
            if line != self._last_line:
                logger.info(line)
            self._last_line = line
            self._next_show = now + self._interval

    def _new_bar(self) -> Any:
        from rich import progress

        name = [progress.TextColumn("{task.fields[name]}", markup=False)] if self._task else []
        amount = progress.DownloadColumn() if self._in_bytes else progress.MofNCompleteColumn()
        columns = (*name, progress.BarColumn(bar_width=None), amount, progress.TextColumn("{task.description}"))
        # Drawn by `update`: a thread that draws could hold the console's lock when a data loader forks.
        options: dict[str, Any] = {"expand": True, "auto_refresh": False, "transient": self._transient}
        bar = progress.Progress(*columns, console=_console(), **options)
        bar.add_task("", total=self._total, completed=self._start, name=self._task)
        return bar

    def _time_left(self, done: int, now: float) -> str:
        """The time left (h:mm:ss) at the mean speed since the start, evaluations included."""
        if self._total is None or done <= self._start:
            return "-:--:--"
        seconds = round((now - self._start_time) / (done - self._start) * max(self._total - done, 0))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def track(items: Iterable[T], total: int, task: str, *, enabled: bool = True, transient: bool = False) -> Iterator[T]:
    """Yield the items one by one while showing the progress.

    Args:
        items: what to iterate over.
        total: number of items.
        task: name of the task, such as "scoring val".
        enabled: see `Progress`.
        transient: see `Progress`.
    """
    with Progress(total, task=task, enabled=enabled, transient=transient) as progress:
        for done, item in enumerate(items, start=1):
            yield item
            progress.update(done)


# ---- text and tables -------------------------------------------------------------------------------------------------


def print_text(text: str) -> None:
    """Print text above the progress bar, if there is one."""
    _console().print(printable(text), markup=False)


def print_table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], *, last_row: Sequence[str] | None = None
) -> None:
    """Print a table; numbers are aligned to the right, and rows with "n/a" are dim.

    Args:
        title: line above the table.
        headings: one per column.
        rows: cells of each row; the first is its name.
        last_row: totals or means, separated from the other rows.
    """
    from rich import box
    from rich.table import Table

    style = box.SIMPLE_HEAD if _console().is_terminal else box.ASCII_DOUBLE_HEAD
    table = Table(title=title, title_justify="left", box=style)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(printable, row), style="dim" if "n/a" in row else None)
    if last_row is not None:
        table.add_section()
        table.add_row(*last_row, style="bold")
    _console().print(table)


# ---- log -------------------------------------------------------------------------------------------------------------


class _ConsoleHandler(logging.Handler):
    """Prints messages above the progress bar; warnings and errors get their level."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "quiet", False):
            return
        from rich.text import Text

        try:
            text, style = printable(self.format(record)), ""
            if record.levelno >= logging.WARNING:
                text = f"{record.levelname}: {text}"
                style = "yellow" if record.levelno < logging.ERROR else "bold red"
            encoding = _console().encoding  # may lack some characters of a file name
            _console().print(Text(text.encode(encoding, "backslashreplace").decode(encoding), style=style))
        except Exception:  # a message that cannot be shown must not stop training
            self.handleError(record)


def setup_logging(folder: Path | None) -> None:
    """Send the messages of this package to the console and, with times, to `folder`/train.log.

    A message logged with `extra={"quiet": True}` goes to the file only. Handlers of an earlier call are replaced: each
    job of a sweep has its own folder.

    Args:
        folder: the run folder, or None for the console alone.
    """
    package_logger = logging.getLogger("danet")
    for handler in package_logger.handlers[:]:
        package_logger.removeHandler(handler)
        handler.close()
    package_logger.setLevel(logging.INFO)
    package_logger.propagate = False  # else Hydra's handlers on the root logger print everything again
    package_logger.addHandler(_ConsoleHandler())
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(folder / "train.log", encoding="utf-8", errors="backslashreplace")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        to_file.handleError = lambda record: None  # type: ignore[method-assign]  # else one traceback per line on a full disk
        package_logger.addHandler(to_file)
