"""From keys and shapes to the model they belong to; what these do not tell is assumed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from danet.backbones.resnet import DEEP_STEMS, LAYER4_BLOCKS
from danet.tools.convert.layouts import LAYOUTS, Layout

# (blocks in each stage, whether they are Bottlenecks) -> name
RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}


@dataclass(frozen=True)
class Setting:
    """A property of the model that weights do not show."""

    value: Any
    origin: str  # where the value is from, in words


Settings = dict[str, Setting]  # "output_stride", "multi_grid", "align_corners"


def infer_backbone(tensors: Mapping[str, torch.Tensor], layout: Layout) -> dict[str, str]:
    """The ResNet that the keys show: {"name": ..., "stem": ...}.

    Raises:
        ValueError: they show none that this framework has.
    """
    prefix = layout.backbone
    blocks = tuple(
        len({key.split(".")[0] for key in _below(f"{prefix}layer{stage}.", tensors)}) for stage in (1, 2, 3, 4)
    )
    if not any(blocks):
        raise ValueError(f"no {prefix}layer1: no ResNet of this layout{_hint(tensors)}")
    bottleneck = f"{prefix}layer1.0.conv3.weight" in tensors
    name = RESNETS.get((blocks, bottleneck))
    if name is None:
        raise ValueError(
            f"{prefix}layer1 to layer4 have {blocks} blocks{' with bottlenecks' if bottleneck else ''}; known are "
            + ", ".join(f"{known} {counts}" for (counts, _), known in RESNETS.items())
        )
    if f"{prefix}conv1.weight" in tensors:
        return {"name": name, "stem": "conv7"}
    first = layout.stem.get("conv1.0", "conv1.0")[:-1]
    keys = [f"{prefix}{first}{index}.weight" for index in (0, 3, 6)]
    widths = tuple(tensors[key].shape[0] if key in tensors else None for key in keys)
    for stem, known_widths in DEEP_STEMS.items():
        if widths == known_widths:
            return {"name": name, "stem": stem}
    raise ValueError(
        f"the stem is neither {prefix}conv1.weight nor three convolutions of widths "
        + " or ".join(map(str, DEEP_STEMS.values()))
        + f" ({', '.join(keys)} have {widths})"
    )


def infer_head(tensors: Mapping[str, torch.Tensor], layout: Layout) -> tuple[dict[str, Any], int]:
    """The head's section, without `align_corners`, and the number of classes.

    Raises:
        ValueError: the keys that show them are missing.
    """
    query = layout.key("head.branches.pam.attention.query.weight", deep_stem=False)
    needed = [key for key in (layout.classifier, query) if key is not None]
    if missing := [key for key in needed if key not in tensors or tensors[key].ndim != 4]:
        raise ValueError(f"missing {', '.join(missing)}: no DANet head of this layout{_hint(tensors)}")
    num_classes = tensors[str(layout.classifier)].shape[0]
    if num_classes == 1:
        raise ValueError(
            "the classifier has one output, decided by a threshold; here the largest of two or more counts"
        )
    if query is None:
        return {"name": "danet_article", "shared_projection": True}, num_classes
    width, channels = tensors[query].shape[:2]
    return {"name": "danet", "reduction": max(1, channels // width)}, num_classes


def assumed(name: str, backbone: str) -> Settings:
    """What files of a layout usually are, where they do not say it.

    Args:
        name: of the layout.
        backbone: of the ResNet.
    """
    multi_grid = Setting(None, "assumed: none")
    if name == "official" and LAYER4_BLOCKS[backbone] == 3:
        multi_grid = Setting([4, 8, 16], "assumed, as the published Cityscapes model was trained")
    origin = {
        "official": "the official code's",
        "mmseg": "assumed, as in mmsegmentation's configurations but those for 769x769",
        "article": "the article's",
    }[name]
    return {
        "output_stride": Setting(8, "assumed"),
        "multi_grid": multi_grid,
        "align_corners": Setting(name != "mmseg", origin),
    }


def _below(prefix: str, keys: Mapping[str, Any]) -> list[str]:
    return [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]


def _hint(keys: Mapping[str, Any]) -> str:
    """The layout that the keys look like."""
    for name, layout in LAYOUTS.items():
        if layout.classifier in keys:
            return f"; this looks like from={name}"
    if "layer1.0.conv1.weight" in keys:
        return "; this looks like from=torchvision"
    if "head.classifier.1.weight" in keys:
        return "; this looks like a model of this framework (from=danet)"
    return f"; the file begins with {', '.join(list(keys)[:4])}"
