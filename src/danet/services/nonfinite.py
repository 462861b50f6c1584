"""Keep NaN and infinite values out of weights and scores, without synchronizing with the device at every step.

Whether a step failed is decided on the device, where fused optimizers read it. The host reads which steps failed when
it waits for the device anyway: where losses are logged, before anything is evaluated or saved.
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
    """A loss, gradient, weight or score is NaN or infinite."""


def check_weights(step: int, states: Mapping[str, Any]) -> None:
    """Refuse to save or score values that are NaN or infinite.

    A finite gradient can make weights infinite, for example with a huge learning rate.

    Args:
        step: number of the step, for the error.
        states: state dicts by part, such as "model"; None for a part that the run lacks.

    Raises:
        NonFiniteError: a tensor is not finite.
    """
    tensors = dict(_floating_point("", states))
    bad = []
    for device in {tensor.device for tensor in tensors.values()}:  # an optimizer may count its steps on the CPU
        there = {name: tensor for name, tensor in tensors.items() if tensor.device == device}
        finite = torch.stack([tensor.isfinite().all() for tensor in there.values()]).tolist()
        bad += [name for name, is_finite in zip(there, finite, strict=True) if not is_finite]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise NonFiniteError(
            f"step {step}: {', '.join(bad[:3])}{more} not finite; this step was not saved. Lower optimizer.lr, "
            "set train.max_grad_norm=1 or train.precision=fp32, and start a new run. Earlier checkpoints are finite: "
            "init_from=FILE starts from their weights"
        )


def _floating_point(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors in nested containers, by dotted name."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, Mapping | list | tuple):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _floating_point(f"{name}.{key}" if name else str(key), item)


class FiniteSteps:
    """Let only finite steps change the model.

    Args:
        policy: "stop" at the first failed step, or "skip" each.
        model: the model whose batch statistics a skipped step must not change.
        scaler: the loss scaler; if enabled (fp16), each step waits for the device.
    """

    def __init__(self, policy: Literal["stop", "skip"], model: nn.Module, scaler: torch.amp.GradScaler) -> None:
        self._policy, self._model, self._scaler = policy, model, scaler
        self._failed = torch.zeros((), dtype=torch.bool)
        self._buffers: list[Tensor] = []
        self._unchanged = False  # whether the step has not changed a weight yet
        self._names: list[tuple[int, list[str]]] = []  # steps since the last report: number, image names
        self._values: list[Tensor] = []  # of the same steps: failed, loss, gradient norm

    def begin(self) -> None:
        """Keep the batch statistics, which the forward pass changes."""
        self._buffers = [buffer.clone() for buffer in self._model.buffers()]
        self._unchanged = True

    def undo(self) -> bool:
        """Go back to before a step that failed with an error; False where weights may have changed already."""
        if self._unchanged:
            self._restore(torch.tensor(True))
        return self._unchanged

    def check(self, step: int, loss: Tensor, norm: Tensor, batches: list[Batch]) -> Tensor:
        """Decide whether a step may change the weights: a bool on the device.

        Args:
            step: number of the step, from 1.
            loss: loss over all processes.
            norm: norm of the unscaled gradients.
            batches: batches of this process.
        """
        # fp16's scaler tries scales that make gradients overflow, and skips these steps itself. If it is disabled,
        # or the scale is down to 1, the scale is not the cause.
        overflowed = ~norm.isfinite()
        failed = ~loss.isfinite() | (overflowed if self._scaler.get_scale() <= 1 else False)
        if self._policy == "stop":  # no step counts after the first failure
            failed = failed | self._failed.to(failed.device)
        self._failed = failed
        self._names.append((step, [name for batch in batches for name in batch.names]))
        self._values.append(torch.stack([failed.float(), loss, norm]))
        return ~(failed | overflowed)

    def step(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        """Call `scaler.step(optimizer)` and `scaler.update()`; a failed step changes nothing."""
        self._unchanged = False
        if all(group.get("fused") for group in optimizer.param_groups) and not scaler.is_enabled():
            optimizer.found_inf = self._failed.float()  # type: ignore[attr-defined]  # fused optimizers skip the step
            optimizer.step()
        elif not self._failed:
            scaler.step(optimizer)
        scaler.update()
        if self._policy == "skip":
            self._restore(self._failed)

    def _restore(self, wanted: Tensor) -> None:
        """Set the batch statistics to those before the step where a bool on the device says so."""
        for buffer, before in zip(self._model.buffers(), self._buffers, strict=False):
            buffer.copy_(torch.where(wanted.to(buffer.device), before, buffer))

    def report(self) -> None:
        """Log or raise the failed steps since the last report.

        Raises:
            NonFiniteError: a step failed and the policy is "stop".
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
                    f"{message}. The weights are those before this step. Check these images, lower optimizer.lr, set "
                    "train.max_grad_norm=1 or train.precision=fp32, or skip such steps: train.on_nonfinite=skip"
                )
            log.warning("%s. Step skipped (train.on_nonfinite=skip)", message)


class FiniteScores:
    """Watch whether a model's scores are finite, without waiting for the device.

    Attributes:
        each: (B,) bool, for each image of the batch; None before the first scores.
    """

    def __init__(self) -> None:
        self.each: Tensor | None = None

    def __call__(self, scores: Tensor) -> None:
        """Check scores (B, ...); called once per view of the same batch."""
        flat = scores.flatten(1)
        finite = flat.amin(dim=1).isfinite() & flat.amax(dim=1).isfinite()  # both propagate NaN, and are fast
        self.each = finite if self.each is None else self.each & finite

    def require(self, model: nn.Module, what: str = "") -> None:
        """Wait for the device, and reject scores that are not finite, which predict no class.

        Raises:
            NonFiniteError: see `scores_error`.
        """
        if self.each is not None and not self.each.all():
            raise scores_error(model, what)


def scores_error(model: nn.Module, what: str) -> NonFiniteError:
    """The error for scores that are not finite, with its cause.

    Args:
        model: the model that computed them.
        what: the images, such as "2 of 101 images (a, b)"; empty where the caller names them.
    """
    if words := state_dicts.nonfinite_in_words(model.state_dict()):
        cause = f"Of its weights, {words}"
    else:
        cause = (
            "Its weights are finite, so the arithmetic overflows: set precision=fp32 (in training "
            "train.precision=fp32), or train again with a lower optimizer.lr"
        )
    text = f"the model's scores are NaN or infinite. {cause}"
    return NonFiniteError(f"{what}: {text}" if what else text)
