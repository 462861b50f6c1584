"""Export a trained model as a file for other programs (OpenVINO: two); kept only if its output matches PyTorch's.

Shapes: B images, H x W image size, K classes.
"""

import contextlib
import copy
import importlib.metadata
import importlib.util
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from danet import config
from danet.inference import predictor
from danet.model import Segmenter
from danet.services import atomic_files, failures, weights
from danet.services.console import print_table
from danet.services.nonfinite import FiniteScores
from danet.tools.export.exported import FORMS, OPSET, Run, WholeImage
from danet.tools.export.options import ExportConfig

logger = logging.getLogger(__name__)

SIZES = ((1, 192, 256), (2, 129, 163), (1, 97, 210))  # batch, height, width that files are compared on


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An exported model's output compared with PyTorch's, for one batch.

    Attributes:
        batch_size: B.
        size: H, W.
        agreement: share of pixels with the same label.
        difference: the largest of any logit.
        largest_logit: without sign; the scale of `difference`.
        classes: how many classes there are among the labels.
    """

    batch_size: int
    size: tuple[int, int]
    agreement: float
    difference: float
    largest_logit: float
    classes: int


def run(settings: ExportConfig) -> list[Comparison]:
    """Export as src/export.py does: write the file, run it, compare it with PyTorch, put it in place.

    Beside FILE comes FILE.json with the figures.

    Raises:
        ConfigError: the model's configuration is not one of this version of the code.
        ValueError: the model cannot be loaded, or the exported one answers differently. No file is left then.
        NonFiniteError: the model's scores are NaN or infinite; likewise.
    """
    source = Path(settings.run or settings.checkpoint or "")
    out = Path(settings.out).expanduser().absolute()
    sections = {"backbone": settings.backbone, "head": settings.head}
    loaded = predictor.load(source, device="cpu", precision="fp32", temperature=settings.temperature, **sections)
    model = loaded.model.to(memory_format=torch.contiguous_format)
    described = _described(settings, predictor.checkpoint_of(source), loaded)
    form, partial = FORMS[settings.to], out.with_name(f".{out.name}.partial{out.suffix}")
    files = {partial: out}
    if form.beside:
        files = {partial.with_suffix(form.beside): out.with_suffix(form.beside), **files}
    logger.info(f"Exporting {described.facts['source']} as {settings.to} ...")
    begin = time.monotonic()
    try:
        with atomic_files.naming(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            partial.touch()  # which tells why, where nothing can be written
            with _explained(out, settings.to):
                form.write(model, described, partial)
        seconds = round(time.monotonic() - begin, 1)
        with _explained(out, settings.to):
            exported = form.run(partial)
            batches = random_images(model.in_channels)
            comparisons = [compare(model, exported, images, loaded.temperature) for images in batches]
        _print(comparisons)
        if disagreement := _disagreement(settings, comparisons, model, loaded.temperature):
            raise ValueError(f"{out}: not written, since its output differs from PyTorch's: {disagreement}")
        size = sum(file.stat().st_size for file in files)
        report = _report(settings, described, comparisons, size=size, seconds=seconds)
        with atomic_files.naming(out):
            if form.beside:
                out.unlink(missing_ok=True)  # never beside another export's second file
            for file, place in files.items():
                file.replace(place)
        atomic_files.write_json(out.with_name(f"{out.name}.json"), report)
    finally:
        for file in files:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
    logger.info(f"{out}: {report['bytes'] / 1e6:.1f} MB in {seconds:.0f} s; {out.name}.json has the figures")
    return comparisons


@contextlib.contextmanager
def _explained(out: Path, form: str) -> Iterator[None]:
    """Turn the exporters' and run times' own errors, of an operation that fits one size of images only, into one line.

    Raises:
        ValueError: in place of such an error; what can be explained otherwise passes.
    """
    try:
        yield
    except (ValueError, OSError, ArithmeticError, MemoryError):
        raise
    except Exception as error:
        if failures.is_out_of_memory(error):
            raise
        raise ValueError(
            f"{out}: not written; the model has an operation that {form} cannot express for images of any size "
            f"({type(error).__name__}: {failures.first_line(error)}). to=safetensors takes every model"
        ) from error


def random_images(channels: int) -> list[torch.Tensor]:
    """Batches (B, channels, H, W) uint8 of patches in random colors with noise: different classes to see."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for batch_size, height, width in SIZES:
        patches = torch.rand(batch_size, channels, height // 24, width // 24, generator=generator)
        noise = torch.randn(batch_size, channels, height, width, generator=generator)
        image = 255 * F.interpolate(patches, (height, width)) + 12 * noise
        batches.append(image.clamp(0, 255).to(torch.uint8))
    return batches


@torch.no_grad()
def compare(model: Segmenter, exported: Run, images: torch.Tensor, temperature: float = 1.0) -> Comparison:
    """Show the same images to both.

    Args:
        model: in evaluation mode, on the CPU.
        exported: answers as WholeImage does.
        images: (B, 3, H, W) uint8.
        temperature: that divides the exported logits.
    """
    answer, labels = exported(images), model.segment(images)
    logits = WholeImage(model, temperature)(images)["logits"]
    finite = FiniteScores()
    finite(logits)
    finite.require(model, "images to compare on")
    return Comparison(
        batch_size=images.shape[0],
        size=(images.shape[2], images.shape[3]),
        agreement=(answer["labels"] == labels).double().mean().item(),
        difference=(answer["logits"] - logits).abs().max().item(),
        largest_logit=logits.abs().max().item(),
        classes=len(labels.unique()),
    )


def _described(settings: ExportConfig, path: Path, loaded: predictor.Predictor) -> weights.Weights:
    """The file of weights with what the exported file says about itself."""
    content = weights.read(path)
    if settings.backbone or settings.head or content.config is None:
        content = replace(content, config=config.model_yaml(loaded.sections))
    # Without the folders above a run, which are this machine's.
    source = "/".join(path.absolute().parts[-3:]) if settings.run else path.name
    facts = {"source": source, **content.facts}
    if loaded.temperature != 1 or "temperature" in facts:
        facts["temperature"] = loaded.temperature
    return replace(content, facts=facts)


def _report(
    settings: ExportConfig, described: weights.Weights, comparisons: list[Comparison], *, size: int, seconds: float
) -> dict[str, Any]:
    """What FILE.json says."""
    packages = ("torch", *FORMS[settings.to].packages)
    return {
        "to": settings.to,
        "opset": OPSET if settings.to == "onnx" else None,
        "bytes": size,
        "seconds": seconds,
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "facts": described.facts,
        "min_agreement": settings.min_agreement,
        "max_difference": settings.max_difference,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }


def _disagreement(settings: ExportConfig, comparisons: list[Comparison], model: Segmenter, temperature: float) -> str:
    """What does not hold, as the end of an error's text; empty if all does."""
    limits = settings.min_agreement, settings.max_difference
    # One by one, for NaN gets past min and max.
    if all(c.agreement >= limits[0] and c.difference <= limits[1] for c in comparisons):
        return ""
    agreement = min(comparison.agreement for comparison in comparisons)
    difference = max(comparison.difference for comparison in comparisons)
    exact, single = copy.deepcopy(model).double(), WholeImage(model, temperature)
    own = max(compare(exact, single, images, temperature).difference for images in random_images(model.in_channels))
    return (
        f"{agreement:.4%} of the labels are the same (min_agreement = {limits[0]:.4%}) and logits differ by up to "
        f"{difference:.1e} (max_difference = {limits[1]:g}). PyTorch's own logits differ by {own:.1e} between single "
        "and double precision: if that is as much, the model magnifies rounding and the limits may be widened"
    )


def _print(comparisons: list[Comparison]) -> None:
    rows = []
    for c in comparisons:
        images = f"{c.batch_size} x {c.size[0]} x {c.size[1]}"
        numbers = (f"{100 * c.agreement:.4f}", f"{c.difference:.1e}", f"{c.largest_logit:.1f}", str(c.classes))
        rows.append((images, *numbers))
    headings = ("images", "same labels %", "logits differ by", "of", "classes")
    print_table("Exported model against PyTorch", headings, rows)
