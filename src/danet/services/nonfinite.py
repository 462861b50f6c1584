"""A loss or gradient that is NaN or infinite never reaches the weights, and nobody waits for the device to know it.

Whether a step has failed is decided on the device, where fused optimizers read it. Which steps failed is asked when
the device is waited for anyway: where losses are logged, before anything is evaluated or saved.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from danet.interfaces import Batch
from danet.services import distributed, state_dicts

log = logging.getLogger(__name__)


class NonFiniteError(ArithmeticError):
    """A loss or gradient is NaN or infinite, or what a model says of an image is."""


def check_weights(step: int, states: Mapping[str, Any]) -> None:
    """See that nothing which is about to be saved or scored is NaN or infinite.

    A finite gradient can make weights infinite, with a huge learning rate, say.

    Args:
        step: for the error.
        states: state dicts by the name of the part, such as "model"; of None there is nothing to see.

    Raises:
        NonFiniteError: a tensor is not finite.
    """
    tensors = dict(_floating("", states))
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist()
    bad = [name for name, fine in zip(tensors, finite, strict=True) if not fine]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise NonFiniteError(
            f"step {step}: {', '.join(bad[:3])}{more} not finite; nothing was saved of this step. Lower optimizer.lr, "
            "set train.max_grad_norm=1 or train.precision=fp32 and start a new run; an earlier checkpoint, if there is "
            "one, is finite, and init_from=FILE takes its weights"
        )


def _floating(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors in nested containers, by dotted name."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _floating(f"{name}.{key}" if name else str(key), item)


class FiniteSteps:
    """Lets only finite steps change the model.

    Args:
        policy: "stop" at the first failed step, or "skip" each.
        model: whose batch statistics a skipped step must not change.
        scaler: of the loss; where it is enabled (fp16), each step waits for the device.
    """

    def __init__(
        self,
        policy: Literal["stop", "skip"],
        model: nn.Module,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self._policy, self._model, self._scaler = policy, model, scaler
        self._failed = torch.zeros((), dtype=torch.bool)
        self._buffers: list[Tensor] = []
        self._broken: Tensor | None = None
        self._names: list[tuple[int, list[str]]] = []  # of the steps since the last report: number, images
        self._values: list[Tensor] = []  # and whether each failed, its loss and gradient norm

    def begin(self) -> None:
        """Before the forward pass: remember the batch statistics that it changes."""
        if self._policy == "skip":
            self._buffers = [buffer.clone() for buffer in self._model.buffers()]

    def check(self, step: int, loss: Tensor, norm: Tensor, batches: list[Batch]) -> Tensor:
        """Look at a step before it changes the weights; says whether it may, on the device.

        Args:
            step: counted from 1.
            loss: of all processes.
            norm: of the gradients, unscaled.
            batches: of this process.
        """
        # fp16's scaler tries factors that make gradients overflow, and passes over these steps itself; where it is
        # off, or has gone down to 1, it is not the factor that makes them so.
        overflowed = ~norm.isfinite()
        failed = ~loss.isfinite() | (overflowed if self._scaler.get_scale() <= 1 else False)
        if self._policy == "stop":  # nothing after the first failure counts
            self._broken = failed = failed if self._broken is None else self._broken | failed
        self._names.append((step, [name for batch in batches for name in batch.names]))
        self._values.append(torch.stack([failed.float(), loss, norm]))
        self._failed = failed
        return ~(failed | overflowed)

    def step(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        """`scaler.step(optimizer)` and `scaler.update()`, but a step that failed changes nothing."""
        if all(group.get("fused") for group in optimizer.param_groups) and not scaler.is_enabled():
            optimizer.found_inf = self._failed.float()  # type: ignore[attr-defined]  # fused ones read it
            optimizer.step()
        elif not self._failed:
            scaler.step(optimizer)
        scaler.update()
        for buffer, before in zip(self._model.buffers(), self._buffers, strict=False):
            buffer.copy_(torch.where(self._failed, before, buffer))

    def report(self) -> None:
        """Tell of the failed steps since the last report.

        Raises:
            NonFiniteError: there is one, and the policy is "stop".
        """
        if not self._values:
            return
        rows = torch.stack(self._values).tolist()
        steps, self._names, self._values = self._names, [], []
        for (step, own_names), (failed, loss, norm) in zip(steps, rows, strict=True):
            if not failed:
                continue
            names = [name for part in distributed.gather(own_names) for name in part]
            message = f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}; images: {', '.join(names)}"
            if self._policy == "stop":
                raise NonFiniteError(
                    f"{message}. This step did not change the weights. Look at these images, lower optimizer.lr, set "
                    "train.max_grad_norm=1 or train.precision=fp32, or skip such steps: train.on_nonfinite=skip"
                )
            log.warning("%s. Step skipped (train.on_nonfinite=skip)", message)


class FiniteScores:
    """Sees whether a model's scores are finite, without waiting for the device.

    Attributes:
        each: (B,) bool, of every image of the batch; None before the first scores.
    """

    def __init__(self) -> None:
        self.each: Tensor | None = None

    def __call__(self, scores: Tensor) -> None:
        """Look at scores (B, ...); a batch may be looked at several times, as by windows."""
        flat = scores.flatten(1)
        finite = flat.amin(dim=1).isfinite() & flat.amax(dim=1).isfinite()  # both pass NaN on, and are fast
        self.each = finite if self.each is None else self.each & finite

    def require(self, model: nn.Module, what: str = "") -> None:
        """Wait for the device, and refuse scores that are not finite: the largest of them would name no class.

        Raises:
            NonFiniteError: see `scores_error`.
        """
        if self.each is not None and not self.each.all():
            raise scores_error(model, what)


def scores_error(model: nn.Module, what: str) -> NonFiniteError:
    """The error for scores that are not finite, with its cause.

    Args:
        model: whose scores they are.
        what: they are of, such as "2 of 101 images (a, b)"; empty where the caller says it.
    """
    cause = (
        "Its weights are finite, so the arithmetic overflows: set precision=fp32 (in training train.precision=fp32), "
        "or train again with a lower optimizer.lr"
    )
    if words := state_dicts.nonfinite_in_words(model.state_dict()):
        cause = f"Of its weights, {words}"
    text = f"the model's scores are NaN or infinite and name no class. {cause}"
    return NonFiniteError(f"{what}: {text}" if what else text)
