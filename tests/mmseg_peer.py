"""mmsegmentation's own DANet as a reference, without the compiled operations that its package asks for.

DANet needs none of them: where other heads import them, something stands in. `mmsegmentation` and `mmcv-lite` have to
be installed; without them the tests that ask for these modules are skipped.
"""

import importlib.util
import sys
import warnings
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

# What mmseg imports and DANet does not use: compiled operations, the text encoders' libraries.
STAND_INS = ("mmcv.ops", "regex", "ftfy")

BATCH_NORM = {"type": "BN", "requires_grad": True}


def mmseg_models() -> ModuleType:
    """The module mmseg.models; skips the test where the packages are missing."""
    for name in ("mmengine", "mmcv", "mmseg"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    added = [name for name in STAND_INS if name not in sys.modules]
    for name in added:
        sys.modules[name] = MagicMock()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mmseg.models
    finally:
        for name in added:
            del sys.modules[name]
    return mmseg.models


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
        "norm_cfg": BATCH_NORM,
        "align_corners": False,
    }
    return _build(mmseg_models().decode_heads.DAHead, settings | options)


def segmentor_settings(
    num_classes: int, *, depth: int = 50, backbone: Any = None, auxiliary: bool = True, align_corners: bool = False
) -> dict[str, Any]:
    """The "model" section of mmsegmentation's danet_r50-d8.

    Args:
        num_classes: K.
        depth: of the ResNetV1c.
        backbone: further options of the backbone, such as {"multi_grid": (4, 8, 16)} or {"type": "ResNet"}.
        auxiliary: whether there is the FCN head on the third stage.
        align_corners: of both heads.
    """
    width = 512 if depth < 50 else 2048
    common = {"num_classes": num_classes, "norm_cfg": BATCH_NORM, "align_corners": align_corners}
    settings: dict[str, Any] = {
        "backbone": {
            "type": "ResNetV1c",
            "depth": depth,
            "num_stages": 4,
            "out_indices": (0, 1, 2, 3),
            "dilations": (1, 1, 2, 4),
            "strides": (1, 2, 1, 1),
            "norm_cfg": BATCH_NORM,
            "style": "pytorch",
            "contract_dilation": True,
            **(backbone or {}),
        },
        "decode_head": {
            "type": "DAHead",
            "in_channels": width,
            "in_index": 3,
            "channels": width // 4,
            "pam_channels": width // 32,
            **common,
        },
        "test_cfg": {"mode": "whole"},
    }
    if auxiliary:
        settings["auxiliary_head"] = {
            "type": "FCNHead",
            "in_channels": width // 2,
            "in_index": 2,
            "channels": width // 8,
            "num_convs": 1,
            "concat_input": False,
            **common,
        }
    return settings


def build_segmentor(num_classes: int, **options: Any) -> nn.Module:
    """mmsegmentation's EncoderDecoder with the random weights it starts from; arguments of `segmentor_settings`."""
    return _build(mmseg_models().EncoderDecoder, segmentor_settings(num_classes, **options))


def _build(kind: type[nn.Module], settings: dict[str, Any]) -> nn.Module:
    with warnings.catch_warnings():  # about its own deprecations
        warnings.simplefilter("ignore")
        return kind(**settings)


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor of a model a random value that keeps activations moderate; gammas are not 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.fill_(7)
        elif name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif value.ndim == 1 and name.endswith("weight"):  # of a normalisation
            value.copy_(0.2 + 0.2 * torch.rand(value.shape, generator=generator))
        elif value.ndim == 4:
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5)
        else:
            value.copy_(0.2 * torch.randn(value.shape, generator=generator) + (0.5 if "gamma" in name else 0.0))
    return model
