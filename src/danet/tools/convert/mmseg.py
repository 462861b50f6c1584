"""mmsegmentation's heads, and the settings that only its configurations show.

Unsupported options are reported, one line each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from danet.interfaces import IMAGENET_MEAN, IMAGENET_STD
from danet.tools.convert.options import Setting, Settings

# (strides, dilations) of the stages -> output stride
OUTPUT_STRIDES = {
    ((1, 2, 2, 2), (1, 1, 1, 1)): 32,
    ((1, 2, 2, 1), (1, 1, 1, 2)): 16,
    ((1, 2, 1, 1), (1, 1, 2, 4)): 8,
}

Shape = tuple[int, ...]

ORIGIN = "the file's configuration"

# Options that our heads lack, with the value they correspond to.
FCN = {"dilation": 1}  # of the FCNHead that they are
NON_LOCAL = {**FCN, "use_scale": True, "mode": "embedded_gaussian"}
GLOBAL_CONTEXT = {**FCN, "pooling_type": "att", "fusion_types": ("channel_add",)}
PYRAMID = {"query_scales": (1,), "key_pool_scales": (1, 3, 6, 8)}
WINDOW = {
    "psa_type": "bi-direction",
    "compact": False,
    "shrink_factor": 2,
    "normalization_factor": 1.0,
    "psa_softmax": True,
}


@dataclass(frozen=True)
class MmsegHead:
    """A head of mmsegmentation.

    Attributes:
        type: class name there.
        key: key of a tensor that only this head has, without "decode_head.".
        shown: our options -> how to derive them from that tensor's shape.
        stated: our options that only the configuration shows -> their names there.
        fixed: options and the only supported value, if the configuration sets them.
    """

    type: str
    key: str
    shown: dict[str, Callable[[Shape], int]] = field(default_factory=dict)
    stated: dict[str, str] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)


def reduction(shape: Shape) -> int:
    """Input channels divided by output channels, from the shape of a convolution's weight."""
    return max(1, shape[1] // shape[0])


def first(shape: Shape) -> int:
    """The first dimension."""
    return shape[0]


def last(shape: Shape) -> int:
    """The last dimension."""
    return shape[-1]


def side(shape: Shape) -> int:
    """The square root of the first dimension."""
    return round(shape[0] ** 0.5)


RELATIVES = {  # by our name
    "danet": MmsegHead("DAHead", "pam.query_project.weight", {"reduction": reduction}),
    "nonlocal": MmsegHead("NLHead", "nl_block.g.conv.weight", {"reduction": reduction}, fixed=NON_LOCAL),
    "dnl": MmsegHead(
        "DNLHead", "dnl_block.g.conv.weight", {"reduction": reduction}, {"temperature": "temperature"}, NON_LOCAL
    ),
    "gcnet": MmsegHead("GCHead", "gc_block.channel_add_conv.0.weight", {"reduction": reduction}, fixed=GLOBAL_CONTEXT),
    "ccnet": MmsegHead("CCHead", "cca.query_conv.weight", stated={"recurrence": "recurrence"}, fixed=FCN),
    "emanet": MmsegHead(
        "EMAHead", "ema_module.bases", {"num_bases": last}, {"iterations": "num_stages", "momentum": "momentum"}
    ),
    "ann": MmsegHead("ANNHead", "fusion.stages.0.out_project.weight", fixed=PYRAMID),
    "isanet": MmsegHead("ISAHead", "global_relation.value_project.weight", stated={"block": "down_factor"}),
    "psanet": MmsegHead("PSAHead", "attention_p.1.weight", {"window": side}, fixed=WINDOW),
    "ocrnet": MmsegHead("OCRHead", "1.object_context_block.bottleneck.conv.weight", fixed={"scale": 1}),
    "encnet": MmsegHead("EncHead", "enc_module.encoding.0.codewords", {"num_codes": first}),
}


def infer_head(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    """Infer the head's section, except what only the configuration shows; None if no known head has such keys."""
    for name, head in RELATIVES.items():
        tensor = tensors.get(f"decode_head.{head.key}")
        if tensor is not None and tensor.ndim > 1:
            section = {"name": name, **{option: of_shape(tensor.shape) for option, of_shape in head.shown.items()}}
            return section | ({"presence_loss": "decode_head.se_layer.weight" in tensors} if name == "encnet" else {})
    return None


def stated(config: Mapping[str, Any], name: str) -> tuple[Settings, list[str]]:
    """Read the settings of a configuration and list what is not supported here, one line each.

    Args:
        config: from `foreign.parsed`; may be empty.
        name: our name for the head that the keys belong to.
    """
    model = _section(config, "model")
    settings, problems = _backbone(_section(model, "backbone"))
    head = model.get("decode_head")
    head = head[-1] if isinstance(head, list) and head else head  # the last of a cascade
    if isinstance(head, dict) and head:
        expected = RELATIVES[name]
        settings["align_corners"] = Setting(bool(head.get("align_corners", False)), ORIGIN)
        for option, key in expected.stated.items():
            if key in head:
                settings[f"head.{option}"] = Setting(_one(head[key]), ORIGIN)
        for key, value in {"type": expected.type, **expected.fixed}.items():
            if (said := _tuple(head.get(key, value))) != value:
                problems.append(
                    f"decode_head: {key}={said!r}; the keys belong to {expected.type}, supported with {value!r}"
                )
        index = head.get("in_index", 3)
        if (index[-1] if isinstance(index, list | tuple) and index else index) not in (3, -1):
            problems.append(
                f"decode_head: in_index={index}; only the fourth stage (3) is supported, and those before it"
            )
    if (index := _section(model, "auxiliary_head").get("in_index", 2)) != 2:
        problems.append(f"auxiliary_head: in_index={index}; only the third stage (2) is supported")
    return settings, problems + _preprocessing_problems(config)


def _backbone(backbone: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    if not backbone:
        return {}, []
    problems = []
    strides, dilations = backbone.get("strides", (1, 2, 2, 2)), backbone.get("dilations", (1, 1, 1, 1))
    pattern = _tuple(strides), _tuple(dilations)
    stride = next((stride for known, stride in OUTPUT_STRIDES.items() if known == pattern), None)
    if stride is None:
        problems.append(f"backbone: strides={strides}, dilations={dilations}: not an output stride of 8, 16 or 32")
    elif stride != 32 and not backbone.get("contract_dilation", False):
        problems.append("backbone: contract_dilation=False; here the first block of a stage has half the dilation")
    if (style := backbone.get("style", "pytorch")) != "pytorch":
        problems.append(f"backbone: style={style!r}; here the stride is in the 3x3 convolution")
    multi_grid = backbone.get("multi_grid")
    return {
        "output_stride": Setting(stride, ORIGIN),
        "multi_grid": Setting(list(multi_grid) if isinstance(multi_grid, list | tuple) else None, ORIGIN),
    }, problems


def block_problems(backbone: Mapping[str, Any]) -> list[str]:
    """Report a ResNet dilated differently: mmsegmentation dilates only the first convolution of a BasicBlock."""
    stride, multi_grid = backbone["output_stride"], backbone["multi_grid"]
    if backbone["name"] not in ("resnet18", "resnet34") or (stride == 32 and multi_grid is None):
        return []
    return [
        f"{backbone['name']} with output_stride={stride}, multi_grid={multi_grid}: mmsegmentation dilates the first "
        "convolution of a block, this framework dilates both"
    ]


def _preprocessing_problems(config: Mapping[str, Any]) -> list[str]:
    """Report an image normalization (versions 0.x and 1.x) that differs from ours."""
    problems = []
    for name, rgb in (("data_preprocessor", "bgr_to_rgb"), ("img_norm_cfg", "to_rgb")):
        section = _section(config, name) or _section(_section(config, "model"), name)
        for key, ours in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD), (rgb, True)):
            if (value := _tuple(section.get(key, ours))) != ours:
                problems.append(f"{name}: {key}={value}; only {ours} is supported")
    return problems


def _section(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    section = values.get(key)
    return section if isinstance(section, dict) else {}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _one(value: Any) -> Any:
    """A pair of equal numbers as one number; any other value unchanged."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1] else value
