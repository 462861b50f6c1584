"""Probabilities, entropy, margin and temperature, from the network to the files, against NumPy."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import danet
from danet.config.sections import DeviceConfig, InferenceConfig
from danet.inference import temperature
from danet.inference.views import class_scores, labels_and_probabilities, predict_labels
from danet.schema import check_dataclass
from danet.tools.predict import prediction
from danet.tools.predict.prediction import PredictConfig
from test_evaluation import make_model
from test_predictor import CLASSES, picture, write_weights

LOOKS: list[dict[str, Any]] = [
    {},
    {"flip": True, "scales": (0.75, 1.5)},
    {"mode": "slide", "crop_size": (24, 24)},
    {"mode": "slide", "crop_size": (24, 24), "combine": "mmseg"},
    {"combine": "mmseg"},
    {"combine": "mmseg", "flip": True},
    {"long_side": 64},
]


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.mark.parametrize("look", LOOKS)
def test_labels_are_those_without_probabilities_and_these_sum_to_one(look: dict[str, Any]) -> None:
    model, config = make_model(4).eval(), InferenceConfig(**look)
    image = torch.from_numpy(picture(40, 56)).permute(2, 0, 1)[None]
    labels, probabilities = labels_and_probabilities(model, image, (40, 56), config)
    assert torch.equal(labels, predict_labels(model, image, (40, 56), config))
    torch.testing.assert_close(probabilities, class_scores(model, image, (40, 56), config))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(1, 40, 56))
    for value in (0.5, 1.7):
        at = temperature.calibrated(probabilities, value)
        torch.testing.assert_close(at.sum(dim=1), torch.ones(1, 40, 56))
        assert (at.gather(1, labels[:, None])[:, 0] == at.amax(dim=1)).all(), "the label is the likeliest class"


def test_a_temperature_divides_the_logits_of_one_look() -> None:
    model = make_model(4).eval()
    image = torch.from_numpy(picture(40, 56)).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = F.interpolate(model(image)["main"], (40, 56), mode="bilinear", align_corners=model.align_corners)
    _, probabilities = labels_and_probabilities(model, image, (40, 56), InferenceConfig())
    torch.testing.assert_close(temperature.calibrated(probabilities, 2.5), (logits / 2.5).softmax(1))
    assert temperature.calibrated(probabilities, 1.0) is probabilities


def test_the_temperature_beside_the_weights_is_applied_to_them_alone(tmp_path: Path, caplog: Any) -> None:
    file = write_weights(tmp_path)
    image = picture(40, 56)
    plain = danet.load(file, device="cpu", precision="fp32")
    assert plain.temperature == 1
    temperature.write(file, {"temperature": 2.0})
    warm = danet.load(file, device="cpu", precision="fp32")
    assert warm.temperature == warm.facts["temperature"] == 2
    expected = np.sqrt(plain.probabilities(image))
    np.testing.assert_allclose(warm.probabilities(image), expected / expected.sum(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(warm.predict(image), plain.predict(image))
    asked = danet.load(file, device="cpu", precision="fp32", temperature=1)
    np.testing.assert_array_equal(asked.probabilities(image), plain.probabilities(image))

    told = json.loads(temperature.file_beside(file).read_text())
    assert "never" in told["note"]
    temperature.file_beside(file).write_text(json.dumps({**told, "weights_sha256": "0" * 64}))
    assert danet.load(file, device="cpu").temperature == 1
    assert "was fitted to other weights" in caplog.text
    for wrong in (0, -1, "warm", None):
        temperature.write(file, {"temperature": wrong})
        if wrong is None:
            assert danet.load(file, device="cpu").temperature == 1
            continue
        with pytest.raises(ValueError, match=r"temperature\.json: temperature = .*must be a number above 0"):
            danet.load(file, device="cpu")


def predict(weights_file: Path, source: Path, output: Path, **options: Any) -> list[str]:
    given = {"checkpoint": str(weights_file), "input": str(source), "output": str(output), "precision": "fp32"}
    return prediction.run(PredictConfig(**{**given, "runtime": DeviceConfig(device="cpu"), **options}))


@pytest.mark.parametrize("look", [{}, {"flip": True, "scales": (0.75, 1.5)}])
def test_files_hold_what_the_views_say_at_the_images_size(
    weights_file: Path, tmp_path: Path, look: dict[str, Any]
) -> None:
    image, file = picture(41, 57), tmp_path / "photo.png"
    cv2.imwrite(str(file), image[..., ::-1])
    wanted = ["labels", "probabilities", "entropy", "margin"]
    options = {"write": wanted, "inference": InferenceConfig(**look), "temperature": 1.5}
    assert predict(weights_file, file, tmp_path / "out", **options) == []
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == [
        *("classes.json", "photo_entropy.png", "photo_labels.png", "photo_margin.png", "photo_probabilities.npz")
    ]
    model = danet.load(weights_file, device="cpu", precision="fp32", temperature=1.5, **look)
    p = model.probabilities(image).astype(np.float64)
    assert p.shape == (len(CLASSES), 41, 57)

    saved = np.load(tmp_path / "out" / "photo_probabilities.npz")
    assert saved["probabilities"].dtype == np.float16
    assert saved["class_names"].tolist() == list(CLASSES)
    np.testing.assert_allclose(saved["probabilities"], p, rtol=1e-3, atol=1e-7)

    entropy, margin, labels = (
        cv2.imread(str(tmp_path / "out" / f"photo_{kind}.png"), cv2.IMREAD_UNCHANGED)
        for kind in ("entropy", "margin", "labels")
    )
    assert entropy.dtype == margin.dtype == np.uint16
    np.testing.assert_array_equal(labels, model.predict(image))
    np.testing.assert_allclose(entropy, 65535 * -(p * np.log(p)).sum(0) / np.log(len(p)), atol=1)
    ordered = np.sort(p, axis=0)
    np.testing.assert_allclose(margin, 65535 * (ordered[-1] - ordered[-2]), atol=1)
    told = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert told["temperature"] == 1.5
    assert "65535" in told["scales"]["entropy"]


def test_scores_that_are_no_probabilities_are_refused_before_any_work(tmp_path: Path) -> None:
    given: Any = {"checkpoint": "x", "input": "x", "output": str(tmp_path), "write": ["labels", "entropy"]}
    (problem,) = PredictConfig(**given, inference=InferenceConfig(combine="official")).problems()
    assert problem.startswith("write: entropy: inference.combine=official has scores, not probabilities; use")
    assert PredictConfig(**given, inference=InferenceConfig(combine="mmseg")).problems() == []
    model = danet.load(write_weights(tmp_path), device="cpu", combine="official")
    with pytest.raises(ValueError, match="has no probabilities"):
        model.labels_and_probabilities(picture(24, 24))
    assert model.probabilities(picture(24, 24)).max() > 1, "scores"


def test_a_temperature_is_a_number_above_0_or_auto() -> None:
    for value, fits in (("auto", True), (1.5, True), (0, False), (-1, False), ("warm", False)):
        problems: list[str] = []
        check_dataclass(PredictConfig, {"checkpoint": __file__, "input": "x", "temperature": value}, problems)
        assert any("temperature" in line for line in problems) != fits, value
