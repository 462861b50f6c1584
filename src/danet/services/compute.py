"""Where and in which precision a process computes, and which of how many processes it is."""

import contextlib
from dataclasses import dataclass

import torch

from danet.services import hardware
from danet.services.distributed import World


@dataclass(frozen=True)
class Compute:
    """A process's device, precision and place among the others.

    Attributes:
        device: where to compute.
        dtype: of autocast; float32 means none.
        world: this process among several.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    world: World = World()

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Context in which PyTorch computes in `dtype` where that is safe."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def describe(self) -> str:
        """The device and the precision in words, such as "cpu (8 cores), bfloat16"."""
        return f"{hardware.describe(self.device)}, {str(self.dtype).removeprefix('torch.')}"
