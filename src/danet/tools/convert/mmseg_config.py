"""mmsegmentation's configuration: reading its text, and where it asks for something else than this framework does."""

import ast
from collections.abc import Mapping
from typing import Any

from danet.interfaces import IMAGENET_MEAN, IMAGENET_STD
from danet.tools.convert.architecture import Setting

# (strides, dilations) of the stages -> output stride
OUTPUT_STRIDES = {
    ((1, 2, 2, 2), (1, 1, 1, 1)): 32,
    ((1, 2, 2, 1), (1, 1, 1, 2)): 16,
    ((1, 2, 1, 1), (1, 1, 2, 4)): 8,
}

ORIGIN = "the file's configuration"


def parse(text: str) -> dict[str, Any]:
    """Read an mmsegmentation configuration without executing it: {} where it is no Python.

    Only assignments of literals and of `dict(key=literal)` count; any other value is left out.
    """
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found: dict[str, Any] = {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(target := statement.targets[0], ast.Name):
            _assign(found, target.id, statement.value)
    return found


def _assign(values: dict[str, Any], key: str, node: ast.expr) -> None:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        values[key] = {}
        for keyword in node.keywords:
            if keyword.arg:
                _assign(values[key], keyword.arg, keyword.value)
        return
    try:
        values[key] = ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return


def stated(config: Mapping[str, Any]) -> tuple[dict[str, Setting], list[str]]:
    """What mmsegmentation's configuration says, and what of it this framework cannot do.

    Args:
        config: as `parse` gives it; may be empty.
    """
    problems: list[str] = []
    settings: dict[str, Setting] = {}
    model = _section(config, "model")
    backbone, head = _section(model, "backbone"), _section(model, "decode_head")
    if backbone:
        strides, dilations = backbone.get("strides", (1, 2, 2, 2)), backbone.get("dilations", (1, 1, 1, 1))
        pattern = _tuple(strides), _tuple(dilations)
        stride = next((stride for known, stride in OUTPUT_STRIDES.items() if known == pattern), None)
        if stride is None:
            problems.append(
                f"backbone: strides={strides} with dilations={dilations} is no output stride of 8, 16 or 32"
            )
        elif stride != 32 and not backbone.get("contract_dilation", False):
            problems.append("backbone: contract_dilation=False; here a stage's first block has half the dilation")
        if (style := backbone.get("style", "pytorch")) != "pytorch":
            problems.append(f"backbone: style={style!r}; here the 3x3 convolution has the stride")
        multi_grid = backbone.get("multi_grid")
        settings["output_stride"] = Setting(stride, ORIGIN)
        settings["multi_grid"] = Setting(list(multi_grid) if isinstance(multi_grid, list | tuple) else None, ORIGIN)
    if head:
        if (kind := head.get("type", "DAHead")) != "DAHead":
            problems.append(f"decode_head: type={kind!r}; only DAHead is DANet")
        settings["align_corners"] = Setting(bool(head.get("align_corners", False)), ORIGIN)
    if (index := _section(model, "auxiliary_head").get("in_index", 2)) != 2:
        problems.append(f"auxiliary_head: in_index={index}; here it reads the third stage (2)")
    return settings, problems + _preprocessing_problems(config)


def block_problems(backbone: Mapping[str, Any]) -> list[str]:
    """Where mmsegmentation dilates a ResNet of ours otherwise: of a BasicBlock's two convolutions only the first."""
    stride, multi_grid = backbone["output_stride"], backbone["multi_grid"]
    if backbone["name"] not in ("resnet18", "resnet34") or (stride == 32 and multi_grid is None):
        return []
    return [
        f"{backbone['name']} with output_stride={stride}, multi_grid={multi_grid}: mmsegmentation dilates the first "
        "convolution of a block, this framework both"
    ]


def _preprocessing_problems(config: Mapping[str, Any]) -> list[str]:
    """Where mmsegmentation (1.x or 0.x) normalises images otherwise than this framework."""
    problems = []
    for name, rgb in (("data_preprocessor", "bgr_to_rgb"), ("img_norm_cfg", "to_rgb")):
        section = _section(config, name) or _section(_section(config, "model"), name)
        for key, ours in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD), (rgb, True)):
            if (value := _tuple(section.get(key, ours))) != ours:
                problems.append(f"{name}: {key}={value}; here it is {ours}")
    return problems


def _section(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    section = values.get(key)
    return section if isinstance(section, dict) else {}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
