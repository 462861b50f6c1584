"""DANet: train, evaluate and take apart the Dual Attention Network for scene segmentation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from danet.inference.predictor import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`danet.load`, imported when it is first used: it takes PyTorch along."""
    if name == "load":
        from danet.inference.predictor import load

        return load
    raise AttributeError(f"module 'danet' has no attribute {name!r}")
