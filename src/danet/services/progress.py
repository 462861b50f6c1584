"""What a run says while it works: a progress bar, log lines and the table of scores.

On a terminal all of it goes through one rich console, which prints log lines above the bar. Elsewhere (a file, a batch
job) the bar becomes plain lines at intervals.
"""

import functools
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar, cast

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)

T = TypeVar("T")


@functools.cache
def console() -> "Console":
    """The console of the process; it follows sys.stdout."""
    from rich.console import Console

    return Console(file=cast(IO[str], _Stdout()), highlight=False, soft_wrap=True)


class _Stdout:
    """sys.stdout as it is at the time. Once it is gone, as a closed terminal or pipe is, the work goes on unseen."""

    encoding = property(lambda self: self._file.encoding)

    @property
    def _file(self) -> Any:
        return getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # beneath what a progress bar puts in its place

    def write(self, text: str) -> int:
        """Write, if anybody can see it."""
        return self._trying(lambda: self._file.write(text))

    def flush(self) -> None:
        """Flush, if anybody can see it."""
        self._trying(lambda: self._file.flush())

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._file.isatty()

    def fileno(self) -> int:
        """Of the file."""
        return self._file.fileno()

    def _trying(self, write: Callable[[], Any]) -> Any:
        try:
            return write()
        except OSError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())  # so Python can flush what is left at its end
            os.close(nothing)
            return 0


class Progress:
    """How far a work is, with the time left; of a training also loss, mIoU and images per second. A context manager.

    Args:
        total_steps: of the whole work.
        start_step: steps that were done before, by the run that is resumed.
        interval: seconds between two log lines where there is no terminal.
        enabled: false makes it silent, for all processes of a distributed run but one.
        what: name of the work; None: training, whose lines begin with the first loss.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        *,
        interval: float = 10.0,
        enabled: bool = True,
        what: str | None = None,
    ) -> None:
        self._what = what
        self._total_steps = total_steps
        self._start_step = start_step
        self._interval = interval
        self._enabled = enabled
        self._values: dict[str, str] = {}
        self._last_line = ""
        self._bar: Any = None

    def __enter__(self) -> Self:
        """Starts the clock and shows the bar."""
        self._start_time = time.monotonic()
        self._next_show = self._start_time
        if self._enabled and console().is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            name = [TextColumn("{task.fields[what]}", markup=False)] if self._what else []
            columns = (*name, BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.description}"))
            # Drawn by `update`: a thread that draws could hold the console's lock when a data loader forks.
            self._bar = Bar(*columns, console=console(), expand=True, auto_refresh=False)
            self._bar.add_task("", total=self._total_steps, completed=self._start_step, what=self._what)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()

    def update(
        self,
        step: int,
        *,
        loss: float | None = None,
        miou: float | None = None,
        images_per_second: float | None = None,
    ) -> None:
        """Shows that `step` steps are done. What is not given stays as it was.

        Args:
            step: optimizer steps done since the start of the training.
            loss: training loss.
            miou: validation score in [0, 1].
            images_per_second: training speed.
        """
        if not self._enabled:
            return
        if loss is not None:
            self._values["loss"] = f"loss {loss:.3f}"
        if miou is not None:
            self._values["miou"] = f"mIoU {miou:.3f}"
        if images_per_second is not None:
            self._values["speed"] = f"{images_per_second:.1f} img/s"
        now = time.monotonic()
        parts = [self._values[key] for key in ("loss", "miou", "speed") if key in self._values]
        parts.append(f"{self._time_left(step, now)} left")
        due = now >= self._next_show or step == self._total_steps
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, description="  ".join(parts), refresh=due)
            if due:
                self._next_show = now + 0.2
        elif due and (self._values or self._what):
            width = len(str(self._total_steps))
            line = f"{self._what or 'step'} {step:{width}}/{self._total_steps}  " + "  ".join(parts)
            if line != self._last_line:
                logger.info(line)
            self._last_line = line
            self._next_show = now + self._interval

    def _time_left(self, step: int, now: float) -> str:
        """Hours, minutes and seconds at the mean speed since the start, evaluations included."""
        if step <= self._start_step:
            return "-:--:--"
        seconds_per_step = (now - self._start_time) / (step - self._start_step)
        seconds = round(seconds_per_step * max(self._total_steps - step, 0))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def track(items: Iterable[T], total: int, what: str, *, enabled: bool = True) -> Iterator[T]:
    """The items one by one, while a bar (or lines) tells how far they are and the time left.

    Args:
        items: what is worked through.
        total: number of items.
        what: name of the work, such as "scoring val".
        enabled: false makes it silent.
    """
    with Progress(total, enabled=enabled, what=what) as progress:
        for done, item in enumerate(items, start=1):
            yield item
            progress.update(done)


def print_scores(
    title: str,
    class_names: Sequence[str],
    iou: Sequence[float],
    accuracy: Sequence[float],
    pixels: Sequence[int],
    *,
    miou: float,
    pixel_accuracy: float,
) -> None:
    """Prints the table of scores, a line per class, in percent.

    Args:
        title: line above the table.
        class_names: the K names.
        iou: intersection over union in [0, 1]; NaN, shown as n/a, where the class is absent.
        accuracy: share of the class's pixels that were found (recall), in [0, 1] or NaN.
        pixels: number of labelled pixels of each class.
        miou: mean of `iou` over the classes that occur.
        pixel_accuracy: share of all labelled pixels that are right.
    """
    columns = {"IoU": iou, "accuracy": accuracy, "pixels": _shares(pixels)}
    last_row = ["mean IoU, pixel accuracy", _percent(miou), _percent(pixel_accuracy), ""]
    _print_table(title, class_names, columns, last_row)


def print_evaluation(title: str, result: Mapping[str, Any]) -> None:
    """Prints all scores of an evaluation, in percent.

    Args:
        title: line above the table.
        result: by class "iou", "accuracy", "boundary_iou" and "pixels"; their means "miou", "mean_accuracy" and
            "boundary_miou"; "frequency_weighted_iou" and "pixel_accuracy". Scores are in [0, 1], or NaN.
    """
    columns = {
        "IoU": list(result["iou"].values()),
        "accuracy": list(result["accuracy"].values()),
        "boundary IoU": list(result["boundary_iou"].values()),
        "pixels": _shares(list(result["pixels"].values())),
    }
    means = (_percent(result[key]) for key in ("miou", "mean_accuracy", "boundary_miou"))
    _print_table(title, list(result["iou"]), columns, ["mean", *means, ""])
    others = {"frequency-weighted IoU": "frequency_weighted_iou", "pixel accuracy": "pixel_accuracy"}
    console().print("   ".join(f"{name} {_percent(result[key])} %" for name, key in others.items()))


def _print_table(
    title: str, class_names: Sequence[str], columns: Mapping[str, Sequence[float]], last_row: Sequence[str]
) -> None:
    """A line per class, in percent; classes whose first score is NaN are dim."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD if console().is_terminal else box.ASCII_DOUBLE_HEAD
    )
    table.add_column("class", no_wrap=True)
    for heading in columns:
        table.add_column(f"{heading} %", justify="right", no_wrap=True)
    for name, *scores in zip(class_names, *columns.values(), strict=True):
        table.add_row(name, *map(_percent, scores), style="dim" if math.isnan(scores[0]) else None)
    table.add_section()
    table.add_row(*last_row, style="bold")
    console().print(table)


def _shares(pixels: Sequence[int]) -> list[float]:
    total = max(sum(pixels), 1)
    return [count / total for count in pixels]


def _percent(share: float) -> str:
    return "n/a" if math.isnan(share) else f"{100 * share:.2f}"


class _ConsoleHandler(logging.Handler):
    """Prints messages above the progress bar, those that need attention with their level."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "quiet", False):
            return
        from rich.text import Text

        try:
            text = self.format(record)
            style = ""
            if record.levelno >= logging.WARNING:
                text = f"{record.levelname}: {text}"
                style = "yellow" if record.levelno < logging.ERROR else "bold red"
            encoding = console().encoding  # may lack letters of a file's name
            console().print(Text(text.encode(encoding, "backslashreplace").decode(encoding), style=style))
        except Exception:  # what cannot be shown must not end the training
            self.handleError(record)


def setup_logging(folder: Path | None) -> None:
    """Sends what our loggers say to the console and, with times, to `folder`/train.log.

    A message logged with `extra={"quiet": True}` goes to the file only.

    Handlers of an earlier call are replaced, as each job of a sweep has a folder of its own.

    Args:
        folder: the run folder, or None for the console alone.
    """
    ours = logging.getLogger("danet")
    for handler in ours.handlers[:]:
        ours.removeHandler(handler)
        handler.close()
    ours.setLevel(logging.INFO)
    ours.propagate = False  # else Hydra's handlers on the root logger print everything again
    ours.addHandler(_ConsoleHandler())
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(folder / "train.log", encoding="utf-8", errors="backslashreplace")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        to_file.handleError = lambda record: None  # type: ignore[method-assign]  # on a full disk a traceback a line
        ours.addHandler(to_file)
