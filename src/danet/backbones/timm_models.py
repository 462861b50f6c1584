"""Any backbone of timm (pytorch-image-models) that can return its feature maps.

Shapes: B images, H x W image size.
"""

import logging
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import nn

from danet.arguments import ExistingFile, Text
from danet.backbones import timm_weights
from danet.backbones.freezing import Freezable, Freeze
from danet.ops.exact_depthwise import compute_exactly
from danet.ops.recompute import count_batches_once
from danet.registry import BACKBONES, did_you_mean

# What suits a network to images of any size, by its family's name for it: ViT, Swin, all others.
FAMILIES: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"strict_img_size": False},
    {},
)
PROBE = (97, 131)  # pixels: divisible by no stride


@BACKBONES.register("timm")
class TimmBackbone(Freezable):
    """A network of timm, with the feature maps of all its stages.

    A network that takes only multiples of its coarsest stride, or rounds down, gets the image padded with zeros (its
    mean color) at the right and the bottom; its feature maps are cut to ceil(size / stride). A ViT's position
    embeddings are resized to the image; its feature maps are the outputs of four blocks at equal distances.

    Args:
        model: name in timm, such as "mobilenetv2_100"; `timm.list_models()` has all.
        output_stride: image pixels per step of the last feature map, by dilation, where the network can (ResNet,
            MobileNet, EfficientNet, ConvNeXt, RegNet). None leaves the strides as they are.
        pretrained: False, True (the weights that timm names, downloaded once) or a file with weights: in timm's
            naming, or in any other if all tensors agree in order and shape (then the log says so).
        freeze: see Freezable. A group is a stage, in a ViT a block.
        freeze_batchnorm: see Freezable.

    Attributes:
        net: timm's network.
        out_channels, strides, in_channels, mean, std, recompute: see interfaces.Backbone; mean and std are the
            network's own.

    Raises:
        ValueError: the name is unknown, the network cannot have this output stride, or the weights do not fit.
    """

    def __init__(
        self,
        *,
        model: Text = "mobilenetv2_100",
        output_stride: Literal[8, 16, 32] | None = None,
        pretrained: bool | ExistingFile = False,
        freeze: Freeze = 0,
        freeze_batchnorm: bool = False,
    ) -> None:
        super().__init__()
        timm = _import_timm()
        options: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
        options |= _family(timm, model, options)
        extracted = None  # tensors by the names of feature maps' networks, which often differ from the whole's
        if isinstance(pretrained, str):
            tensors, of_whole = timm_weights.read(timm, model, options, pretrained)
            if of_whole:
                options["pretrained_cfg_overlay"] = {"state_dict": tensors}
            else:
                extracted = tensors
        logging.getLogger("timm").setLevel(logging.ERROR)  # it warns of the classifier that is left out
        try:
            with timm_weights.hub_unless_offline(wanted=pretrained is True):
                from_timm = bool(pretrained) and extracted is None
                self.net = timm.create_model(model, features_only=True, pretrained=from_timm, **options)
        except (OSError, RuntimeError) as error:
            if pretrained is not True:
                raise
            raise ValueError(
                f"backbone.pretrained=true: the weights of {model} are not on this machine and cannot be downloaded "
                f"({str(error).splitlines()[0]}). Fetch them elsewhere and set backbone.pretrained=FILE, or start "
                "without them: backbone.pretrained=false"
            ) from error
        if extracted is not None:
            self.net.load_state_dict(extracted, strict=False)  # all are there but batch norm's counters, perhaps
        _pad_in_integers(self.net)
        compute_exactly(self.net)
        self.out_channels = tuple(self.net.feature_info.channels())
        self.strides = tuple(self.net.feature_info.reduction())
        config = timm.get_pretrained_cfg(model)
        self.in_channels = 3
        self.mean, self.std = (tuple(255 * value for value in values) for values in (config.mean, config.std))
        self._multiple = _multiple(timm, model, options)
        self._model = model
        self._recompute: bool | None = None
        self.freeze(freeze, freeze_batchnorm)

    @property
    def recompute(self) -> bool:
        """Whether activations are recomputed in the backward pass, as timm does it: whole blocks, or stages."""
        return bool(self._recompute)

    @recompute.setter
    def recompute(self, enable: bool) -> None:
        try:
            net: Any = getattr(self.net, "model", self.net)
            net.set_grad_checkpointing(enable)
        except (AttributeError, AssertionError):
            raise ValueError(f"timm cannot recompute {self._model}") from None
        if self._recompute is None:
            count_batches_once(self.net)
        self._recompute = enable

    def layer_groups(self) -> list[list[nn.Module]]:
        """The stem and timm's coarse groups: stages, in a ViT blocks.

        Raises:
            ValueError: timm has none.
        """
        import timm

        with torch.device("meta"):
            whole: Any = timm.create_model(self._model)
        if not hasattr(whole, "group_matcher"):
            raise ValueError(f"timm has no layer groups of model={self._model}; leave freeze and layer_decay out")
        own = {_flat(name): parameter for name, parameter in self.net.named_parameters()}
        by_depth = sorted(timm.models.group_parameters(whole, whole.group_matcher(coarse=True)).items())
        groups = [[own[key] for name in names if (key := _flat(name)) in own] for _, names in by_depth]
        return [[nn.ParameterList(group)] for group in groups if group]

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Normalized images (B, 3, H, W) -> a stage's (B, C, ceil(H / stride), ceil(W / stride)) each."""
        height, width = image.shape[-2:]
        if self._multiple > 1:
            image = F.pad(image, (0, -width % self._multiple, 0, -height % self._multiple))
        features = _feature_maps(self.net, image)
        if self._multiple == 1:
            return features
        sizes = [_sizes(height, width, stride) for stride in self.strides]
        return [_cut(feature, h, w) for feature, (h, w) in zip(features, sizes, strict=True)]


def _cut(feature: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The first rows and columns. A slice would tie a graph with free sizes to those that divide as its example's."""
    return F.pad(feature, (0, width - feature.shape[3], 0, height - feature.shape[2]))


def _pad_in_integers(net: nn.Module) -> None:
    """Let convolutions with TensorFlow's padding ("same") reckon it in integers; names and values stay."""
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            conv: Any = child
            if type(conv).__name__ == "Conv2dSame" and all(_reach(conv, axis) >= conv.stride[axis] for axis in (0, 1)):
                setattr(parent, name, _SameConv2d.like(conv))


class _SameConv2d(nn.Conv2d):
    """A convolution that pads with zeros for an output of ceil(size / stride), an odd one at the right or the bottom.

    timm's rounds a quotient up, which a graph with free image sizes cannot simplify: the export of EfficientNet-Lite0
    did not end.
    """

    @classmethod
    def like(cls, conv: Any) -> Self:
        """A layer with the parameters of timm's."""
        sizes = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
        own = cls(conv.in_channels, conv.out_channels, *sizes, conv.bias is not None, device="meta")
        own.weight, own.bias = conv.weight, conv.bias
        return own.train(conv.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, D, ceil(H / stride), ceil(W / stride))."""
        padding: list[int] = []
        for axis in (1, 0):
            size, stride = input.shape[axis - 2], self.stride[axis]
            total = ((size + stride - 1) // stride - 1) * stride + _reach(self, axis) - size
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(input, padding))


def _reach(module: Any, axis: int) -> int:
    """Positions from the first to the last that a kernel sees."""
    return int((module.kernel_size[axis] - 1) * module.dilation[axis] + 1)


def _flat(name: str) -> str:
    """A parameter's name in timm's whole network or in its feature extractor, which joins some names by underscores."""
    return name.removeprefix("model.").replace(".", "_")


def _import_timm() -> Any:
    try:
        import timm
    except ImportError:
        raise ValueError("backbone=timm needs timm: pip install 'danet[models]'") from None
    return timm


def _family(timm: Any, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that suit a network to images of any size."""
    if not timm.is_model(model):
        known = timm.list_models()
        raise ValueError(f"model={model}: not in timm {timm.__version__}; {did_you_mean(model, known)[:200]}")
    for candidate in FAMILIES:
        try:
            with torch.device("meta"):
                timm.create_model(model, features_only=True, **options, **candidate)
        except (TypeError, AssertionError, NotImplementedError):
            continue
        if model.startswith("hrnet"):  # its resolutions as they are, without the classifier's wider copies
            return {"feature_location": ""}
        return {**candidate, **_taps(timm, model)} if "dynamic_img_size" in candidate else candidate
    if "output_stride" in options:
        raise ValueError(f"output_stride={options['output_stride']}: {model} cannot be dilated; set output_stride=null")
    raise ValueError(f"model={model}: timm cannot return its feature maps (features_only)")


def _taps(timm: Any, model: str) -> dict[str, list[int]]:
    """The blocks of a ViT whose outputs are its feature maps: four at equal distances, the last one among them."""
    with torch.device("meta"):
        depth = len(timm.create_model(model).feature_info)
    return {"out_indices": [depth * (index + 1) // 4 - 1 for index in range(4)]}


def _multiple(timm: Any, model: str, options: Mapping[str, Any]) -> int:
    """What an image's height and width must be multiples of for a network to return ceil(size / stride) everywhere.

    Raises:
        ValueError: no multiple serves.
    """
    structure = {key: value for key, value in options.items() if key != "pretrained_cfg_overlay"}
    reason = "its feature maps are not ceil(size / stride)"
    with torch.device("meta"):
        net = timm.create_model(model, features_only=True, **structure).eval()
        coarsest = max(timm.create_model(model, features_only=True).feature_info.reduction())
        for multiple in (1, coarsest, 2 * coarsest):
            height, width = (side + -side % multiple for side in PROBE)
            expected = [_sizes(height, width, stride) for stride in net.feature_info.reduction()]
            try:
                if [
                    tuple(feature.shape[2:]) for feature in _feature_maps(net, torch.empty(1, 3, height, width))
                ] == expected:
                    return int(multiple)
            except (RuntimeError, AssertionError):
                own = timm.get_pretrained_cfg(model).input_size
                reason = f"it takes only {own[2]} x {own[1]} pixels"
    raise ValueError(f"model={model}: cannot segment images of any size ({reason}). Take another model")


def _sizes(height: int, width: int, stride: int) -> tuple[int, int]:
    """A feature map's, rounded up; without a negative number, which ONNX divides otherwise than Python."""
    return (height + stride - 1) // stride, (width + stride - 1) // stride


def _feature_maps(net: Any, image: torch.Tensor) -> list[torch.Tensor]:
    """What a network of timm returns, with the channels before height and width."""
    channels_last = getattr(net, "output_fmt", "NCHW") == "NHWC"
    return [feature.permute(0, 3, 1, 2).contiguous() if channels_last else feature for feature in net(image)]
