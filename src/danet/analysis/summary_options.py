"""The options of summary.py, in a module that does not import PyTorch, so that they are checked at once."""

from dataclasses import dataclass, field
from typing import Literal

from danet.arguments import PositiveInt
from danet.config.sections import DeviceConfig, ImageSize, ModelSource


@dataclass(frozen=True, kw_only=True)
class SummaryConfig(ModelSource):
    """Options of src/summary.py: a model, trained or not, and its images."""

    num_classes: PositiveInt | None = None  # None: the trained model's, otherwise 19
    auxiliary_head: bool = False
    size: ImageSize = (1024, 2048)  # of the images, [height, width] in pixels
    batch_size: PositiveInt = 1
    measure: bool = False  # also measure latency and peak memory
    runs: PositiveInt = 10  # timed runs; their median is reported
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # for measure
    output: str | None = None  # JSON file for the results
    runtime: DeviceConfig = field(default_factory=DeviceConfig)

    def problems(self) -> list[str]:
        """Problems between the keys, a line each."""
        trained = [key for key in ("run", "checkpoint") if getattr(self, key) is not None]
        if len(trained) == 2 or not (trained or (self.backbone and self.head)):
            return ["no model given: use run=outputs/DATE/RUN, or checkpoint=FILE, or backbone=resnet50 head=danet"]
        if trained and (self.num_classes or self.auxiliary_head):
            source = f"{trained[0]}={getattr(self, trained[0])}"
            return [f"num_classes, auxiliary_head: only valid for an untrained model; {source} has its own"]
        return []
