"""Where a training step's time goes: PyTorch's profiler over one step of ours, by operator."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from danet.ops.flops import flop_counter
from danet_benchmark import trainers
from danet_benchmark.networks import Context
from danet_benchmark.timing import release_memory, wait

SHOWN = 12


def rows(context: Context) -> Iterator[dict[str, Any]]:
    """A row for each of the operators that take most time, the largest first, and one for all others.

    Time is the operator's own, without that of those it calls; the operators that carry out one operation, such as a
    convolution's variants, are one row. "operations" are those of convolutions and matrix products, a multiply-add
    counting as two.
    """
    settings = context.config.training
    release_memory()
    work = context.work(settings.size, settings.batch_size, settings.num_classes[0])
    trainer = trainers.ours(context.danet, work)
    trainer.parts.enabled = False
    if context.device.type == "cuda":
        for _ in range(3):
            trainer.step()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if context.device.type == "cuda" else [])
    with profile(activities=activities) as profiler:
        trainer.step()
        wait(context.device)
    seconds, calls = _own_time(profiler, context.device)
    with flop_counter() as counter:  # in a step of its own, which it slows
        trainer.step()
    operations: Counter[str] = Counter()
    for operator, count in counter.get_flop_counts()["Global"].items():
        operations[_operator(str(operator).replace(".", "::"))] += count
    rate = context.machine["matmul"].get(str(work.dtype).removeprefix("torch."))
    total = sum(seconds.values())
    largest = [name for name, _ in seconds.most_common(SHOWN)]
    for name in largest:
        reached = operations[name] / seconds[name] if operations[name] and seconds[name] else None
        yield {
            "name": name,
            "median": seconds[name],
            "share": seconds[name] / total,
            "calls": calls[name],
            "operations": operations[name] or None,
            "rate": reached,
            "of_matmul": reached / rate if reached and rate else None,
        }
    rest = total - sum(seconds[name] for name in largest)
    yield {"name": "all others", "median": rest, "share": rest / total, "calls": None, "operations": None}


def _own_time(profiler: Any, device: torch.device) -> tuple[Any, Counter[str]]:
    """Seconds and calls by operator."""
    seconds: Any = Counter()  # of float
    calls: Counter[str] = Counter()
    for event in profiler.key_averages():
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        if device.type == "cuda" and not event.key.startswith(("aten::", "danet::")):
            continue  # kernels, whose time their operators have
        name = _operator(event.key)
        seconds[name] += own / 1e6
        calls[name] = max(calls[name], event.count)
    return seconds, calls


# Operators by the operation that they are part of.
SAME = {
    **dict.fromkeys(("conv2d", "_convolution", "mkldnn_convolution", "cudnn_convolution"), "convolution"),
    **dict.fromkeys(("thnn_conv2d", "_slow_conv2d_forward"), "convolution"),
    "_slow_conv2d_backward": "convolution_backward",
    **dict.fromkeys(("baddbmm", "baddbmm_", "matmul", "mm", "blocked_attention", "blocked_attention_backward"), "bmm"),
    **dict.fromkeys(("native_batch_norm", "_batch_norm_impl_index", "cudnn_batch_norm"), "batch_norm"),
    **dict.fromkeys(("native_batch_norm_backward", "cudnn_batch_norm_backward"), "batch_norm_backward"),
    "add_": "add",
    "mul_": "mul",
}


def _operator(name: str) -> str:
    """Such as "convolution" for "aten::mkldnn_convolution"."""
    namespace, _, short = name.rpartition("::")
    return SAME.get(short, short) if namespace in ("aten", "danet") else name
