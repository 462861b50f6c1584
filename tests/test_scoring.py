"""src/evaluate.py: its scores against other evaluators, its folder, its refusals."""

import csv
import errno
import json
import multiprocessing
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from PIL import Image

import danet.config
from conftest import TINY, environment, load
from danet.config import REPOSITORY, ConfigError
from danet.config.sections import RuntimeConfig, TrackingConfig
from danet.datasets import cityscapes
from danet.datasets.camvid import CamVid
from danet.datasets.cityscapes import Cityscapes
from danet.datasets.shapes import Shapes
from danet.evaluation import scoring, sweep_scores
from danet.evaluation.folder import evaluation_name
from danet.evaluation.options import ScoringConfig, ScoringOptions
from danet.inference import temperature
from danet.interfaces import IGNORE
from danet.services import checkpoint, console, figures, tables
from danet.services.failures import ResourceError
from danet.services.nonfinite import NonFiniteError
from danet.training import run as trainer
from test_evaluation import make_model
from test_tracking import items, only, read_records

MODEL = {"backbone": {"name": "resnet_tiny", "widths": [8, 8, 8, 16]}, "head": {"name": "danet", "reduction": 4}}
SHAPES = {"name": "shapes", "size": 72, "val_images": 5}
CLASSES = len(Shapes.class_names)
ONE = ScoringOptions(max_images=1, samples=0)
HERE = RuntimeConfig(device="cpu", num_workers=0)


@pytest.fixture(autouse=True)
def _quiet(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "setup_logging", lambda folder: None)


def save_model(path: Path, class_names: tuple[str, ...], *, names: list[str] | None = None, **more: Any) -> Path:
    """A checkpoint as the trainer writes it, of a network that predicts every class somewhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"model": make_model(len(class_names)).state_dict(), "step": 7, "num_classes": len(class_names)}
    checkpoint.save(
        path,
        {
            **state,
            "class_names": list(class_names) if names is None else names,
            "config": yaml.safe_dump(MODEL),
            **more,
        },
    )
    return path


@pytest.fixture
def shapes_model(tmp_path: Path) -> str:
    return str(save_model(tmp_path / "shapes.pt", Shapes.class_names))


def composed(*overrides: str) -> ScoringConfig:
    """What the command line `python src/evaluate.py <overrides>` asks for."""
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return danet.config.load_as(ScoringConfig, compose("evaluate", overrides=list(overrides)))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---- the scores ------------------------------------------------------------------------------------------------------


def confusion(prediction: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (label[label != IGNORE], prediction[label != IGNORE]), 1)
    return matrix


def test_the_folder_agrees_with_the_predictions_it_holds(shapes_model: str, tmp_path: Path) -> None:
    """All numbers, counted once more from the PNG files and the labels."""
    options = ScoringOptions(save_predictions=True, samples=2, mode="slide", crop_size=(40, 40), flip=True)
    output = tmp_path / "result"
    result, folder = scoring.score(
        ScoringConfig(checkpoint=shapes_model, dataset=SHAPES, evaluate=options, output=str(output), runtime=HERE)
    )
    assert folder == output
    data = Shapes("val", size=72, val_images=5)
    labels = [data[index].label for index in range(5)]
    predictions = [np.asarray(Image.open(output / "predictions" / f"scene_{index:05}.png")) for index in range(5)]
    matrices = [confusion(p, t, CLASSES) for p, t in zip(predictions, labels, strict=True)]

    saved = np.load(output / "confusion_matrices.npz")
    np.testing.assert_array_equal(saved["matrices"], matrices)
    assert saved["names"].tolist() == [f"scene_{index:05}" for index in range(5)]
    assert saved["class_names"].tolist() == list(Shapes.class_names)

    total = np.sum(matrices, axis=0)
    union = total.sum(0) + total.sum(1) - total.diagonal()
    iou = total.diagonal() / union
    assert list(result["iou"].values()) == pytest.approx(iou.tolist())
    assert result["miou"] == pytest.approx(iou.mean())
    assert result["pixel_accuracy"] == pytest.approx(np.trace(total) / total.sum())
    assert result["mean_accuracy"] == pytest.approx((total.diagonal() / total.sum(1)).mean())
    assert result["frequency_weighted_iou"] == pytest.approx((iou * total.sum(1)).sum() / total.sum())

    per_image = read(output / "per_image.csv")
    image_mious = []
    for line, matrix in zip(per_image, matrices, strict=True):
        present = matrix.sum(1) > 0
        overlap, either = matrix.diagonal(), matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
        image_mious.append((overlap[present] / either[present]).mean())
        assert float(line["miou"]) == pytest.approx(image_mious[-1], abs=1e-6)
        assert float(line["pixel_accuracy"]) == pytest.approx(np.trace(matrix) / matrix.sum(), abs=1e-6)
    order = [per_image[index]["name"] for index in np.argsort(image_mious)]
    assert sorted(path.stem for path in (output / "worst").iterdir()) == [f"01_{order[0]}", f"02_{order[1]}"]
    assert sorted(path.stem for path in (output / "best").iterdir()) == [f"01_{order[4]}", f"02_{order[3]}"]

    per_class = read(output / "per_class.csv")
    assert [line["class"] for line in per_class] == list(Shapes.class_names)
    for key in ("iou", "accuracy", "boundary_iou", "pixels"):
        assert [float(line[key]) for line in per_class] == pytest.approx(list(result[key].values()), abs=1e-6)
    assert 0 < result["boundary_miou"] < result["miou"]
    assert result["boundary_miou"] == pytest.approx(np.mean(list(result["boundary_iou"].values())))

    written = json.loads((output / "result.json").read_text())
    assert written["miou"] == result["miou"]
    assert (written["split"], written["num_images"], written["step"]) == ("val", 5, 7)
    assert written["dataset"] == "shapes, 72x72, generated"
    assert written["dataset_fingerprint"] == data.fingerprint()
    assert written["checkpoint"] == shapes_model
    assert written["inference"]["crop_size"] == [40, 40]
    assert written["environment"]["git"]["commit"]
    assert written["environment"]["packages"]["torch"]
    with Image.open(output / "confusion_matrix.png") as picture:
        assert min(picture.size) > 200
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".part") == []


def make_cityscapes(root: Path, split: str, num_images: int) -> None:
    """Noisy images, labels of patches with all 34 ids."""
    rng = np.random.default_rng(0)
    for number in range(num_images):
        height, width = 48 + 7 * number, 96
        name = f"frankfurt_{number:06}_000019"
        files = {
            root / "leftImg8bit" / split / "frankfurt" / f"{name}_leftImg8bit.png": rng.integers(
                0, 256, (height, width, 3), np.uint8
            ),
            root / "gtFine" / split / "frankfurt" / f"{name}_gtFine_labelIds.png": rng.integers(0, 34, (20, 20))
            .repeat(5, 0)
            .repeat(5, 1)[:height, :width]
            .astype(np.uint8),
        }
        for path, pixels in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def test_cityscapes_own_evaluator_gives_the_same_scores_for_the_files_we_write(tmp_path: Path) -> None:
    evaluator = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    make_cityscapes(tmp_path, "val", 3)
    # One class in neither truth nor prediction, one in the prediction alone.
    for path in (tmp_path / "gtFine").rglob("*.png"):
        ids = np.asarray(Image.open(path)).copy()
        ids[(ids == 31) | (ids == 7)] = 8
        Image.fromarray(ids).save(path)
    model = make_model(19)
    model.head.classifier[-1].bias.data[16] = -1000  # never says "train", id 31
    path = save_model(tmp_path / "model.pt", Cityscapes.class_names, model=model.state_dict())
    result, folder = scoring.score(
        ScoringConfig(
            checkpoint=str(path),
            dataset={"name": "cityscapes", "root": str(tmp_path)},
            evaluate=ScoringOptions(save_predictions=True, samples=0),
            runtime=HERE,
        )
    )
    arguments = evaluator.args
    arguments.evalInstLevelScore, arguments.JSONOutput, arguments.quiet = False, False, True
    arguments.predictionPath, arguments.predictionWalk = str(folder / "predictions"), None
    truth = sorted(map(str, (tmp_path / "gtFine").rglob("*_labelIds.png")))
    found = [evaluator.getPrediction(arguments, file) for file in truth]
    assert [Path(file).name for file in found] == [f"frankfurt_{n:06}_000019_leftImg8bit.png" for n in range(3)]
    official = evaluator.evaluateImgLists(found, truth, arguments)

    assert result["miou"] == pytest.approx(official["averageScoreClasses"], abs=1e-12)
    for name, value in result["iou"].items():
        assert value == pytest.approx(official["classScores"][name], abs=1e-12, nan_ok=True), name
    assert np.isnan(result["iou"]["train"])
    assert result["iou"]["road"] == 0
    assert sum(value > 0 for value in result["iou"].values()) > 10


def test_test_images_without_labels_give_server_files_and_no_scores(tmp_path: Path) -> None:
    make_cityscapes(tmp_path, "test", 2)
    shutil.rmtree(tmp_path / "gtFine")
    path = save_model(tmp_path / "model.pt", Cityscapes.class_names)
    asked = ScoringConfig(
        checkpoint=str(path), dataset={"name": "cityscapes", "root": str(tmp_path)}, split="test", runtime=HERE
    )
    with pytest.raises(ValueError, match="not public.*evaluate.save_predictions=true"):
        scoring.score(asked)
    result, folder = scoring.score(replace(asked, evaluate=ScoringOptions(save_predictions=True)))
    assert np.isnan(result["miou"])
    assert sorted(path.name for path in folder.iterdir()) == ["predictions", "result.json"]
    ids = np.asarray(Image.open(folder / "predictions" / "frankfurt_000001_000019_leftImg8bit.png"))
    assert ids.shape == (55, 96)
    assert set(np.unique(ids)) <= {label_id for label_id, _ in cityscapes.CLASSES.values()}


# ---- protocols -------------------------------------------------------------------------------------------------------

RATIOS = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
PUBLISHED: dict[str, dict[str, Any]] = {  # what junfu1115/DANet v0.5.0 and mmsegmentation 1.2.2 set
    "official": {"crop_size": [768, 768], "stride": [512, 512], "flip": True, "long_side": 2048, "combine": "official"},
    "official_ms": {
        **{"crop_size": [1024, 1024], "stride": [512, 512], "flip": True, "long_side": 2048, "combine": "official"},
        "scales": [*RATIOS, 2.0, 2.2],
    },
    "official_608": {
        "crop_size": [576, 576],
        "stride": [384, 384],
        "flip": True,
        "long_side": 608,
        "combine": "official",
    },
    "official_608_ms": {
        **{"crop_size": [576, 576], "stride": [288, 288], "flip": True, "long_side": 608, "combine": "official"},
        "scales": [*RATIOS, 2.0, 2.2],
    },
    "mmseg": {"mode": "whole", "long_side": 2048, "short_side": 1024, "combine": "mmseg"},
    "mmseg_ms": {"mode": "whole", "scales": RATIOS, "flip": True, "combine": "mmseg"},
    "mmseg_slide": {
        **{"crop_size": [769, 769], "stride": [513, 513], "combine": "mmseg"},
        **{"long_side": 2049, "short_side": 1025},
    },
    "mmseg_slide_ms": {
        **{"crop_size": [769, 769], "stride": [513, 513], "combine": "mmseg"},
        **{"scales": RATIOS, "flip": True},
    },
    "espnet": {"mode": "whole", "combine": "probabilities", "void": "count"},  # sacmehta/ESPNet's score of CamVid
}


def test_protocols_set_what_was_published(shapes_model: str) -> None:
    assert {path.stem for path in (REPOSITORY / "conf" / "protocol").glob("*.yaml")} == set(PUBLISHED)
    unset = {"mode": "slide", "crop_size": None, "stride": None, "scales": [1.0], "flip": False}
    unset |= {"long_side": None, "short_side": None, "void": "ignore"}
    for name, settings in PUBLISHED.items():
        found = composed(f"checkpoint={shapes_model}", "dataset=shapes", f"protocol={name}")
        wanted = unset | settings
        assert {key: getattr(found.evaluate, key) for key in wanted} == wanted, name
        assert scoring.protocol_followed(found) == name


def test_a_changed_protocol_is_said_to_be_changed(shapes_model: str) -> None:
    given = (f"checkpoint={shapes_model}", "dataset=shapes", "protocol=official")
    found = composed(*given, "evaluate.flip=false", "evaluate.long_side=608")
    assert scoring.protocol_followed(found) == "official, but flip=false, long_side=608"
    assert scoring.look(found) == "official, but flip=false, long_side=608"
    own = replace(found, protocol="own")  # from a folder of the user's
    assert (scoring.protocol_followed(own), scoring.look(own)) == ("own", "own")
    assert scoring.protocol_followed(composed(*given[:2], "evaluate.flip=true")) is None


@pytest.mark.parametrize("void", ["ignore", "count"])
def test_a_model_with_an_output_for_void_is_scored_by_both_rules(tmp_path: Path, void: Any) -> None:
    """ESPNet's rule, counted once more from the PNG files: a label of void is a false positive of what is predicted."""
    data = {"name": "camvid", **CamVid.tiny(tmp_path / "data")}
    path = save_model(tmp_path / "model.pt", (*CamVid.class_names, "Void"))
    options = ScoringOptions(void=void, save_predictions=True, samples=1)
    asked = ScoringConfig(checkpoint=str(path), dataset=data, split="test", evaluate=options, runtime=HERE)
    result, folder = scoring.score(asked)
    split = CamVid("test", root=data["root"])
    right, truth, predicted = np.zeros((3, 12), int)
    for index, file in enumerate(split.files):
        answer, label = np.asarray(Image.open(folder / "predictions" / f"{file.name}.png")), split.read_label(index)
        assert (answer == 11).any()
        assert (label == IGNORE).any()
        right += np.bincount(answer[answer == label], minlength=12)
        truth += np.bincount(label[label != IGNORE], minlength=12)
        counted = answer if void == "count" else answer[label != IGNORE]
        predicted += np.bincount(counted.ravel(), minlength=12)
    iou = right[:11] / (truth + predicted - right)[:11]
    assert list(result["iou"].values()) == pytest.approx(iou.tolist(), nan_ok=True)
    assert result["miou"] == pytest.approx(np.nanmean(iou))
    assert result["void"] == void
    assert ("void_counted" in folder.name) == (void == "count")
    saved = np.load(folder / "confusion_matrices.npz")
    assert saved["class_names"].tolist() == [*CamVid.class_names, "void"]
    assert saved["matrices"][:, :11, :11].sum() == sum(result["pixels"].values()) - saved["matrices"][:, :11, 11].sum()
    assert (folder / "confusion_matrix.png").is_file()


# ---- what is refused, and the folder ---------------------------------------------------------------------------------


def test_yaml_and_code_have_the_same_keys_and_defaults(shapes_model: str) -> None:
    found = composed(f"checkpoint={shapes_model}", "dataset=shapes")
    plain = ScoringConfig(checkpoint=shapes_model, dataset=found.dataset)
    tracking = replace(found.tracking, tags=(), alerts=())
    assert replace(found, evaluate=replace(found.evaluate, scales=(1.0,)), tracking=tracking) == plain


def test_a_model_of_other_classes_is_refused_before_any_work(shapes_model: str, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other.pt", Cityscapes.class_names[:CLASSES])
    few = save_model(tmp_path / "few.pt", Shapes.class_names[:5])
    asked = ScoringConfig(dataset=SHAPES, evaluate=ScoringOptions(samples=0), runtime=HERE)
    for path, words in (
        (other, "class 0 is 'road', in the data 'background'"),
        (few, f"it has 5 classes, the data {CLASSES}"),
    ):
        with pytest.raises(ConfigError, match=f"{path.name} does not fit shapes.*{re.escape(words)}"):
            scoring.score(replace(asked, checkpoint=str(path)))
    assert not list(danet.config.OUTPUTS.rglob("*.part"))
    unnamed = save_model(tmp_path / "unnamed.pt", Shapes.class_names, names=[])  # only the number is known
    result, _ = scoring.score(replace(asked, checkpoint=str(unnamed)))
    assert set(result["iou"]) == set(Shapes.class_names)


def test_the_folder_is_named_for_what_differs(shapes_model: str, tmp_path: Path) -> None:
    asked = ScoringConfig(checkpoint=shapes_model, dataset=SHAPES)
    many = ScoringOptions(scales=(0.75, 1.0), flip=True, long_side=64, combine="mmseg", calibration=True)
    slid = ScoringOptions(mode="slide", crop_size=(64, 32), stride=(32, 16), max_images=3, save_predictions=True)
    for changes, name in (
        ({}, "val_whole"),
        ({"split": "test", "evaluate": many}, "test_whole_scales_0.75-1_long_side_64_flip_mmseg_calibration"),
        ({"evaluate": slid, "temperature": 2.0}, "val_slide_64x32_stride_32x16_first_3_temperature_2.0_predictions"),
    ):
        assert evaluation_name(replace(asked, **changes)) == name
    (tmp_path / "config.yaml").write_text("dataset: {name: shapes, size: 64, val_images: 5, root: /a}\n")
    run = replace(asked, checkpoint=None, run=str(tmp_path))
    assert evaluation_name(run) == "size-72_val_whole"
    assert evaluation_name(replace(run, dataset={**SHAPES, "size": 64, "root": "/b"})) == "val_whole"
    assert evaluation_name(replace(run, dataset={"name": "camvid"}, precision="bf16")) == "camvid_val_whole_bf16"


def test_nothing_is_overwritten(shapes_model: str, tmp_path: Path) -> None:
    asked = ScoringConfig(checkpoint=shapes_model, dataset=SHAPES, evaluate=ONE, runtime=HERE)
    folders = [scoring.score(asked)[1] for _ in range(2)]
    assert [folder.name for folder in folders] == ["shapes_val_whole_first_1", "shapes_val_whole_first_1_2"]
    assert folders[0].parent == danet.config.OUTPUTS / "evaluations"
    for words in (f"output={folders[0]}", "run=null"):
        with pytest.raises(ConfigError) as caught:
            composed(
                "dataset=shapes", "run=null", *([f"checkpoint={shapes_model}"] if "output" in words else []), words
            )
        assert len(caught.value.problems) == 1
    with pytest.raises(ConfigError, match="output: .* cannot be created.*output=FOLDER"):
        scoring.score(replace(asked, output=f"{shapes_model}/result"))


def fail(*_: Any, **__: Any) -> None:
    raise ValueError("in the middle")


def test_a_failure_leaves_no_folder(shapes_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "write_csv", fail)
    with pytest.raises(ValueError, match="in the middle"):
        scoring.score(ScoringConfig(checkpoint=shapes_model, dataset=SHAPES, evaluate=ONE, runtime=HERE))
    assert not list((danet.config.OUTPUTS / "evaluations").iterdir())


def test_a_failure_ends_the_processes_that_load_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program could not exit else: it would wait for them."""
    make_cityscapes(tmp_path, "val", 3)  # no two of a size
    monkeypatch.setattr(scoring, "_check_batches", lambda *_: None)  # it would find them before anything is loaded
    path = save_model(tmp_path / "model.pt", Cityscapes.class_names)
    asked = ScoringConfig(
        checkpoint=str(path),
        dataset={"name": "cityscapes", "root": str(tmp_path)},
        evaluate=ScoringOptions(batch_size=2),
        runtime=RuntimeConfig(device="cpu", num_workers=2),
    )
    with pytest.raises(ValueError, match="images of different sizes in one batch") as caught:
        scoring.score(asked)
    assert caught.tb  # its frames, as in the script's handler, still hold the loader
    assert not multiprocessing.active_children()


# ---- a whole sweep ---------------------------------------------------------------------------------------------------


def make_sweep(folder: Path, **datasets: dict[str, Any]) -> ScoringConfig:
    """Finished runs by name, and what scores them on the data set of the first."""
    for name, dataset in datasets.items():
        run = folder / name / "seed0"
        save_model(run / "checkpoints" / "best.pt", Shapes.class_names)
        (run / "config.yaml").write_text(yaml.safe_dump({"dataset": dataset}))
        (run / "result.json").write_text("{}")
    facts = {"name": folder.name, "seeds": [0], "variants": {name: {} for name in datasets}}
    (folder / "sweep.json").write_text(json.dumps(facts))
    return ScoringConfig(sweep=str(folder), dataset=next(iter(datasets.values())), evaluate=ONE, runtime=HERE)


def results(folder: Path, name: str = "val_whole_first_1") -> dict[str, dict[str, Any]]:
    found = sorted(folder.glob(f"*/seed0/evaluations/{name}/result.json"))
    return {file.parents[3].name: json.loads(file.read_text()) for file in found}


def test_each_run_of_a_sweep_is_scored_on_its_own_data(tmp_path: Path) -> None:
    """As in a cross-validation, where another fold's images are those that the run was trained on."""
    folder = tmp_path / "folds"
    asked = make_sweep(folder, a={**SHAPES, "scene_seed": 1}, b={**SHAPES, "scene_seed": 2})
    sweep_scores.score_sweep(asked)
    fingerprints = {
        name: Shapes("val", size=72, val_images=5, scene_seed=seed).fingerprint() for name, seed in (("a", 1), ("b", 2))
    }
    assert {name: result["dataset_fingerprint"] for name, result in results(folder).items()} == fingerprints
    sweep_scores.score_sweep(replace(asked, dataset={**asked.dataset, "size": 64}))
    changed = results(folder, "size-64_val_whole_first_1")
    assert {name: result["dataset"].split(",")[1] for name, result in changed.items()} == {"a": " 64x64", "b": " 64x64"}
    assert changed["a"]["dataset_fingerprint"] != changed["b"]["dataset_fingerprint"]
    other = replace(asked, dataset={"name": "camvid", "root": "/r"})
    assert sweep_scores.of_run(other, folder / "b" / "seed0", other.dataset).dataset == other.dataset


def test_a_sweep_is_scored_again_where_its_weights_or_their_temperature_changed(tmp_path: Path) -> None:
    asked = make_sweep(tmp_path / "two", a=SHAPES, b=SHAPES)
    asked = replace(asked, evaluate=replace(ONE, calibration=True))
    name = "val_whole_first_1_calibration"
    sweep_scores.score_sweep(asked)
    first = results(tmp_path / "two", name)
    weights = tmp_path / "two" / "a" / "seed0" / "checkpoints" / "best.pt"
    save_model(weights, Shapes.class_names, note="later")
    temperature.write(weights.parents[3] / "b" / "seed0" / "checkpoints" / "best.pt", {"temperature": 2.0})
    sweep_scores.score_sweep(asked)
    second = results(tmp_path / "two", name)
    assert second["a"]["checkpoint_sha256"] == temperature.sha256(weights) != first["a"]["checkpoint_sha256"]
    assert [first["b"]["calibration"]["temperature"], second["b"]["calibration"]["temperature"]] == [1, 2]
    assert results(tmp_path / "two", f"{name}_2") == first  # nothing is lost
    sweep_scores.score_sweep(asked)
    assert results(tmp_path / "two", name) == second


def test_a_sweep_is_scored_again_on_other_images_of_the_same_names(tmp_path: Path) -> None:
    asked = make_sweep(tmp_path / "sweep", a=SHAPES)
    other = {"name": "folder", "classes": list(Shapes.class_names)}
    for name, shade in (("one", 0), ("two", 200)):
        for part in ("images", "masks"):
            (tmp_path / name / part).mkdir(parents=True)
            picture = Image.fromarray(np.full((32, 40), shade if part == "images" else shade // 200, np.uint8))
            for number in range(4):
                picture.save(tmp_path / name / part / f"{number}.png")
    found = []
    for name in ("one", "two", "two"):
        dataset = {**other, "root": str(tmp_path / name)}
        sweep_scores.score_sweep(replace(asked, dataset=dataset))
        found.append(results(tmp_path / "sweep", "folder_val_whole_first_1")["a"])
    assert found[0]["dataset_fingerprint"] != found[1]["dataset_fingerprint"]
    assert found[1] == found[2]  # there already
    assert results(tmp_path / "sweep", "folder_val_whole_first_1_2")["a"] == found[0]  # nothing is lost


def test_a_sweep_is_scored_again_by_a_changed_protocol_of_ones_own(tmp_path: Path) -> None:
    asked = replace(make_sweep(tmp_path / "sweep", a=SHAPES), protocol="own")
    for flip in (False, True):
        sweep_scores.score_sweep(replace(asked, evaluate=replace(ONE, flip=flip)))
        assert results(tmp_path / "sweep", "val_own_first_1")["a"]["inference"]["flip"] == flip


def test_a_damaged_run_does_not_keep_a_sweep_from_being_scored(tmp_path: Path) -> None:
    asked = make_sweep(tmp_path / "two", a=SHAPES, b=SHAPES)
    (tmp_path / "two" / "a" / "seed0" / "checkpoints" / "best.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"1 of 2 runs were not scored:\n  .*a/seed0: .*best\.pt"):
        sweep_scores.score_sweep(asked)
    assert results(tmp_path / "two").keys() == {"b"}


@pytest.mark.parametrize("damaged", ["config.yaml", "evaluations/val_whole_first_1/result.json"])
def test_a_damaged_file_of_a_run_concerns_that_run_alone(tmp_path: Path, damaged: str) -> None:
    asked = make_sweep(tmp_path / "three", a=SHAPES, b=SHAPES, c=SHAPES)
    file = tmp_path / "three" / "b" / "seed0" / damaged
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{")
    with pytest.raises(ValueError, match=r"1 of 3 runs were not scored:\n  .*b/seed0: "):
        sweep_scores.score_sweep(asked)
    assert (tmp_path / "three" / "c" / "seed0" / "evaluations" / "val_whole_first_1" / "per_class.csv").is_file()


def test_results_of_another_file_of_that_name_stay_where_they_are(tmp_path: Path) -> None:
    files = [save_model(tmp_path / name / "model.pt", Shapes.class_names, note=name) for name in "ab"]
    asked = [ScoringConfig(checkpoint=str(f), dataset=SHAPES, evaluate=ONE, runtime=HERE) for f in files]
    folders = [scoring.score(one)[1] for one in asked]
    assert [folder.name for folder in folders] == ["model_val_whole_first_1", "model_val_whole_first_1_2"]
    (folders[0] / "result.json").write_text("{")
    assert scoring.score(asked[0])[1].name == "model_val_whole_first_1_3"


# ---- what the machine lacks ------------------------------------------------------------------------------------------


def asked(model: str, **runtime: Any) -> ScoringConfig:
    runtime = {"device": "cpu", "num_workers": 0, **runtime}
    return ScoringConfig(checkpoint=model, dataset=SHAPES, evaluate=ONE, runtime=RuntimeConfig(**runtime))


def evaluations() -> list[Path]:
    folder = danet.config.OUTPUTS / "evaluations"
    return list(folder.iterdir()) if folder.exists() else []


def test_a_lack_of_memory_is_told_with_the_remedy(shapes_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        return torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr("danet.evaluation.evaluate.predict_labels", full)
    with pytest.raises(ResourceError, match=r"^out of memory \(.+\); try evaluate\.mode=slide .*batch_size=1"):
        scoring.score(asked(shapes_model))
    assert evaluations() == []


def test_a_disk_that_is_full_is_told_and_nothing_is_left(shapes_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(tables, "write_csv", full)
    with pytest.raises(OSError, match="No space left on device; free some space there, or choose another") as caught:
        scoring.score(asked(shapes_model))
    assert Path(caught.value.filename).parent == danet.config.OUTPUTS / "evaluations"
    assert not Path(caught.value.filename).name.startswith(".")
    assert evaluations() == []


def test_a_compiler_that_is_not_there_is_told_before_any_work(
    shapes_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"runtime\.compile=true needs a C\+\+ compiler"):
        scoring.score(asked(shapes_model, compile=True))
    assert evaluations() == []


def test_scores_that_are_not_finite_give_no_result(shapes_model: str, tmp_path: Path) -> None:
    state = checkpoint.load(Path(shapes_model))
    state["model"]["head.classifier.1.weight"].fill_(3e38)
    checkpoint.save(tmp_path / "large.pt", state)
    with pytest.raises(NonFiniteError, match=r"1 of 1 images \(scoring val\): .*precision=fp32"):
        scoring.score(asked(str(tmp_path / "large.pt")))
    assert evaluations() == []
    state["model"]["head.classifier.1.weight"][0, 0] = torch.inf
    checkpoint.save(tmp_path / "bad.pt", state)
    with pytest.raises(ValueError, match=r"bad\.pt: 1 of \d+ tensors have values that are NaN or infinite"):
        scoring.score(asked(str(tmp_path / "bad.pt")))


# ---- the script ------------------------------------------------------------------------------------------------------


def evaluate(outputs: Path, *overrides: str, code: int = 0) -> str:
    """What src/evaluate.py prints, run from elsewhere."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "src" / "evaluate.py"), *overrides],
        **{"cwd": outputs.parent, "env": environment(outputs), "stdin": subprocess.DEVNULL},
        **{"capture_output": True, "text": True, "timeout": 300},
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def assert_same_scores(result: dict[str, Any], other: dict[str, Any]) -> None:
    scores = ("miou", "iou", "pixel_accuracy", "mean_accuracy", "accuracy", "frequency_weighted_iou", "pixels")
    for key in (*scores, "step", "num_images", "dataset", "split"):
        assert result[key] == other[key], key


@pytest.mark.parametrize(("native", "dtype"), [("0", "float32"), ("1", "bfloat16")])
def test_auto_scores_as_the_run_was_scored_and_says_how(outputs: Path, monkeypatch, native: str, dtype: str) -> None:
    """A run with train.precision=auto, on a processor without native bf16 and on one with it."""
    monkeypatch.setenv("DANET_CPU_BF16", native)
    outcome = trainer.start(load([*TINY, "train.precision=auto", "train.steps=6"]))
    dataset = load(TINY).dataset
    tracking = TrackingConfig(mode="offline")
    asked = ScoringConfig(run=str(outcome.folder), dataset=dataset, runtime=HERE, tracking=tracking)
    result, folder = scoring.score(asked)
    assert result["dtype"] == dtype
    records = list(read_records(only(folder, "wandb/offline-run-*/*.wandb")))
    (started,) = [record.run for record in records if record.HasField("run")]
    assert (started.job_type, started.run_group) == ("evaluate", outcome.folder.name)
    scores, pictures = [items(record.history.item) for record in records if record.HasField("history")]
    assert (scores["step"], scores["val/miou"]) == (result["step"], result["miou"])
    assert "val/confusion_matrix/path" in pictures
    assert_same_scores(result, json.loads((outcome.folder / "result.json").read_text()))


def test_a_runs_score_is_found_again_to_the_last_bit(outputs: Path) -> None:
    """The data set comes from the run; the table has all scores."""
    run = trainer.start(load([*TINY, "train.steps=6"])).folder
    here = ("precision=fp32", "runtime.device=cpu", "runtime.num_workers=0")
    shown = evaluate(outputs, f"run={run}", *here, "evaluate.samples=1")
    folder = run / "evaluations" / "val_whole_fp32"
    before, after = (json.loads((path / "result.json").read_text()) for path in (run, folder))
    assert_same_scores(after, before)
    assert str(folder) in shown
    for words in (*Shapes.class_names, "boundary IoU %", f"{100 * after['miou']:.2f}", "scoring val 6/6"):
        assert words in shown


@pytest.mark.slow
def test_a_sweep_is_scored_run_by_run_and_once(outputs: Path) -> None:
    folder = outputs / "sweeps" / "two"
    facts = {"name": "two", "baseline": "a", "seeds": [0], "variants": {"a": {}, "b": {}, "missing": {}}}
    for name in ("a", "b"):
        trainer.start(load([*TINY, "train.steps=2", f"name={name}"]), sweep_folder=str(folder / name / "seed0"))
    (folder / "sweep.json").write_text(json.dumps(facts))
    here = ("precision=fp32", "runtime.device=cpu", "runtime.num_workers=0", "evaluate.samples=0")
    assert "run 2 of 2" in evaluate(outputs, f"sweep={folder}", "split=test", *here)
    results = {name: folder / name / "seed0" / "evaluations" / "test_whole_fp32" / "result.json" for name in ("a", "b")}
    assert {json.loads(file.read_text())["run"] for file in results.values()} == {
        str(folder / name / "seed0") for name in results
    }
    before = results["b"].stat().st_mtime_ns
    shutil.rmtree(results["a"].parent)
    assert "run 1 of 1" in evaluate(outputs, f"sweep={folder}", "split=test", *here)
    assert results["a"].is_file()
    assert results["b"].stat().st_mtime_ns == before


def test_runs_of_different_data_are_not_scored_by_one_command(tmp_path: Path) -> None:
    make_sweep(tmp_path, a=SHAPES, b=SHAPES, c={**SHAPES, "size": 96})
    runs = {name: str(tmp_path / name / "seed0") for name in "abc"}
    assert "dataset.size=72" in danet.config.with_dataset_of_run([f"run={runs['a']},{runs['b']}"])
    with pytest.raises(ConfigError, match="a/seed0 and .*c/seed0 have different data sets"):
        danet.config.with_dataset_of_run([f"run={runs['a']},{runs['c']}"])


def test_the_runs_data_set_is_the_default(shapes_model: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("dataset: {name: shapes, size: 96, val_images: 7}")
    arguments = [f"run={tmp_path}", "split=test", "dataset.val_images=3"]
    found = composed(*danet.config.with_dataset_of_run(arguments))
    assert (found.split, found.dataset["name"]) == ("test", "shapes")
    assert (found.dataset["size"], found.dataset["val_images"]) == (96, 3)
    replaced = composed(*danet.config.with_dataset_of_run([f"run={tmp_path}", "dataset=cityscapes"]))
    assert replaced.dataset["name"] == "cityscapes"


@pytest.mark.slow
def test_mistakes_on_the_command_line_are_named(tmp_path: Path) -> None:
    shown = evaluate(tmp_path / "outputs", "run=/no/such/run", "evaluate.batch_size=0", "dataset=shapes", code=1)
    assert "2 problems" in shown
    assert "run = '/no/such/run'" in shown
    assert "evaluate.batch_size = 0" in shown
    with pytest.raises(ConfigError) as caught:
        danet.config.check_arguments(["protocol=offical", "evaluate.split=test", "evaluate.flip=true"], "evaluate")
    wrong_protocol, wrong_key = sorted(caught.value.problems, reverse=True)
    assert "protocol=offical: unknown option; did you mean 'official'" in wrong_protocol
    assert "evaluate.split: unknown key" in wrong_key


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    outputs, folders = tmp_path / "outputs", []
    path = save_model(tmp_path / "shapes.pt", Shapes.class_names)
    for devices in (1, 2):
        folders.append(tmp_path / f"by{devices}")
        evaluate(
            outputs,
            *(f"checkpoint={path}", "dataset=shapes", "dataset.size=72", "dataset.val_images=5"),
            *("runtime.device=cpu", f"runtime.devices={devices}", "runtime.num_workers=0", f"output={folders[-1]}"),
            *("evaluate.samples=2", "evaluate.save_predictions=true", "evaluate.flip=true"),
            *("evaluate.calibration=true", "evaluate.fit_temperature=true"),
        )
    one, two = ({file.relative_to(f): file for file in f.rglob("*") if file.is_file()} for f in folders)
    assert one.keys() == two.keys()
    for name, file in one.items():
        if name.name == "result.json":
            first, second = (json.loads(path.read_text()) for path in (file, two[name]))
            assert (first["devices"], second["devices"]) == (1, 2)
            same = ("iou", "boundary_iou", "miou", "pixels", "num_images")
            assert {key: first[key] for key in same} == {key: second[key] for key in same}
            for key in ("ece", "brier", "nll"):
                assert first["calibration"][key] == pytest.approx(second["calibration"][key], rel=1e-9)
            for key, value in first["fitted_temperature"].items():
                assert second["fitted_temperature"][key] == (
                    value if isinstance(value, str) else pytest.approx(value, rel=1e-5)
                )
        elif name.suffix == ".npz":
            np.testing.assert_array_equal(np.load(file)["matrices"], np.load(two[name])["matrices"])
        else:
            assert file.read_bytes() == two[name].read_bytes(), name


def test_scores_are_kept_where_drawing_fails(shapes_model: str, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    there: list[list[str]] = []

    def draw(path: Path) -> None:
        folder = next(parent for parent in path.parents if parent.suffix == ".part")
        there.append(sorted(file.name for file in folder.iterdir() if file.is_file()))
        raise ValueError("no such letter")

    monkeypatch.setattr(figures, "plot_sample", lambda *args, **_: draw(args[5]))
    options = ScoringOptions(max_images=2, samples=1)
    result, folder = scoring.score(
        ScoringConfig(checkpoint=shapes_model, dataset=SHAPES, evaluate=options, runtime=HERE)
    )
    results = ["confusion_matrices.npz", "per_class.csv", "per_image.csv", "result.json"]
    assert there == [results]
    assert results == sorted(file.name for file in folder.iterdir() if file.is_file())
    assert json.loads((folder / "result.json").read_text())["miou"] == result["miou"]
    assert "some pictures are missing, drawing failed (ValueError: no such letter)" in caplog.text


def test_images_of_several_sizes_are_refused_before_any_is_scored(tmp_path: Path) -> None:
    make_cityscapes(tmp_path, "val", 3)  # no two of a size
    path = save_model(tmp_path / "model.pt", Cityscapes.class_names)
    data = {"name": "cityscapes", "root": str(tmp_path)}
    asked = ScoringConfig(checkpoint=str(path), dataset=data, evaluate=ScoringOptions(batch_size=2), runtime=HERE)
    with pytest.raises(ConfigError, match="evaluate.batch_size = 2: .*frankfurt_000000_000019 96x48, .*; set it to 1"):
        scoring.score(asked)
    result, _ = scoring.score(replace(asked, evaluate=ScoringOptions(batch_size=2, max_images=1)))
    assert result["num_images"] == 1
