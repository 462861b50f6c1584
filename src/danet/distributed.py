"""Several processes that train as one would.

The same code runs with one process and with many: every function here is a no-op without a process group. Sums are
exact whatever the number of processes: losses and batch statistics are added up as (total, count), never averaged as
means.
"""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class World:
    """This process among all."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0


def started_outside() -> bool:
    """Whether torchrun (or Slurm through it) has started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[World]:
    """Join the other processes, where a launcher has started several; leave them at the end.

    Args:
        device: tensors on a CUDA device go by NCCL; tensors in memory go by gloo in any case.
    """
    if not started_outside() or int(os.environ["WORLD_SIZE"]) == 1:
        yield World()
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def launch(function: Callable[..., Any], devices: int, *arguments: Any) -> Any:
    """Call `function(*arguments)` in `devices` processes on this machine; return what the first one returns.

    One device, and a process that torchrun started, call it right here, so that breakpoints work.
    """
    if devices == 1 or started_outside():
        return function(*arguments)
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The agent passes these on to the workers, which save and return.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    threads = str(max(1, torch.get_num_threads() // devices))
    previous = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = previous or threads
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
        start_method="spawn",
    )
    try:
        return elastic_launch(settings, function)(*arguments)[0]
    finally:
        if previous is None:
            del os.environ["OMP_NUM_THREADS"]


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Add `tensor` over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def from_main(value: Any) -> Any:
    """The main process's value, in every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any) -> list[Any]:
    """Every process's value, by rank, in every process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def any_process(*flags: Any) -> tuple[bool, ...]:
    """Whether each flag is set in any process; with one process, the flags as they are."""
    if not dist.is_initialized():
        return tuple(bool(flag) for flag in flags)
    sums = torch.tensor([float(flag) for flag in flags])  # in memory, by gloo: no GPU waits for it
    return tuple(bool(value) for value in sum_over_processes(sums))


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with gradients averaged over all processes in the backward pass."""
    if not dist.is_initialized():
        return model
    return nn.parallel.DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
    )


def exchange_gradients(network: nn.Module, now: bool) -> contextlib.AbstractContextManager[None]:
    """A context for forward and backward; not `now`: gradients are only added up locally."""
    if isinstance(network, nn.parallel.DistributedDataParallel) and not now:
        return network.no_sync()
    return contextlib.nullcontext()


def share_buffers(model: nn.Module) -> None:
    """Give every process the main process's buffers (batch statistics that were not synchronised)."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def synchronize_batchnorm(model: nn.Module, device: torch.device) -> None:
    """Let `model` compute its batch statistics over all processes, in place; nothing to do with one process.

    PyTorch's own SyncBatchNorm serves GPUs and refuses the CPU, where `SummedBatchNorm2d` does the same.
    """
    if not dist.is_initialized():
        return
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SummedBatchNorm2d  # the same parameters and buffers, another forward


class SummedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose mean and variance are sums over all processes, differentiable through the sums."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not self.training:
            return super().forward(input)
        from torch.distributed.nn.functional import all_reduce

        x = input.float()
        count = sum_over_processes(x.new_tensor(x.numel() / x.shape[1]))
        mean = all_reduce(x.sum(dim=(0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = all_reduce(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.detach(), momentum)
            self.running_var.lerp_(variance.detach() * (count / (count - 1)), momentum)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)
