"""Recompute activations in the backward pass: less memory, somewhat more time, the same values."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts


def recomputed(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`block(x)`; in training it keeps the values that were costly for their size and recomputes the others."""
    if not (block.training and torch.is_grad_enabled()):
        return block(x)
    contexts = functools.partial(_contexts, block)
    if torch.compiler.is_compiling():  # the compiled backward pass leaves out what changes buffers
        contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


Context = contextlib.AbstractContextManager[Any]


def _contexts(block: nn.Module) -> tuple[Context, Context]:
    """Of the first computation, and of the second."""
    keeping, kept = create_selective_checkpoint_contexts(_policy)
    return keeping, _second_time(block, kept)


def _policy(_: Any, operator: Any, *inputs: Any, **__: Any) -> CheckpointPolicy:
    """Keep what a convolution makes of many channels or with a large kernel: many products for each value.

    So of a bottleneck's three convolutions, with 4, 9 and 1 products, the last is computed again: it is a quarter of
    the block's work, and its values are two thirds of what the three make.
    """
    if operator is torch.ops.aten.convolution.default:
        weight = inputs[1]
        if weight[0].numel() > len(weight):
            return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


@contextlib.contextmanager
def _second_time(block: nn.Module, kept: Context) -> Iterator[None]:
    """The batch has entered the running statistics already, when the block was computed for the first time."""
    layers = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.momentum, layer.num_batches_tracked = 0.0, layer.num_batches_tracked.clone()  # type: ignore[union-attr]
    try:
        with kept:
            yield
    finally:  # PyTorch leaves by an exception when it has recomputed what it needs
        for layer, (momentum, count) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, count


def count_batches_once(network: nn.Module) -> None:
    """Let a batch enter running statistics once in a network that recomputes by code that does not see to it itself.

    A layer's second call since the network's last one is the backward pass's, and leaves the statistics alone.
    """
    computed: set[nn.Module] = set()

    def begin(*_: Any) -> None:
        computed.clear()

    def choose_momentum(usual: float | None, layer: Any, _: Any) -> None:
        layer.momentum = 0.0 if layer in computed else usual
        computed.add(layer)

    network.register_forward_pre_hook(begin)
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.register_forward_pre_hook(functools.partial(choose_momentum, layer.momentum))
