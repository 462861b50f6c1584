"""What images are normalized by: the backbone's numbers, measured or given ones, from the run to whoever loads it."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import danet
import danet.config
from conftest import TINY, load
from danet.config import ConfigError, cross_checks
from danet.config.identity import deciding
from danet.datasets.shapes import Shapes
from danet.evaluation import scoring
from danet.model import build_model
from danet.services import weights
from danet.training import run

NARROW = {"name": "resnet_tiny", "widths": [4, 4, 8, 16]}
SHORT = [*TINY, "train.steps=2", "train.eval_every=2", "train.save_every=2"]
NUMBERS = {"mean": [10.0, 20.0, 30.0, 40.0], "std": [1.0, 2.0, 4.0, 8.0]}


def test_given_numbers_take_the_place_of_the_backbones() -> None:
    model = build_model(NARROW, {"name": "fcn"}, 2, in_channels=4, normalization=NUMBERS).eval()
    plain = build_model(NARROW, {"name": "fcn"}, 2, in_channels=4).eval()
    plain.mean.zero_()
    plain.std.fill_(1)
    image = torch.randint(0, 256, (1, 4, 32, 32))
    mean, std = (torch.tensor(NUMBERS[key]).view(-1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(model(image)["main"], plain((image - mean) / std)["main"])


def test_a_file_of_weights_keeps_the_numbers() -> None:
    text = "backbone: {name: resnet_tiny}\nhead: {name: fcn}\ndataset: {bands: [3, 2, 1, 0]}\nnormalization: data\n"
    config = replace(load(), normalization=NUMBERS)
    sections = danet.config.model_sections(danet.config.as_trained(text, config))
    assert sections["normalization"] == NUMBERS
    assert danet.config.model_sections(danet.config.model_yaml(sections)) == sections
    for name in ("data", "backbone"):  # of a run that has not measured, or need not
        assert danet.config.as_trained(text, replace(config, normalization=name)) == text
    assert "normalization" not in danet.config.model_sections(text)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("dat", "normalization = 'dat': must be 'backbone' or 'data' or"),
        ("{mean: [1,2,3]}", r"must be backbone, data or \{mean"),
        ("{mean: [1,2], std: [1,2]}", "has 2 means and 2 deviations; images have 3 channels"),
        ("{mean: [1,2,3], std: [1,0,3]}", "a deviation must be more than 0"),
        ("{mean: [1,2,3], std: [1,-1,3]}", "must be greater than or equal to 0"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(value: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load([f"normalization={value}"])


def test_runs_from_before_the_option_are_the_same_runs() -> None:
    assert "normalization" not in deciding(asdict(load()))
    assert deciding(asdict(load(["normalization=data"])))["normalization"] == "data"


def test_pretrained_weights_are_better_left_with_their_own() -> None:
    options = ["backbone=resnet18", "normalization=data"]
    assert cross_checks.warnings(load(options), 100) == []
    (line,) = cross_checks.warnings(load([*options, "backbone.pretrained=imagenet"]), 100)
    assert line.startswith("normalization: backbone.pretrained=imagenet was trained with its own")


@pytest.fixture
def trained(outputs: Path, without_pictures: None) -> Path:
    return run.start(load([*SHORT, "normalization=data"])).folder


def test_the_numbers_of_a_run_are_measured_once_and_go_with_its_weights(trained: Path, tmp_path: Path) -> None:
    scenes = np.stack([scene.image for scene in map(Shapes("train", size=64, train_images=24).__getitem__, range(24))])
    expected = {"mean": scenes.mean((0, 1, 2)), "std": scenes.std((0, 1, 2))}
    predictor = danet.load(trained, device="cpu", precision="fp32")
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(predictor.model, name).ravel().numpy(), values, rtol=1e-6)
    assert "normalization: data" in (trained / "config.yaml").read_text()

    stored = weights.read(trained / "checkpoints" / "best.pt")
    file = tmp_path / "model.safetensors"
    weights.write(file, replace(stored, config=danet.config.model_yaml(predictor.sections)))
    assert torch.equal(danet.load(file, device="cpu").model.mean, predictor.model.mean)

    result = json.loads((trained / "result.json").read_text())
    options = {"run": str(trained), "precision": "fp32", "output": str(tmp_path / "scores")}
    assert scoring_of(trained, options)["miou"] == pytest.approx(result["miou"], abs=1e-6)

    (trained / "result.json").unlink()  # stopped before its end
    outcome = run.start(load([f"resume={trained}", "tracking=disabled"]))
    assert outcome.result["miou"] == result["miou"]

    with pytest.raises(ConfigError, match=r"init_from: its weights .* other numbers; add 'normalization=\{mean: \[1"):
        load([*SHORT, f"init_from={file}"])
    load([*SHORT, f"init_from={file}", "normalization=data"])


def scoring_of(folder: Path, options: dict[str, str]) -> dict[str, float]:
    from hydra import compose, initialize_config_dir

    overrides = danet.config.with_dataset_of_run([f"run={folder}"])
    with initialize_config_dir(str(danet.config.REPOSITORY / "conf"), version_base="1.3"):
        composed = compose(
            "evaluate",
            overrides=[
                *overrides,
                *(f"{k}={v}" for k, v in options.items()),
                "evaluate.samples=0",
                "runtime.device=cpu",
                "runtime.num_workers=0",
            ],
        )
    result, _ = scoring.score(danet.config.load_as(scoring.ScoringConfig, composed))
    return result


def test_a_constant_band_cannot_be_normalized_by() -> None:
    from danet.data.measure import Measurements

    counts = np.array([100.0])
    nothing = {name: counts for name in ("readable", "sizes", "pixels", "hashes", "images", "labels")}
    found = Measurements(
        sums=np.array([[500.0, 700.0]]), squares=np.array([[2600.0, 4900.0]]), counts=counts, **nothing
    )
    with pytest.raises(ValueError, match="channel 1 has one value everywhere; leave the band out"):
        found.normalization()
