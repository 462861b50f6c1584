"""Where runs and sweeps are kept: outputs/, or where Hydra is told to put them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import danet.config
from conftest import TINY, Train, load
from danet.config import ConfigError, RunConfig, named, remember, run_folders
from danet.services import atomic_files
from danet.services.tracking import connection
from danet.sweeps.sweep import Sweep, Variant, finished_runs
from danet.training import run_folder


def write_run(folder: Path, config: RunConfig) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config.yaml())


def test_a_folder_given_to_hydra_holds_one_run(outputs: Path, tmp_path: Path) -> None:
    config, folder = load(TINY), tmp_path / "mine"
    assert run_folder.folder_of(config, None, str(folder)) == (folder, False)
    (folder / "train.log").touch()  # killed before it began
    assert run_folder.folder_of(config, None, str(folder)) == (folder, False)
    (folder / "photo.jpg").touch()
    with pytest.raises(ConfigError, match=r"mine': is not empty \(it has photo.jpg\); name a new folder"):
        run_folder.folder_of(config, None, str(folder))
    write_run(folder, config)
    with pytest.raises(ConfigError, match=r"mine': holds a run; resume=.*mine resumes it"):
        run_folder.folder_of(config, None, str(folder))
    odd = folder.rename(tmp_path / "run [1]").rename(folder.with_name("a b"))
    with pytest.raises(ConfigError, match=rf"holds a run; 'resume={odd}' resumes it"):
        run_folder.folder_of(config, None, str(odd))
    odd.rename(folder)
    for value in ("resume=auto", "resume=required", f"resume={folder}"):
        assert run_folder.folder_of(load([*TINY, value]), None, str(folder)) == (folder, True)
    with pytest.raises(ConfigError, match="holds a run of another configuration: seed = 3, there 0"):
        run_folder.folder_of(load([*TINY, "resume=auto", "seed=3"]), None, str(folder))
    with pytest.raises(ConfigError, match="other': resume names another folder"):
        run_folder.folder_of(load([*TINY, f"resume={folder}"]), None, str(tmp_path / "other"))
    with pytest.raises(ConfigError, match="other': holds no run to resume; resume=auto starts one"):
        run_folder.folder_of(load([*TINY, "resume=required"]), None, str(tmp_path / "other"))


def test_runs_are_found_wherever_hydra_put_them(outputs: Path, tmp_path: Path) -> None:
    places = [outputs / "2026-01-01/10-00-00_a", outputs / "sweeps/s/fcn/seed0", tmp_path / "b", outputs / "sweeps/s/0"]
    for folder in places:
        write_run(folder, load(TINY))
        remember(folder, outputs)
        remember(folder, outputs)
    assert (outputs / ".cache" / "runs.txt").read_text().split() == [str(f) for f in places[2:] for _ in range(2)]
    assert sorted(run_folders(outputs)) == sorted(places)
    (places[2] / "config.yaml").unlink()
    assert places[2] not in run_folders(outputs)


def test_cells_are_found_where_a_subdir_put_them(tmp_path: Path) -> None:
    planned = Sweep("s", "a", {"a": Variant(), "b": Variant()}, (0,), (), any_code=False)
    planned.write(tmp_path, {"b/seed0": "1"})
    planned.write(tmp_path, {})  # a later start without it
    for place in ("a/seed0", "1"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "result.json").write_text("{}")
    assert finished_runs(tmp_path) == [tmp_path / "a" / "seed0", tmp_path / "1"]


@pytest.mark.slow
def test_hydras_folder_and_job_name_are_those_of_the_run(train: Train, tmp_path: Path) -> None:
    place = "hydra.run.dir=exp/${hydra.job.name}_${seed}"
    train(*TINY, "train.steps=1", place, "hydra.job.name=mine", "seed=4")
    assert (tmp_path / "exp" / "mine_4" / "result.json").is_file()
    assert "name: mine\n" in (tmp_path / "exp" / "mine_4" / "config.yaml").read_text()


def test_a_run_is_named_for_what_it_is() -> None:
    changes = ["recipe=quickstart", "head=fcn", "dataset=camvid", "dataset.root=/data/x", "runtime.num_workers=0"]
    assert named("quickstart", ["tracking=disabled", "runtime=default"]) == "quickstart"
    assert named("quickstart", [*changes, "resume=auto"]) == "quickstart_head-fcn_dataset-camvid"
    assert named("quickstart", ["backbone.widths=[8,8]", "+head.new='a b'", "seed=1"]) == (
        "quickstart_widths-8-8_new-a-b_seed-1"
    )
    assert named("mine", ["name=mine", "head=fcn"]) == "mine"
    assert load([f"name={named('x', [f'train.steps={n}' for n in range(9)])}", "train.steps=1"])
    assert len(named("x", [f"a{n}=1" for n in range(99)])) <= 60


@pytest.mark.slow
def test_a_start_that_fails_leaves_no_folder(train: Train, tmp_path: Path) -> None:
    failed = train(*TINY, "train.batch_size=0", "hydra.run.dir=exp/bad", code=1)
    assert "train.batch_size = 0" in failed.stderr
    assert not (tmp_path / "exp" / "bad").exists()


@pytest.mark.slow
def test_a_sweep_is_where_hydra_puts_it(train: Train, tmp_path: Path) -> None:
    sweep = ["-m", *TINY, "train.steps=1", "head=fcn,danet", "hydra.sweep.dir=all"]
    train(*sweep, "hydra.sweep.subdir=${head.name}_${hydra.job.num}")
    assert all((tmp_path / "all" / name / "result.json").is_file() for name in ("fcn_0", "danet_1"))
    assert json.loads((tmp_path / "all" / "sweep.json").read_text())["folders"]["head-danet/seed0"] == "danet_1"
    assert "0 of 2 runs to do" in train(*sweep).stdout
    same = train(*sweep, "hydra.sweep.subdir=x", "sweep.name=other", "hydra.sweep.dir=new", code=1)
    assert "hydra.sweep.subdir: several runs have the same folder, x" in same.stderr
    other = train(*sweep, "sweep.name=other", code=1)
    assert "all: holds the sweep head, this one is other" in other.stderr


def test_a_sweeps_cell_lies_in_the_sweep_though_a_run_of_its_configuration_is_elsewhere(outputs: Path) -> None:
    """A job script may carry resume=auto always; a sweep goes on by itself."""
    cell = outputs / "sweeps" / "s" / "a" / "seed0"
    assert run_folder.folder_of(load([*TINY, "resume=auto"]), str(cell), None) == (cell, False)
    (cell / "config.yaml").touch()
    assert run_folder.folder_of(load([*TINY, "resume=auto"]), str(cell), None) == (cell, True)


def write_unfinished(folder: Path, config: RunConfig) -> Path:
    write_run(folder, config)
    (folder / "checkpoints").mkdir()
    (folder / "environment.json").write_text('{"data": {}, "initial_values": {}}')
    return folder


def test_a_search_for_a_run_passes_over_other_peoples_and_writes_nothing_there(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, day = load(TINY), outputs / "2026-01-01"
    own, foreign = (write_unfinished(day / name, config) for name in ("own", "foreign"))
    other = write_unfinished(day / "other", load([*TINY, "seed=1"]))
    os.utime(own / "checkpoints", (1, 1))  # the newest is looked at first
    before = sorted(outputs.rglob("*"))
    access = os.access

    def only_own(place: Path, mode: int) -> bool:
        return access(place, mode) and foreign not in (place, *Path(place).parents)

    with monkeypatch.context() as patch:
        patch.setattr(os, "access", only_own)
        assert run_folder.newest_run(config) == own
    assert sorted(outputs.rglob("*")) == before
    assert run_folder.newest_run(load([*TINY, "seed=1"])) == other
    assert run_folder.newest_run(load([*TINY, "seed=2"])) is None


def test_whether_a_run_is_locked_is_told_without_writing(tmp_path: Path) -> None:
    assert not atomic_files.is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []
    code = "import sys; from pathlib import Path; from danet.services import atomic_files as a"
    code += "; print(a.is_locked(Path(sys.argv[1])))"

    def told() -> str:
        return subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True).stdout

    with atomic_files.lock(tmp_path) as free:
        assert free
        assert told() == "True\n"
    assert told() == "False\n"


def test_a_run_that_a_search_pruned_is_not_taken_for_a_finished_one(outputs: Path) -> None:
    folder = write_unfinished(outputs / "2026-01-01" / "a", load(TINY))
    (folder / "result.json").write_text('{"miou": 0.5}')
    assert run_folder.newest_run(load(TINY), finished=True) == folder
    (folder / "result.json").write_text('{"miou": 0.5, "pruned": true}')
    assert run_folder.newest_run(load(TINY), finished=True) is None
    assert run_folder.newest_run(load(TINY)) is None


def test_a_run_of_another_tracker_is_found_where_that_is_not(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "has_key", lambda: True)
    config = load([*TINY, "tracking=wandb", "tracking.mode=online"])
    folder = outputs / "run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.yaml())
    monkeypatch.setattr(connection, "has_key", lambda: False)
    assert danet.config.identity_of_run(folder) == load(TINY).identity()
    assert load([f"resume={folder}", "tracking=disabled"]).tracking.mode == "disabled"
