"""Batch normalization over all processes of a run, on GPUs and on the CPU."""

from typing import Any, Self

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from danet.services.distributed import is_shared, sum_over_processes


def synchronize_batchnorm(model: nn.Module, device: torch.device) -> None:
    """Let `model` compute its batch statistics over all processes, in place; nothing to do with one process.

    PyTorch's own SyncBatchNorm serves GPUs and refuses the CPU, where `SummedBatchNorm` does the same.
    """
    if not is_shared():
        return
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    else:
        for parent in list(model.modules()):
            for name, module in parent.named_children():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                    setattr(parent, name, SummedBatchNorm.like(module))
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm | SummedBatchNorm) and [*module.children()]:
            module.register_forward_hook(_activated)


def _activated(layer: nn.Module, _: Any, normalized: torch.Tensor) -> torch.Tensor:
    """The result of timm's batch norms, which hold their activation as a child module."""
    for child in layer.children():
        normalized = child(normalized)
    return normalized


class _Sum(torch.autograd.Function):
    """`sum_over_processes` with a backward pass: each process's input gets the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return sum_over_processes(tensor.clone())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return sum_over_processes(gradient.clone())


class SummedBatchNorm(_BatchNorm):
    """Batch normalization whose mean and variance are sums over all processes, differentiable through the sums."""

    @classmethod
    def like(cls, layer: _BatchNorm) -> Self:
        """A layer with the parameters and buffers of another."""
        own = cls(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        for name in (*layer._parameters, *layer._buffers):
            setattr(own, name, getattr(layer, name))
        for name, child in layer.named_children():
            own.add_module(name, child)
        return own.train(layer.training)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Of any number of dimensions, as the layers that it takes the place of."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, C, ...) -> the same shape."""
        if not self.training:
            return super().forward(input)
        others = (0, *range(2, input.ndim))
        shape = (-1, *[1] * (input.ndim - 2))  # of a value for each channel
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        count = sum_over_processes(x.new_tensor(x.numel() / x.shape[1]))
        mean = _Sum.apply(x.sum(dim=others)) / count
        centered = x - mean.view(shape)
        variance = _Sum.apply(centered.square().sum(dim=others)) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.detach(), momentum)
                self.running_var.lerp_(variance.detach() * (count / (count - 1)), momentum)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            return (centered * (scale * self.weight).view(shape) + self.bias.view(shape)).to(input.dtype)
        return (centered * scale.view(shape)).to(input.dtype)
