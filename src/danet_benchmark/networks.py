"""Whole models, ours and others', and the work that they are to do.

Shapes: B images, H x W image size, K classes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from danet.interfaces import IGNORE, IMAGENET_MEAN, IMAGENET_STD
from danet.model import Segmenter, build_model
from danet_benchmark import peers
from danet_benchmark.settings import BenchmarkConfig


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done.

    Attributes:
        device: that computes.
        dtype: for matrix products and convolutions; float32 means no autocast.
        size: H, W.
        batch_size: B.
        num_classes: K.
    """

    device: torch.device
    dtype: torch.dtype
    size: tuple[int, int]
    batch_size: int
    num_classes: int

    def autocast(self) -> torch.autocast:
        """The context to compute in."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def batch(self, size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Random images (B, 3, H, W) and labels (B, H, W), both uint8; every twentieth pixel or so has no class."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, *(size or self.size))
        images = torch.randint(0, 256, (shape[0], 3, *shape[1:]), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, self.num_classes, shape, dtype=torch.uint8, generator=generator)
        return images, labels.masked_fill(torch.rand(shape, generator=generator) < 0.05, IGNORE)


@dataclass(frozen=True, kw_only=True)
class DANet:
    """Our configuration sections."""

    backbone: dict[str, Any]
    head: dict[str, Any]
    loss: dict[str, Any]
    optimizer: dict[str, Any]
    auxiliary_head: bool

    def build(self, num_classes: int) -> Segmenter:
        """The model as its configuration says."""
        return build_model(self.backbone, self.head, num_classes, auxiliary_head=self.auxiliary_head)

    @property
    def depth(self) -> int:
        """Of the ResNet, for the peers."""
        return int("".join(filter(str.isdigit, self.backbone["name"])) or 0)


@dataclass(frozen=True, kw_only=True)
class Context:
    """The benchmark's configuration, and what follows from it.

    Attributes:
        config: as given.
        device: that is measured.
        dtype: what matrix products and convolutions compute in, unless a contestant says otherwise.
        machine: of machine.py.
    """

    config: BenchmarkConfig
    device: torch.device
    dtype: torch.dtype
    machine: dict[str, Any]

    @property
    def danet(self) -> DANet:
        """Our network."""
        config = self.config
        return DANet(
            backbone=config.backbone,
            head=config.head,
            loss=config.loss,
            optimizer=config.optimizer,
            auxiliary_head=config.auxiliary_head,
        )

    def work(self, size: Any, batch_size: int = 1, num_classes: int = 19, dtype: torch.dtype | None = None) -> Work:
        """Work on this device."""
        return Work(
            device=self.device,
            dtype=dtype or self.dtype,
            size=(size[0], size[1]),
            batch_size=batch_size,
            num_classes=num_classes,
        )


def normalized(image: Tensor, work: Work) -> Tensor:
    """(B, 3, H, W) uint8 in main memory -> floating point on the device, as pretrained backbones want it."""
    mean, std = (torch.tensor(x, device=work.device).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (image.to(work.device, non_blocking=True).float() - mean) / std


def wake(model: nn.Module) -> nn.Module:
    """Give the attentions' gammas a value: at 0, where they start, the gradients behind them are all 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gamma" in name:
                parameter.fill_(0.5)
    return model


def mmseg(danet: DANet, work: Work) -> Any:
    """Mmsegmentation's DANet."""
    model: Any = peers.mmseg_segmentor(work.num_classes, depth=danet.depth, auxiliary=danet.auxiliary_head)
    model.test_cfg = peers.mmseg_module("mmengine.config").ConfigDict(mode="whole")
    return wake(model).to(work.device)


def official(danet: DANet, work: Work) -> Any:
    """The official network, its formulas written plainly."""
    return wake(peers.OfficialDANet(danet.depth, work.num_classes)).to(work.device)


def smp(danet: DANet, work: Work) -> nn.Module:
    """segmentation-models-pytorch's DeepLabV3."""
    from segmentation_models_pytorch import DeepLabV3

    options: dict[str, Any] = {"encoder_weights": None, "encoder_output_stride": 8}
    return DeepLabV3(f"resnet{danet.depth}", classes=work.num_classes, **options).to(work.device)


def torchvision(danet: DANet, work: Work) -> nn.Module:
    """Torchvision's DeepLabV3, with its auxiliary classifier."""
    from torchvision.models import get_model

    options: dict[str, Any] = {"weights": None, "weights_backbone": None, "aux_loss": True}
    return get_model(f"deeplabv3_resnet{danet.depth}", num_classes=work.num_classes, **options).to(work.device)


def tensors(outputs: Any) -> list[Tensor]:
    """The logits that one of these models gives, the main ones first."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return list(outputs.values() if isinstance(outputs, dict) else outputs)
