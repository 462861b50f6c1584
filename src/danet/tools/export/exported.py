"""The forms a model is exported in: how a file of each is written, described and run.

The graphs (ONNX, OpenVINO, torch.export) take 8-bit images as they are decoded, the normalization being in them, and
look at them whole. Batch and image size are free; torch.export wants sides longer than the backbone's output stride.

Shapes: B images, H x W image size, K classes.
"""

import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from danet.config import image_reading
from danet.inference import predictor
from danet.model import Segmenter
from danet.services import weights

# The oldest that PyTorch's exporter writes by itself, so that the most runtimes read the file.
OPSET = 18

EXAMPLE = (2, 128, 168)  # B, H, W of what the graph is recorded with; a 1 would be taken for a constant
ANY_SIZE = "any size"

Outputs = dict[str, torch.Tensor]
Run = Callable[[torch.Tensor], Outputs]


class WholeImage(nn.Module):
    """What is exported: images in; labels and logits at the images' size out.

    Args:
        model: to look at images with; in evaluation mode.
        temperature: divides the logits, so that their softmax is calibrated; labels do not depend on it.
    """

    def __init__(self, model: Segmenter, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.training = model.training  # the exporters ask

    def forward(self, image: torch.Tensor) -> Outputs:
        """(B, 3, H, W) uint8 -> {"labels": (B, H, W) int64, "logits": (B, K, H, W)}."""
        logits = self.model(image)["main"]
        logits = F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=self.model.align_corners)
        labels = logits.argmax(dim=1)
        return {"labels": labels, "logits": logits if self.temperature == 1 else logits / self.temperature}


@dataclass(frozen=True)
class Form:
    """One form of an exported model.

    Attributes:
        suffix: of its files.
        packages: that it needs besides PyTorch.
        write: from a model on the CPU and its description to a file.
        run: from such a file to what answers as WholeImage does.
        beside: suffix of a second file of the same name that belongs to it.
        extra: of this package, with all of `packages`.
    """

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[Segmenter, weights.Weights, Path], None]
    run: Callable[[Path], Run]
    beside: str | None = None
    extra: str = "export"


def temperature_of(described: weights.Weights) -> float:
    """The temperature that a file says its probabilities have."""
    return float(described.facts.get("temperature") or 1.0)


def metadata(described: weights.Weights, model: Segmenter, sizes: str = ANY_SIZE) -> dict[str, str]:
    """Texts by name for a graph's file, which takes images of `sizes`; what is no text by nature is JSON."""
    outputs = "labels: batch x height x width, indices of class_names; logits: batch x class x height x width"
    if (value := temperature_of(described)) != 1:
        outputs += f", divided by the temperature {value:.6g}"
    return {
        "framework": "danet",
        "class_names": json.dumps(described.class_names, ensure_ascii=False),
        "palette": json.dumps(described.palette),
        "preprocessing": _preprocessing(described, model, sizes),
        "normalization": json.dumps(
            {"mean": model.backbone.mean, "std": model.backbone.std, "scale": "0..255", "where": "in the model"}
        ),
        "outputs": outputs,
        "facts": json.dumps(described.facts),  # names of files may be no Unicode
        "config": described.config or "",
    }


def _example(model: Segmenter) -> torch.Tensor:
    batch_size, height, width = EXAMPLE
    return torch.zeros(batch_size, model.in_channels, height, width, dtype=torch.uint8)


def _preprocessing(described: weights.Weights, model: Segmenter, sizes: str = ANY_SIZE) -> str:
    """What must be done to an image before the model sees it."""
    if not (reading := image_reading(described.config)):
        return f"none: 8-bit RGB as decoded, 0..255, batch x 3 x height x width, {sizes}; the model normalizes"
    bands, (low, high) = reading.get("bands", "as in the file"), reading.get("range", (0, 255))
    size = f"batch x {model.in_channels} x height x width"
    return (
        f"bands {bands}, values {low:g} to {high:g} scaled to 0..255 in 8 bits, {size}, {sizes}; the model normalizes"
    )


def _write_onnx(model: Segmenter, described: weights.Weights, path: Path) -> None:
    import onnxscript  # noqa: F401  before its loggers are set

    for name in ("onnxscript", "onnx_ir"):  # they tell what they optimize, a line a node
        logging.getLogger(name).setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's about itself
        program = torch.onnx.export(
            WholeImage(model, temperature_of(described)),
            (_example(model),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["labels", "logits"],
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata(described, model))
    program.save(path, external_data=False)


def _run_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = ["labels", "logits"]

    def answer(image: torch.Tensor) -> Outputs:
        values = session.run(names, {"image": image.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

    return answer


def _write_openvino(model: Segmenter, described: weights.Weights, path: Path) -> None:
    """Through ONNX, and in a temporary folder, since OpenVINO does not take every name."""
    import openvino

    with tempfile.TemporaryDirectory() as name:
        graph = Path(name) / "model.onnx"
        _write_onnx(model, described, graph)
        converted = openvino.Core().read_model(graph)
        for key, text in metadata(described, model).items():
            converted.set_rt_info(text, ["danet", key])
        openvino.save_model(converted, graph.with_suffix(".xml"), compress_to_fp16=False)
        for suffix in (".xml", ".bin"):
            shutil.copyfile(graph.with_suffix(suffix), path.with_suffix(suffix))


def run_openvino(path: Path, *, bfloat16: bool = False) -> Run:
    """What OpenVINO answers to images, from its two files; without the hint the processor would decide the type."""
    import openvino

    core = openvino.Core()
    graph = core.read_model(path.read_bytes(), path.with_suffix(".bin").read_bytes())
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32"})

    def answer(image: torch.Tensor) -> Outputs:
        values = compiled(image.numpy())
        return {name: torch.from_numpy(values[name]) for name in ("labels", "logits")}

    return answer


def _write_torch_export(model: Segmenter, described: weights.Weights, path: Path) -> None:
    dynamic = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        program = torch.export.export(
            WholeImage(model, temperature_of(described)),
            (_example(model),),
            dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
        )
    sizes = f"any size whose sides are longer than {max(model.backbone.strides)} (the output stride)"
    texts = {"metadata.json": json.dumps(metadata(described, model, sizes))}
    content = io.BytesIO()  # on a full disk PyTorch's own writer ends the process
    torch.export.save(program, content, extra_files=texts)
    path.write_bytes(content.getbuffer())


def _run_torch_export(path: Path) -> Run:
    with path.open("rb") as file:  # PyTorch's own reader wants a name in UTF-8
        return torch.export.load(file).module()


def _write_safetensors(model: Segmenter, described: weights.Weights, path: Path) -> None:
    facts = {**described.facts, "preprocessing": _preprocessing(described, model)}
    weights.write(path, replace(described, tensors=model.state_dict(), facts=facts))


def _run_safetensors(path: Path) -> Run:
    loaded = predictor.load(path, device="cpu", precision="fp32")
    model = loaded.model.to(memory_format=torch.contiguous_format)  # as the model it is compared with
    return WholeImage(model, loaded.temperature)


FORMS = {
    "onnx": Form(".onnx", ("onnx", "onnxruntime", "onnxscript"), _write_onnx, _run_onnx),
    "openvino": Form(
        ".xml", ("openvino", "onnx", "onnxscript"), _write_openvino, run_openvino, beside=".bin", extra="openvino"
    ),
    "torch_export": Form(".pt2", (), _write_torch_export, _run_torch_export),
    "safetensors": Form(".safetensors", (), _write_safetensors, _run_safetensors),
}
