"""The device and precision of a process, and its rank among all processes."""

import contextlib
from dataclasses import dataclass

import torch

from danet.services import hardware
from danet.services.distributed import World


@dataclass(frozen=True)
class Compute:
    """The device, precision and rank of a process.

    Attributes:
        device: device to compute on.
        dtype: autocast's type; float32 means no autocast.
        world: rank of this process and number of processes.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    world: World = World()

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Context in which PyTorch computes in `dtype` wherever that is safe (autocast)."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def describe(self) -> str:
        """The device and the precision in words, such as "cpu (8 cores), bfloat16"."""
        return f"{hardware.describe(self.device)}, {str(self.dtype).removeprefix('torch.')}"
