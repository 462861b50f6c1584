"""Starting a process: until a script has answered, until a library is imported."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from danet.config import REPOSITORY
from danet_benchmark.networks import Context
from danet_benchmark.timing import Contestant, contest

TRAIN = str(REPOSITORY / "src" / "train.py")
MMSEG = (
    f"import sys; sys.path.insert(0, {str(REPOSITORY / 'src')!r}); "
    "from danet_benchmark.peers import mmseg_module; mmseg_module()"
)
COMMANDS = {
    "until a script answers": {
        "ours": (["src/train.py", "--help"], [TRAIN, "--help"]),
        "ours, --cfg job": (["src/train.py", "--cfg", "job"], [TRAIN, "--cfg", "job"]),
    },
    "until everything to train with is imported": {
        "ours": (
            ["import danet.training.run"],
            ["-c", f"import sys; sys.path.insert(0, {str(REPOSITORY / 'src')!r}); import danet.training.run"],
        ),
        "mmsegmentation": (["import mmseg.models"], ["-c", MMSEG]),
        "torch alone": (["import torch"], ["-c", "import torch"]),
    },
}


def rows(context: Context) -> Iterator[dict[str, Any]]:
    """A row for each command; the first of a case is ours."""
    settings = context.config.startup
    for case, commands in COMMANDS.items():
        contestants = [
            Contestant(name, partial(_start, arguments), " ".join(shown))
            for name, (shown, arguments) in commands.items()
        ]
        timings = contest(
            contestants, device=context.device, seconds=settings.seconds / len(COMMANDS), at_least=settings.at_least
        )
        # What a process of its own takes does not show here.
        yield from (timing.row(case=case) | {"memory": None} for timing in timings)


def _start(arguments: list[str]) -> Callable[[], None]:
    return partial(_run, arguments)


def _run(arguments: list[str]) -> None:
    """Raises RuntimeError with the last line of what went wrong."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1])
