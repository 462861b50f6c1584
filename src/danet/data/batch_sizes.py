"""Whether images fit into the batches of a run, told before it starts: those of one batch have one size.

Images that are too small for the augmentation are found here, too.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from danet.data.augment import Size, output_sizes
from danet.data.check import CheckedFiles, DataError, OnDisk
from danet.interfaces import SegmentationDataset

FEW_SIZES = 8  # image sizes that the augmentation is tried on; if there are more, the extreme ones
FIRST_SAMPLES = 8  # samples of a generated data set that its sizes are taken from

Images = list[tuple[str, Size]]  # name, height and width


def images_of(dataset: SegmentationDataset, report: CheckedFiles | None) -> Images:
    """Names and sizes of a split's images; for a generated data set, which is not checked, only the first few."""
    if report is None:
        samples = [dataset[index] for index in range(min(len(dataset), FIRST_SAMPLES))]
        return [(sample.name, (sample.label.shape[0], sample.label.shape[1])) for sample in samples]
    files = cast(OnDisk, dataset).files
    return [(pair.name, size) for pair, size in zip(files, report.image_sizes(), strict=True)]


def mixed_evaluation_batch(images: Images, *, batch_size: int, max_images: int | None, processes: int) -> str:
    """A line if images of different sizes would be scored in one batch; empty otherwise.

    Args:
        images: images of the split, in its order.
        batch_size: number of images per batch.
        max_images: number of images that are scored, the first ones; None for all.
        processes: number of processes; process r scores every `processes`-th image from r.
    """
    scored = images[:max_images]
    for rank in range(processes):
        share = scored[rank::processes]
        for first in range(0, len(share), batch_size):
            batch = share[first : first + batch_size]
            if len({size for _, size in batch}) > 1:
                return (
                    f"evaluate.batch_size = {batch_size}: images of different sizes would be in one batch "
                    f"({_listed(batch)}); set it to 1"
                )
    return ""


def sizes_in_training(images: Images, augment: dict[str, Any], channels: int = 3) -> dict[str, set[Size]]:
    """The image sizes after augmentation, by the name of one image of each size that is tried.

    Args:
        images: images of the training split.
        augment: the `augment` section.
        channels: number of image channels.

    Raises:
        DataError: a transform fails on images of some size.
    """
    examples = {size: name for name, size in reversed(images)}  # the first of each size
    sizes_out = {}
    for size in _extremes(list(examples)):
        try:
            sizes_out[examples[size]] = output_sizes(augment, size, channels)
        except ValueError as error:
            raise DataError(f"{examples[size]}, {size[1]}x{size[0]} pixels: {error}") from error
    return sizes_out


def _extremes(sizes: Sequence[Size]) -> list[Size]:
    """Representative sizes, the smallest first."""
    if len(sizes) > FEW_SIZES:
        areas = sorted(sizes, key=lambda size: size[0] * size[1])
        heights, widths = sorted(sizes), sorted(sizes, key=lambda size: size[::-1])
        sizes = [end for line in (areas, heights, widths) for end in (line[0], line[-1])]
    return sorted(set(sizes), key=lambda size: (size[0] * size[1], size))


def mixed_training_batch(sizes: Mapping[str, set[Size]]) -> str:
    """A line that names images that cannot share a batch; empty if all can.

    Args:
        sizes: as `sizes_in_training` gives them.
    """
    if len(set[Size]().union(*sizes.values())) < 2:
        return ""
    return _listed([(name, size) for name, several in sizes.items() for size in sorted(several)])


def _listed(images: Images) -> str:
    """Names and sizes, one of each size, and only the first few if there are many."""
    examples = {size: f"{name} {size[1]}x{size[0]}" for name, size in reversed(images)}
    shown = list(examples.values())[::-1]
    return ", ".join([*shown[:4], *(["..."] if len(shown) > 4 else [])])
