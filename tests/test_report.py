"""Reports of synthetic sweeps, whose right contents are known."""

import base64
import csv
import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import scipy.stats
import yaml

from conftest import environment
from danet.config import REPOSITORY, ConfigError
from danet.config.sections import TrackingConfig
from danet.tools.report import figures
from danet.tools.report.analysis import Analysis, analyze
from danet.tools.report.provenance import differences_that_matter
from danet.tools.report.reading import read_run, read_runs, read_sweep
from danet.tools.report.report import ReportConfig, checked, paragraphs, render, report_contents, write_report
from danet.tools.report.study import Study
from danet.tools.report.tables import p_value
from test_tracking import items, only, read_records

CLASSES = ["back|ground", "lamp_post", "disc"]
VARIANTS = {
    "fcn": {"overrides": ["head=fcn"], "marks": [], "published": {"Paper & co, R50": 70.03}},
    "pam": {"overrides": ["head=danet", "head.cam=false"], "marks": ["PAM"], "published": {"Paper & co, R50": 75.74}},
    "both": {"overrides": ["head=danet"], "marks": ["PAM", "CAM"], "published": {}},
}
HEADS = {
    "fcn": {"name": "fcn", "dropout": 0.1},
    "pam": {"name": "danet", "pam": True, "cam": False, "dropout": 0.1},
    "both": {"name": "danet", "pam": True, "cam": True, "dropout": 0.1},
}
HIT_RATE = {"fcn": 0.6, "pam": 0.75, "both": 0.74}


def matrices_of(variant: str, seed: int, images: int = 40) -> np.ndarray:
    """(N, K, K): pixels are right at the variant's rate, the others go to the next class."""
    generator = np.random.default_rng([len(variant), seed])
    rate = HIT_RATE.get(variant, 0.7) + 0.02 * np.sin(seed) + 0.01 * generator.standard_normal()
    matrices = np.zeros((images, 3, 3), np.int64)
    for image in range(images):
        for true, pixels in enumerate(np.random.default_rng([7, image]).integers(50, 400, 3)):
            right = generator.binomial(pixels, min(rate, 1))
            matrices[image, true, true] = right
            matrices[image, true, (true + 1) % 3] = pixels - right
    return matrices


def scores(matrices: np.ndarray) -> tuple[float, dict[str, float]]:
    total = matrices.sum(axis=0)
    iou = {}
    for index, name in enumerate(CLASSES):
        right = total[index, index]
        iou[name] = float(right / (total[index].sum() + total[:, index].sum() - right))
    return sum(iou.values()) / len(iou), iou


def make_run(folder: Path, variant: str, seed: int, *, costs: bool = True, **changes: Any) -> Path:
    """A finished run as src/train.py leaves it; `changes` are of its configuration, code, data or matrices."""
    folder.mkdir(parents=True)
    matrices = changes.get("matrices", matrices_of(variant, seed))
    miou, iou = scores(matrices)
    config = {
        "name": f"{variant}_{seed}",
        "seed": seed,
        "head": HEADS[variant],
        "dataset": {"name": "camvid", "root": str(folder.parent)},
        "train": {"steps": 300, "batch_size": 8},
        "evaluate": {"split": "val", "flip": False, "batch_size": 1, **changes.get("evaluate", {})},
        "runtime": {"num_workers": seed},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    facts = {
        "command": [str(REPOSITORY / "src" / "train.py"), "-m", "ablation=attention", f"dataset.root={folder.parent}"],
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "code": changes.get("code", "c0de"),
        **({"shared_code": changes["shared_code"]} if "shared_code" in changes else {}),
        "python": "3.11.7",
        "packages": {"torch": "2.15.0"},
        "device": "cpu, 2 threads",
        "data": {"val": {"description": "shapes", "images": 40, "fingerprint": changes.get("data", "da7a")}},
    }
    (folder / "environment.json").write_text(json.dumps(facts))
    rows = [{"step": step, "train/loss": 1.0, "val/miou": miou * step / 300} for step in (100, 200, 300)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = {"miou": miou, "pixel_accuracy": 0.9, "iou": iou, "step": 300, "split": "val", "num_images": 40}
    result |= {"dataset": "shapes, 128x128", "seed": seed, "checkpoint": "checkpoints/best.pt"}
    if costs:
        result |= {"parameters": 1_234_567, "gflops": 3.21, "flops_size": [128, 128], "seconds": 300.0 + seed}
        result |= {"peak_memory_bytes": 2**29, "images_per_second": 8.5}
    (folder / "result.json").write_text(json.dumps(result))
    np.savez(
        folder / "confusion_matrices.npz",
        names=np.array([f"image{i}" for i in range(len(matrices))]),
        matrices=matrices,
    )
    return folder


def make_sweep(folder: Path, seeds: Sequence[int] = range(6), **changes: Any) -> Path:
    folder.mkdir(parents=True)
    facts = {"name": "attention", "baseline": "fcn", "seeds": list(seeds), "variants": VARIANTS}
    (folder / "sweep.json").write_text(json.dumps(facts))
    for variant in VARIANTS:
        for seed in seeds:
            make_run(folder / variant / f"seed{seed}", variant, seed, **changes)
    return folder


def report(folder: Path, **options: Any) -> Path:
    return write_report(ReportConfig(sweep=str(folder), **options)).parent


def analysis_of(folder: Path) -> Analysis:
    return analyze(read_sweep(folder))


def markdown(study: Study, **options: Any) -> str:
    """The text of report.md, without its pictures."""
    contents = report_contents(analyze(study, **options), ReportConfig(sweep="."))
    return render("report.md", **contents, forest=None, curves=None)


def lines_of(file: Path, key: str = "variant") -> dict[str, dict[str, str]]:
    with file.open() as text:
        return {line[key]: line for line in csv.DictReader(text)}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sweep(tmp_path_factory.mktemp("sweeps") / "attention")


@pytest.fixture(scope="module")
def reported(sweep: Path) -> Path:
    """The report of `sweep`."""
    return report(sweep)


def add_evaluation(
    folder: Path, matrices: np.ndarray, *, step: int = 300, flip: bool = False, split: str = "test", **more: Any
) -> None:
    """What src/evaluate.py split=test leaves in a run's folder."""
    miou, iou = scores(matrices)
    output = folder / "evaluations" / f"{split}_whole"
    output.mkdir(parents=True)
    result = {"miou": miou, "iou": iou, "pixel_accuracy": 0.8, "mean_accuracy": 0.7, "accuracy": iou, "pixels": {}}
    result |= {"split": split, "num_images": len(matrices), "step": step, "protocol": None}
    result |= {"dataset_fingerprint": "7e57", "inference": {"mode": "whole", "flip": flip}, **more}
    (output / "result.json").write_text(json.dumps(result))
    names = np.array([f"test{i}" for i in range(len(matrices))])
    np.savez(output / "confusion_matrices.npz", names=names, matrices=matrices)


# ---- the numbers -----------------------------------------------------------------------------------------------------


def test_table_has_the_numbers_that_the_runs_give(reported):
    rows = lines_of(reported / "table.csv")
    assert list(rows) == list(VARIANTS)
    miou = {v: np.array([100 * scores(matrices_of(v, seed))[0] for seed in range(6)]) for v in VARIANTS}
    p_values = {}
    for variant, row in rows.items():
        assert float(row["miou"]) == pytest.approx(miou[variant].mean(), abs=1e-4)
        assert float(row["miou_sd"]) == pytest.approx(statistics.stdev(miou[variant]), abs=1e-4)
        assert (row["parameters"], row["gflops"], row["seconds"]) == ("1234567", "3.21", "302.5")
        if variant == "fcn":
            assert row["difference"] == row["p"] == row["images_low"] == ""
            continue
        differences = miou[variant] - miou["fcn"]
        expected = scipy.stats.ttest_rel(miou[variant], miou["fcn"]).confidence_interval(0.95)
        interval = [float(row[key]) for key in ("difference", "difference_low", "difference_high")]
        assert interval == pytest.approx([differences.mean(), expected.low, expected.high], abs=1e-4)
        flips = scipy.stats.permutation_test((differences,), np.mean, permutation_type="samples")
        p_values[variant] = flips.pvalue
        assert float(row["p"]) == pytest.approx(flips.pvalue)
    assert [float(rows[v]["p_holm"]) for v in p_values] == pytest.approx([2 / 32, 2 / 32])  # 2 tests at 2/2^6 each


def test_scores_of_another_evaluation_can_be_reported(tmp_path: Path):
    folder = make_sweep(tmp_path / "attention")
    matrices = {(v, seed): matrices_of(v, seed + 100, images=30) for v in VARIANTS for seed in range(6)}
    for (variant, seed), counts in matrices.items():
        add_evaluation(folder / variant / f"seed{seed}", counts)
    output = report(folder, evaluation="test_whole")
    rows = lines_of(output / "table.csv")
    for variant in VARIANTS:
        expected = np.mean([100 * scores(matrices[variant, seed])[0] for seed in range(6)])
        assert float(rows[variant]["miou"]) == pytest.approx(expected, abs=1e-4)
    text = (output / "report.md").read_text()
    assert "mIoU on the 30 test images of shapes" in text
    assert "on test, of each run's best checkpoint on val. Nothing was selected on test." in text
    assert "val da7a, test 7e57" in text
    assert "python src/report.py 'sweep=…/attention' evaluation=test_whole" in text
    curves = figures.curves(analyze(read_sweep(folder, "test_whole")))
    assert curves.axes[0].get_ylabel() == "mIoU on val, %"


def test_an_evaluation_of_other_images_of_that_name_is_told_apart(tmp_path: Path):
    """Such as of split val of another size or seed, on which no checkpoint was selected."""
    folder = make_sweep(tmp_path / "attention", seeds=[0, 1])
    for number, run in enumerate(sorted(folder.glob("*/seed*"))):
        matrices = np.random.default_rng(number).integers(1, 50, (7, len(CLASSES), len(CLASSES)))
        add_evaluation(run, matrices, split="val", dataset="shapes, 64x64")
    text = (report(folder, evaluation="val_whole") / "report.md").read_text()
    assert "mIoU on the 7 val images of shapes, 64x64" in text
    assert "on val, of each run's best checkpoint on val. Nothing was selected on these images." in text
    assert "val da7a, scored val 7e57" in text
    assert "of each run's best evaluation on val. That evaluation" in (report(folder) / "report.md").read_text()


def test_an_interval_over_images_is_of_the_seeds_of_its_mean(tmp_path: Path):
    folder = make_sweep(tmp_path / "attention", seeds=[0, 1])
    assert lines_of(report(folder) / "table.csv")["pam"]["images_low"]
    (folder / "pam" / "seed1" / "confusion_matrices.npz").unlink()
    rows = lines_of(report(folder) / "table.csv")
    assert [rows[variant]["images_low"] != "" for variant in ("pam", "both")] == [False, True]


def test_the_smallest_p_is_not_rounded_below_itself(tmp_path: Path):
    folder = make_sweep(tmp_path / "attention", seeds=range(4))
    assert "p cannot be below 2/2^4 = 0.125, 0.25 after Holm's" in (report(folder) / "report.md").read_text()


def test_an_evaluation_that_counts_void_has_its_own_union(tmp_path: Path):
    """Matrices with void in the last row and column, which is no class of the mean."""
    folder = make_sweep(tmp_path / "attention", seeds=[0])
    for variant in VARIANTS:
        matrices = matrices_of(variant, 1)
        with_void = np.pad(matrices, ((0, 0), (0, 1), (0, 1)))
        with_void[:, -1, 0] = 5  # what is void was predicted as the first class
        add_evaluation(folder / variant / "seed0", matrices)
        place = folder / variant / "seed0" / "evaluations" / "test_whole"
        result = json.loads((place / "result.json").read_text())
        right = np.diagonal(matrices.sum(0)).copy()
        union = matrices.sum(0).sum(0) + matrices.sum(0).sum(1) - right
        union[0] += 5 * len(matrices)
        (place / "result.json").write_text(
            json.dumps({**result, "void": "count", "miou": float((right / union).mean())})
        )
        np.savez(place / "confusion_matrices.npz", names=np.arange(len(matrices)).astype(str), matrices=with_void)
    study = read_sweep(folder, "test_whole")
    runs = [run for variant in study.variants for run in variant.runs.values()]
    assert all(run.images.counts.shape[-1] == len(run.result["iou"]) for run in runs)
    assert not [line for line in differences_that_matter(study) if "void" in line]


def test_an_evaluation_must_be_there_for_every_run_and_of_its_best_checkpoint(tmp_path: Path):
    folder = make_sweep(tmp_path / "attention", seeds=[0])
    for variant in VARIANTS:
        add_evaluation(folder / variant / "seed0", matrices_of(variant, 1), step=200 if variant == "both" else 300)
    with pytest.raises(
        ValueError, match=r"both.*: scores step 200, but the run.s best checkpoint is step 300; evaluate it again"
    ):
        read_sweep(folder, "test_whole")
    with pytest.raises(ValueError, match=r"test_other/result.json: no such file; evaluate the run first, as in python"):
        read_sweep(folder, "test_other")


def test_evaluations_with_other_settings_are_not_compared(tmp_path: Path):
    folder = make_sweep(tmp_path / "attention", seeds=[0])
    for variant in VARIANTS:
        add_evaluation(folder / variant / "seed0", matrices_of(variant, 1), flip=variant == "both")
    assert [line for line in differences_that_matter(read_sweep(folder, "test_whole")) if "evaluate.flip" in line]


def test_interval_over_images_is_a_paired_bootstrap_with_the_models_fixed(reported):
    row = lines_of(reported / "table.csv")["pam"]
    pair = [np.array([matrices_of(v, seed) for seed in range(6)]) for v in ("pam", "fcn")]
    rng, draws = np.random.default_rng(1), []
    for _ in range(1000):
        drawn = rng.integers(40, size=40)
        ours, theirs = ([scores(m[drawn])[0] for m in matrices] for matrices in pair)
        draws.append(100 * (np.mean(ours) - np.mean(theirs)))
    low, high = np.percentile(draws, [2.5, 97.5])
    assert float(row["images_low"]) == pytest.approx(low, abs=0.15 * (high - low))
    assert float(row["images_high"]) == pytest.approx(high, abs=0.15 * (high - low))


def test_classes_are_compared_seed_by_seed(reported):
    with (reported / "per_class.csv").open() as text:
        rows = {(line["variant"], line["class"]): line for line in csv.DictReader(text)}
    for name in CLASSES:
        ours, theirs = (
            np.array([100 * scores(matrices_of(v, seed))[1][name] for seed in range(6)]) for v in ("both", "fcn")
        )
        row = rows["both", name]
        expected = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        values = [float(row[key]) for key in ("iou", "difference", "difference_low", "difference_high")]
        assert values == pytest.approx([ours.mean(), (ours - theirs).mean(), expected.low, expected.high], abs=1e-4)
    assert rows["fcn", "disc"]["difference"] == ""


def test_published_values_stand_beside_ours_where_a_row_has_one(reported):
    rows = [line for line in (reported / "report.md").read_text().splitlines() if line.startswith("|")]
    fcn, pam, both = (next(r for r in rows if r.startswith(f"| {v} ")) for v in VARIANTS)
    assert "| 70.03 |" in fcn
    assert "| 75.74 (+5.71) |" in pam
    assert "✓" not in fcn
    assert (pam.count("✓"), both.count("✓")) == (1, 2)


def test_published_values_do_not_stand_beside_scores_on_the_built_in_scenes(sweep):
    study = read_sweep(sweep)
    run = study.runs[0]
    run.config["dataset.name"] = "shapes"
    assert analyze(study).published == []
    run.config["dataset.name"] = "camvid"
    assert analyze(study).published == ["Paper & co, R50"]


def test_baseline_can_be_another_variant(sweep, tmp_path):
    study = checked(read_sweep(sweep), ReportConfig(sweep=str(sweep), baseline="pam"))
    differences = analyze(study).differences
    assert sorted(differences) == ["both", "fcn"]
    assert differences["fcn"].over_seeds.mean < 0
    with pytest.raises(ConfigError, match=r"baseline = 'pan'.*did you mean 'pam'"):
        report(sweep, baseline="pan", output=str(tmp_path))


# ---- the same input, the same bytes ----------------------------------------------------------------------------------


def test_the_committed_report_on_camvid_is_what_its_runs_give(tmp_path):
    committed = REPOSITORY / "experiments/results/ablation_attention_camvid"
    shutil.copytree(committed / "sweep", tmp_path / "sweep")
    folder = write_report(ReportConfig(sweep=str(tmp_path / "sweep"), evaluation="test_whole")).parent
    for name in ("table.csv", "table.tex", "per_class.csv"):
        assert (folder / name).read_bytes() == (committed / name).read_bytes()


def test_report_is_a_function_of_the_results_alone(sweep, reported, tmp_path):
    copy = tmp_path / "elsewhere" / "attention"
    shutil.copytree(sweep, copy, ignore=shutil.ignore_patterns("report"))
    again = report(copy)
    names = sorted(file.name for file in again.iterdir())
    assert names == sorted(
        ["report.md", "report.html", "table.tex", "table.csv", "per_class.csv", "forest.png", "curves.png"]
    )
    for name in names:
        content = (again / name).read_bytes()
        assert content == (reported / name).read_bytes(), name
        assert b"Matplotlib" not in content
        assert str(tmp_path.parent.parent).encode() not in content, name  # no path of this machine


def test_without_timings_a_slower_sweep_gives_the_same_bytes(tmp_path):
    folders = [make_sweep(tmp_path / part / "attention", range(2)) for part in "ab"]
    for file in folders[1].glob("*/*/result.json"):
        result = json.loads(file.read_text())
        result |= {"seconds": 999.0, "images_per_second": 1.0, "peak_memory_bytes": 2**33}
        file.write_text(json.dumps(result))
    for timings in (True, False):
        texts = [markdown(read_sweep(f), timings=timings) for f in folders]
        assert (texts[0] != texts[1]) == timings


# ---- what must not be compared ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code": "0ther"}, "code version: source c0de in fcn/seed0.*source 0ther in pam/seed0"),
        ({"data": "0ther"}, "data fingerprint: val da7a in fcn/seed0"),
        ({"evaluate": {"flip": True}}, "evaluate.flip: false in fcn/seed0.*true in pam/seed0"),
    ],
)
def test_runs_that_differ_in_what_they_must_share_are_refused(tmp_path, changes, message):
    folder = make_sweep(tmp_path / "attention", range(2))
    shutil.rmtree(folder / "pam" / "seed0")
    make_run(folder / "pam" / "seed0", "pam", 0, **changes)
    with pytest.raises(ConfigError, match=message):
        report(folder)
    assert not (folder / "report").exists()
    mixed = checked(read_sweep(folder), ReportConfig(sweep=str(folder), allow_mixed=True))
    text = markdown(mixed)
    assert "these runs differ in settings that comparable runs share" in text
    assert f"- {mixed.mixed[0]}" in text.replace("\\", "")


def test_variants_may_use_other_components_but_not_another_loop(tmp_path):
    """The source of a head belongs to its variant; what all runs use must not differ."""
    folder = make_sweep(tmp_path / "attention", range(2), shared_code="l00p")
    for seed in range(2):
        shutil.rmtree(folder / "pam" / f"seed{seed}")
        make_run(folder / "pam" / f"seed{seed}", "pam", seed, code="0ther", shared_code="l00p")
    report(folder)
    shutil.rmtree(folder / "pam" / "seed1")
    make_run(folder / "pam" / "seed1", "pam", 1, code="an0ther", shared_code="l00p")
    with pytest.raises(ConfigError, match="code version within pam: source 0ther in pam/seed0; source an0ther"):
        report(folder)


def test_a_run_resumed_with_other_code_is_mixed(tmp_path):
    folder = make_sweep(tmp_path / "attention", range(2))
    facts = json.loads((folder / "pam" / "seed1" / "environment.json").read_text())
    (folder / "pam" / "seed1" / "environment_step_100.json").write_text(json.dumps({**facts, "code": "0ther"}))
    with pytest.raises(ConfigError, match="source c0de then source 0ther in pam/seed1"):
        report(folder)


def test_settings_may_not_differ_between_the_seeds_of_a_variant(tmp_path):
    folder = make_sweep(tmp_path / "attention", range(2))
    file = folder / "both" / "seed1" / "config.yaml"
    file.write_text(file.read_text().replace("steps: 300", "steps: 200"))
    with pytest.raises(ConfigError, match="train.steps within both: 300 in both/seed0; 200 in both/seed1"):
        report(folder)


def test_an_evaluation_that_the_sweep_declares_may_differ(tmp_path):
    folder = make_sweep(tmp_path / "attention", range(2))
    facts = json.loads((folder / "sweep.json").read_text())
    facts["variants"]["both"]["overrides"].append("evaluate.flip=true")
    (folder / "sweep.json").write_text(json.dumps(facts))
    for seed in range(2):
        shutil.rmtree(folder / "both" / f"seed{seed}")
        make_run(folder / "both" / f"seed{seed}", "both", seed, evaluate={"flip": True})
    assert not differences_that_matter(read_sweep(folder))


# ---- holes and few seeds ---------------------------------------------------------------------------------------------


def test_holes_are_marked_and_the_shared_seeds_compared(tmp_path):
    folder = make_sweep(tmp_path / "attention", range(4))
    for variant, seed in (("pam", 1), ("fcn", 3)):
        (folder / variant / f"seed{seed}" / "result.json").unlink()
    (folder / "pam" / "seed1" / "error.txt").write_text("Traceback ...\nRuntimeError: no memory: /home/someone/x\n\n")
    shutil.rmtree(folder / "both" / "seed0")
    analysis = analysis_of(folder)
    text = markdown(analysis.study)
    assert "pam, seed 1: failed: RuntimeError: no memory: …/x" in text
    assert "fcn, seed 3: stopped" in text
    assert "both, seed 0: missing" in text
    assert "both is compared over the 2 of 4 seeds that both have: 1, 2." in text
    difference = analysis.differences["pam"]
    expected = [scores(matrices_of("pam", s))[0] - scores(matrices_of("fcn", s))[0] for s in (0, 2)]
    assert (difference.seeds, difference.by_seed) == ([0, 2], pytest.approx(expected))
    assert analysis.baseline.miou == pytest.approx(np.mean([scores(matrices_of("fcn", s))[0] for s in (0, 1, 2)]))
    assert "3 of 4" in text


def test_a_variant_without_any_run_is_a_row_without_numbers(tmp_path):
    folder = make_sweep(tmp_path / "attention", range(2))
    shutil.rmtree(folder / "both")
    text = markdown(read_sweep(folder))
    assert "| both | ✓ | ✓ | 0 of 2 | n/a |" in text
    assert "both is not compared: none of its runs has finished." in text
    shutil.rmtree(folder / "fcn")
    shutil.rmtree(folder / "pam")
    with pytest.raises(ValueError, match="no run has finished yet"):
        read_sweep(folder)


@pytest.mark.parametrize(
    ("seeds", "sentences"),
    [
        (1, ["one seed, too few for an interval", "2/2^1 = 1"]),
        (2, ["two seeds, too few for an interval", "An interval over seeds needs at least three."]),
        (
            3,
            [
                "2/2^3 = 0.25, 0.5 after Holm's correction over 2 variants",
                "however large the effect (that takes 6 seeds)",
            ],
        ),
        (6, ["2/2^6 = 0.0312, 0.0625 after Holm's", "The corrected p cannot fall below 0.05"]),
        (7, ["2/2^7 = 0.0156, 0.0312 after Holm's correction over 2 variants."]),
    ],
)
def test_what_so_many_seeds_can_show_is_said(tmp_path, seeds, sentences):
    analysis = analysis_of(make_sweep(tmp_path / "attention", range(seeds)))
    text = " ".join([*paragraphs("findings.txt", analysis), *paragraphs("power_notes.txt", analysis)])
    assert not [sentence for sentence in sentences if sentence not in text]
    assert ("however large the effect" in text) == (seeds < 7)


@pytest.mark.parametrize("seeds", [6, 7])
def test_a_variant_is_called_better_only_where_its_corrected_p_allows_it(tmp_path, seeds):
    """Both differences have one sign with every seed; with six, the smallest corrected p is 0.0625."""
    analysis = analysis_of(make_sweep(tmp_path / "attention", range(seeds)))
    for text, difference in zip(paragraphs("findings.txt", analysis), analysis.differences.values(), strict=True):
        assert difference.over_seeds.low > 0
        if seeds == 7:
            assert "better; the interval excludes 0 (p" in text
        else:
            assert "higher; the interval excludes 0, but the corrected p is above 0.05 (p" in text


def test_the_bound_on_p_holds_where_variants_have_different_numbers_of_seeds(tmp_path):
    folder = make_sweep(tmp_path / "attention", range(8))
    shutil.rmtree(folder / "both" / "seed7")
    shutil.rmtree(folder / "both" / "seed6")
    analysis = analysis_of(folder)  # both variants are better with every seed, so that p is as small as it can be
    for difference in analysis.differences.values():
        count = len(difference.seeds)
        note = next(n for n in paragraphs("power_notes.txt", analysis) if n.startswith(f"With {count} seeds"))
        assert f"{p_value(difference.p_holm)} after Holm's" in note


# ---- the files -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects a page's references, ids and text, and checks that its elements close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.references, self.ids, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)
        self.references += [value for key, value in attrs if key in ("src", "href", "xlink:href")]
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "img", "wbr"):
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_shows_texts_as_they_are(tmp_path):
    folder = tmp_path / "a"
    text = "<b>&amp; 'pam'</b>"
    folder.mkdir()
    make_run(folder / "fcn" / "seed0", "fcn", 0)
    facts = {"name": text, "seeds": [0], "variants": {"fcn": {"overrides": [f"name={text}"], "marks": [text]}}}
    (folder / "sweep.json").write_text(json.dumps(facts))
    page = Page(write_report(ReportConfig(sweep=str(folder))).read_text())
    assert page.text.count(text) == 4  # title, heading, mark, overrides


def test_page_needs_nothing_else(reported):
    text = (reported / "report.html").read_text()
    page = Page(text)
    assert all(reference.startswith(("data:", "#")) for reference in page.references)
    assert not re.search(r"@import|url\((?!#)", text)
    assert {r[1:] for r in page.references if r.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    for part in ("back|ground", "Paper & co, R50", "How to read this", "python src/train.py -m ablation=attention"):
        assert part in page.text


def test_tex_table_has_its_cells_and_no_bare_special_character(reported):
    lines = (reported / "table.tex").read_text().splitlines()
    start, end = lines.index(r"\toprule"), lines.index(r"\bottomrule")
    columns = re.fullmatch(r"\\begin\{tabular\}\{@\{\}([lcr]+)@\{\}\}", lines[start - 1])
    rows = [line for line in lines[start + 1 : end] if line != r"\midrule"]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(columns[1]) - 1}
    assert all(re.search(r"\\\\(\[2pt\])?$", row) for row in rows)
    text = "\n".join(lines[1:])
    assert r"Paper \& co" in text
    assert not re.search(r"(?<!\\)[#%_]", text)
    assert text.isascii()
    assert text.count("{") == text.count("}")


def test_markdown_escapes_names(reported):
    text = (reported / "report.md").read_text()
    assert r"| back\|ground |" in text
    assert r"| lamp\_post |" in text


def test_pictures_show_every_variant(sweep):
    analysis = analysis_of(sweep)
    plot = figures.curves(analysis).axes[0]
    assert [line.get_label() for line in plot.lines] == [f"{v} (6 seeds)" for v in VARIANTS]
    mean = 100 * np.mean([scores(matrices_of("pam", seed))[0] for seed in range(6)])
    np.testing.assert_allclose(plot.lines[1].get_ydata(), [mean / 3, 2 * mean / 3, mean])
    plot = figures.forest(analysis).axes[0]
    assert [text.get_text() for text in plot.get_yticklabels()] == ["pam", "both"]
    (numbers,) = plot.child_axes
    assert numbers.get_yticklabels()[0].get_text() == "+17.07 [+16.32, +17.81]"
    narrow = figures.forest(analysis, figures.NARROW).axes[0]
    assert [text.get_text() for text in narrow.texts][:2] == ["pam", "+17.07 [+16.32, +17.81]"]


def test_one_evaluation_makes_no_curve(tmp_path: Path):
    folder = make_sweep(tmp_path / "attention", seeds=[0, 1])
    for metrics in folder.glob("*/seed*/metrics.jsonl"):
        metrics.write_text(metrics.read_text().splitlines()[-1] + "\n")
    output = report(folder)
    assert not (output / "curves.png").exists()
    assert "curves" not in (output / "report.md").read_text()
    assert "<h2>Training" not in (output / "report.html").read_text()
    assert (output / "forest.png").is_file()


# ---- any runs --------------------------------------------------------------------------------------------------------


def test_runs_are_grouped_by_their_configuration_without_the_seed(tmp_path):
    runs = [make_run(tmp_path / f"{variant}{seed}", variant, seed) for seed in range(2) for variant in VARIANTS]
    study = read_runs(runs)
    assert [variant.name for variant in study.variants] == [
        "head=fcn",
        "head=danet, head.cam=false",
        "head=danet, head.cam=true",
    ]
    assert [sorted(variant.runs) for variant in study.variants] == [[0, 1]] * 3
    assert study.baseline == study.variants[0].name
    assert [run.label for run in study.runs][:2] == ["fcn0", "fcn1"]
    named = read_runs(runs[1:3])  # the same head with other options
    assert [variant.name for variant in named.variants] == ["head.cam=false", "head.cam=true"]
    again = make_run(tmp_path / "again", "pam", 1)
    with pytest.raises(ValueError, match="the same variant and seed"):
        read_runs([*runs, again])


def test_runs_of_two_sweeps_with_equal_folder_names_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / part / "pam" / "seed0", variant, 0) for part, variant in (("a", "pam"), ("b", "fcn"))]
    (difference,) = analyze(read_runs(runs)).differences.values()
    low, high = difference.over_images[1:]
    assert low < difference.by_seed[0] < high < 0
    with pytest.raises(ValueError, match="given twice"):
        read_runs([runs[0], runs[0]])


def test_a_single_run_opens_as_a_page(tmp_path):
    folder = make_run(tmp_path / "run", "pam", 3)
    (folder / "samples").mkdir()
    for name in ("curves.png", "samples/scene_1.png"):
        (folder / name).write_bytes(b"\x89PNG " + name.encode())
    text = write_report(ReportConfig(runs=[str(folder)])).read_text()
    page = Page(text)
    miou, iou = scores(matrices_of("pam", 3))
    for part in (f"{100 * miou:.2f}", f"{100 * iou['disc']:.2f}", "dropout: 0.1", "5.0 min"):
        assert part in page.text
    pictures = [base64.b64decode(reference.partition("base64,")[2]) for reference in page.references]
    assert pictures == [b"\x89PNG curves.png", b"\x89PNG samples/scene_1.png"]
    assert str(tmp_path) not in text
    add_evaluation(folder, matrices_of("pam", 3))
    output = folder / "evaluations" / "test_whole"
    for name in ("confusion_matrix.png", "worst/01_a.png", "best/01_b.png"):
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_bytes(b"\x89PNG " + name.encode())
    text = write_report(ReportConfig(runs=[str(folder)], evaluation="test_whole")).read_text()
    pictures = [base64.b64decode(reference.partition("base64,")[2]) for reference in Page(text).references]
    names = ("curves.png", "confusion_matrix.png", "worst/01_a.png", "best/01_b.png")
    assert pictures == [b"\x89PNG " + name.encode() for name in names]


def test_a_report_is_tracked_in_the_group_of_its_runs(tmp_path):
    folder = make_sweep(tmp_path / "attention", seeds=[0, 1])
    written = report(folder, tracking=TrackingConfig(mode="offline"))
    records = list(read_records(only(written, "wandb/offline-run-*/*.wandb")))
    (started,) = [record.run for record in records if record.HasField("run")]
    assert (started.job_type, started.run_group) == ("report", "attention")
    summary = {}
    for record in records:
        summary |= items(record.summary.update)
    assert summary["miou/pam"] == statistics.mean(scores(matrices_of("pam", seed))[0] for seed in (0, 1))
    assert summary["report/captions"] == ["curves.png", "forest.png"]


def test_damaged_and_unfinished_runs_are_named(tmp_path):
    folder = make_run(tmp_path / "run", "pam", 0)
    np.savez(folder / "confusion_matrices.npz", names=np.array(["a"]), matrices=np.eye(3, dtype=int)[None])
    with pytest.raises(ValueError, match="the files come from different evaluations"):
        read_run(folder, "run")
    (folder / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"result\.json: not JSON"):
        read_run(folder, "run")
    (folder / "result.json").unlink()
    with pytest.raises(ValueError, match=r"result\.json: no such file; the run has not finished"):
        read_run(folder, "run")


def test_old_runs_without_costs_and_matrices_are_reported(tmp_path):
    folder = make_sweep(tmp_path / "attention", range(2), costs=False)
    for file in folder.glob("*/*/confusion_matrices.npz"):
        file.unlink()
    text = markdown(read_sweep(folder))
    assert "GFLOPs" not in text
    assert "| n/a |" in next(line for line in text.splitlines() if line.startswith("| pam"))


# ---- the script ------------------------------------------------------------------------------------------------------


def script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "src" / "report.py"), *arguments],
        cwd=cwd,
        env=environment(cwd / "outputs"),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_script_writes_a_report_of_runs(tmp_path):
    for seed in range(2):
        for variant in ("fcn", "pam"):
            make_run(tmp_path / f"{variant}{seed}", variant, seed)
    done = script("runs=[fcn0,fcn1,pam0,pam1]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (page,) = (tmp_path / "outputs" / "reports").glob("fcn0_and_3_more_*/report.html")
    assert str(page) in done.stdout


def test_script_names_what_is_wrong_with_its_keys(tmp_path):
    done = script("sweep=nowhere", cwd=tmp_path)
    assert done.returncode == 1
    assert "sweep" in done.stderr
    assert "must be an existing folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_report_links_the_attention_pages_of_its_variants(tmp_path):
    folder = make_sweep(tmp_path / "sweep of two", seeds=[0, 1])
    assert "<h2>Attention</h2>" not in (report(folder) / "report.html").read_text()
    for place in ("attention/all #1.html", "both/seed1/attention/a.html", "both/seed0/attention/b.html"):
        (folder / place).parent.mkdir(parents=True)
        (folder / place).write_text("a page")
    found = report(folder) / "report.html"
    links = re.findall(r'<a href="([^"]+)">([^<]+)</a>', found.read_text())
    assert links == [
        ("../attention/all%20%231.html", "all variants: all #1"),
        ("../both/seed0/attention/b.html", "both/seed0: b"),
    ]
    for address, _ in links:
        assert (found.parent / unquote(address)).read_text() == "a page"
    run_page = write_report(ReportConfig(runs=[str(folder / "both" / "seed1")])).read_text()
    assert '<a href="../attention/a.html">seed1: a</a>' in run_page
