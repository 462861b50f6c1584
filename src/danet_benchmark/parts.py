"""A training step's time by part: backbone, head, losses, optimizer, each forward and backward.

Nothing is run twice: marks between the parts read the clock when the forward pass comes by, and again when the backward
pass does.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from danet_benchmark.timing import wait


class Parts:
    """Divides the time between `begin` and `end` among parts.

    What belongs to no watched module is "losses", once a watched module has run; before it is "input".

    Args:
        device: is waited for at every mark, which costs time on a GPU: switch `enabled` off for the whole step's.

    Attributes:
        enabled: whether marks do anything.
        runs: seconds by part, of every run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.enabled = True
        self.runs: list[Counter[str]] = []
        self._part, self._since = "input", 0.0

    def begin(self) -> None:
        """A step begins."""
        if self.enabled:
            wait(self.device)
            self.runs.append(Counter())
            self._part, self._since = "input", time.perf_counter()

    def enter(self, part: str) -> None:
        """What comes now belongs to this part."""
        if self.enabled and self.runs:
            wait(self.device)
            now = time.perf_counter()
            self.runs[-1][self._part] += now - self._since  # type: ignore[assignment]  # seconds are no counts
            self._part, self._since = part, now

    def end(self) -> None:
        """The step has ended."""
        self.enter("input")

    def watch(self, module: nn.Module, part: str) -> None:
        """Let what a module does, forward and backward, be a part."""
        forward = module.forward

        def watched(*args: Any) -> Any:
            args = _marked(args, lambda: self.enter("losses"))
            self.enter(part)
            output = _marked(forward(*args), lambda: self.enter(part))
            self.enter("losses")
            return output

        module.forward = watched  # mmsegmentation calls it by name, past PyTorch's hooks

    def medians(self) -> dict[str, float]:
        """Seconds by part."""
        names = {name for run in self.runs for name in run}
        return {name: statistics.median(run[name] for run in self.runs) for name in sorted(names)}


def _marked(tree: Any, call: Callable[[], None]) -> Any:
    """The same tensors; `call` is called once in the backward pass, when the gradients of all of them are there."""
    leaves, structure = tree_flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if places and torch.is_grad_enabled():
        for place, leaf in zip(places, _Mark.apply(call, *(leaves[place] for place in places)), strict=True):
            leaves[place] = leaf
    return tree_unflatten(leaves, structure)


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Callable[[], None], *tensors: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        ctx.call = call
        ctx.set_materialize_grads(False)  # of features that no head reads
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        ctx.call()
        return None, *gradients
