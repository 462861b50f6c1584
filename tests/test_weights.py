"""Files of weights: what goes in comes out, what is damaged or foreign is refused, nothing in them runs."""

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import danet
from conftest import load
from danet.model import build_model
from danet.registry import HEADS
from danet.schema import ConfigError
from danet.services import checkpoint, weights
from danet.services.palettes import voc_palette


def a_model(num_classes: int = 5, head: str = "fcn") -> nn.Module:
    return build_model({"name": "resnet_tiny", "widths": [8, 8, 8, 32]}, {"name": head}, num_classes)


def the_weights(model: nn.Module) -> weights.Weights:
    return weights.Weights(
        tensors=model.state_dict(),
        config="head:\n  name: fcn  # Kopf\n",
        class_names=("sky", "Straße", "人", 'a "b"', "e"),
        palette=((0, 0, 0), (1, 2, 3), (255, 0, 128), (4, 5, 6), (7, 8, 9)),
        facts={"step": 7, "miou": 0.25, "source": "a test"},
    )


@pytest.fixture
def pt(tmp_path: Path) -> Path:
    """A checkpoint with its manifest."""
    path = tmp_path / "best.pt"
    checkpoint.save(path, {"step": 3, "model": a_model().state_dict(), "num_classes": 5, "tracker_id": "x"})
    return path


def test_safetensors_keep_everything(tmp_path: Path) -> None:
    written = the_weights(a_model())
    weights.write(tmp_path / "a.safetensors", written)
    read = weights.read(tmp_path / "a.safetensors")
    assert (read.config, read.class_names, read.palette) == (written.config, written.class_names, written.palette)
    assert read.facts == written.facts
    assert read.tensors.keys() == written.tensors.keys()
    for key, value in written.tensors.items():
        assert read.tensors[key].dtype == value.dtype
        assert torch.equal(read.tensors[key], value), key
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_weights_that_do_not_fit_are_listed_and_nothing_is_copied() -> None:
    model, tensors = a_model(), dict(a_model(num_classes=4).state_dict())
    missing = next(iter(tensors))
    tensors["backbone.surplus"] = tensors.pop(missing)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        weights.load_into(model, Path("some.pt"), tensors)
    text = str(caught.value)
    assert "some.pt" in text
    assert f"missing {missing}" in text
    assert "unexpected backbone.surplus" in text
    assert "head.classifier.1.bias has shape (4,), the model's is (5,)" in text
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_checkpoint_without_its_manifest_is_accepted(pt: Path) -> None:
    pt.with_suffix(".json").unlink()
    read = weights.read(pt)
    assert read.facts == {"step": 3}
    assert read.class_names == ("class 0", "class 1", "class 2", "class 3", "class 4")
    assert len(set(read.palette)) == 5
    weights.load_into(a_model(), pt)


def test_a_checkpoint_that_is_not_its_manifests_is_refused(pt: Path) -> None:
    content = bytearray(pt.read_bytes())
    content[len(content) // 2] ^= 1
    pt.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        weights.read(pt)


def test_a_damaged_manifest_is_refused(pt: Path) -> None:
    pt.with_suffix(".json").write_text('{"size": 12')
    with pytest.raises(ValueError, match=r"best\.json is damaged"):
        weights.read(pt)


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    model, averaged = a_model(), a_model()
    with torch.no_grad():
        for value in averaged.parameters():
            value += 1
    checkpoint.save(tmp_path / "a.pt", {"step": 1, "model": model.state_dict(), "ema": averaged.state_dict()})
    read = weights.read(tmp_path / "a.pt").tensors
    assert all(torch.equal(read[key], value) for key, value in averaged.state_dict().items())


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["a.pt", "zip.pt", "a.safetensors"])
def test_pickled_code_does_not_run(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    state = {"model": {}, "step": 0, "config": Payload(marker)}
    if name == "zip.pt":
        torch.save(state, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(state))
    with pytest.raises(ValueError, match=name):
        weights.read(tmp_path / name)
    assert not marker.exists()
    pickle.loads(pickle.dumps(state))  # the payload itself works
    assert marker.exists()


# Empty, the start of a zip archive, an empty pickle, nothing in particular, JSON, a header's length without a header.
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\xff" * 100, b"{}", b"\x08" + bytes(7)])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_garbage_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        weights.read(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.safetensors: no such file"):
        weights.read(tmp_path / "none.safetensors")


@pytest.mark.parametrize("model", [3, {"a": 3}, [1]])
def test_a_checkpoint_without_a_state_dict_is_refused(tmp_path: Path, model: object) -> None:
    torch.save({"model": model}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: its 'model' is not a state dict"):
        weights.read(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "metadata",
    [
        {"class_names": "5"},
        {"class_names": "[1"},
        {"palette": "[[1, 2]]"},
        {"palette": '[["red", 0, 0]]'},
        {"facts": "[1]"},
    ],
)
def test_damaged_metadata_are_refused(tmp_path: Path, metadata: dict[str, str]) -> None:
    save_file({"head.classifier.weight": torch.zeros(2, 3, 1, 1)}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(ValueError, match=r"a\.safetensors: .* damaged"):
        weights.read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("head", list(HEADS))
def test_every_heads_classes_are_counted_where_the_file_does_not_say(tmp_path: Path, head: str) -> None:
    save_file(a_model(7, head).state_dict(), tmp_path / "a.safetensors")
    read = weights.read(tmp_path / "a.safetensors")
    assert len(read.class_names) == len(read.palette) == 7
    assert read.config is None


def test_the_default_colors_are_pascal_vocs() -> None:
    # The development kit's color map: background, aeroplane, bicycle, bird, boat, bottle; and its last entry.
    first = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128)]
    palette = voc_palette(256)
    assert list(palette[:6]) == first
    assert palette[20] == (0, 64, 128)  # television
    assert palette[255] == (224, 224, 192)
    assert len(set(palette)) == 256


def test_metadata_are_texts_that_other_readers_understand(tmp_path: Path) -> None:
    weights.write(tmp_path / "a.safetensors", the_weights(a_model()))
    content = (tmp_path / "a.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])  # the published layout
    assert header["__metadata__"]["format"] == "pt"
    assert json.loads(header["__metadata__"]["class_names"])[1] == "Straße"
    assert header["__metadata__"]["config"].startswith("head:")


# ---- weights to start from -------------------------------------------------------------------------------------------

SECTIONS: dict[str, Any] = {"backbone": {"name": "resnet_tiny", "widths": [8, 8, 8, 16]}, "auxiliary_head": True}


def full_model(num_classes: int, *, seed: int = 0, **head: Any) -> Any:
    return build_model(**SECTIONS, head={"name": "danet", "reduction": 4, **head}, num_classes=num_classes, seed=seed)


CLASSIFIERS = {
    f"{place}.1.{kind}"
    for place in ("head.classifier", "head.aux_classifiers.pam", "head.aux_classifiers.cam", "auxiliary.classifier")
    for kind in ("weight", "bias")
}


@pytest.mark.parametrize("name", ["best.pt", "best.safetensors"])
def test_of_a_model_of_other_classes_all_but_the_classifiers_is_taken(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    source, model, untouched = full_model(5, seed=1), full_model(3, seed=2), full_model(3, seed=2)
    if name.endswith(".pt"):
        checkpoint.save(tmp_path / name, {"step": 3, "model": source.state_dict(), "class_names": list("abcde")})
    else:
        found = weights.Weights(tensors=source.state_dict(), config=None, class_names=(), palette=(), facts={})
        weights.write(tmp_path / name, found)
    with caplog.at_level(logging.INFO, "danet"):
        kept = weights.start_from(model, tmp_path / name, full_model)
    assert set(kept) == CLASSIFIERS
    assert "has 5 classes, the data 3; newly initialized instead of loaded: head.classifier.1.weight" in caplog.text
    for key, value in model.state_dict().items():
        expected = (untouched if key in CLASSIFIERS else source).state_dict()[key]
        assert torch.equal(value, expected), key


def test_of_a_model_of_as_many_classes_all_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, model = full_model(5, seed=1), full_model(5, seed=2)
    checkpoint.save(tmp_path / "a.pt", {"step": 3, "model": source.state_dict(), "class_names": list("abcde")})
    with caplog.at_level(logging.INFO, "danet"):
        assert weights.start_from(model, tmp_path / "a.pt", full_model) == []
    assert not caplog.text
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("classes", [5, 3])
@pytest.mark.parametrize("in_file", [True, False])
def test_an_auxiliary_head_may_be_on_one_side_only(
    tmp_path: Path, in_file: bool, classes: int, caplog: pytest.LogCaptureFixture
) -> None:
    def one(num_classes: int, auxiliary: bool, seed: int = 0) -> Any:
        sections = {**SECTIONS, "auxiliary_head": auxiliary, "head": {"name": "danet", "reduction": 4}}
        return build_model(**sections, num_classes=num_classes, seed=seed)

    source, model, untouched = one(classes, in_file, 1), one(5, not in_file, 2), one(5, not in_file, 2)
    state = {"step": 3, "model": source.state_dict(), "class_names": list("abcde")[:classes]}
    checkpoint.save(tmp_path / "a.pt", state)
    with caplog.at_level(logging.INFO, "danet"):
        kept = weights.start_from(model, tmp_path / "a.pt", lambda count: one(count, not in_file))
    assert ("has an auxiliary head, which this model lacks" if in_file else "has no auxiliary head") in caplog.text
    own = [key for key in model.state_dict() if key.startswith("auxiliary.")]
    of_classes = {key for key in CLASSIFIERS if not key.startswith("auxiliary.")} if classes == 3 else set()
    assert set(kept) == {*own, *of_classes}
    for key, value in model.state_dict().items():
        assert torch.equal(value, (untouched if key in kept else source).state_dict()[key]), key


def test_as_many_other_classes_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint.save(
        tmp_path / "a.pt", {"step": 3, "model": full_model(3).state_dict(), "class_names": ["sky", "road", "car"]}
    )
    weights.start_from(full_model(3), tmp_path / "a.pt", full_model, ["sky", "road", "car"])
    assert not caplog.text
    weights.start_from(full_model(3), tmp_path / "a.pt", full_model, ["cat", "sky", "road"])
    assert "has the classes sky, road, car, the data cat, sky, road: its classifiers are taken as" in caplog.text


def test_what_the_number_of_classes_does_not_explain_is_refused(tmp_path: Path) -> None:
    source, model = full_model(5, seed=1, reduction=2), full_model(3, seed=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    checkpoint.save(tmp_path / "a.pt", {"step": 3, "model": source.state_dict(), "class_names": list("abcde")})
    with pytest.raises(ValueError, match=r"a\.pt does not fit the model") as refusal:
        weights.start_from(model, tmp_path / "a.pt", full_model)
    assert {line.split()[0] for line in str(refusal.value).splitlines()[1:]} == {
        f"head.branches.pam.attention.{part}.{kind}" for part in ("query", "key") for kind in ("weight", "bias")
    }
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_run_starts_from_a_run_of_other_classes(tmp_path: Path) -> None:
    from danet.training import state

    tiny = ["backbone.widths=[8,8,8,16]", "head.reduction=4", "runtime.device=cpu", "recipe=none", "dataset=shapes"]
    source = full_model(4, seed=1)
    checkpoint.save(tmp_path / "a.pt", {"step": 3, "model": source.state_dict(), "class_names": list("abcd")})
    config = load([*tiny, f"init_from={tmp_path / 'a.pt'}", "auxiliary_head=true", "loss.weights.aux=0.4"], probe=True)
    model = state.new_model(config, 9, torch.device("cpu"), init_from=config.init_from)
    fresh = state.new_model(config, 9, torch.device("cpu"), init_from=None)
    for key, value in model.state_dict().items():
        expected = (fresh if key in CLASSIFIERS else source).state_dict()[key]
        assert torch.equal(value, expected), key


# ---- weights that compute nothing, and those of other code -----------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_that_are_not_finite_are_refused_at_every_door(tmp_path: Path, suffix: str) -> None:
    model = a_model()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["head.classifier.1.weight"][0, 0] = float("nan")
    path = tmp_path / f"a{suffix}"
    if suffix == ".pt":
        checkpoint.save(path, {"step": 3, "model": a_model().state_dict(), "ema": state, "num_classes": 5})
    else:
        save_file(state, path)
    words = rf"a\{suffix}: 1 of \d+ tensors have values that are NaN or infinite \(head\.classifier\.1\.weight\)"
    doors = {
        "read": lambda: weights.read(path),
        "load_into": lambda: weights.load_into(model, path),
        "load_into, read before": lambda: weights.load_into(model, path, state),
        "start_from": lambda: weights.start_from(model, path, a_model),
        "danet.load": lambda: danet.load(path, backbone={"name": "resnet_tiny", "widths": [8, 8, 8, 32]}, head="fcn"),
        "init_from": lambda: load(["recipe=none", f"init_from={path}"]),
    }
    for enter in doors.values():
        with pytest.raises((ValueError, ConfigError), match=words):
            enter()
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("content", ["alone", "model_state_dict", "module."])
def test_a_model_of_ours_that_was_saved_in_another_way_is_read(tmp_path: Path, content: str) -> None:
    state = a_model().state_dict()
    contents = {
        "alone": state,
        "model_state_dict": {"model_state_dict": state, "epoch": 3, "optimizer": {"state": {}}},
        "module.": {"model": {f"module.{key}": value for key, value in state.items()}},
    }
    torch.save(contents[content], tmp_path / "a.pt")
    read = weights.read(tmp_path / "a.pt")
    assert len(read.class_names) == 5
    assert read.facts == ({"epoch": 3} if content == "model_state_dict" else {})
    assert all(torch.equal(read.tensors[key], value) for key, value in state.items())


def test_a_file_of_other_code_is_sent_to_the_converter(tmp_path: Path) -> None:
    torch.save({"state_dict": {"decode_head.conv_seg.weight": torch.zeros(5, 3, 1, 1)}}, tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match=r"a\.pt does not fit the model \(from other code\? python src/convert\.py reads such files\)"
    ):
        weights.load_into(a_model(), tmp_path / "a.pt")
    with pytest.raises(ConfigError, match=r"a\.pt: neither names its classes .* src/convert\.py reads such files"):
        danet.load(tmp_path / "a.pt", backbone="resnet_tiny", head="fcn")
    torch.save({}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match=r"empty\.pt: holds no weights"):
        weights.read(tmp_path / "empty.pt")
