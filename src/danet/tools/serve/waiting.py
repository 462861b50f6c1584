"""How requests wait for each other, and what each may take."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from danet.tools.serve.options import LimitsConfig


class FullError(Exception):
    """Raised when the queue is full."""


class SlowError(Exception):
    """Raised when a request does not arrive in time."""


class LargeError(Exception):
    """Raised when a request is too large."""


class Deadline:
    """A time limit that is checked before each module of a model."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Raise TimeoutError in the model once time is up."""
        hooks = [module.register_forward_pre_hook(self._check) for module in model.modules()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _check(self, module: nn.Module, inputs: Any) -> None:
        if time.monotonic() > self.end:
            raise TimeoutError


class Queue:
    """Runs one thing at a time, in a thread of its own, which a canceled request does not free."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits, self._requests, self._deadline = limits, 0, Deadline(0)
        self._thread = ThreadPoolExecutor(max_workers=1)

    async def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Return `work(*arguments, deadline)`.

        Raises:
            FullError: too many requests are waiting.
        """
        if self._requests > self._limits.waiting:
            raise FullError(f"{self._requests} requests are running or waiting; try again later")
        self._requests += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._in_time, work, *arguments)
        finally:
            self._requests -= 1

    def _in_time(self, work: Callable[..., Any], *arguments: Any) -> Any:
        self._deadline = Deadline(self._limits.seconds)
        return work(*arguments, self._deadline)

    def stop(self) -> None:
        """Interrupt what is running and whatever would follow."""
        self._limits = replace(self._limits, seconds=0)
        self._deadline.end = 0
