"""evaluate.calibration and evaluate.fit_temperature, from the network to the folder, against SciPy and torchmetrics."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize
from scipy.special import log_softmax

import danet
from danet.config.sections import RuntimeConfig
from danet.datasets.shapes import Shapes
from danet.evaluation import scoring
from danet.evaluation import temperature as fitting
from danet.evaluation.options import ScoringConfig, ScoringOptions
from danet.inference import temperature
from danet.interfaces import IGNORE
from danet.services import console
from test_scoring import save_model

SHAPES = {"name": "shapes", "size": 72, "val_images": 5}
HERE = RuntimeConfig(device="cpu", num_workers=0)
BOTH = ScoringOptions(calibration=True, fit_temperature=True, save_predictions=True, samples=0)


@pytest.fixture(autouse=True)
def _quiet(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "setup_logging", lambda folder: None)


@pytest.fixture
def asked(tmp_path: Path) -> ScoringConfig:
    """A network with labels that it often gets wrong, in single precision."""
    path = save_model(tmp_path / "shapes.pt", Shapes.class_names)
    return ScoringConfig(checkpoint=str(path), dataset=SHAPES, precision="fp32", runtime=HERE, evaluate=BOTH)


def answers(checkpoint: str | None, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, K) and labels (N,) of all labeled pixels."""
    model, data = (
        danet.load(str(checkpoint), device="cpu", precision="fp32", **options),
        Shapes("val", size=72, val_images=5),
    )
    found = [model.probabilities(data[index].image).reshape(model.model.num_classes, -1).T for index in range(5)]
    label = np.concatenate([data[index].label.ravel() for index in range(5)])
    return np.concatenate(found)[label != IGNORE], label[label != IGNORE]


def test_the_temperature_is_scipys_and_changes_no_label(asked: ScoringConfig) -> None:
    before, folder = scoring.score(asked)
    fitted = before["fitted_temperature"]
    p, label = answers(asked.checkpoint, temperature=1)
    p = p.astype(np.float64)
    rows = np.arange(len(label))

    def nll(inverse: float) -> float:
        return -log_softmax(np.log(p) * inverse, axis=1)[rows, label].mean()

    best = minimize(lambda x: nll(x[0]), [1.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-13})
    assert fitted["temperature"] == pytest.approx(1 / best.x[0], rel=1e-4)
    assert abs(fitted["temperature"] - 1) > 0.1, "worth fitting"
    assert fitted["nll_before"] == pytest.approx(nll(1.0), rel=1e-6)
    assert fitted["nll_after"] == pytest.approx(best.fun, rel=1e-6)
    assert fitted["nll_after"] < fitted["nll_before"]
    assert fitted["pixels"] == fitted["labeled_pixels"] == len(label)
    assert before["calibration"]["temperature"] == 1
    assert before["calibration"]["nll"] == pytest.approx(fitted["nll_before"], rel=1e-5)

    told = json.loads(temperature.file_beside(Path(str(asked.checkpoint))).read_text())
    assert told["temperature"] == fitted["temperature"]
    assert told["note"].endswith("predicted classes never do.")
    assert (told["split"], told["dataset_fingerprint"]) == ("val", before["dataset_fingerprint"])
    assert told["weights_sha256"] == before["checkpoint_sha256"]

    then = replace(asked, evaluate=replace(BOTH, fit_temperature=False))
    after, second = scoring.score(then)
    assert after["calibration"]["temperature"] == fitted["temperature"]
    assert after["calibration"]["nll"] == pytest.approx(fitted["nll_after"], rel=1e-5)
    assert "fitted_temperature" not in after
    for key in ("miou", "iou", "pixel_accuracy"):
        assert after[key] == before[key], key
    for file in (folder / "predictions").iterdir():
        assert file.read_bytes() == (second / "predictions" / file.name).read_bytes()
    again = scoring.score(replace(then, temperature=1.0))[0]["calibration"]
    for key in ("temperature", "ece", "ece_by_class", "brier", "nll", "risk_coverage"):
        assert again[key] == before["calibration"][key], key


@pytest.mark.parametrize("flip", [False, True])
def test_the_figures_are_those_of_the_probabilities(asked: ScoringConfig, flip: bool) -> None:
    from torchmetrics.classification import MulticlassCalibrationError

    temperature.write(Path(str(asked.checkpoint)), {"temperature": 1.8})
    options = replace(BOTH, fit_temperature=False, flip=flip)
    result, folder = scoring.score(replace(asked, evaluate=options))
    p, label = (torch.from_numpy(part) for part in answers(asked.checkpoint, temperature=1.8, flip=flip))
    label, found = label.long(), result["calibration"]
    assert found["temperature"] == 1.8
    assert found["pixels"] == len(label)
    assert found["ece"] == pytest.approx(float(MulticlassCalibrationError(9, n_bins=15)(p, label)), rel=1e-5)
    one_hot = torch.nn.functional.one_hot(label, 9)
    assert found["brier"] == pytest.approx(float((p - one_hot).square().sum(1).mean()), rel=1e-5)
    assert found["nll"] == pytest.approx(float(torch.nn.functional.nll_loss(p.log(), label)), rel=1e-5)
    assert found["risk_coverage"]["risk"][-1] == pytest.approx(1 - result["pixel_accuracy"])
    for index, name in enumerate(Shapes.class_names):
        chosen = p.argmax(1) == index
        own = MulticlassCalibrationError(9, n_bins=15)(p[chosen], label[chosen])
        assert found["ece_by_class"][name] == pytest.approx(float(own), rel=1e-4)
    assert json.loads((folder / "result.json").read_text())["calibration"]["ece"] == found["ece"]
    with Image.open(folder / "calibration.png") as picture:
        assert picture.size[0] > 1000


def test_many_pixels_are_drawn_as_many_of_each_image(asked: ScoringConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scoring.score(asked)[0]["fitted_temperature"]
    monkeypatch.setattr(fitting, "CELLS", 5 * 9 * 2000)
    first, second = (scoring.score(asked)[0]["fitted_temperature"] for _ in range(2))
    assert first == second
    assert (first["pixels"], first["labeled_pixels"]) == (10000, whole["pixels"])
    assert first["temperature"] == pytest.approx(whole["temperature"], rel=0.05)
    assert first["temperature"] != whole["temperature"]


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        (
            {"split": "test"},
            {"fit_temperature": True},
            "evaluate.fit_temperature: a temperature is fitted on split=val",
        ),
        ({"temperature": 2.0}, {"fit_temperature": True}, "temperature = 2.0: evaluate.fit_temperature determines it"),
        ({}, {"calibration": True, "combine": "official"}, "evaluate.calibration: combine=official has scores"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    asked: ScoringConfig, changes: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    (problem,) = replace(asked, **changes, evaluate=ScoringOptions(**options)).problems()
    assert problem.startswith(words)


def test_a_folder_that_cannot_be_written_is_told_before_scoring(asked: ScoringConfig, monkeypatch: Any) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr(scoring.evaluation, "evaluate", None)  # not reached
    with pytest.raises(danet.config.ConfigError, match=r"fit_temperature: .*temperature\.json cannot be written"):
        scoring.score(asked)
