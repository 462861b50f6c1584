"""The options of attention.py, in a module that does not import PyTorch, so that they are checked at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from danet.arguments import ExistingFile, ExistingPath, Folder, NonNegativeInt, PositiveFloat, PositiveInt, Text
from danet.config.sections import DeviceConfig, ModelSource

Pixel = Annotated[Sequence[NonNegativeInt], Field(min_length=2, max_length=2)]  # [row, column]

Channels = Annotated[Sequence[NonNegativeInt], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class PointsConfig:
    """Additional points, and the size limit of a page."""

    every_class: bool = False  # a point in each predicted class; the default without points
    max_classes: PositiveInt = 12  # most points added; largest regions first
    page_size: PositiveFloat = 40  # most megabytes of a page


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(ModelSource):
    """Options of src/attention.py."""

    compare: Sequence[ExistingPath] = ()  # other models on the page: runs, weights, folders of weights, sweeps
    image: ExistingFile | Sequence[ExistingFile] | None = None
    label: ExistingFile | None = None  # truth of `image`: an index PNG of train ids, 255 is ignored
    sample: Text | None = None  # instead of image: name or index of a sample of the data set; several, comma-separated
    dataset: dict[str, Any] | None = None
    split: Literal["val", "test", "train"] = "val"
    points: Sequence[Pixel] = ()
    channels: Channels | None = None  # of CAM's output; null: see attention_maps
    output: Folder | None = None  # null: RUN/attention/NAME, or attention_NAME here
    page: Folder | None = None  # write an interactive page instead: a file .html, or a folder for NAME.html
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    attention: PointsConfig = field(default_factory=PointsConfig)
    runtime: DeviceConfig = field(default_factory=DeviceConfig)

    def problems(self) -> list[str]:
        """Problems between the keys, a line each."""
        lines = super().problems()
        if (self.image is None) == (self.sample is None):
            lines.append("image, sample: set exactly one, such as image=photo.jpg or sample=3")
        if self.label is not None and self.image is None:
            lines.append("label: only valid with image=FILE; a sample has its own label")
        if self.label is not None and len(self.images) > 1:
            lines.append("label: belongs to one image; use sample=0,1 for several images with their labels")
        if self.sample is not None and self.dataset is None:
            lines.append("sample: needs a data set; add dataset=NAME, or use run=FOLDER, which has one")
        if self.page is not None and self.output is not None:
            lines.append("output: only valid for a sheet; page=FILE already names the output")
        if self.page is not None and self.channels is not None:
            lines.append("channels: only valid for a sheet; a page shows all channels")
        if self.page is None and self.compare:
            lines.append("compare: only valid for a page; add page=FILE.html")
        return lines

    @property
    def images(self) -> Sequence[str]:
        """Image files to show."""
        return [self.image] if isinstance(self.image, str) else self.image or []
