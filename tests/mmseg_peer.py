"""mmsegmentation's own DANet as a reference; danet_benchmark.peers imports it.

`mmsegmentation` and `mmcv-lite` have to be installed; without them the tests that ask for these modules are skipped.
"""

import importlib.util
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from danet_benchmark import peers
from danet_benchmark.peers import mmseg_settings as segmentor_settings

__all__ = ["build", "build_head", "build_segmentor", "mmseg_models", "randomize", "segmentor_settings"]


def mmseg_models() -> ModuleType:
    """The module mmseg.models; skips the test where the packages are missing."""
    for name in ("mmengine", "mmcv", "mmseg"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    return peers.mmseg_module()


def build_head(num_classes: int, *, in_channels: int = 2048, **options: Any) -> nn.Module:
    """mmsegmentation's DAHead with a quarter of the channels inside, as in its configurations."""
    channels = in_channels // 4
    settings: dict[str, Any] = {
        "in_channels": in_channels,
        "in_index": 3,
        "channels": channels,
        "pam_channels": channels // 8,
        "dropout_ratio": 0.1,
        "num_classes": num_classes,
        "norm_cfg": peers.BATCH_NORM,
        "align_corners": False,
    }
    return peers.build_mmseg(mmseg_models().decode_heads.DAHead, settings | options)


def build(kind: str, settings: dict[str, Any]) -> nn.Module:
    """One of mmsegmentation's whole models by its class, with the random weights it starts from."""
    return peers.build_mmseg(getattr(mmseg_models(), kind), settings)


def build_segmentor(num_classes: int, **options: Any) -> nn.Module:
    """mmsegmentation's EncoderDecoder with the random weights it starts from; arguments of `segmentor_settings`."""
    mmseg_models()
    return peers.mmseg_segmentor(num_classes, **options)


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor of a model a random value that keeps activations moderate; gammas are not 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.fill_(7)
        elif name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif value.ndim == 1 and name.endswith("weight"):  # of a normalization
            value.copy_(0.2 + 0.2 * torch.rand(value.shape, generator=generator))
        elif value.ndim == 4:
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5)
        else:
            value.copy_(0.2 * torch.randn(value.shape, generator=generator) + (0.5 if "gamma" in name else 0.0))
    return model
