"""Convert a weights file: every tensor, or write nothing and list what does not fit."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from danet import config
from danet.config import cross_checks
from danet.model import build_model
from danet.registry import BACKBONES
from danet.services import atomic_files, checkpoint, state_dicts, weights
from danet.services.palettes import voc_palette
from danet.services.weights import Weights
from danet.tools.convert import architecture, foreign, mmseg, names
from danet.tools.convert.foreign import ForeignFile
from danet.tools.convert.options import SETTINGS, ConvertConfig, Setting
from danet.tools.convert.report import ConversionReport

OFFICIAL_DEPTHS = ("resnet50", "resnet101", "resnet152")

# Our stems -> their names in other code.
STEMS = {
    "official": {"conv7": "deep_stem=False", "deep_wide": "deep_stem=True, stem_width=64"},
    "mmseg": {"conv7": "ResNet", "deep": "ResNetV1c", "deep_wide": "ResNetV1c with stem_channels=128"},
}


def convert(options: ConvertConfig) -> ConversionReport:
    """Convert a file and write a report to OUT.report.txt.

    Raises:
        ValueError: the file cannot be read safely or does not fit; nothing is written.
        ConfigError: an option does not fit the model in the file.
    """
    source, target = Path(options.in_), options.target
    report = ConversionReport(title=f"{source.name} ({options.from_}) -> {target.name} ({options.to})")
    given = weights.read(source) if options.from_ == "danet" else foreign.read(source)
    state_dicts.refuse_nonfinite(given.tensors, source)
    try:
        content = _converted(given, options, report)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    with atomic_files.naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(content, target)
    atomic_files.write_text(Path(f"{target}.report.txt"), report.text())
    return report


def _converted(
    given: Weights | ForeignFile, options: ConvertConfig, report: ConversionReport
) -> Weights | dict[str, Any]:
    """The content to write: our weights, or a dictionary for torch.save."""
    if isinstance(given, Weights):
        return _to_theirs(given, options.to, report)
    if given.skipped:
        report.notes.append(f"skipped: {', '.join(given.skipped)}")
    parts = {key.split(".")[0] for key in given.tensors}
    alone = "decode_head" not in parts and ("layer1" in parts or "backbone" in parts)
    if options.from_ == "torchvision" or (options.from_ == "mmseg" and alone):
        return _backbone(given, options, report)
    return _to_ours(given, options, report)


def _to_ours(file: ForeignFile, options: ConvertConfig, report: ConversionReport) -> Weights:
    """Convert a complete model to ours."""
    source = options.from_
    sections, num_classes = _sections(file, options, report)
    model = _shapes(sections, num_classes)
    naming = names.of_model(source, sections["head"]["name"], sections["backbone"]["stem"])
    tensors = names.take(file.tensors, naming, names.UNUSED[source], model, report)
    class_names, palette = _classes(file, options.dataset, num_classes, report)
    with Path(options.in_).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Weights(
        tensors=tensors,
        config=config.model_yaml(sections),
        class_names=class_names,
        palette=palette,
        facts={"source": source, "source_file": Path(options.in_).name, "source_sha256": digest},
    )


def _shapes(sections: dict[str, Any], num_classes: int) -> dict[str, torch.Tensor]:
    """A model's tensors on the meta device: only keys and shapes are needed."""
    with torch.device("meta"):
        return build_model(**sections, num_classes=num_classes).state_dict()


def _sections(file: ForeignFile, options: ConvertConfig, report: ConversionReport) -> tuple[dict[str, Any], int]:
    """The configuration of the model in a file, for `build_model`, and its number of classes."""
    head, num_classes = architecture.infer_head(file.tensors, options.from_)
    backbone = architecture.infer_backbone(file.tensors, names.BACKBONES[options.from_])
    settings, problems = mmseg.stated(file.config, head["name"]) if options.from_ == "mmseg" else ({}, [])
    settings = architecture.assumed(options.from_, backbone["name"]) | settings
    chosen = {key: getattr(options, key) for key in SETTINGS}
    settings |= {key: Setting(value, "as given") for key, value in chosen.items() if value != "auto"}
    section = {**backbone, **{key: settings[key].value for key in ("output_stride", "multi_grid")}}
    if options.from_ == "mmseg":
        problems += mmseg.block_problems(section)
    if problems:
        raise ValueError("uses options that are not supported here:\n  " + "\n  ".join(problems))
    auxiliary = any(key.startswith("auxiliary_head.") for key in file.tensors)
    report.facts += [("backbone", f"{backbone['name']}, stem={backbone['stem']} (from the keys)")]
    report.facts += [("head", f"{_in_words({**head, 'auxiliary_head': auxiliary})} (from the keys)")]
    report.facts += [("num_classes", f"{num_classes} (from the classifier)")]
    report.facts += [(key, f"{json.dumps(setting.value)} ({setting.origin})") for key, setting in settings.items()]
    report.notes.append("weights do not show " + ", ".join(SETTINGS) + "; override wrong assumptions with key=value")
    hidden = mmseg.RELATIVES[head["name"]].stated if options.from_ == "mmseg" else {}
    if unknown := [f"head.{option}" for option in hidden if f"head.{option}" not in settings]:
        report.notes.append(f"weights do not show {', '.join(unknown)} either; the defaults of conf/head are assumed")
    of_head = {key.removeprefix("head."): value.value for key, value in settings.items() if key.startswith("head.")}
    draft = {
        "backbone": section,
        "head": {**head, **of_head, "align_corners": settings["align_corners"].value},
        "auxiliary_head": auxiliary,
    }
    return config.model_sections(config.model_yaml(draft)), num_classes


def _in_words(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())


def _classes(
    file: ForeignFile, dataset: dict[str, Any] | None, num_classes: int, report: ConversionReport
) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Class names and palette: the data set's if one is given, else the file's, else generated."""
    labels, palette, origin = file.class_names, file.palette, "the file"
    if dataset is not None:
        known = cross_checks.with_classes(dataset)
        labels, palette, origin = known.class_names, known.palette, f"dataset={dataset['name']}"
        if len(labels) != num_classes:
            raise ValueError(f"{origin} has {len(labels)} classes, the file's classifier has {num_classes}")
    if len(labels) != num_classes:
        if labels:
            report.notes.append(f"the file has {len(labels)} class names for a classifier of {num_classes}; ignored")
        labels, palette = tuple(f"class {i}" for i in range(num_classes)), ()
        origin = "generated; dataset=NAME sets them"
    report.facts.append(("classes", f"{', '.join(labels)} ({origin})"))
    return labels, palette if len(palette) == num_classes else voc_palette(num_classes)


def _backbone(file: ForeignFile, options: ConvertConfig, report: ConversionReport) -> dict[str, torch.Tensor]:
    """Convert a backbone without a head, for `backbone.pretrained=FILE`."""
    if options.given:
        raise ValueError(f"contains only a backbone, for which {', '.join(options.given)} cannot be set")
    if options.target.suffix != ".pt":
        raise ValueError(f"contains only a backbone, so out = {options.out!r} must end with .pt")
    prefix = "backbone." if all(key.startswith("backbone.") for key in file.tensors) else ""
    name, stem = architecture.infer_backbone(file.tensors, prefix).values()
    with torch.device("meta"):
        model = BACKBONES[name](stem=stem)
    own = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    report.facts.append(("backbone", f"{name}, stem={stem} (from the keys)"))
    report.notes.append(f"use it as backbone={name} backbone.stem={stem} backbone.pretrained={options.out}")
    naming = names.of_backbone(prefix, deep=f"{prefix}stem.0.weight" in file.tensors)
    tensors = names.take(file.tensors, naming, {f"{prefix}fc.": "the ImageNet classifier"}, own, report)
    return {key.removeprefix("backbone."): value for key, value in tensors.items()}


def _to_theirs(ours: Weights, to: str, report: ConversionReport) -> dict[str, Any]:
    """Convert our model to the dictionary that the other code reads."""
    if ours.config is None:
        raise ValueError("contains no configuration, so the model is unknown; export it again from its run folder")
    sections = config.model_sections(ours.config)
    backbone, head = sections["backbone"], sections["head"]
    if problems := _problems_there(backbone, head, to):
        raise ValueError(f"to={to} has no equivalent of this model:\n  " + "\n  ".join(problems))
    report.facts += [("backbone", f"{backbone['name']}, {STEMS[to][backbone['stem']]}")]
    if to == "mmseg":
        report.facts += [("head", f"{mmseg.RELATIVES[head['name']].type}, here {_in_words(head)}")]
    report.facts += [("num_classes", str(len(ours.class_names)))]
    report.facts += [(key, json.dumps({**backbone, **head}[key])) for key in SETTINGS]
    report.notes += _to_set_there(sections, to)
    naming = names.of_model(to, head["name"], backbone["stem"])
    state = names.give(ours.tensors, naming, _shapes(sections, len(ours.class_names)), report)
    if to == "official":
        return {"epoch": 0, "state_dict": state, "best_pred": 0.0}
    described = {"classes": list(ours.class_names), "palette": [list(color) for color in ours.palette]}
    return {"meta": {"dataset_meta": described}, "state_dict": state}


def _to_set_there(sections: dict[str, Any], to: str) -> list[str]:
    """What a user of the other code has to set or change in it for these weights."""
    backbone, align_corners = sections["backbone"], sections["head"]["align_corners"]
    notes = ["set the same in their configuration: " + ", ".join(SETTINGS)]
    if "normalization" in sections:
        notes.append(f"normalize images there by {json.dumps(sections['normalization'])}")
    channels = sections.get("in_channels", 3)
    if to == "mmseg":
        return notes + ([f"set backbone.in_channels={channels}, and as many means"] if channels != 3 else [])
    name, stride, multi_grid = backbone["name"], backbone["output_stride"], backbone["multi_grid"]
    edits = {
        f"only builds {', '.join(OFFICIAL_DEPTHS)}, not {name}": name not in OFFICIAL_DEPTHS,
        f"only has multi_grid at stride 8, not at {stride}": multi_grid is not None and stride != 8,
        "only resizes with align_corners=True (up_kwargs)": not align_corners,
        f"only takes images of 3 channels, not of {channels}": channels != 3,
    }
    return notes + [f"the official code has to be changed: it {text}" for text, differs in edits.items() if differs]


def _problems_there(backbone: dict[str, Any], head: dict[str, Any], to: str) -> list[str]:
    """The reasons why the other code cannot represent the model, one line each."""
    wanted: dict[str, Any] = {}
    if to == "official" or head["name"] not in mmseg.RELATIVES or head["name"] == "danet":
        wanted = {"name": "danet", "pam": True, "cam": True, "aux_loss": True, "cam_energy": "max_minus"}
    if to == "official":
        wanted["reduction"] = 8
    problems = [f"head.{key} = {head.get(key)!r}: must be {v!r}" for key, v in wanted.items() if head.get(key) != v]
    stem, stems = backbone.get("stem"), STEMS[to]
    if stem not in stems:
        problems.append(f"backbone {backbone['name']}, stem {stem}: must be a ResNet with stem {' or '.join(stems)}")
    elif to == "mmseg":
        problems += mmseg.block_problems(backbone)
    return problems


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
