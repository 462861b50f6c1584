"""A process's share of a split."""

from danet.data.loader import evaluation_loader
from danet.interfaces import SegmentationDataset
from danet.services.compute import Compute


class Share:
    """A process's share of a split, to be scored any number of times; the processes that load it stay.

    Args:
        dataset: the split.
        compute: where and in which precision, and which of several processes, each of which takes its share.
        batch_size: images at a time, which must then be of one size.
        max_images: of the split, only the first so many.
        num_workers: processes that load images.

    Attributes:
        num_images: of all processes.
        indices: of this process's images in the split.
        loader: gives them in this order.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        *,
        compute: Compute,
        batch_size: int = 1,
        max_images: int | None = None,
        num_workers: int = 0,
    ) -> None:
        self.dataset, self.compute = dataset, compute
        self.num_images = min(len(dataset), max_images or len(dataset))
        self.indices = range(compute.world.rank, self.num_images, compute.world.size)
        self.loader = evaluation_loader(
            dataset, self.indices, batch_size=batch_size, num_workers=num_workers, device=compute.device
        )
