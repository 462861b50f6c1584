"""The contracts between the parts of a run, and the types they exchange.

A registered component has the members of its Protocol here; nothing has to be inherited. tests/test_contracts.py holds
every registered component to them, a newcomer without an edit.

Legend: B images, H, W image height and width in pixels, h, w those of a feature map, K classes, C channels.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

IGNORE = 255  # the label of pixels that neither train nor score

# ImageNet's, in units of the 0..255 scale: what torchvision's pretrained backbones were trained on.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class Stage(NamedTuple):
    """One of the feature maps that a backbone gives.

    Attributes:
        channels: C.
        stride: image pixels per step of the feature map.
    """

    channels: int
    stride: int


class Sample(NamedTuple):
    """One labeled image.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        label: (H, W) uint8, train ids 0..K-1, or IGNORE.
        name: stable and unique within the split, without extension.
    """

    image: "np.ndarray"
    label: "np.ndarray"
    name: str


class FilePair(NamedTuple):
    """The files behind one sample.

    Attributes:
        image: path.
        label: path, or None where the file is missing.
        name: of the sample.
    """

    image: str
    label: str | None
    name: str


class Batch(NamedTuple):
    """Images of one size with their labels.

    Attributes:
        image: (B, 3, H, W) uint8, RGB.
        label: (B, H, W) uint8, train ids or IGNORE.
        names: of the samples.
    """

    image: "Tensor"
    label: "Tensor"
    names: list[str]


class LossTerm(NamedTuple):
    """A loss before its division: its value is total / count, each summed over all processes first.

    Attributes:
        total: () float32.
        count: () float32, without gradient; a term with count 0 has value 0.
        weight: factor of the value in the loss that is minimized.
    """

    total: "Tensor"
    count: "Tensor"  # type: ignore[assignment]  # hides tuple.count
    weight: float = 1.0


@runtime_checkable
class Backbone(Protocol):
    """An nn.Module that turns an image into feature maps. Its options are keyword-only parameters.

    Options that name a file of weights are annotated `ExistingFile`: their content then belongs to a run's identity. A
    backbone that can recompute its activations in the backward pass has an attribute `recompute`, False at first. One
    whose stages can learn at rates of their own (`optimizer.layer_decay`) has `layer_groups()`, see HasLayerGroups.

    Attributes:
        out_channels: channels of the feature maps, fine to coarse.
        strides: image pixels per step of each.
        in_channels: of the image.
        mean: (in_channels,) subtracted from the image, in units of the 0..255 scale.
        std: (in_channels,) divides it then.
    """

    out_channels: Sequence[int]
    strides: Sequence[int]
    in_channels: int
    mean: Sequence[float]
    std: Sequence[float]

    def forward(self, image: "Tensor") -> "list[Tensor]":
        """Normalized images (B, in_channels, H, W) -> a stage's (B, C, ceil(H / stride), ceil(W / stride)) each."""
        ...


@runtime_checkable
class HasLayerGroups(Protocol):
    """The optional part of a backbone that layer-wise learning rates and freezing need."""

    def layer_groups(self) -> "list[list[nn.Module]]":
        """Modules from the image to the last stage, stem first, one group per stage; together all of its parameters."""
        ...


@runtime_checkable
class Head(Protocol):
    """An nn.Module that turns feature maps into logits, built from `(stages, num_classes, /, *, options)`.

    Layers are reset to initial values keyed by the seed and their names, so that variants start equal in the layers
    they share. A head with initial values of its own sets them in `init_weights()`, which is called after that.

    Every output is trained, with the factor `loss.weights.NAME`: logits (B, K, h, w) by the configured loss, resized to
    the label; logits (B, K) of whole images, which classes occur in them, by binary cross entropy.

    Attributes:
        num_classes: K.
        align_corners: how the logits are to be resized.
    """

    num_classes: int
    align_corners: bool

    def forward(self, features: "Sequence[Tensor]") -> "dict[str, Tensor]":
        """Feature maps of all stages, fine to coarse -> {"main": (B, K, h, w)}; in training others, also (B, K)."""
        ...


@runtime_checkable
class HasAttention(Protocol):
    """What a head with attention to look at has besides."""

    def attention_modules(self) -> "dict[str, nn.Module]":
        """The modules whose maps can be shown, by name; each has `attention(*inputs, positions)`.

        From what `forward` is given it makes (B, P, N), the weights of all N positions for each of P positions; that of
        the channel attention, which is called "cam", takes no positions and gives (B, C, C). Where the weights are the
        softmax of query times key, `compared(*inputs)` gives those, (B, D, N) each: `forward` calls it, too, so that
        positions can be hidden by it, and the attention page keeps what it gives.
        """
        ...


@runtime_checkable
class Criterion(Protocol):
    """A loss, an nn.Module built from `(num_classes, labels, /, *, options)`; parameters of its own are trained.

    `labels()` reads the label arrays of the training split. A loss that is not a sum over images has `per_batch = True`
    and is given the batch whole, which costs memory.
    """

    def forward(self, logits: "Tensor", label: "Tensor") -> "LossTerm | Mapping[str, LossTerm]":
        """Logits (B, K, H, W) at the label's size, labels (B, H, W) -> a term, or several by name."""
        ...


@runtime_checkable
class SegmentationDataset(Protocol):
    """A split of labeled images, built from `(split, /, *, options)`: "train", "val" or "test".

    The constructor lists files and decodes none of them. It raises ValueError where the data cannot be found, saying
    where to put it.

    A data set on disk has `files`, a list of FilePair. A static method `tiny(folder)` writes a few small files in the
    data set's form and returns the options that read them, for the contract tests. Optional: `prepare(root)` fetches
    the data, `for_server(...)` gives images without labels, `notes()` says what the labels that were read showed as a
    whole, a line each, and `drawn` whether the split was drawn and has to be written down.

    Attributes:
        class_names: K names.
        palette: K colors, red, green and blue in 0..255.
        description: the data in words, with all that decides what a score on it means.
    """

    class_names: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    description: str

    def __len__(self) -> int:
        """Number of images in the split."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`."""
        ...

    def read_label(self, index: int) -> "np.ndarray":
        """The label at `index` alone, (H, W) uint8, without decoding the image."""
        ...

    def fingerprint(self) -> str:
        """A short hash that changes when the data behind the split changes."""
        ...


class Optimizer(Protocol):
    """A function `(groups, /, *, lr, options)` of parameter groups, which gives a torch.optim.Optimizer.

    One whose weights differ between training and evaluation (schedule-free ones) has `train()` and `eval()`, which the
    loop calls.
    """

    def __call__(self, groups: list[dict[str, Any]], /, **options: Any) -> Any:
        """The optimizer of the parameter groups."""
        ...
