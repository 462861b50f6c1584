"""A run that is killed anywhere and goes on ends in the very bits of one that was not."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import TINY, environment, load, run_folders, train_command
from danet import config
from danet.config import ConfigError, data_checks
from danet.config.identity import deciding
from danet.services import checkpoint
from danet.services.metrics_file import MetricsFile
from danet.training import run, run_folder

pytestmark = pytest.mark.usefixtures("without_pictures")

# Everything that draws random numbers or keeps state: crops, dropout, momentum, averaged weights, several parts.
RUN = [
    *TINY,
    "augment=standard",
    "augment.crop_size=[48,48]",
    "head.dropout=0.3",
    "train.steps=30",
    "train.log_every=7",
    "train.eval_every=10",
    "train.save_every=4",
]
PLAIN: list[str] = []
BF16 = ["train.precision=bf16"]
RICH = ["train.ema_decay=0.9", "train.accumulate_steps=2", "train.max_grad_norm=1", "schedule.warmup=8"]


def assert_equal(one: Any, other: Any, where: str = "checkpoint") -> None:
    """Equal to the last bit, whatever is nested in it."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}[{index}]")
    else:
        assert one == other, where


def results(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """All that a run computed: the last and the best checkpoint and the metrics, without what the clock decides."""
    last = checkpoint.load_newest(folder / "checkpoints")
    assert last is not None
    best = checkpoint.load(folder / "checkpoints" / "best.pt")
    for state in (last, best):
        state.pop("config")  # the same but for runtime.*
        state.pop("tracker_id", None)
    last["run"].pop("seconds")
    rows = MetricsFile(folder / "metrics.jsonl").rows()
    return last, best, [{k: v for k, v in r.items() if k != "seconds" and not k.startswith("perf/")} for r in rows]


def assert_same_run(folder: Path, reference: Path) -> None:
    for one, other, name in zip(results(folder), results(reference), ("last", "best", "metrics"), strict=True):
        assert_equal(one, other, name)
    own, others = (json.loads((f / "result.json").read_text()) for f in (folder, reference))
    for key in ("seconds", "images_per_second", "peak_memory_bytes"):  # what a clock or the machine decides
        assert own.pop(key) > 0
        others.pop(key)
    assert own == others


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], Path]:
    """The folder of a run that nothing disturbed, computed once for each list of overrides."""
    folders: dict[tuple[str, ...], Path] = {}

    def get(overrides: list[str]) -> Path:
        if tuple(overrides) not in folders:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(config, "OUTPUTS", tmp_path_factory.mktemp("uninterrupted"))
                folders[tuple(overrides)] = run.start(load([*RUN, *overrides])).folder
        return folders[tuple(overrides)]

    return get


def last_step(outputs: Path) -> int:
    """The newest step that a run in `outputs` recorded or began to save."""
    logged = [row["step"] for path in outputs.rglob("metrics.jsonl") for row in MetricsFile(path).rows()]
    saved = [int(path.name[5:13]) for path in outputs.rglob("step_*")]
    return max([*logged, *saved], default=0)


def kill_at(step: int, outputs: Path, overrides: list[str], delay: float = 0.0) -> Path:
    """Start a run and SIGKILL it as soon as it shows `step`, or `delay` seconds later; return its folder."""
    process = subprocess.Popen(
        train_command(*overrides),
        env=environment(outputs),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while (shown := last_step(outputs)) < step:
        assert process.poll() is None, f"it ended by itself: {process.communicate()[1]}"
        assert time.monotonic() < deadline
        time.sleep(0.002 if shown else 0.02)
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (folder,) = run_folders(outputs)
    return folder


def go_on(folder: Path, *overrides: str) -> run.Outcome:
    arguments = [f"resume={folder}", *overrides]
    return run.start(load(arguments), arguments)


@pytest.mark.parametrize(
    ("variant", "step", "delay"),
    [
        pytest.param(RICH, 12, 0.0, id="parts, averages; in or after a save"),
        pytest.param(PLAIN, 7, 0.02, id="between two saves", marks=pytest.mark.slow),
        pytest.param(PLAIN, 20, 0.0, id="in an evaluation", marks=pytest.mark.slow),
        pytest.param(RICH, 24, 0.1, id="parts, averages; late", marks=pytest.mark.slow),
        pytest.param([*RICH, *BF16], 12, 0.0, id="in bf16", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(outputs, uninterrupted, variant, step, delay) -> None:
    reference = uninterrupted(variant)
    folder = kill_at(step, outputs, [*RUN, *variant, "runtime.num_workers=2"], delay)
    assert not (folder / "result.json").exists()
    assert go_on(folder, "runtime.num_workers=1").finished
    assert_same_run(folder, reference)


@pytest.mark.slow
def test_killed_again_and_again(outputs, uninterrupted) -> None:
    reference = uninterrupted(RICH)
    rng, step, start = random.Random(0), 0, [*RUN, *RICH]
    for kill in range(5):
        step += rng.randint(2, 5)
        workers = f"runtime.num_workers={kill % 3}"
        folder = kill_at(step, outputs, [*start, workers], rng.uniform(0, 0.05))
        start = [f"resume={folder}"]
    assert go_on(folder).finished
    assert_same_run(folder, reference)


def stopped_before(name: str, patch: pytest.MonkeyPatch, times: int) -> None:
    """Let the recorder's method `name` end the process, as far as this process can tell, at its n-th call."""
    from danet.training.recorder import Recorder

    method, calls = getattr(Recorder, name), []

    def fail(self: Recorder, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == times:
            raise KeyboardInterrupt
        return method(self, *arguments, **options)

    patch.setattr(Recorder, name, fail)


@pytest.mark.parametrize(
    ("method", "times"),
    [
        pytest.param("finish", 1, id="after the last checkpoint, before the result"),
        pytest.param("evaluated", 2, id="before an evaluation is recorded", marks=pytest.mark.slow),
        pytest.param("save", 1, id="before the first checkpoint", marks=pytest.mark.slow),
    ],
)
def test_every_gap_between_two_records_can_be_resumed(outputs, uninterrupted, method, times) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stopped_before(method, patch, times)
        with pytest.raises(KeyboardInterrupt):
            run.start(load([*RUN, *PLAIN]))
    (folder,) = run_folders(outputs)
    assert go_on(folder).finished
    assert_same_run(folder, uninterrupted(PLAIN))


@pytest.mark.slow
def test_a_run_that_stopped_early_stays_stopped(outputs) -> None:
    # A learning rate that leaves everything as it is: no evaluation beats the first.
    overrides = [*TINY, "optimizer.lr=1e-30", "train.early_stop_patience=1", "train.steps=40", "train.eval_every=3"]
    whole = run.start(load(overrides))
    assert whole.finished
    assert MetricsFile(whole.folder / "metrics.jsonl").rows()[-1]["step"] == 6
    with pytest.MonkeyPatch.context() as patch:
        stopped_before("finish", patch, 1)
        with pytest.raises(KeyboardInterrupt):
            run.start(load([*overrides, "name=killed"]))
    (folder,) = [f for f in run_folders(outputs) if f.name.endswith("killed")]
    assert go_on(folder).finished
    assert_same_run(folder, whole.folder)


# A learning rate that leaves everything as it is: no evaluation beats the first.
STILL = [*TINY, "optimizer.lr=1e-30", "train.steps=4", "train.eval_every=1", "train.save_every=1"]


def test_the_patience_belongs_to_a_run_and_may_change_until_it_is_finished(outputs, capsys) -> None:
    patient = "train.early_stop_patience"
    with pytest.MonkeyPatch.context() as patch:
        stopped_before("finish", patch, 1)
        with pytest.raises(KeyboardInterrupt):
            run.start(load([*STILL, f"{patient}=1"]))
    (folder,) = run_folders(outputs)
    outcome = go_on(folder, f"{patient}=2")
    assert outcome.finished
    assert MetricsFile(folder / "metrics.jsonl").rows()[-1]["step"] == 3
    told = "step 3: stopped early, no evaluation since step 1 was better (train.early_stop_patience=2)"
    assert told in " ".join(capsys.readouterr().out.split())
    assert told in (folder / "train.log").read_text()
    with pytest.raises(ConfigError, match=rf"{patient} = 50: the run in .* has 2 and can only be resumed as it is"):
        go_on(folder, f"{patient}=50")
    assert run_folder.newest_run(load([*STILL, f"{patient}=2"]), finished=True) == folder
    for other in ("1", "null"):
        assert run_folder.newest_run(load([*STILL, f"{patient}={other}"]), finished=True) is None
    assert config.changes_of_run(folder, load(STILL)) == ["train.early_stop_patience = None, there 2"]


def test_a_run_without_patience_is_the_one_it_was_before_that_counted() -> None:
    decides = deciding(dataclasses.asdict(load(TINY)))
    assert not any("patience" in key for key in decides)


def test_a_truncated_newest_checkpoint_costs_only_its_steps(outputs, uninterrupted, capsys) -> None:
    folder = outputs / "copy"
    shutil.copytree(uninterrupted(RICH), folder)
    (folder / "result.json").unlink()
    newest = folder / "checkpoints" / "step_00000030.pt"
    os.truncate(newest, newest.stat().st_size // 2)
    assert go_on(folder).finished
    text = capsys.readouterr().out
    assert "step_00000030.pt: damaged" in text
    assert "resuming from step 28" in text
    assert_same_run(folder, uninterrupted(RICH))


def test_a_finished_run_says_so_and_stays_as_it_is(outputs, uninterrupted, capsys) -> None:
    folder = outputs / "copy"
    shutil.copytree(uninterrupted(PLAIN), folder)

    def files() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "train.log"}

    before = files()
    outcome = go_on(folder)
    assert outcome.finished
    assert 0 < outcome.result["miou"] < 1
    assert "finished already" in capsys.readouterr().out
    assert files() == before


def test_another_run_is_refused_by_name(outputs, uninterrupted) -> None:
    folder = uninterrupted(PLAIN)
    with pytest.raises(ConfigError, match=r"head\.dropout = 0\.5: the run in .* has 0\.3"):
        go_on(folder, "head.dropout=0.5")
    blanks = shutil.copytree(folder, outputs / "a b")
    with pytest.raises(ConfigError, match=f"'init_from={blanks}/checkpoints/best.pt' takes its weights"):
        go_on(blanks, "head.dropout=0.5")
    assert go_on(folder, "head.dropout=0.3").finished  # the value it has
    with pytest.raises(ConfigError, match="no config.yaml there"):
        go_on(outputs / "nowhere")


@pytest.mark.parametrize(
    "given",
    [
        ["recipe=quickstart", *RUN],  # the very command that began it
        ["dataset=shapes", *(o for o in RUN if o.startswith("dataset."))],
        ["tracking=disabled"],
        ["runtime.num_workers=1", "train.log_every=5"],
        ["inference@evaluate=default", "loss/weights=default"],
        ["~ablation", "~schedule.power"],
    ],
    ids=[
        "the same command",
        "a group",
        "a group that may change",
        "keys that may change",
        "groups of other sections",
        "removals of what is at its default",
    ],
)
def test_whatever_leaves_it_the_same_run_may_be_given(outputs, uninterrupted, given) -> None:
    folder = outputs / "copy"
    shutil.copytree(uninterrupted(PLAIN), folder)
    assert go_on(folder, *given).finished


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["inference@evaluate=default", "evaluate.flip=true"], "evaluate.flip = True: the run in .* has False"),
        (["loss/weights=default", "loss.weights.main=2"], "loss.weights.main = 2.0: the run in .* has 1.0"),
        (["~schedule.warmup"], r"schedule.warmup = 0: the run in .* has 8"),
        (["~train.batch_size"], "train.batch_size = 8: the run in .* has 4"),
    ],
)
def test_what_a_group_of_another_section_or_a_removal_changes_is_refused_by_key(uninterrupted, given, text) -> None:
    with pytest.raises(ConfigError, match=text):
        go_on(uninterrupted(RICH), *given)


def test_options_of_groups_that_make_it_another_run_are_refused(uninterrupted) -> None:
    with pytest.raises(ConfigError) as raised:
        go_on(uninterrupted(PLAIN), "head=fcn", "recipe=quickstart", *RUN[:-4])
    assert "head.name = 'fcn'" in str(raised.value)
    assert "sweep" not in str(raised.value)


def test_nothing_in_a_saved_configuration_is_resolved(outputs, uninterrupted, monkeypatch) -> None:
    """It may come from anybody, and would tell a secret to whoever gets the checkpoint."""
    folder = outputs / "copy"
    shutil.copytree(uninterrupted(PLAIN), folder)
    file, text = folder / "config.yaml", "${oc.env:WANDB_API_KEY}"
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    file.write_text(file.read_text().replace("tags: []", f"tags: ['{text}']"))
    resumed = load([f"resume={folder}"])
    assert resumed.tracking.tags == [text]
    assert "s3cret" not in resumed.yaml() + str(config.of_run(folder))
    with pytest.raises(ConfigError) as raised:
        config.model_sections(f"backbone: {{name: '{text}'}}\nhead: {{name: fcn}}")
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    "damage", [b"name: [", b"- a\n- list\n", b"\xff\xfe\x00", b"a: !!python/object/apply:os.getcwd []"]
)
def test_a_damaged_configuration_is_named(outputs, uninterrupted, damage) -> None:
    folder = outputs / "copy"
    shutil.copytree(uninterrupted(PLAIN), folder)
    (folder / "config.yaml").write_bytes(damage)
    with pytest.raises(ConfigError, match=r"config\.yaml: not YAML with sections"):
        go_on(folder)


def test_a_damaged_environment_is_named(outputs, uninterrupted) -> None:
    folder = outputs / "copy"
    shutil.copytree(uninterrupted(PLAIN), folder)
    (folder / "environment.json").write_text('{"data": {"tr')
    with pytest.raises(ValueError, match=r"environment\.json: not JSON"):
        go_on(folder)


def test_the_best_score_survives(outputs) -> None:
    """The public implementation forgets it, and overwrites the best weights with the first ones after a resume."""
    overrides = [*TINY, "train.steps=8", "train.eval_every=4", "train.save_every=2"]
    with pytest.MonkeyPatch.context() as patch:
        stopped_before("save", patch, 4)
        with pytest.raises(KeyboardInterrupt):
            run.start(load(overrides))
    (folder,) = run_folders(outputs)
    path = folder / "checkpoints" / "step_00000006.pt"
    state = checkpoint.load(path)
    assert state["run"]["best"]["step"] == 4
    state["run"]["best"]["miou"] = 2.0  # no later evaluation can reach it
    checkpoint.save(path, state)
    before = (folder / "checkpoints" / "best.pt").read_bytes()
    assert go_on(folder).result["miou"] == 2.0
    assert (folder / "checkpoints" / "best.pt").read_bytes() == before


def test_a_checkpoint_of_another_version_is_refused_by_name(outputs, uninterrupted, monkeypatch) -> None:
    """Its state has a field that this code does not know, and lacks one that this code needs."""
    folder = outputs / "copy"
    shutil.copytree(uninterrupted(PLAIN), folder)
    (folder / "result.json").unlink()
    file = folder / "checkpoints" / "step_00000030.pt"
    state = checkpoint.load(file)
    state["run"]["summed_steps"] = 3
    del state["run"]["since_best"]
    checkpoint.save(file, state)
    monkeypatch.setattr(data_checks, "check_data", None)  # the data are not looked at before
    with pytest.raises(ValueError, match=rf"{file}: .*'since_best' is missing, 'summed_steps' is unknown.*init_from="):
        go_on(folder)


def test_changed_data_is_refused(outputs, uninterrupted, monkeypatch) -> None:
    folder = outputs / "copy"
    shutil.copytree(uninterrupted(PLAIN), folder)
    (folder / "result.json").unlink()
    monkeypatch.setattr("danet.datasets.shapes.VERSION", 999)
    with pytest.raises(ValueError, match="the data has changed since this run began"):
        go_on(folder)


@pytest.mark.slow
def test_auto_takes_the_newest_unfinished_run_of_the_same_configuration(outputs) -> None:
    with pytest.raises(ConfigError, match="resume = 'required': no run of this configuration"):
        run.start(load([*TINY, "resume=required"]))
    assert run_folders(outputs) == []
    stopped = []
    for seed in (0, 0, 1):
        with pytest.MonkeyPatch.context() as patch:
            stopped_before("finish", patch, 1)
            with pytest.raises(KeyboardInterrupt):
                run.start(load([*TINY, "train.steps=4", f"seed={seed}"]))
        (new,) = set(run_folders(outputs)) - set(stopped)
        stopped.append(new)
    chosen = load([*TINY, "train.steps=4", "resume=auto", "seed=0", "runtime.num_workers=1", "name=other"])
    assert run.start(chosen).folder == stopped[1]
    assert run.start(dataclasses.replace(chosen)).folder == stopped[0]
    for resume in ("auto", "required"):  # all are finished: the newest is reported, and nothing is trained
        before = {folder: (folder / "metrics.jsonl").stat().st_mtime_ns for folder in run_folders(outputs)}
        outcome = run.start(dataclasses.replace(chosen, resume=resume))
        assert (outcome.folder, outcome.finished) == (stopped[0], True)
        assert {folder: (folder / "metrics.jsonl").stat().st_mtime_ns for folder in run_folders(outputs)} == before


def test_auto_starts_a_run_where_there_is_none(outputs, capsys) -> None:
    outcome = run.start(load([*TINY, "train.steps=1", "resume=auto"]))
    assert outcome.finished
    assert run_folders(outputs) == [outcome.folder]
    assert f"resume=auto: no run of this configuration in {outputs}, so a new one starts" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["", "[]", "{}", None], ids=["empty", "a list", "without data", "missing"])
def test_auto_passes_over_a_run_whose_files_are_damaged(outputs, uninterrupted, capsys, damage) -> None:
    reference = uninterrupted(PLAIN)
    for name in ("damaged", "whole"):  # the newest is looked at first
        shutil.copytree(reference, outputs / "2026-01-01" / name)
        (outputs / "2026-01-01" / name / "result.json").unlink()
    damaged, whole = (outputs / "2026-01-01" / name for name in ("damaged", "whole"))
    os.utime(whole / "checkpoints", (1, 1))
    if damage is None:
        (damaged / "environment.json").unlink()
    else:
        (damaged / "environment.json").write_text(damage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("danet.config.run_folders", lambda folder: [damaged, whole])
        assert run_folder.newest_run(load([*RUN, *PLAIN])) == whole
    assert f"{damaged} is skipped, its files are damaged" in capsys.readouterr().out
