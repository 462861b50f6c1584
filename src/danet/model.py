"""The model: backbone and head joined, with initial values that depend only on the seed and a layer's name.

Shapes: B images, H x W image size, h x w size of the backbone's last feature map, K classes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from danet.interfaces import Stage
from danet.ops.input_channels import take_channels
from danet.ops.strided_pointwise import stride_by_slices
from danet.registry import BACKBONES, HEADS


class Segmenter(nn.Module):
    """Images in, logits out.

    Args:
        backbone: see interfaces.Backbone.
        head: see interfaces.Head.
        auxiliary: a head on all stages but the last, used in training only.

    Attributes:
        num_classes: K.
        in_channels: of the images.
        align_corners: how the logits are to be resized, as the head says.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: Any, head: Any, auxiliary: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.auxiliary = auxiliary
        self.num_classes: int = head.num_classes
        self.in_channels = len(backbone.mean)
        self.align_corners: bool = head.align_corners
        self.register_buffer("mean", torch.tensor(backbone.mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (B, in_channels, H, W), uint8 or floating point in 0..255 -> logits (B, K, h, w) by name.

        "main" always; in training also what the head adds ("pam", "cam"; of whole images (B, K)) and "aux". They stay
        at the head's resolution: losses and predictions resize them.
        """
        features = self.backbone((image.to(self.mean.dtype) - self.mean) / self.std)
        logits = self.head(features)
        if self.training and self.auxiliary is not None:
            logits["aux"] = self.auxiliary(features[:-1])["main"]
        return logits

    @torch.no_grad()
    def segment(self, image: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """The likeliest class of each pixel: (B, 3, H, W) -> (B, *size) int64; `size` None is the image's."""
        logits = self(image)["main"].float()
        size = size or (image.shape[-2], image.shape[-1])
        return F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners).argmax(dim=1)


def build_model(
    backbone: Mapping[str, Any],
    head: Mapping[str, Any],
    num_classes: int,
    *,
    auxiliary_head: bool = False,
    seed: int = 0,
    in_channels: int = 3,
    normalization: Mapping[str, Sequence[float]] | None = None,
) -> Segmenter:
    """A segmenter from two configuration sections; the global random state stays as it was.

    The backbone's initial values depend on the seed; those of a layer in a head on the seed and the layer's
    name. So models that share a layer start with the same values in it, whatever else they have, and variants
    of a head can be compared in pairs.

    Args:
        backbone: {"name": ..., option: value, ...}.
        head: likewise.
        num_classes: K.
        auxiliary_head: whether an FCN head on the third stage takes part in training, with the head's `dropout` where
            it has that key.
        seed: of the initial values.
        in_channels: of the images; another number than 3 changes the backbone's first convolution (take_channels).
        normalization: "mean" and "std" by channel that take the place of the backbone's own.

    Raises:
        KeyError: a name is not registered.
        ValueError: a component refuses its options.
    """
    # Initial values are drawn on the CPU; torch.manual_seed would also reseed the accelerators.
    generator = torch.default_generator
    with torch.random.fork_rng(devices=[]):
        generator.manual_seed(seed)
        body = BACKBONES.build(backbone)
        if in_channels != body.in_channels:
            take_channels(body, in_channels)
        if normalization:
            body.mean, body.std = tuple(normalization["mean"]), tuple(normalization["std"])
        stages = stages_of(body)
        auxiliary = {"name": "fcn", **{key: head[key] for key in ("dropout",) if key in head}}
        model = Segmenter(
            body,
            HEADS.build(head, stages, num_classes),
            HEADS.build(auxiliary, stages[:-1], num_classes) if auxiliary_head else None,
        )
        for name, module in model.named_modules():
            if not name.startswith("backbone") and hasattr(module, "reset_parameters"):
                generator.manual_seed(_keyed_seed(seed, name))
                module.reset_parameters()
        if hasattr(model.head, "init_weights"):
            generator.manual_seed(_keyed_seed(seed, "head.init_weights"))
            model.head.init_weights()
    stride_by_slices(model)
    return model


def stages_of(backbone: Any) -> tuple[Stage, ...]:
    """What a head is built for: the backbone's feature maps, fine to coarse."""
    return tuple(Stage(*stage) for stage in zip(backbone.out_channels, backbone.strides, strict=True))


def _keyed_seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big")
