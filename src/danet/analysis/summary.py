"""Parameters and operations of a model by part, and optionally its latency and memory.

Operations are those of PyTorch's FLOP counter: convolutions and matrix products, a multiply-add counting as two. They
are counted from shapes alone, so that no image is too large.

Shapes: B images, H x W image size.
"""

import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from danet.analysis.measurement import Measurement, measure
from danet.analysis.summary_options import SummaryConfig
from danet.inference import predictor
from danet.model import Segmenter, build_model
from danet.ops.flops import fake_tensors, flop_counter
from danet.services import atomic_files, hardware
from danet.services.console import print_table, print_text

STAGE = r"\.(?:net\.(?:model\.)?)?(?:layer|stage|block|s)s?[._]?"  # ours and timm's; what comes before its number

# The parts of a model, by the beginning of their modules' paths.
PARTS = {
    rf"backbone(?!{STAGE}\d)": "backbone, stem",
    rf"backbone{STAGE}(\d+)": r"backbone, stage \1",
    r"head\.(?:branches\.)?pam\b": "head, PAM branch",
    r"head\.(?:branches\.)?cam\b": "head, CAM branch",
    r"head(?!\.aux_classifiers)": "head, rest",
    r"head\.aux_classifiers": "head, branch classifiers",
    r"auxiliary": "auxiliary head",
    r"": "rest",
}


@dataclass(frozen=True, kw_only=True)
class ModelPart:
    """A part of a model.

    Attributes:
        name: such as "backbone, stage 1" or "head, PAM branch".
        parameters: number of parameters.
        flops: operations for a batch in evaluation.
    """

    name: str
    parameters: int
    flops: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The cost of a model for batches of one size; the parts add up to the model."""

    batch_size: int
    size: tuple[int, int]
    parts: tuple[ModelPart, ...]

    @property
    def parameters(self) -> int:
        """Number of parameters, including those only used in training."""
        return sum(part.parameters for part in self.parts)

    @property
    def flops(self) -> int:
        """Operations for a batch in evaluation, a multiply-add counting as two."""
        return sum(part.flops for part in self.parts)


def summarize(model: Segmenter, size: tuple[int, int], batch_size: int = 1) -> Summary:
    """Count parameters and operations of a model in evaluation, without running or changing it.

    Args:
        model: on any device, "meta" included.
        size: H, W.
        batch_size: B.
    """
    flops_of = _flops_by_module(model, size, batch_size)
    parameters: Counter[tuple[int, str]] = Counter()
    flops: Counter[tuple[int, str]] = Counter()
    for path, module in model.named_modules():
        part = _part(path)
        parameters[part] += sum(parameter.numel() for parameter in module.parameters(recurse=False))
        children = [f"{path}.{name}".lstrip(".") for name, _ in module.named_children()]
        flops[part] += flops_of[path] - sum(flops_of[child] for child in children)
    parts = [ModelPart(name=p[1], parameters=parameters[p], flops=flops[p]) for p in sorted(parameters, key=_in_order)]
    return Summary(batch_size=batch_size, size=size, parts=tuple(p for p in parts if p.parameters or p.flops))


def _part(path: str) -> tuple[int, str]:
    """The part that a module belongs to: its place in PARTS and its name."""
    matches = ((place, re.match(pattern, path), name) for place, (pattern, name) in enumerate(PARTS.items()))
    return next((place, match.expand(name)) for place, match, name in matches if match)


def _in_order(part: tuple[int, str]) -> tuple[int, list[int | str]]:
    """A part's key for sorting: its place, then its name with numbers as such."""
    place, name = part
    return place, [int(text) if text.isdigit() else text for text in re.split(r"(\d+)", name)]


def _flops_by_module(model: Segmenter, size: tuple[int, int], batch_size: int) -> Counter[str]:
    """Operations by module path, including those of the children."""
    own = (*model.named_parameters(), *model.named_buffers())
    trains = model.training
    model.eval()
    try:
        with torch.no_grad(), fake_tensors(), flop_counter() as counter:
            tensors = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in own}
            image = torch.empty(batch_size, model.in_channels, *size, dtype=torch.uint8)
            torch.func.functional_call(model, tensors, (image,))
    finally:
        model.train(trains)
    root = type(model).__name__
    flops = Counter(
        {
            path.removeprefix(root).removeprefix("."): sum(by_operator.values())
            for path, by_operator in counter.get_flop_counts().items()
            if path != "Global"
        }
    )
    for path, module in reversed(list(model.named_modules())):  # containers are not called themselves
        flops[path] = flops[path] or sum(flops[f"{path}.{name}".lstrip(".")] for name, _ in module.named_children())
    return flops


def run(settings: SummaryConfig) -> Summary:
    """Summarize a model and print the tables.

    Raises:
        ConfigError: the model's configuration is not valid in this version of the code.
        ValueError: the model cannot be loaded, or the device is not available.
        OSError: the output file cannot be written.
    """
    device = hardware.select_device(settings.runtime.device)
    model, name = _model(settings, device)
    size = (settings.size[0], settings.size[1])
    summary = summarize(model, size, settings.batch_size)
    title = f"{name}, {model.num_classes} classes, {settings.batch_size} x {model.in_channels} x {size[0]} x {size[1]}"
    _print(summary, title)
    measured = None
    if settings.measure:
        dtype = hardware.autocast_dtype(settings.precision, device)
        measured = measure(model, size, batch_size=settings.batch_size, runs=settings.runs, dtype=dtype)
        _print_measurement(measured)
    if settings.output is not None:
        figures = {"model": name, "num_classes": model.num_classes, "torch": torch.__version__, **asdict(summary)}
        figures |= {"parameters": summary.parameters, "flops": summary.flops}
        figures["measured"] = asdict(measured) if measured else None
        output = Path(settings.output).expanduser().absolute()
        output.parent.mkdir(parents=True, exist_ok=True)
        atomic_files.write_json(output, figures)
    return summary


def _model(settings: SummaryConfig, device: torch.device) -> tuple[Segmenter, str]:
    """The model, in evaluation mode, and its name; untrained weights are only allocated to be measured."""
    if source := settings.run or settings.checkpoint:
        loaded = predictor.load(
            source, device=settings.runtime.device, backbone=settings.backbone, head=settings.head, precision="fp32"
        )
        return loaded.model, f"{_name(loaded.sections)} from {Path(source).name}"
    assert settings.backbone is not None
    assert settings.head is not None
    backbone = {key: value for key, value in settings.backbone.items() if key != "pretrained"}
    with torch.device("cpu" if settings.measure else "meta"):
        model = build_model(backbone, settings.head, settings.num_classes or 19, auxiliary_head=settings.auxiliary_head)
    if settings.measure:
        model.to(device).to(memory_format=torch.channels_last)
    return model.eval().requires_grad_(False), _name({"backbone": backbone, "head": settings.head})


def _name(sections: dict[str, Any]) -> str:
    return f"{sections['backbone']['name']} + {sections['head']['name']}"


def _print(summary: Summary, title: str) -> None:
    def row(part: ModelPart) -> list[str]:
        share = 100 * part.flops / max(summary.flops, 1)
        numbers = [f"{part.flops / 1e9:.2f}", f"{part.flops / 2e9:.2f}", f"{share:.1f}"] if part.flops else ["-"] * 3
        return [part.name + ("" if part.flops else " *"), f"{part.parameters / 1e6:.3f}", *numbers]

    headings = ("part", "million params", "GFLOPs", "GMACs", "%")
    total = ModelPart(name="all", parameters=summary.parameters, flops=summary.flops)
    print_table(title, headings, map(row, summary.parts), last_row=row(total))
    print_text("Convolutions and matrix products count, a multiply-add (MAC) as two operations. * in training only")


def _print_measurement(measured: Measurement) -> None:
    runs = measured.milliseconds
    print_text(
        f"{measured.device}, {measured.precision}: {measured.median:.1f} ms per batch, median of {len(runs)} runs "
        f"({min(runs):.1f} to {max(runs):.1f}), from images to labels."
    )
    if measured.memory is None:
        return
    if measured.process is None:
        print_text(f"Peak memory of tensors, weights included: {measured.memory / 2**30:.2f} GiB.")
    else:
        print_text(
            f"Peak memory: {measured.memory / 2**30:.2f} GiB more than before the first run; "
            f"{measured.process / 2**30:.2f} GiB for the whole process."
        )
