"""Infer the model from keys and shapes, with assumptions for what they do not show."""

from collections.abc import Mapping
from typing import Any

import torch

from danet.backbones.resnet import DEEP_STEMS, LAYER4_BLOCKS
from danet.tools.convert import mmseg
from danet.tools.convert.names import CLASSIFIERS
from danet.tools.convert.options import Setting, Settings

# (blocks in each stage, whether they are Bottlenecks) -> name
RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}

ARTICLE = {"name": "danet_article", "shared_projection": True}
QUERIES = {"official": "head.sa.query_conv.weight", "mmseg": "decode_head.pam.query_project.weight"}


def infer_backbone(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, str]:
    """Infer the ResNet from the keys: {"name": ..., "stem": ...}.

    Args:
        tensors: by key.
        prefix: of the backbone's keys.

    Raises:
        ValueError: the keys are not those of a supported ResNet.
    """
    blocks = tuple(
        len({key.split(".")[0] for key in _below(f"{prefix}layer{stage}.", tensors)}) for stage in (1, 2, 3, 4)
    )
    if not any(blocks):
        raise ValueError(f"no key {prefix}layer1...: not a ResNet in this naming{_hint(tensors)}")
    bottleneck = f"{prefix}layer1.0.conv3.weight" in tensors
    name = RESNETS.get((blocks, bottleneck))
    if name is None:
        raise ValueError(
            f"{prefix}layer1 to layer4 have {blocks} blocks{' with bottlenecks' if bottleneck else ''}; supported: "
            + ", ".join(f"{known} {counts}" for (counts, _), known in RESNETS.items())
        )
    if f"{prefix}conv1.weight" in tensors:
        return {"name": name, "stem": "conv7"}
    first = "stem" if f"{prefix}stem.0.weight" in tensors else "conv1"  # mmsegmentation's name, or the others'
    keys = [f"{prefix}{first}.{index}.weight" for index in (0, 3, 6)]
    widths = tuple(tensors[key].shape[0] if key in tensors else None for key in keys)
    for stem, known_widths in DEEP_STEMS.items():
        if widths == known_widths:
            return {"name": name, "stem": stem}
    raise ValueError(
        f"the stem is neither {prefix}conv1.weight nor three convolutions of widths "
        + " or ".join(map(str, DEEP_STEMS.values()))
        + f" ({', '.join(keys)} have {widths})"
    )


def infer_head(tensors: Mapping[str, torch.Tensor], source: str) -> tuple[dict[str, Any], int]:
    """Infer the head's configuration section, except what weights do not show, and the number of classes.

    Raises:
        ValueError: required keys are missing.
    """
    section = mmseg.infer_head(tensors) if source == "mmseg" else ARTICLE if source == "article" else None
    classifier = next((key for key in CLASSIFIERS[source] if key in tensors), CLASSIFIERS[source][0])
    needed = [classifier] if section else [classifier, QUERIES[source]]
    if missing := [key for key in needed if key not in tensors or tensors[key].ndim != 4]:
        raise ValueError(f"missing {', '.join(missing)}: not a DANet head in this naming{_hint(tensors)}")
    num_classes = tensors[classifier].shape[0]
    if num_classes == 1:
        raise ValueError(
            "the classifier has a single output (binary, by threshold); one output per class is needed, at least two"
        )
    return section or {"name": "danet", "reduction": mmseg.reduction(tensors[QUERIES[source]].shape)}, num_classes


def assumed(name: str, backbone: str) -> Settings:
    """The default settings of a code base, for files that do not state them.

    Args:
        name: the code base.
        backbone: the ResNet.
    """
    multi_grid = Setting(None, "assumed: none")
    if name == "official" and LAYER4_BLOCKS[backbone] == 3:
        multi_grid = Setting([4, 8, 16], "assumed, as in the published Cityscapes model")
    origin = {
        "official": "as in the official code",
        "mmseg": "assumed, as in mmsegmentation's configurations except those for 769x769",
        "article": "as in the article",
    }[name]
    return {
        "output_stride": Setting(8, "assumed"),
        "multi_grid": multi_grid,
        "align_corners": Setting(name != "mmseg", origin),
    }


def _below(prefix: str, keys: Mapping[str, Any]) -> list[str]:
    return [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]


def _hint(keys: Mapping[str, Any]) -> str:
    """A hint which code base the keys look like."""
    for name, classifiers in CLASSIFIERS.items():
        if any(key in keys for key in classifiers):
            return f"; this looks like from={name}"
    if "layer1.0.conv1.weight" in keys:
        return "; this looks like from=torchvision"
    if "head.classifier.1.weight" in keys:
        return "; this looks like a model of this framework (from=danet)"
    return f"; the file begins with {', '.join(list(keys)[:4])}"
