"""Reports of cross-validation: the folds' matrices are summed, and runs are compared as if each were one."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from danet.tools.report.analysis import analyze
from danet.tools.report.folds import pooled
from danet.tools.report.provenance import differences_that_matter
from danet.tools.report.reading import read_runs, read_sweep
from danet.tools.report.report import ReportConfig, write_report
from test_report import make_run, matrices_of, scores

FOLDS = 3


def fold_run(folder: Path, variant: str, fold: int, seed: int) -> np.ndarray:
    matrices = matrices_of(variant, seed)[10 * fold : 10 * fold + 10]
    make_run(folder, variant, seed, matrices=matrices, data=f"data of fold {fold}")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["dataset"]["fold"] = f"{fold}/{FOLDS}"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    result = json.loads((folder / "result.json").read_text())
    result |= {
        "num_images": 10,
        "peak_memory_bytes": 1000 + fold,
        "dataset": f"folder, 3 classes, fold {fold} of {FOLDS}",
    }
    (folder / "result.json").write_text(json.dumps(result))
    arrays = {"names": np.array([f"image{10 * fold + i}" for i in range(10)]), "matrices": matrices}
    np.savez(folder / "confusion_matrices.npz", **arrays)
    return matrices


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[Path, dict[tuple[str, int], np.ndarray]]:
    variants, matrices = {}, {}
    for head in ("fcn", "pam"):
        for fold in range(FOLDS):
            name = f"head-{head}_fold-{fold}-{FOLDS}"
            variants[name] = {"overrides": [f"head={head}", f"dataset.fold={fold}/{FOLDS}"]}
            for seed in (0, 1):
                part = fold_run(tmp_path / "sweep" / name / f"seed{seed}", head, fold, seed)
                matrices[head, seed] = np.concatenate([*([matrices[head, seed]] if fold else []), part])
    facts = {"name": "cv", "baseline": "head-fcn_fold-0-3", "seeds": [0, 1], "variants": variants}
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(facts))
    return tmp_path / "sweep", matrices


def test_folds_become_one_run_with_each_image_once(sweep):
    folder, matrices = sweep
    study = pooled(read_sweep(folder))
    assert [variant.name for variant in study.variants] == ["head-fcn", "head-pam"]
    assert study.baseline == "head-fcn"
    assert differences_that_matter(study) == []
    for head, variant in zip(("fcn", "pam"), study.variants, strict=True):
        for seed, run in variant.runs.items():
            miou, iou = scores(matrices[head, seed])
            assert run.miou == pytest.approx(miou, abs=1e-12)
            assert run.iou == pytest.approx(iou, abs=1e-12)
            assert run.result["num_images"] == 30
            assert run.result["seconds"] == pytest.approx(3 * (300.0 + seed))  # all folds' together
            assert run.result["gflops"] == pytest.approx(3.21)  # their mean
            assert run.result["peak_memory_bytes"] == 1000 + FOLDS - 1  # the most of any
            assert run.scored == "30 val images of folder, 3 classes, 3 folds pooled"
    analysis = analyze(study)
    assert analysis.differences["head-pam"].over_images is not None


def test_the_report_shows_the_folds(sweep):
    folder, matrices = sweep
    write_report(ReportConfig(sweep=str(folder)))
    text = (folder / "report" / "report.md").read_text()
    by_fold = [100 * scores(matrices["fcn", 0][10 * k : 10 * k + 10])[0] for k in range(FOLDS)]
    shown = ", ".join(f"{k}/3 {score:.2f}" for k, score in enumerate(by_fold))
    assert f"head-fcn, seed 0, mIoU of the folds: {shown}; mean {np.mean(by_fold):.2f}" in text
    assert "each image is scored once" in (folder / "report" / "report.html").read_text()


def test_a_missing_fold_is_a_gap(sweep):
    folder, _ = sweep
    (folder / "head-pam_fold-1-3" / "seed1" / "result.json").unlink()
    study = pooled(read_sweep(folder))
    assert study.gaps == ["head-pam, seed 1: stopped: no result for fold 1/3"]
    assert sorted(study.variants[1].runs) == [0]


def test_folds_of_single_runs_are_pooled_too(sweep):
    folder, matrices = sweep
    study = pooled(read_runs([folder / f"head-fcn_fold-{k}-3" / "seed0" for k in range(FOLDS)]))
    assert [variant.name for variant in study.variants] == ["all folds"]
    assert study.runs[0].miou == pytest.approx(scores(matrices["fcn", 0])[0], abs=1e-12)
