"""Any backbone of timm (pytorch-image-models) that can return its feature maps.

Shapes: B images, H x W image size.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from danet.arguments import ExistingFile, Text
from danet.ops.exact_depthwise import compute_exactly
from danet.registry import BACKBONES, did_you_mean
from danet.services import state_dicts

log = logging.getLogger(__name__)

# What lets a network take images of any size, by its family's name for it: ViT, Swin, all others.
ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"strict_img_size": False},
    {},
)
PROBE = (97, 131)  # pixels: divisible by no stride


@BACKBONES.register("timm")
class TimmBackbone(nn.Module):
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

    Attributes:
        net: timm's network.
        out_channels, strides, in_channels, mean, std: see interfaces.Backbone; mean and std are the network's own.

    Raises:
        ValueError: the name is unknown, the network cannot have this output stride, or the weights do not fit.
    """

    def __init__(
        self,
        *,
        model: Text = "mobilenetv2_100",
        output_stride: Literal[8, 16, 32] | None = None,
        pretrained: bool | ExistingFile = False,
    ) -> None:
        super().__init__()
        timm = _import_timm()
        options: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
        options |= _any_size(timm, model, options)
        if isinstance(pretrained, str):
            options["pretrained_cfg_overlay"] = {"state_dict": _read(timm, model, options, pretrained)}
        logging.getLogger("timm").setLevel(logging.ERROR)  # it warns of the classifier that is left out
        try:
            self.net = timm.create_model(model, features_only=True, pretrained=bool(pretrained), **options)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"pretrained=true: cannot get the weights of {model} ({error}). Without a network, fetch them "
                "elsewhere and set pretrained to the file"
            ) from error
        compute_exactly(self.net)
        self.out_channels = tuple(self.net.feature_info.channels())
        self.strides = tuple(self.net.feature_info.reduction())
        config = timm.get_pretrained_cfg(model)
        self.in_channels = 3
        self.mean, self.std = (tuple(255 * value for value in values) for values in (config.mean, config.std))
        self._multiple = _multiple(timm, model, options)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Normalized images (B, 3, H, W) -> a stage's (B, C, ceil(H / stride), ceil(W / stride)) each."""
        height, width = image.shape[-2:]
        if self._multiple > 1:
            image = F.pad(image, (0, -width % self._multiple, 0, -height % self._multiple))
        features = self.net(image)
        if self._multiple == 1:
            return list(features)
        sizes = [(-(-height // stride), -(-width // stride)) for stride in self.strides]
        return [feature[:, :, :h, :w] for feature, (h, w) in zip(features, sizes, strict=True)]


def _import_timm() -> Any:
    try:
        import timm
    except ImportError:
        raise ValueError("backbone=timm needs timm: pip install 'danet[models]'") from None
    return timm


def _any_size(timm: Any, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with which a network takes images of any size."""
    if not timm.is_model(model):
        known = timm.list_models()
        raise ValueError(f"model={model}: not in timm {timm.__version__}; {did_you_mean(model, known)[:200]}")
    for candidate in ANY_SIZE:
        try:
            with torch.device("meta"):
                timm.create_model(model, features_only=True, **options, **candidate)
        except (TypeError, AssertionError, NotImplementedError):
            continue
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
    """What an image's height and width must be multiples of for a network to return ceil(size / stride) everywhere."""
    structure = {key: value for key, value in options.items() if key != "pretrained_cfg_overlay"}
    with torch.device("meta"):
        net = timm.create_model(model, features_only=True, **structure).eval()
        strides = net.feature_info.reduction()
        try:
            sizes = [tuple(feature.shape[-2:]) for feature in net(torch.empty(1, 3, *PROBE))]
        except (RuntimeError, AssertionError):
            sizes = []
    if sizes == [tuple(math.ceil(size / stride) for size in PROBE) for stride in strides]:
        return 1
    return int(max(timm.create_model(model, features_only=True).feature_info.reduction()))


def _read(timm: Any, model: str, options: Mapping[str, Any], path: str) -> dict[str, torch.Tensor]:
    """A file's tensors by timm's names for the network.

    Raises:
        ValueError: the file cannot be read, or does not fit; lists what differs.
    """
    try:
        tensors = state_dicts.read(Path(path)).tensors
    except ValueError as error:
        raise ValueError(f"pretrained: {error}") from None
    prefix = "backbone.net."  # of a run with this backbone
    if any(key.startswith(prefix) for key in tensors):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    with torch.device("meta"):
        whole = timm.create_model(model, **{key: value for key, value in options.items() if key != "out_indices"})
        part = timm.create_model(model, features_only=True, **options)
    classifier = tuple(f"{name}." for name in _classifiers(whole))
    own = {key: value for key, value in whole.state_dict().items() if not key.startswith(classifier)}
    for names in (own, part.state_dict()):
        if all(key in tensors and tensors[key].shape == value.shape for key, value in _counted(names).items()):
            log.info("backbone.pretrained: %s: all %d tensors by timm's names", path, len(names))
            state_dicts.refuse_nonfinite(tensors, f"pretrained: {path}")
            return {key: value for key, value in tensors.items() if key in names}
    ours, theirs = _counted(own), _counted(tensors)
    pairs = list(zip(ours, theirs, strict=False))
    if len(theirs) >= len(ours) and all(ours[a].shape == theirs[b].shape for a, b in pairs):
        log.info(
            "backbone.pretrained: %s: its names are not timm's; its first %d tensors agree with %s in order and shape "
            "(%s is %s, ...)",
            *(path, len(ours), model, *pairs[0]),
        )
        counters = {key: torch.zeros((), dtype=torch.int64) for key in own if key not in ours}
        state_dicts.refuse_nonfinite(tensors, f"pretrained: {path}")
        return {**{a: theirs[b] for a, b in pairs}, **counters}
    raise ValueError(f"pretrained: {path} does not fit {model}. {_differences(ours, theirs)}")


def _classifiers(whole: Any) -> list[str]:
    """Names of the layers that timm leaves out when it returns feature maps."""
    names = whole.default_cfg.get("classifier") or ()
    return [names] if isinstance(names, str) else list(names)


def _counted(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without batch norm's counters, which old files lack and nothing here reads."""
    return {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}


def _differences(own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], most: int = 6) -> str:
    lists = {
        "missing": [key for key in own if key not in tensors],
        "unexpected": [key for key in tensors if key not in own],
        "of another shape": [key for key in own if key in tensors and own[key].shape != tensors[key].shape],
    }
    return "; ".join(
        f"{len(keys)} {what}: {', '.join(keys[:most])}{', ...' if len(keys) > most else ''}"
        for what, keys in lists.items()
        if keys
    )
