"""What every section is given."""

from dataclasses import dataclass
from typing import Any

import torch

from danet_benchmark.networks import DANet, Work
from danet_benchmark.settings import BenchmarkConfig


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
