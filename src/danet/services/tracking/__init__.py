"""Mirrors of a run: Weights & Biases and TensorBoard. Only this folder imports wandb."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from danet.services.tracking.tensorboard_mirror import TensorBoardMirror
    from danet.services.tracking.wandb_mirror import WandbMirror


def open_mirror(*, mode: str, **options: Any) -> "WandbMirror | TensorBoardMirror":
    """Open the record that `mode` names: "tensorboard", or a mode of WandbMirror, which says what the options are."""
    if mode == "tensorboard":
        from danet.services.tracking.tensorboard_mirror import TensorBoardMirror

        return TensorBoardMirror(**options)
    from danet.services.tracking.wandb_mirror import WandbMirror

    return WandbMirror(mode=mode, **options)  # type: ignore[arg-type]  # checked with the configuration
