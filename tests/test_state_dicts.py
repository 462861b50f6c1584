"""State dicts in anybody's files: found wherever they are, never made by running code, finite or refused."""

import argparse
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from danet.services import checkpoint, state_dicts

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.tensor([0.5, -1.0])}
OTHER = {key: value + 100 for key, value in STATE.items()}


def wrapped(*prefixes: str) -> dict[str, torch.Tensor]:
    return {"".join(prefixes) + key: value for key, value in STATE.items()}


def read(tmp_path: Path, content: Any) -> state_dicts.StateDict:
    torch.save(content, tmp_path / "file.pth")
    return state_dicts.read(tmp_path / "file.pth")


OPTIMIZER = {"state": {0: {"momentum_buffer": torch.ones(2, 3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
CONTAINERS = {
    "alone": (STATE, ""),
    "ordered": (OrderedDict(STATE), ""),
    "DataParallel": (wrapped("module."), ""),
    "torch.compile": (wrapped("_orig_mod."), ""),
    "both": (wrapped("module.", "_orig_mod."), ""),
    "state_dict": ({"state_dict": STATE, "epoch": 3, "best_pred": 0.5}, "state_dict"),
    "model": ({"epoch": 3, "model": wrapped("module."), "optimizer": OPTIMIZER}, "model"),
    "torchvision's references": (
        {"model": STATE, "optimizer": OPTIMIZER, "lr_scheduler": {"last_epoch": 1}, "args": argparse.Namespace(lr=1)},
        "model",
    ),
    "model_state_dict": ({"model_state_dict": STATE, "loss": torch.tensor(0.1)}, "model_state_dict"),
    "net": ({"net": STATE, "acc": 0.9, "rng": {"cpu": torch.zeros(4, dtype=torch.uint8)}}, "net"),
    "a name of one's own": ({"segmenter": STATE, "metrics": {"loss": torch.tensor(0.1)}}, "segmenter"),
    "Lightning": ({"state_dict": wrapped("model."), "hyper_parameters": argparse.Namespace(lr=1)}, "state_dict"),
    "nested": ({"checkpoint": {"state_dict": STATE, "step": 1}, "version": 2}, "checkpoint.state_dict"),
    "with a foreign average": ({"model": STATE, "model_ema": OTHER}, "model"),
    "our average": ({"model": OTHER, "ema": STATE, "optimizer": OPTIMIZER, "step": 3}, "ema"),
    "our missing average": ({"model": STATE, "ema": None, "step": 3}, "model"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_state_dict_is_found_wherever_it_is(tmp_path: Path, name: str) -> None:
    content, entry = CONTAINERS[name]
    found = read(tmp_path, content)
    assert found.entry == entry
    assert found.tensors.keys() == STATE.keys()
    assert all(torch.equal(found.tensors[key], value) for key, value in STATE.items())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"generator": STATE, "discriminator": OTHER},
            r"several state dicts, under 'generator', 'discriminator'; save",
        ),
        ({"epoch": 3, "optimizer": OPTIMIZER}, r"not a state dict; these are not tensors: epoch, optimizer$"),
        (
            {"model": nn.Linear(2, 2), "epoch": 1},
            r"not tensors: model, epoch\. In the code that made it, save model\.state_dict",
        ),
        (
            nn.Linear(2, 2),
            r"an object of type torch\.nn\.modules\.linear\.Linear, not a state dict\. In the code that made it",
        ),
        ({"state_dict": {**STATE, "step": 3}}, r"not a state dict; these are not tensors: step$"),
        ({"state_dict": {**STATE, "step": 3}, "ema_state_dict": OTHER}, r"these are not tensors: step$"),
        ([STATE], r"an object of type builtins\.list, not a state dict"),
    ],
)
def test_what_holds_none_or_several_is_refused_with_the_remedy(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(ValueError, match=rf"file\.pth: .*{words}"):
        read(tmp_path, content)


@pytest.mark.filterwarnings("ignore")
def test_refusals_do_not_advise_to_unpickle_whatever_comes(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "program.pth")
    torch.save({"model": STATE, "args": argparse.Namespace()}, tmp_path / "objects.pt")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    for read_file, name in (
        (state_dicts.read, "program.pth"),
        (state_dicts.read, "page.pth"),
        (lambda path: checkpoint.load(path, trusting=True), "objects.pt"),
    ):
        with pytest.raises(ValueError, match=name) as refusal:
            read_file(tmp_path / name)
        assert "weights_only" not in str(refusal.value)
        assert len(str(refusal.value)) < len(str(tmp_path)) + 200
        assert "\n" not in str(refusal.value)


def test_a_damaged_checkpoint_of_ours_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    checkpoint.save(path, {"step": 1, "model": STATE})
    assert state_dicts.read(path).entry == "model"
    content = bytearray(path.read_bytes())
    content[content.index(STATE["layer.weight"].numpy().tobytes())] ^= 1  # PyTorch reads it without a word
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    with pytest.raises(ValueError, match=r"best\.pt: cannot be read \(damaged: its SHA-256"):
        state_dicts.read(path)
    path.with_suffix(".json").write_text("[1, 2]")  # somebody else's
    assert state_dicts.read(path).entry == "model"


@pytest.mark.skipif(os.name != "posix", reason="names of files are Unicode elsewhere")
def test_a_safetensors_file_may_have_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors", {"format": "pt", "facts": "{}"})
    path = tmp_path / os.fsdecode("照片".encode("gbk") + b".safetensors")
    try:
        os.rename(tmp_path / "a.safetensors", path)
    except OSError:
        pytest.skip("the file system takes no such names")
    metadata, tensors = state_dicts.read_safetensors(path)
    assert metadata == {"format": "pt", "facts": "{}"}
    assert all(torch.equal(tensors[key], value) for key, value in STATE.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_one_value_that_is_not_finite_is_found(value: float, dtype: torch.dtype) -> None:
    bad = torch.zeros(3, 5, dtype=dtype)
    bad[1, 2] = value
    largest = torch.full((4,), torch.finfo(dtype).max, dtype=dtype)
    tensors = {"a": largest, "b": bad, "count": torch.tensor(3), "none": torch.zeros(0), "-": -largest}
    assert state_dicts.nonfinite(tensors) == ["b"]
    with pytest.raises(
        ValueError, match=r"^x\.pt: 1 of 5 tensors have values that are NaN or infinite \(b\)\. .*lower"
    ):
        state_dicts.refuse_nonfinite(tensors, "x.pt")
    del tensors["b"]
    state_dicts.refuse_nonfinite(tensors, "x.pt")


def test_of_many_bad_tensors_the_first_are_named() -> None:
    tensors = {f"layer{index}": torch.tensor([float("nan")]) for index in range(9)}
    with pytest.raises(ValueError, match=r"9 of 9 tensors .* \(layer0, layer1, layer2, layer3 and 5 more\)"):
        state_dicts.refuse_nonfinite(tensors, "x.pt")
