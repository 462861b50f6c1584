"""Conversion of a file of weights: all of it, or an error that lists what does not fit and nothing written."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from danet import config
from danet.model import build_model
from danet.registry import BACKBONES, DATASETS
from danet.services import atomic_files, checkpoint, state_dicts, weights
from danet.services.weights import Weights
from danet.tools.convert import architecture, foreign, matching, mmseg_config
from danet.tools.convert.architecture import Setting
from danet.tools.convert.foreign import ForeignFile
from danet.tools.convert.layouts import LAYOUTS, Layout, backbone_layout
from danet.tools.convert.options import SETTINGS, ConvertConfig
from danet.tools.convert.report import Report

# Their names of our stems.
STEMS = {
    "official": {"conv7": "deep_stem=False", "deep_wide": "deep_stem=True, stem_width=64"},
    "mmseg": {"conv7": "ResNet", "deep": "ResNetV1c", "deep_wide": "ResNetV1c with stem_channels=128"},
}


def convert(options: ConvertConfig) -> Report:
    """Convert a file and write a report beside the result, OUT.report.txt.

    Raises:
        ValueError: the file cannot be read safely, or does not fit; nothing is written.
        ConfigError: an option does not fit the model in the file.
    """
    source, target = Path(options.in_), options.target
    report = Report(title=f"{source.name} ({options.from_}) -> {target.name} ({options.to})")
    found = weights.read(source) if options.from_ == "danet" else foreign.read(source)
    state_dicts.refuse_nonfinite(found.tensors, source)
    try:
        content = _converted(found, options, report)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    with atomic_files.naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(content, target)
    atomic_files.write_text(Path(f"{target}.report.txt"), report.text())
    return report


def _converted(found: Weights | ForeignFile, options: ConvertConfig, report: Report) -> Weights | dict[str, Any]:
    """What to write: a model of ours, or a dictionary for torch.save."""
    if isinstance(found, Weights):
        return _to_theirs(found, options.to, report)
    if found.skipped:
        report.notes.append(f"not taken: {', '.join(found.skipped)}")
    parts = {key.split(".")[0] for key in found.tensors}
    alone = "decode_head" not in parts and ("layer1" in parts or "backbone" in parts)
    if options.from_ == "torchvision" or (options.from_ == "mmseg" and alone):
        return _backbone(found, options, report)
    return _to_ours(found, options, report)


def _to_ours(file: ForeignFile, options: ConvertConfig, report: Report) -> Weights:
    """A whole model as ours."""
    layout = LAYOUTS[options.from_]
    sections, num_classes = _sections(file, layout, options, report)
    with torch.device("meta"):  # keys and shapes are all that is wanted of it
        model = build_model(**sections, num_classes=num_classes)
    tensors = matching.take(file.tensors, layout, model.state_dict(), report)
    names, palette = _classes(file, options.dataset, num_classes, report)
    with Path(options.in_).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Weights(
        tensors=tensors,
        config=config.model_yaml(sections),
        class_names=names,
        palette=palette,
        facts={"source": options.from_, "source_file": Path(options.in_).name, "source_sha256": digest},
    )


def _sections(file: ForeignFile, layout: Layout, options: ConvertConfig, report: Report) -> tuple[dict[str, Any], int]:
    """The configuration of the model in a file, as `build_model` takes it, and its number of classes."""
    head, num_classes = architecture.infer_head(file.tensors, layout)
    backbone = architecture.infer_backbone(file.tensors, layout)
    settings, problems = mmseg_config.stated(file.config)
    settings = architecture.assumed(options.from_, backbone["name"]) | settings
    chosen = {key: getattr(options, key) for key in SETTINGS}
    settings |= {key: Setting(value, "as asked for") for key, value in chosen.items() if value != "auto"}
    section = {**backbone, **{key: settings[key].value for key in ("output_stride", "multi_grid")}}
    if options.from_ == "mmseg":
        problems += mmseg_config.block_problems(section)
    if problems:
        raise ValueError("asks for what this framework does not compute:\n  " + "\n  ".join(problems))
    auxiliary = any(key.startswith("auxiliary_head.") for key in file.tensors)
    report.facts += [("backbone", f"{backbone['name']}, stem={backbone['stem']} (from the keys)")]
    parts = {**head, "auxiliary_head": auxiliary}
    report.facts += [("head", ", ".join(f"{key}={value}" for key, value in parts.items()) + " (from the keys)")]
    report.facts += [("num_classes", f"{num_classes} (from the classifier)")]
    report.facts += [(key, f"{json.dumps(found.value)} ({found.origin})") for key, found in settings.items()]
    report.notes.append("weights do not show " + ", ".join(SETTINGS) + "; set what is assumed wrongly, as key=value")
    draft = {
        "backbone": section,
        "head": {**head, "align_corners": settings["align_corners"].value},
        "auxiliary_head": auxiliary,
    }
    return config.model_sections(config.model_yaml(draft)), num_classes


def _classes(
    file: ForeignFile, dataset: dict[str, Any] | None, num_classes: int, report: Report
) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Names and colours: the data set's if one is given, else the file's, else made up."""
    names, palette, origin = file.class_names, file.palette, "the file"
    if dataset is not None:
        known: Any = DATASETS[dataset["name"]]
        names, palette, origin = known.class_names, known.palette, f"dataset={dataset['name']}"
        if len(names) != num_classes:
            raise ValueError(f"{origin} has {len(names)} classes, the file's classifier has {num_classes}")
    if len(names) != num_classes:
        if names:
            report.notes.append(f"the file names {len(names)} classes for a classifier of {num_classes}; not taken")
        names, palette, origin = tuple(f"class {i}" for i in range(num_classes)), (), "made up; dataset=NAME gives some"
    report.facts.append(("classes", f"{', '.join(names)} ({origin})"))
    return names, palette if len(palette) == num_classes else weights.default_palette(num_classes)


def _backbone(file: ForeignFile, options: ConvertConfig, report: Report) -> dict[str, torch.Tensor]:
    """A backbone alone, as `backbone.pretrained=FILE` takes it."""
    if options.given:
        raise ValueError(f"holds a backbone alone, which takes no {', '.join(options.given)}")
    if options.target.suffix != ".pt":
        raise ValueError(f"holds a backbone alone, so out = {options.out!r} must end with .pt")
    layout = backbone_layout(file.tensors)
    found = architecture.infer_backbone(file.tensors, layout)
    with torch.device("meta"):
        model = BACKBONES[found["name"]](stem=found["stem"])
    own = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    report.facts.append(("backbone", f"{found['name']}, stem={found['stem']} (from the keys)"))
    report.notes.append(
        f"use it as backbone={found['name']} backbone.stem={found['stem']} backbone.pretrained={options.out}"
    )
    tensors = matching.take(file.tensors, layout, own, report)
    return {key.removeprefix("backbone."): value for key, value in tensors.items()}


def _to_theirs(ours: Weights, to: str, report: Report) -> dict[str, Any]:
    """A model of ours in the container that their code reads."""
    if ours.config is None:
        raise ValueError("has no configuration, so there is no telling what model it holds")
    sections = config.model_sections(ours.config)
    backbone, head = sections["backbone"], sections["head"]
    wanted = {"name": "danet", "pam": True, "cam": True, "aux_loss": True, "cam_energy": "max_minus"}
    if to == "official":
        wanted["reduction"] = 8
    problems = [f"head.{key} = {head.get(key)!r}: must be {v!r}" for key, v in wanted.items() if head.get(key) != v]
    stem = backbone.get("stem")
    if stem not in STEMS[to]:
        problems.append(
            f"backbone {backbone['name']}, stem {stem}: must be a ResNet with stem {' or '.join(STEMS[to])}"
        )
    elif to == "mmseg":
        problems += mmseg_config.block_problems(backbone)
    if problems:
        raise ValueError(f"the code of to={to} has no such model:\n  " + "\n  ".join(problems))
    report.facts += [("backbone", f"{backbone['name']}, {STEMS[to][stem]}")]
    report.facts += [("num_classes", str(len(ours.class_names)))]
    report.facts += [(key, json.dumps({**backbone, **head}[key])) for key in SETTINGS]
    report.notes.append("their configuration has to say the same of " + ", ".join(SETTINGS))
    with torch.device("meta"):
        model = build_model(**sections, num_classes=len(ours.class_names))
    state = matching.give(ours.tensors, LAYOUTS[to], model.state_dict(), report)
    if to == "official":
        return {"epoch": 0, "state_dict": state, "best_pred": 0.0}
    described = {"classes": list(ours.class_names), "palette": [list(color) for color in ours.palette]}
    return {"meta": {"dataset_meta": described}, "state_dict": state}


def _write(content: Weights | dict[str, Any], target: Path) -> None:
    if isinstance(content, dict):
        with atomic_files.replacing(target) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
    elif target.suffix == ".safetensors":
        weights.write(target, content)
    else:
        state = {"model": content.tensors, "config": content.config, "class_names": list(content.class_names)}
        colors = [list(color) for color in content.palette]
        checkpoint.save(target, {"step": 0, **content.facts, **state, "palette": colors})
