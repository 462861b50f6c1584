"""Check a configuration against the images and labels of its data."""

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danet.schema import ConfigError

if TYPE_CHECKING:
    from danet.config.run_config import RunConfig
    from danet.data.check import CheckedFiles
    from danet.interfaces import SegmentationDataset

NARROW = 64  # pixels; only images up to this width can have a feature map one pixel wide before a last stride


def check_data(
    config: "RunConfig",
    train_set: "SegmentationDataset",
    eval_set: "SegmentationDataset",
    *,
    processes: int,
    cache_dir: Path,
) -> "Mapping[str, CheckedFiles | None]":
    """Open every file of both splits, and see whether what is configured can be done with them.

    Args:
        config: the run.
        train_set: the split to train on.
        eval_set: the split to score.
        processes: that train together.
        cache_dir: where the check's results are kept.

    Returns:
        What was counted, by split; None for a generated one.

    Raises:
        DataError: files are missing or damaged, or a transform fails on images of their size.
        ConfigError: lists what does not fit together.
    """
    from danet.data import batch_sizes, check

    splits: dict[str, SegmentationDataset] = {"train": train_set, config.evaluate.split: eval_set}
    reports = check.check_splits(splits, cache_dir=cache_dir, workers=config.runtime.num_workers)
    images = {split: batch_sizes.images_of(dataset, reports[split]) for split, dataset in splits.items()}
    evaluate, parts = config.evaluate, processes * config.train.accumulate_steps
    sizes = batch_sizes.sizes_in_training(images["train"], config.augment, config.in_channels)
    problems = [
        _label_problem(config, train_set, reports["train"]),
        batch_sizes.mixed_evaluation_batch(
            images[evaluate.split],
            batch_size=evaluate.batch_size,
            max_images=evaluate.max_images,
            processes=processes,
        ),
    ]
    at_once = max(1, config.train.batch_size // parts)
    if at_once > 1 and (mixed := batch_sizes.mixed_training_batch(sizes)):
        problems.append(
            f"train.batch_size = {config.train.batch_size}: images of different sizes would be in one batch ({mixed}); "
            f"take an augment that crops all to one size, such as augment=crop, or train.batch_size={parts}"
        )
    if at_once * (processes if config.train.sync_batchnorm else 1) == 1:
        problems += _single_value_problems(config, len(eval_set.class_names), set().union(*sizes.values()))
    problems += _narrow_map_problems(config, len(eval_set.class_names), set().union(*sizes.values()))
    problems += _repeat_problems(config, train_set, cache_dir)
    if problems := [problem for problem in problems if problem]:
        raise ConfigError(problems)
    return reports


def _repeat_problems(config: "RunConfig", train_set: "SegmentationDataset", cache_dir: Path) -> list[str]:
    """A line if images cannot be repeated as configured. The classes in the images are known then, to all processes."""
    from danet.data.rare_classes import factors_of

    try:
        factors_of(config.train, train_set, cache_dir=cache_dir, workers=config.runtime.num_workers)
    except ValueError as error:
        return [str(error)]
    return []


def _label_problem(config: "RunConfig", train_set: "SegmentationDataset", report: "CheckedFiles | None") -> str:
    """A line if the training labels teach nothing; empty otherwise."""
    from danet.data.check import one_class_problem

    if problem := one_class_problem(train_set, report):
        return f"dataset {config.dataset['name']}, train: {problem}"
    weights = config.loss.get("class_weights")
    if report is None or not isinstance(weights, list):
        return ""
    if any(weight for weight, pixels in zip(weights, report.class_pixels, strict=True) if pixels):
        return ""
    return "loss.class_weights: all are 0 for the classes in the training labels; nothing would train"


def _single_value_problems(config: "RunConfig", num_classes: int, sizes: set[tuple[int, int]]) -> list[str]:
    """A line if one image at a time leaves a normalization with a single value per channel, which has no variance.

    The network is run without memory or arithmetic, on the smallest images.
    """
    import torch

    for height, width in sorted({min(sizes, key=max), min(sizes, key=min), min(sizes, key=math.prod)}):
        try:
            with torch.device("meta"):
                untrained_model(config, num_classes)(torch.zeros(1, config.in_channels, height, width))
        except ValueError as error:
            if "more than 1" not in str(error):
                continue
            at_once = "train.batch_size / (processes * train.accumulate_steps)"
            return [
                f"train.batch_size = {config.train.batch_size}: with one image of {width}x{height} pixels at a time "
                f"({at_once} = 1), batch norm cannot train ({error}); take larger crops or batches, or a smaller "
                "backbone.output_stride"
            ]
        except Exception:  # such as of a component that needs real values; what is wrong shows when it is built
            continue
    return []


def untrained_model(config: "RunConfig", num_classes: int) -> Any:
    """The model in training, without weights of a file; on the meta device it has neither memory nor arithmetic."""
    from danet.model import build_model

    backbone = {key: False if key == "pretrained" else value for key, value in config.backbone.items()}
    options: dict[str, Any] = {"auxiliary_head": config.auxiliary_head, "in_channels": config.in_channels}
    return build_model(backbone, config.head, num_classes, **options).train()


def _narrow_map_problems(config: "RunConfig", num_classes: int, sizes: set[tuple[int, int]]) -> list[str]:
    """A line if a strided convolution would see a map one pixel wide in bfloat16 on a CPU.

    In PyTorch 2.14 the gradient of its weight holds what memory held before. tests/test_data_problems.py tells if a
    version can do without this check.
    """
    import torch

    from danet.services import hardware

    device = hardware.select_device(config.runtime.device)
    height, width = min(sizes, key=lambda size: size[1])
    dtype = hardware.autocast_dtype(config.train.precision, device)
    if device.type != "cpu" or dtype != torch.bfloat16 or width > NARROW:
        return []
    found: list[str] = []

    def note(module: Any, inputs: tuple[Any, ...]) -> None:
        if inputs[0].shape[-1] == 1:
            found.append(f"{module.kernel_size[0]}x{module.kernel_size[1]}")

    with torch.device("meta"), contextlib.suppress(Exception):  # what fails here is told where the model is built
        model = untrained_model(config, num_classes)
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d) and module.stride[1] > 1 < module.kernel_size[1]:
                module.register_forward_pre_hook(note)
        model(torch.zeros(2, config.in_channels, height, width))
    if not found:
        return []
    return [
        f"train.precision = {config.train.precision!r}: on images of {width}x{height} pixels a {found[0]} convolution "
        "of stride 2 sees a map one pixel wide, for which a CPU's gradients in bfloat16 are wrong; set "
        "train.precision=fp32, or take larger crops"
    ]
