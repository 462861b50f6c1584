"""Sweeps: which runs they have, what a second start does, how failures are reported."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from conftest import TINY, Train, environment, run_folders, train_command
from danet.schema import ConfigError
from danet.services import checkpoint
from danet.sweeps import search
from danet.sweeps.sweep import plan
from hydra_plugins.danet_sweeper import VariantSweeper

SECTION: dict[str, Any] = {
    "name": None,
    "seeds": [0, 1],
    "baseline": "fcn",
    "variants": {"fcn": {"overrides": ["head=fcn"]}, "pam": {"overrides": ["head.cam=false"], "marks": ["PAM"]}},
    "any_code": False,
}
SWEEP = [*TINY, "ablation=attention", "sweep.name=try", "train.steps=6", "train.save_every=2"]


def test_a_sweep_is_variants_times_seeds() -> None:
    planned = plan(SECTION, {"ablation": ["attention"], "train.steps": ["9"]})
    assert planned.name == "attention"
    assert [cell.subfolder for cell in planned.cells()] == ["fcn/seed0", "pam/seed0", "fcn/seed1", "pam/seed1"]
    assert planned.cells()[1].overrides == ("ablation=attention", "train.steps=9", "head.cam=false", "seed=0")


def test_the_command_line_sweeps_within_variants_and_its_seeds_win() -> None:
    planned = plan(SECTION, {"ablation": ["attention"], "seed": ["5", "3"], "optimizer.lr": ["0.1", "0.2"]})
    assert [cell.subfolder for cell in planned.cells()][:4] == [
        "fcn_lr-0.1/seed3",
        "fcn_lr-0.2/seed3",
        "pam_lr-0.1/seed3",
        "pam_lr-0.2/seed3",
    ]
    assert planned.seeds == (3, 5)
    assert planned.baseline == "fcn_lr-0.1"


def test_the_baseline_of_a_crossed_sweep_is_the_first_combination_of_its_variant() -> None:
    swept = {"optimizer.lr": ["0.1", "0.2"]}
    section = {**SECTION, "variants": {"pam_deep": {}, "pam": {}}}
    assert plan({**section, "baseline": "pam"}, swept).baseline == "pam_lr-0.1"
    assert plan({**section, "baseline": "pam_lr-0.2"}, swept).baseline == "pam_lr-0.2"
    plain = {**SECTION, "variants": None}
    assert (
        plan({**plain, "baseline": "head-danet"}, {"head": ["fcn", "danet"], **swept}).baseline == "head-danet_lr-0.1"
    )
    with pytest.raises(ConfigError, match="'fnc': no such variant; choose one of pam_deep_lr-0.1"):
        plan({**section, "baseline": "fnc"}, swept)


def test_a_plain_sweep_names_its_variants_by_what_differs() -> None:
    bare = {**SECTION, "variants": None, "baseline": None, "seeds": [0]}
    planned = plan(bare, {"backbone": ["resnet18", "resnet50"], "dataset": ["camvid"], "dataset.root": ["/data/a b"]})
    assert list(planned.variants) == ["backbone-resnet18", "backbone-resnet50"]
    assert planned.baseline == "backbone-resnet18"
    assert planned.name == "backbone_camvid"


def test_a_sweep_has_one_ablation() -> None:
    bare = {**SECTION, "variants": None, "baseline": None}
    with pytest.raises(ConfigError, match="ablation: several at once; .* one command for each"):
        plan(bare, {"ablation": ["attention", "heads"]})
    with pytest.raises(ConfigError, match="ablation: several at once"):
        search.plan(bare, {}, {"ablation": search.Choice(values=("attention", "heads"))}, {})


def test_the_folder_of_a_sweep_is_found_again_whatever_leaves_it_the_same() -> None:
    given = {"ablation": ["attention"], "scale": ["small"]}
    same = {"resume": ["auto"], "runtime": ["default"], "tracking": ["disabled"]}
    assert plan(SECTION, {**given, **same}).name == plan(SECTION, given).name == "attention_small"
    assert plan(SECTION, {**given, "name": ["x"]}).name == "attention_small_x"
    assert plan(SECTION, {**given, "init_from": ["/a/b.pt"]}).name == "attention_small_a-b.pt"  # another experiment


def test_seeds_are_seeds_however_they_are_written() -> None:
    for key in ("seed", "+seed", "++seed"):
        planned = plan({**SECTION, "variants": None, "baseline": None}, {"++optimizer.lr": ["1"], key: ["5", "6"]})
        assert (planned.seeds, list(planned.variants), planned.common) == ((5, 6), ["run"], ("++optimizer.lr=1",))


def test_seeds_in_an_interval_are_to_be_listed() -> None:
    (override,) = OverridesParser.create().parse_overrides(["seed=interval(0,3)"])
    with pytest.raises(ConfigError, match="seed: an interval cannot be enumerated; list them: seed=0,1,2"):
        VariantSweeper._sweep(SimpleNamespace(), {"seed": override})  # type: ignore[arg-type]


def test_all_problems_of_a_sweep_are_reported_at_once() -> None:
    section = {**SECTION, "variants": {"a/b": {}, "c": {"overides": []}, "d": None}, "seed": [1]}
    with pytest.raises(ConfigError) as caught:
        plan(section, {})
    text = str(caught.value)
    for part in (
        "sweep.seed: unknown key",
        "a/b: not a valid folder name",
        "did you mean 'overrides'",
        "sweep.variants.d",
    ):
        assert part in text
    with pytest.raises(ConfigError, match="'fnc': no such variant; choose one of fcn, pam"):
        plan({**SECTION, "baseline": "fnc"}, {})


def sweep_folder(outputs: Path) -> Path:
    return outputs / "sweeps" / "try"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.load_newest(folder / "checkpoints")
    assert state is not None
    return state["model"]


@pytest.mark.slow
def test_a_failing_cell_does_not_stop_the_others_and_a_second_start_runs_it_alone(train: Train, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    broken = sweep_folder(outputs) / "pam" / "seed0"
    broken.mkdir(parents=True)
    (broken / "checkpoints").write_text("a file where a folder must be")
    first = train("-m", *SWEEP, "seed=0", code=1)
    assert "4 of 4 runs to do" in first.stdout
    ends = {
        line.split()[0]: line.split()[1]
        for line in first.stdout.splitlines()
        if line.startswith("  ") and "/seed0" in line
    }
    assert ends == {"fcn/seed0": "done", "pam/seed0": "failed", "cam/seed0": "done", "both/seed0": "done"}
    assert "FileExistsError" in first.stdout or "NotADirectoryError" in first.stdout
    times = {
        folder: (folder / "result.json").stat().st_mtime_ns for folder in outputs.rglob("seed0") if folder != broken
    }

    (broken / "checkpoints").unlink()
    second = train("-m", *SWEEP, "seed=0")
    assert "1 of 4 runs to do" in second.stdout
    assert (broken / "result.json").is_file()
    assert all((folder / "result.json").stat().st_mtime_ns == then for folder, then in times.items())
    assert not list(outputs.rglob("error.txt"))

    described = json.loads((sweep_folder(outputs) / "sweep.json").read_text())
    assert described["baseline"] == "fcn"
    assert list(described["variants"]) == ["fcn", "pam", "cam", "both"]
    assert described["variants"]["both"]["marks"] == ["PAM", "CAM"]

    other = train("-m", *SWEEP, "seed=0", "optimizer.lr=0.5", code=1)
    assert "has another configuration: optimizer.lr = 0.5, there " in other.stderr
    assert "sweep.name" in other.stderr
    # Nor other variants with other settings: the report would compare them with these.
    plain = [override for override in SWEEP if override != "ablation=attention"]
    more = train("-m", *plain, "seed=0", "head=gcnet,dnl", "optimizer.lr=0.5", code=1)
    assert "fcn/seed0: has another configuration: optimizer.lr = 0.5, there " in more.stderr


def test_runs_of_earlier_starts_are_held_to_what_is_common_now(tmp_path: Path) -> None:
    plan({**SECTION, "seeds": [0, 1]}, {"train.steps": ["9"]}).write(tmp_path, {})
    section = {**SECTION, "baseline": None, "seeds": [1], "variants": {"gcnet": {"overrides": ["head=gcnet"]}}}
    later = plan(section, {"train.steps": ["8"]})
    assert {cell.subfolder: cell.overrides for cell in later.earlier_cells(tmp_path)} == {
        "fcn/seed0": ("train.steps=8", "head=fcn", "seed=0"),
        "pam/seed0": ("train.steps=8", "head.cam=false", "seed=0"),
        "gcnet/seed0": ("train.steps=8", "head=gcnet", "seed=0"),
        "fcn/seed1": ("train.steps=8", "head=fcn", "seed=1"),
        "pam/seed1": ("train.steps=8", "head.cam=false", "seed=1"),
    }


def test_earlier_starts_seeds_variants_and_places_stay_in_the_file(tmp_path: Path) -> None:
    plan({**SECTION, "seeds": [3]}, {}).write(tmp_path, {"fcn/seed3": "elsewhere"})
    section = {**SECTION, "baseline": "gcnet", "seeds": [1], "variants": {"gcnet": {"overrides": ["head=gcnet"]}}}
    plan(section, {}).write(tmp_path, {"gcnet/seed1": "here"})
    described = json.loads((tmp_path / "sweep.json").read_text())
    assert described["seeds"] == [1, 3]
    assert list(described["variants"]) == ["fcn", "pam", "gcnet"]
    assert described["variants"]["pam"]["overrides"] == ["head.cam=false"]
    assert described["folders"] == {"fcn/seed3": "elsewhere", "gcnet/seed1": "here"}
    assert described["baseline"] == "gcnet"


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_weights(train: Train, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    command = train_command("-m", *SWEEP, "seed=0", "train.steps=12")
    process = subprocess.Popen(
        command, env=environment(outputs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    second = sweep_folder(outputs) / "pam" / "seed0"
    deadline = time.monotonic() + 120
    while not list(second.glob("checkpoints/step_*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (second / "result.json").exists()
    done = train("-m", *SWEEP, "seed=0", "train.steps=12")
    assert "3 of 4 runs to do" in done.stdout
    own = [override for override in SWEEP if not override.startswith(("ablation", "sweep"))]
    alone = train(*own, "seed=0", "train.steps=12", "head.cam=false")
    assert "run folder" in alone.stdout
    (reference,) = [folder for folder in run_folders(outputs) if "sweeps" not in folder.parts]
    expected = weights(reference)
    assert all(torch.equal(value, expected[name]) for name, value in weights(second).items())


def test_no_value_of_a_sweep_is_lost():
    """-1 and 1 are two folders; values that would have one are refused."""
    section = {**SECTION, "baseline": None, "variants": None}
    variants = plan(section, {"loss.gamma": ["-1", "1", "-0.5", "0.5"]}).variants
    assert [variant.overrides for variant in variants.values()] == [
        (f"loss.gamma={value}",) for value in ("-1", "1", "-0.5", "0.5")
    ]
    assert list(variants) == ["gamma--1", "gamma-1", "gamma--0.5", "gamma-0.5"]
    with pytest.raises(ConfigError, match="dataset.root = a b, a-b: two values have the same folder, root-a-b"):
        plan(section, {"dataset.root": ["a b", "a-b"]})
