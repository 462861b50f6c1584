"""Exported models: what they answer without our code, and that nothing wrong is put in place."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import danet
from conftest import environment
from danet import config
from danet.config import REPOSITORY
from danet.heads.danet import PositionAttention
from danet.heads.fcn import FCNHead
from danet.inference import temperature
from danet.interfaces import IMAGENET_MEAN, IMAGENET_STD, Stage
from danet.model import Segmenter, build_model
from danet.services import weights
from danet.services.nonfinite import NonFiniteError
from danet.tools.export import export
from danet.tools.export.export import ExportConfig
from danet.tools.export.exported import FORMS, Form, WholeImage

NAMES, PALETTE = ("road", "Straße", "sky"), ((1, 2, 3), (40, 50, 60), (200, 0, 255))
SECTIONS = {
    "backbone": {"name": "resnet_tiny", "widths": [8, 8, 16, 32]},
    "head": {"name": "danet", "reduction": 2, "align_corners": False},
    "auxiliary_head": False,
}


def odd_image() -> np.ndarray:
    """Patches of color, (61, 87, 3) uint8."""
    colors = np.random.default_rng(5).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return colors.repeat(16, axis=0).repeat(16, axis=1)[:61, :87]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DANet whose attentions take part, with logits as large as a trained model's."""
    model = build_model(**SECTIONS, num_classes=3).eval().requires_grad_(False)
    for branch in model.head.branches.values():
        branch.attention.gamma.fill_(0.8)
    classifier = model.head.classifier[1]
    classifier.weight.mul_(100)
    classifier.bias.sub_(model(torch.from_numpy(odd_image()).permute(2, 0, 1)[None])["main"].mean(dim=(0, 2, 3)))
    path = tmp_path_factory.mktemp("weights") / "danet.safetensors"
    facts = {"step": 7, "miou": 0.5}
    text = config.model_yaml(SECTIONS)
    weights.write(
        path, weights.Weights(tensors=model.state_dict(), config=text, class_names=NAMES, palette=PALETTE, facts=facts)
    )
    return path


def exported(*overrides: str, folder: Path, code: int = 0) -> str:
    """What `python src/export.py` prints."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "src" / "export.py"), *overrides],
        cwd=folder,
        env=environment(folder / "outputs"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def assert_described(metadata: dict[str, str]) -> None:
    assert json.loads(metadata["class_names"]) == list(NAMES)
    assert json.loads(metadata["palette"]) == [list(color) for color in PALETTE]
    facts = json.loads(metadata["facts"])
    assert (facts["step"], facts["miou"], facts["source"]) == (7, 0.5, "danet.safetensors")
    assert json.loads(metadata["normalization"])["mean"] == [123.675, 116.28, 103.53]
    assert "8-bit RGB" in metadata["preprocessing"]
    assert config.model_sections(metadata["config"])["head"]["align_corners"] is False


@pytest.mark.slow
def test_onnx_file_answers_as_our_own_prediction(checkpoint, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    printed = exported(f"checkpoint={checkpoint}", "to=onnx", "out=a b/model.onnx", folder=tmp_path)
    assert "100.0000" in printed

    session = onnxruntime.InferenceSession(tmp_path / "a b" / "model.onnx", providers=["CPUExecutionProvider"])
    assert_described(session.get_modelmeta().custom_metadata_map)
    image = odd_image()
    labels, logits = session.run(["labels", "logits"], {"image": image.transpose(2, 0, 1)[None]})
    ours = danet.load(checkpoint, device="cpu", precision="fp32")
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(labels[0], ours.predict(image))
    softmax = np.exp(logits[0]) / np.exp(logits[0]).sum(axis=0)
    np.testing.assert_allclose(softmax, ours.probabilities(image), atol=1e-4)

    report = json.loads((tmp_path / "a b" / "model.onnx.json").read_text())
    compared = [(entry["batch_size"], *entry["size"]) for entry in report["comparisons"]]
    assert len(compared) == 3
    assert any(batch == 2 for batch, *_ in compared)
    assert any(height % 8 and width % 8 for _, height, width in compared)
    assert all(entry["agreement"] > 0.9999 and entry["difference"] < 1e-3 for entry in report["comparisons"])
    assert sorted(path.name for path in (tmp_path / "a b").iterdir()) == ["model.onnx", "model.onnx.json"]


@pytest.mark.slow
def test_openvino_files_answer_as_our_own_prediction(checkpoint, tmp_path):
    openvino = pytest.importorskip("openvino")
    out = tmp_path / "模型" / "model.xml"
    printed = exported(f"checkpoint={checkpoint}", "to=openvino", f"out={out}", folder=tmp_path)
    assert f"{out}: " in printed
    graph = openvino.Core().read_model(out.read_bytes(), out.with_suffix(".bin").read_bytes())
    keys = ("class_names", "palette", "facts", "normalization", "preprocessing", "config")
    assert_described({key: graph.get_rt_info(["danet", key]).astype(str) for key in keys})
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    image = odd_image()
    labels = compiled(image.transpose(2, 0, 1)[None])["labels"][0]
    np.testing.assert_array_equal(labels, danet.load(checkpoint, precision="fp32").predict(image))
    report = json.loads((out.parent / "model.xml.json").read_text())
    assert report["bytes"] == sum(out.with_suffix(suffix).stat().st_size for suffix in (".xml", ".bin"))
    assert report["versions"]["openvino"]
    names = ["model.bin", "model.xml", "model.xml.json"]
    assert sorted(path.name for path in out.parent.iterdir()) == names


@pytest.mark.slow
def test_torch_export_file_runs_where_our_code_is_not(checkpoint, tmp_path):
    exported(f"checkpoint={checkpoint}", "to=torch_export", "out=model.pt2", folder=tmp_path)
    image = odd_image()
    np.save(tmp_path / "images.npy", np.stack([image, image[::-1]]).transpose(0, 3, 1, 2))
    code = """
import sys, json, numpy, torch
sys.modules["danet"] = None  # importing it fails
files = {"metadata.json": ""}
model = torch.export.load("model.pt2", extra_files=files).module()
numpy.save("labels.npy", model(torch.from_numpy(numpy.load("images.npy")))["labels"].numpy())
print(files["metadata.json"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert_described(json.loads(done.stdout))
    assert "sides are longer than 8 (the output stride)" in json.loads(done.stdout)["preprocessing"]
    ours = danet.load(checkpoint, device="cpu", precision="fp32")
    expected = [ours.predict(image), ours.predict(image[::-1])]
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), expected)


def test_safetensors_file_holds_the_same_model_and_says_so(checkpoint, tmp_path):
    printed = exported(f"checkpoint={checkpoint}", "to=safetensors", "out=new/model.safetensors", folder=tmp_path)
    assert "0.0e+00" in printed
    before, after = weights.read(checkpoint), weights.read(tmp_path / "new" / "model.safetensors")
    assert all(torch.equal(before.tensors[key], after.tensors[key]) for key in before.tensors)
    assert (after.class_names, after.palette, after.config) == (NAMES, PALETTE, before.config)
    assert after.facts["miou"] == 0.5
    report = json.loads((tmp_path / "new" / "model.safetensors.json").read_text())
    assert [entry["difference"] for entry in report["comparisons"]] == [0, 0, 0]


# The parts of a graph.


class Patches(nn.Module):
    """A backbone that sees 8 x 8 pixels at a time."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 8, stride=8, padding=4)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return 4 * [self.conv(image)]


def bilinear(values: np.ndarray, length: int, *, align_corners: bool) -> np.ndarray:
    """The last axis resized, position by position."""
    old = values.shape[-1]
    columns = []
    for i in range(length):
        x = i * (old - 1) / (length - 1) if align_corners else max((i + 0.5) * old / length - 0.5, 0)
        left = min(int(x), old - 1)
        right = min(left + 1, old - 1)
        columns.append(values[..., left] * (1 - (x - left)) + values[..., right] * (x - left))
    return np.stack(columns, axis=-1)


@pytest.mark.parametrize("align_corners", [True, False])
def test_onnx_resizes_logits_by_the_heads_rule(align_corners, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = Segmenter(Patches(), FCNHead([Stage(16, 8)], 3, align_corners=align_corners)).eval().requires_grad_(False)
    described = weights.Weights(tensors={}, config=None, class_names=NAMES, palette=PALETTE, facts={})
    FORMS["onnx"].write(model, described, tmp_path / "model.onnx")
    answer = FORMS["onnx"].run(tmp_path / "model.onnx")
    image = torch.randint(0, 256, (2, 3, 37, 90), dtype=torch.uint8)
    low = model(image)["main"].double().numpy()
    wide = bilinear(low, 90, align_corners=align_corners)
    expected = bilinear(wide.swapaxes(2, 3), 37, align_corners=align_corners).swapaxes(2, 3)
    np.testing.assert_allclose(answer(image)["logits"].numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(answer(image)["labels"].numpy(), answer(image)["logits"].numpy().argmax(axis=1))


def test_position_attention_in_a_graph_is_exact_for_any_number_of_positions():
    module = PositionAttention(16, reduction=2).eval().requires_grad_(False)
    module.gamma.fill_(0.7)
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        module, (torch.randn(2, 16, 6, 7),), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
    )
    for size in ((1, 16, 8, 8), (3, 16, 2, 3), (1, 16, 11, 3)):
        x = 3 * torch.randn(size)
        gathered = torch.einsum("bpn,bcn->bcp", module.attention(x), module.value(x).flatten(2))
        torch.testing.assert_close(program.module()(x), 0.7 * gathered.view_as(x) + x)


# What is refused.


def changed(monkeypatch, change):
    """Let files of safetensors answer what `change` makes of the model's answer."""
    true = FORMS["safetensors"]

    def run(path: Path):
        model = true.run(path)
        return lambda image: change(model(image))

    monkeypatch.setitem(FORMS, "safetensors", Form(true.suffix, true.packages, true.write, run))


def test_a_file_that_answers_differently_is_not_put_in_place(checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "model.safetensors"
    out.write_text("an earlier export")
    changed(monkeypatch, lambda answer: {**answer, "logits": answer["logits"] + 0.01})
    settings = {"checkpoint": str(checkpoint), "to": "safetensors", "out": str(out)}
    with pytest.raises(
        ValueError, match=r"100\.0000% of the labels .* differ by up to 1\.0e-02 \(max_difference = 0\.001\)"
    ):
        export.run(ExportConfig(**settings))
    assert out.read_text() == "an earlier export"
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    export.run(ExportConfig(**settings, max_difference=0.02))
    assert weights.read(out).class_names == NAMES


def test_labels_that_differ_are_refused_though_the_logits_agree(checkpoint, tmp_path, monkeypatch):
    def change(answer):
        labels = answer["labels"].clone()
        labels[:, :1] = (labels[:, :1] + 1) % len(NAMES)  # a row of 97 at least
        return {**answer, "labels": labels}

    changed(monkeypatch, change)
    settings = {"checkpoint": str(checkpoint), "to": "safetensors", "out": str(tmp_path / "model.safetensors")}
    with pytest.raises(ValueError, match=r"98\.9691% of the labels are the same \(min_agreement = 99\.9900%\)"):
        export.run(ExportConfig(**settings))
    assert list(tmp_path.iterdir()) == []
    export.run(ExportConfig(**settings, min_agreement=0.98))


def test_rounding_is_told_on_the_scale_of_the_differences(checkpoint, tmp_path, monkeypatch):
    """Both are of logits that the temperature divides."""
    changed(monkeypatch, lambda answer: {**answer, "logits": answer["logits"] + 1})
    told = []
    for value in (1.0, 8.0):
        settings = {"checkpoint": str(checkpoint), "to": "safetensors", "out": str(tmp_path / "m.safetensors")}
        with pytest.raises(ValueError, match="PyTorch's own logits differ by") as error:
            export.run(ExportConfig(**settings, temperature=value))
        told.append(float(re.search(r"own logits differ by (\S+)", str(error.value))[1]))
    assert told[1] == pytest.approx(told[0] / 8, rel=0.2)


def test_two_files_are_put_in_place_together(checkpoint, tmp_path, monkeypatch):
    """A form of two files: what differs leaves the earlier pair, what agrees replaces both."""
    error, written, out = 0.0, [], tmp_path / "model.xml"

    def write(model, described, path):
        written.append(model)
        path.write_text("a graph")
        path.with_suffix(".bin").write_text(f"differs by {error}")

    def run(path: Path):
        model = WholeImage(written[-1])
        return lambda image: {name: value + error * (name == "logits") for name, value in model(image).items()}

    monkeypatch.setitem(FORMS, "openvino", Form(".xml", (), write, run, beside=".bin"))
    settings = ExportConfig(checkpoint=str(checkpoint), to="openvino", out=str(out))
    export.run(settings)
    names = ["model.bin", "model.xml", "model.xml.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert json.loads((tmp_path / "model.xml.json").read_text())["bytes"] == sum(
        out.with_suffix(suffix).stat().st_size for suffix in (".xml", ".bin")
    )
    error = 0.01
    with pytest.raises(ValueError, match="not written, since its output differs"):
        export.run(settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert out.with_suffix(".bin").read_text() == "differs by 0.0"

    out.with_suffix(".bin").unlink()
    out.with_suffix(".bin").mkdir()
    assert settings.problems() == [f"out = {str(out)!r}: model.bin is a folder; name a file"]
    alone = tmp_path / "model.safetensors"
    alone.mkdir()
    settings = ExportConfig(checkpoint=str(checkpoint), to="safetensors", out=str(alone))
    assert settings.problems() == [f"out = {str(alone)!r}: model.safetensors is a folder; name a file"]


def test_an_operation_that_fits_one_size_is_told_in_a_line(checkpoint, tmp_path, monkeypatch):
    """As onnxruntime does, whose errors are of no kind that Python has."""

    class InvalidArgument(Exception):  # noqa: N818
        """onnxruntime's."""

    def run(path):
        def answer(image):
            raise InvalidArgument("GatherND: invalid index\nmore")

        return answer

    monkeypatch.setitem(FORMS, "onnx", Form(".onnx", (), lambda model, described, path: path.write_bytes(b"x"), run))
    with pytest.raises(ValueError, match=r"not written; .*any size \(InvalidArgument: GatherND: invalid index\)"):
        export.run(ExportConfig(checkpoint=str(checkpoint), to="onnx", out=str(tmp_path / "model.onnx")))
    assert not [path for path in tmp_path.iterdir() if "onnx" in path.name]


def test_wrong_names_and_missing_packages_are_told_before_any_work(checkpoint, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    lines = ExportConfig(out="model.pt2").problems()
    assert len(lines) == 3
    assert "run=" in lines[0]
    assert ".onnx" in lines[1]
    assert "onnxscript" in lines[2]
    assert "pip install" in lines[2]
    assert ExportConfig(checkpoint=str(checkpoint), to="torch_export", out="model.pt2").problems() == []


def test_a_model_whose_scores_are_not_finite_is_not_exported(tmp_path):
    model = build_model(**SECTIONS, num_classes=3)
    model.head.classifier[1].weight.data.fill_(3e38)
    model.head.branches["pam"].conv_out[1].bias.data.fill_(1e3)
    checkpoint = tmp_path / "a.pt"
    torch.save({"model": model.state_dict(), "config": config.model_yaml(SECTIONS)}, checkpoint)
    with pytest.raises(NonFiniteError, match=r"the model's scores are NaN or infinite\. Its weights are finite"):
        export.run(ExportConfig(checkpoint=str(checkpoint), to="safetensors", out=str(tmp_path / "m.safetensors")))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("to", ["safetensors", "torch_export"])
def test_a_disk_that_is_full_is_told_and_nothing_is_left(checkpoint, tmp_path, monkeypatch, to):
    write, out = FORMS[to].write, tmp_path / f"model{FORMS[to].suffix}"

    def full(model, described, path):
        write(model, described, path)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(FORMS, to, Form(FORMS[to].suffix, (), full, FORMS[to].run))
    with pytest.raises(OSError, match="No space left on device; free some space there, or choose another") as caught:
        export.run(ExportConfig(checkpoint=str(checkpoint), to=to, out=str(out)))
    assert caught.value.filename == str(out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="names of files are Unicode elsewhere")
@pytest.mark.parametrize("to", ["safetensors", pytest.param("torch_export", marks=pytest.mark.slow)])
def test_names_that_are_not_utf8(checkpoint, tmp_path, to):
    name = os.fsdecode("模型".encode("gbk"))
    source, out = tmp_path / f"{name}.safetensors", tmp_path / name / f"{name}{FORMS[to].suffix}"
    try:
        os.link(checkpoint, source)
    except OSError:
        pytest.skip("the file system takes no such names")
    export.run(ExportConfig(checkpoint=str(source), to=to, out=str(out)))
    image = torch.from_numpy(odd_image()).permute(2, 0, 1)[None]
    labels = FORMS[to].run(out)(image)["labels"]
    np.testing.assert_array_equal(labels[0].numpy(), danet.load(checkpoint, precision="fp32").predict(odd_image()))


@pytest.mark.parametrize("to", [pytest.param("onnx", marks=pytest.mark.slow), "safetensors"])
def test_a_temperature_goes_with_the_file(checkpoint, tmp_path, to):
    """An exported graph's softmax has the calibrated probabilities; labels stay."""
    source = tmp_path / "source.safetensors"
    source.write_bytes(checkpoint.read_bytes())
    temperature.write(source, {"temperature": 2.0})
    file, image = tmp_path / f"model.{to}", odd_image()
    export.run(ExportConfig(checkpoint=str(source), to=to, out=str(file)))
    plain, warm = (danet.load(source, device="cpu", precision="fp32", temperature=value) for value in (1, "auto"))
    if to == "safetensors":
        found = danet.load(file, device="cpu", precision="fp32")
        assert found.temperature == 2
        np.testing.assert_array_equal(found.probabilities(image), warm.probabilities(image))
        export.run(ExportConfig(checkpoint=str(file), to=to, out=str(tmp_path / f"raw.{to}"), temperature=1.0))
        assert danet.load(tmp_path / f"raw.{to}", device="cpu").temperature == 1
        return
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    labels, logits = session.run(["labels", "logits"], {"image": image.transpose(2, 0, 1)[None]})
    np.testing.assert_array_equal(labels[0], plain.predict(image))
    np.testing.assert_allclose(torch.from_numpy(logits[0]).softmax(0), warm.probabilities(image), atol=1e-5)
    assert "divided by the temperature 2" in session.get_modelmeta().custom_metadata_map["outputs"]
