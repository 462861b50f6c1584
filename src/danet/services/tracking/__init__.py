"""Mirrors of a run: Weights & Biases and TensorBoard. Only this folder imports wandb."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from danet.services.tracking.tensorboard_mirror import TensorBoardMirror
    from danet.services.tracking.wandb_mirror import WandbMirror


def open_mirror(*, mode: str, step: int | None = None, **options: Any) -> "WandbMirror | TensorBoardMirror":
    """Open a run's record.

    Args:
        mode: "tensorboard", or a mode of WandbMirror.
        step: optimizer step that the run continues from, if it has steps.
        options: WandbMirror's arguments.
    """
    if mode == "tensorboard":
        from danet.services.tracking.tensorboard_mirror import TensorBoardMirror

        return TensorBoardMirror(step=step, **options)
    from danet.services.tracking.wandb_mirror import WandbMirror

    return WandbMirror(mode=mode, **options)  # type: ignore[arg-type]  # checked with the configuration
