"""A run from the command line to the files in its folder."""

import csv
import dataclasses
import importlib.metadata
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image

import danet.config
from conftest import TINY, Train, environment, load, run_folders, train_command
from danet.datasets.shapes import Shapes
from danet.model import build_model
from danet.services import checkpoint
from danet.services.metrics_file import MetricsFile
from danet.training import run
from test_tracking import history, only, read_records

CLASSES = Shapes.class_names


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, begun by the script from another directory, tracked offline."""
    home = tmp_path_factory.mktemp("run")
    overrides = [
        *TINY,
        "tracking=wandb",
        "tracking.mode=offline",
        "tracking.log_checkpoint=true",
        "tracking.alerts=[best]",
        "auxiliary_head=true",
        "augment=standard",
        "augment.crop_size=[48,48]",
        "train.steps=18",
        "train.eval_every=6",
        "evaluate.samples=2",
        "seed=3",
    ]
    done = subprocess.run(
        train_command(*overrides),
        cwd=home,
        env=environment(home / "outputs"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = run_folders(home / "outputs")
    assert str(folder) in done.stdout
    for name in CLASSES:  # the table of scores
        assert name in done.stdout
    assert sorted(path.name for path in home.iterdir()) == ["outputs"]  # nothing beside it
    return folder


def test_the_folder_holds_what_a_run_leaves(finished: Path) -> None:
    for name in (
        *("config.yaml", "overrides.yaml", "environment.json", "train.log", "metrics.jsonl", "history.csv"),
        *("history.xlsx", "curves.png", "per_class.csv", "confusion_matrix.png", "result.json", "checkpoints/best.pt"),
    ):
        assert (finished / name).stat().st_size > 0, name
    assert len(list((finished / "checkpoints").glob("step_*.pt"))) == 2
    for picture in ("curves.png", "confusion_matrix.png"):
        with Image.open(finished / picture) as image:
            assert min(image.size) > 200
    assert len(list((finished / "samples").glob("*.png"))) == 2
    assert not [path for path in finished.rglob("*") if path.suffix == ".tmp"]

    result = json.loads((finished / "result.json").read_text())
    assert {"miou", "pixel_accuracy", "iou", "step", "split", "num_images", "checkpoint"} <= result.keys()
    assert set(result["iou"]) == set(CLASSES)
    assert (result["split"], result["num_images"]) == ("val", 6)
    described = json.loads((finished / "environment.json").read_text())
    assert described["packages"]["torch"] == importlib.metadata.version("torch")
    assert {"commit", "dirty"} <= described["git"].keys()
    assert described["device"].startswith("cpu")
    assert described["data"]["train"]["images"] == 24
    assert described["data"]["val"]["fingerprint"] == Shapes("val", size=64, val_images=6).fingerprint()


def test_a_finished_run_says_what_it_is_for(finished: Path) -> None:
    text = (finished / "train.log").read_text()
    commands = re.findall(r"python src/(\w+)\.py (.*)", text.partition("next: ")[2])
    assert [script for script, _ in commands] == ["evaluate", "predict", "attention"]
    for script, arguments in commands:
        given = shlex.split(arguments)
        assert given[0] == f"run={finished}"
        danet.config.check_arguments(given, script)


def test_the_configuration_reloads_as_it_was(finished: Path) -> None:
    text = (finished / "config.yaml").read_text()
    again = danet.config.load(OmegaConf.create(text))
    overrides = yaml.safe_load((finished / "overrides.yaml").read_text())
    assert "seed=3" in overrides
    assert dataclasses.replace(again, name="quickstart") == load(overrides)
    assert again.yaml() == text


def test_metrics_have_their_names(finished: Path) -> None:
    rows = MetricsFile(finished / "metrics.jsonl").rows()
    training = [row for row in rows if "train/loss" in row]
    scored = [row for row in rows if "val/miou" in row]
    assert [row["step"] for row in training] == list(range(3, 19, 3))
    assert [row["step"] for row in scored] == [6, 12, 18]
    parts = {"train/loss/main", "train/loss/pam", "train/loss/cam", "train/loss/aux"}
    names = {"train/lr/backbone", "train/lr/head", "train/gamma/pam", "train/gamma/cam", "perf/images_per_second"}
    for row in training:
        assert parts | names <= row.keys()
        weighted = row["train/loss/main"] + row["train/loss/pam"] + row["train/loss/cam"] + 0.4 * row["train/loss/aux"]
        assert row["train/loss"] == pytest.approx(weighted, rel=1e-5)
    for row in scored:
        assert {f"val/iou/{name}" for name in CLASSES} | {"val/pixel_accuracy"} <= row.keys()
    result = json.loads((finished / "result.json").read_text())
    assert result["miou"] == max(row["val/miou"] for row in scored)
    assert training[-1]["epoch"] == 3.0  # 18 steps of 4 images, 24 images
    with (finished / "history.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(line["val/miou"]) for line in table] == [row["val/miou"] for row in scored]


def assert_scored(folder: Path, dtype: torch.dtype) -> None:
    """The run's result is what code of the test's own counts, with the best checkpoint, computing in `dtype`."""
    saved = checkpoint.load(folder / "checkpoints" / "best.pt")
    section = yaml.safe_load(saved["config"])
    auxiliary_head = section["auxiliary_head"]
    model = build_model(section["backbone"], section["head"], saved["num_classes"], auxiliary_head=auxiliary_head)
    model.load_state_dict(saved["model"])
    model.eval().to(memory_format=torch.channels_last)
    counts = np.zeros((9, 9), int)
    data = Shapes("val", size=64, val_images=6)
    for index in range(len(data)):
        image, label, _ = data[index]
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            prediction = model.segment(torch.from_numpy(image).permute(2, 0, 1)[None])[0].numpy()
        for truth, answer in zip(label.ravel(), prediction.ravel(), strict=True):
            if truth != 255:
                counts[truth, answer] += 1
    right, union = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
    result = json.loads((folder / "result.json").read_text())
    assert result["miou"] == pytest.approx((right / np.where(union, union, np.nan))[union > 0].mean(), abs=1e-12)
    assert result["pixel_accuracy"] == pytest.approx(right.sum() / counts.sum(), abs=1e-12)
    assert result["step"] == saved["step"]


def test_the_result_is_that_of_the_best_checkpoint(finished: Path) -> None:
    assert_scored(finished, torch.float32)


@pytest.mark.parametrize(("native", "dtype"), [("0", torch.float32), ("1", torch.bfloat16)])
def test_auto_trains_and_scores_as_the_processor_computes(outputs, monkeypatch, native, dtype) -> None:
    monkeypatch.setenv("DANET_CPU_BF16", native)
    folder = run.start(load([*TINY, "train.precision=auto"])).folder
    assert f", {str(dtype).removeprefix('torch.')}, position attention" in (folder / "train.log").read_text()
    assert_scored(folder, dtype)


def test_wandb_has_the_scores(finished: Path) -> None:
    path = only(finished, "wandb/offline-run-*/run-*.wandb")
    logged = {row["step"]: row["val/miou"] for row in history(path) if "val/miou" in row}
    rows = MetricsFile(finished / "metrics.jsonl").rows()
    scores = {row["step"]: row["val/miou"] for row in rows if "val/miou" in row}
    assert logged == scores
    versions = [record.artifact for record in read_records(path) if record.artifact.type == "model"]
    facts = [json.loads(version.metadata) for version in versions]
    best = max(scores, key=lambda step: scores[step])
    steps = [best, *([18] if best != 18 else [])]
    assert [(fact["step"], fact["miou"]) for fact in facts] == [(step, scores[step]) for step in steps]
    assert ["best" in version.aliases for version in versions] == [step == best for step in steps]
    assert all(
        "latest" in version.aliases and fact["config"]["seed"] == 3
        for version, fact in zip(versions, facts, strict=True)
    )
    bests = [step for step in scores if scores[step] > max((scores[s] for s in scores if s < step), default=-1.0)]
    texts = [record.alert.text for record in read_records(path) if record.HasField("alert")]
    assert texts == [f"{finished}: step {step}" for step in bests]
    (group,) = [record.run.run_group for record in read_records(path) if record.HasField("run")]
    assert group == finished.name


def test_a_start_that_fails_leaves_no_folder(outputs: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save({"conv1.weight": torch.zeros(1)}, weights)
    others = [key for key in TINY if not key.startswith("backbone")]
    with pytest.raises(ValueError, match=r"weights\.pt"):
        run.start(load([*others, "backbone=resnet18", f"backbone.pretrained={weights}"]))
    assert [*outputs.glob("*/*")] == []


def test_a_bad_configuration_makes_no_folder(train: Train, tmp_path: Path) -> None:
    done = train(*TINY, "head.aux_los=true", "train.batch_size=0.5", code=1)
    assert "ConfigError: 2 problems" in done.stderr
    assert "did you mean 'head.aux_loss'?" in done.stderr
    assert "train.batch_size = 0.5" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("number", "whole_group", "resume"),
    [
        pytest.param(signal.SIGTERM, False, "folder", id="SIGTERM", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, True, "auto", id="Ctrl-C"),
        pytest.param(signal.SIGUSR1, True, "auto", id="SIGUSR1 to all", marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_and_nothing_is_lost(tmp_path, monkeypatch, number, whole_group, resume) -> None:
    outputs = tmp_path / "outputs"
    overrides = [*TINY, "train.steps=42", "train.save_every=1000", "train.eval_every=42", "runtime.num_workers=2"]
    process = subprocess.Popen(
        train_command(*overrides),
        env=environment(outputs),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    for _ in itertools.takewhile(lambda _: not list(outputs.rglob("metrics.jsonl")), itertools.count()):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    # A terminal's Ctrl-C reaches every process of the group, the workers that load images among them.
    (os.killpg if whole_group else os.kill)(process.pid, number)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 75, text
    (folder,) = run_folders(outputs)
    assert f"Resume with: python src/train.py resume={folder}" in text
    stopped_at = checkpoint.load_newest(folder / "checkpoints")["step"]
    assert 3 <= stopped_at < 42

    monkeypatch.setattr(danet.config, "OUTPUTS", outputs)
    arguments = [f"resume={folder}"] if resume == "folder" else [*overrides, "resume=auto"]
    outcome = run.start(load(arguments), arguments)
    assert (outcome.folder, outcome.finished) == (folder, True)
    steps = [row["step"] for row in MetricsFile(folder / "metrics.jsonl").rows() if "train/loss" in row]
    assert steps == list(range(3, 43, 3))


@pytest.mark.slow
def test_a_sweep_tries_all_and_fails_at_the_end(train: Train, tmp_path: Path) -> None:
    done = train(
        "-m",
        *TINY,
        "train.steps=4",
        "tracking=wandb",
        "tracking.mode=offline",
        "seed=0",
        "head=danet,fcn",
        "train.batch_size=0,4",
        code=1,
    )
    assert "train.batch_size = 0" in done.stdout + done.stderr
    sweep = tmp_path / "outputs" / "sweeps" / "head_batch_size"
    folders = run_folders(tmp_path / "outputs")
    assert folders == [sweep / f"head-{head}_batch_size-4" / "seed0" for head in ("danet", "fcn")]
    for folder, head in zip(folders, ("danet", "fcn"), strict=True):
        assert yaml.safe_load((folder / "config.yaml").read_text())["head"]["name"] == head
        assert json.loads((folder / "result.json").read_text())["step"] == 4
        (started,) = [r.run for r in read_records(only(folder, "wandb/offline-run-*/run-*.wandb")) if r.HasField("run")]
        assert started.run_group == sweep.name
        assert started.display_name == folder.relative_to(sweep.parent).as_posix()


def test_a_small_danet_learns_four_scenes_by_heart(outputs: Path) -> None:
    outcome = run.start(
        load(
            [
                *TINY,
                "dataset.train_images=4",
                "dataset.val_images=4",
                "evaluate.split=train",
                "backbone.widths=[16,32,32,64]",
                "head.dropout=0.0",
                "optimizer=adamw",
                "optimizer.lr=0.008",
                "schedule.warmup=0",
                "train.steps=120",
                "train.log_every=5",
                "train.eval_every=120",
                "train.save_every=120",
            ]
        )
    )
    rows = [row for row in MetricsFile(outcome.folder / "metrics.jsonl").rows() if "train/loss/main" in row]
    assert rows[0]["train/loss/main"] > 1
    assert rows[-1]["train/loss/main"] < 0.1
    assert outcome.result["miou"] > 0.8
