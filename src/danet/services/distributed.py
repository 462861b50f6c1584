"""Data-parallel training with the same results as one process.

The same code runs with one process and with many: every function here is a no-op without a process group. Sums are
exact whatever the number of processes: losses and batch statistics are added up as (total, count), never averaged as
means.
"""

import contextlib
import json
import logging
import multiprocessing
import os
import re
import signal
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from danet.services import signals
from danet.services.failures import BusyError

LOST = re.compile(r"\bgloo/|NCCL|Connection (closed|reset) by peer|Broken pipe")  # in messages of the back ends


@dataclass(frozen=True)
class World:
    """The rank of this process and the number of processes."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0


def started_outside() -> bool:
    """Whether torchrun (or Slurm through it) has started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_rank() -> int:
    """Rank of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def process_group(device: torch.device, timeout: float = 30.0) -> Iterator[World]:
    """Join the process group if a launcher has started several processes; leave it at the end.

    Args:
        device: device to compute on; CUDA tensors are sent through NCCL, CPU tensors always through gloo.
        timeout: minutes that a process waits for another one.
    """
    if not started_outside() or int(os.environ["WORLD_SIZE"]) == 1:
        yield World()
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout))
    yield World(dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()  # not after an error: the others would fail and be reported first


@contextlib.contextmanager
def lost_processes_explained(timeout: float) -> Iterator[None]:
    """Turn the errors of PyTorch's back ends for a process that ended or hangs into one.

    Args:
        timeout: minutes, as given to `process_group`.

    Raises:
        ChildProcessError: replaces such an error; all others pass unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        if not dist.is_initialized() or not LOST.search(str(error)):
            raise
        raise ChildProcessError(
            f"another process of this run has ended, or has not answered for {timeout:g} minutes "
            f"(runtime.rank_timeout): {str(error).splitlines()[0]}"
        ) from error


def launch(
    function: Callable[..., Any], devices: int, *arguments: Any, expected: tuple[type[Exception], ...] = ()
) -> Any:
    """Call `function(*arguments)` in `devices` processes on this machine; return the first one's result.

    With one device, or under torchrun, call it in this process, so that breakpoints work. Signals that mean
    "stop" are passed on to the processes, which save and return.

    Args:
        function: a function at the top level of a module.
        devices: number of processes.
        arguments: arguments of the function; they must pickle.
        expected: exceptions whose message suffices; they are reported without a traceback.

    Raises:
        ChildProcessError: a process failed; has the message of the first failure.
        BusyError: that was it.
        SystemExit: a signal stopped the processes before they had anything to save; with the signals' exit code.
    """
    if devices == 1 or started_outside():
        return function(*arguments)
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the error raised below says it once
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.CRITICAL)
    _start_tracker()
    previous = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = previous or str(max(1, torch.get_num_threads() // devices))
    with tempfile.TemporaryDirectory() as folder, signals.passed_to(multiprocessing.active_children) as received:
        settings = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            monitor_interval=0.2,
            start_method="spawn",  # a fork would inherit the locks of other threads, and a GPU that it cannot use
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            signals_to_handle="SIGQUIT",  # on the others it would kill workers that are still saving
        )
        try:
            return elastic_launch(settings, _work)(function, os.getpid(), *arguments)[0]
        except ChildFailedError as error:
            if received and error.get_first_failure()[1].exitcode in (signals.EXIT_CODE, -signal.SIGTERM):
                signals.stop(received[0])
            text = _first_failure(error, Path(folder), expected)
            raise (BusyError([text]) if ": BusyError: " in text else ChildProcessError(text)) from None
        finally:
            if previous is None:
                del os.environ["OMP_NUM_THREADS"]


def _start_tracker() -> None:
    """Start Python's resource tracker so that it survives a closed terminal, as the workers do."""
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGHUP"):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        resource_tracker.ensure_running()
        signal.signal(signal.SIGHUP, before)


def _work(function: Callable[..., Any], launcher: int, *arguments: Any) -> Any:
    """What each process does."""
    with signals.ending_in_order():
        result = function(*arguments)
    if os.getppid() != launcher:
        os._exit(1)  # the launcher was killed: returning the result would block forever
    return result


def _first_failure(error: Any, folder: Path, expected: tuple[type[Exception], ...]) -> str:
    """The first failure: the other processes then fail too, at their next communication with the lost one."""
    rank, failure = error.get_first_failure()
    reports = sorted(folder.rglob("error.json"), key=lambda path: path.stat().st_mtime_ns)
    if failure.exitcode < 0 or not reports:
        return f"process {rank}: {failure.message}"
    report = json.loads(reports[0].read_text())["message"]
    text = f"process {reports[0].parent.name}: {report['message']}"
    if report["message"].split(":")[0] in _names(expected):
        return text
    return f"{text}\n{report['extraInfo']['py_callstack']}"


def _names(kinds: Iterable[type[Exception]]) -> set[str]:
    """Names of exceptions and of all their subclasses."""
    return {name for kind in kinds for name in (kind.__name__, *_names(kind.__subclasses__()))}


def is_shared() -> bool:
    """Whether several processes compute this run."""
    return dist.is_initialized()


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Sum `tensor` over all processes, in place."""
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
    """Wait until every process has reached this point."""
    if dist.is_initialized():
        dist.barrier()


def any_process(*flags: Any) -> tuple[bool, ...]:
    """Whether each flag is set in any process; with one process, the flags as they are."""
    if not dist.is_initialized():
        return tuple(bool(flag) for flag in flags)
    sums = torch.tensor([float(flag) for flag in flags])  # in memory, by gloo: no GPU waits for it
    return tuple(bool(value) for value in sum_over_processes(sums))


def wrap(model: nn.Module, device: torch.device, *, some_unused: bool = False) -> nn.Module:
    """Wrap `model` so that its gradients are averaged over all processes in the backward pass.

    Each forward pass starts from the main process's buffers (batch statistics that are not synchronized would drift
    apart), so a checkpoint of the main process is all that a resumed run needs.

    Args:
        model: model on `device`.
        device: device that it computes on.
        some_unused: whether some parameters do not contribute to the loss; they are searched for at every step.
    """
    if not dist.is_initialized():
        return model
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=some_unused)


def average_gradients(module: nn.Module) -> None:
    """Average the gradients of a module that is not wrapped over all processes, as `wrap` does in the backward pass."""
    if dist.is_initialized():
        for parameter in module.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()


def exchange_gradients(network: nn.Module, now: bool) -> contextlib.AbstractContextManager[None]:
    """Context for forward and backward; with `now=False`, gradients are only accumulated locally."""
    if isinstance(network, nn.parallel.DistributedDataParallel) and not now:
        return network.no_sync()
    return contextlib.nullcontext()


def share_buffers(model: nn.Module) -> None:
    """Give every process the main process's buffers (batch statistics that were not synchronized)."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
