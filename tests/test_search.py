"""Searches: what Optuna is asked, when a trial is pruned, how a search continues, how failures are reported."""

import csv
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from conftest import TINY, Train, environment, load, train_command
from danet.config import REPOSITORY
from danet.schema import ConfigError
from danet.sweeps.search import Choice, NumberRange, Search, SearchConfig, importance, plan, ranking, write_trials
from danet.sweeps.trial import Trial
from danet.training import run
from hydra_plugins.danet_search import OptunaSweeper, _dimension

pytest.importorskip("optuna")

SECTION: dict[str, Any] = {"name": None, "seeds": [0], "baseline": None, "variants": None, "any_code": False}
SPACE = {
    "optimizer.lr": NumberRange(low=1e-4, high=1.0, log=True),
    "head.reduction": Choice(values=("1", "2", "4", "8")),
}


def test_hydras_grammar_says_what_is_searched() -> None:
    lines = {
        "a=interval(1,4)": NumberRange(low=1.0, high=4.0),
        "a=tag(log,interval(1e-4,1e-1))": NumberRange(low=1e-4, high=1e-1, log=True),
        "a=int(interval(1,9))": NumberRange(low=1, high=9, whole=True),
        "a=int(tag(log,interval(1,64)))": NumberRange(low=1, high=64, log=True, whole=True),
        "a=choice(1,2,4)": Choice(values=("1", "2", "4")),
        "a=fcn,danet": Choice(values=("fcn", "danet")),
        "a=[4,8,16],null": Choice(values=("[4,8,16]", "null")),
        "a=range(2,8,3)": Choice(values=("2", "5")),
    }
    parsed = OverridesParser.create().parse_overrides(list(lines))
    assert [_dimension(override) for override in parsed] == list(lines.values())


def test_a_search_is_named_by_its_keys_and_all_its_problems_are_reported_at_once() -> None:
    name, config = plan(SECTION, {"n_trials": 7}, SPACE, {"recipe": "camvid_cpu"})
    assert (name, config) == ("search_lr_reduction_camvid_cpu", SearchConfig(n_trials=7))
    assert plan({**SECTION, "name": "mine"}, {}, SPACE, {})[0] == "mine"
    wrong = {
        "seed": Choice(values=("0", "1")),
        "a": NumberRange(low=2, high=1),
        "b": NumberRange(low=0, high=1, log=True),
    }
    with pytest.raises(ConfigError) as caught:
        plan({**SECTION, "name": "a/b", "variants": {"fcn": {}}}, {"n_trials": 0}, wrong, {})
    parts = ("seed: a search", "a = 2 to 1", "b = 0 to 1: a logarithmic range must start above 0", "sweep.variants")
    for part in (*parts, "'a/b'", "hydra.sweeper.n_trials = 0"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="nothing to search"):
        plan(SECTION, {}, {}, {})


def finish(search: Search, number: int, **result: Any) -> None:
    """Write what a run leaves at its end."""
    search.place(number).mkdir(exist_ok=True)
    (search.place(number) / "result.json").write_text(json.dumps(result))
    search.settle(number)


def score(search: Search, number: int) -> float:
    """A landscape with its top, 0.9, at lr = 0.01; reduction hardly matters."""
    settings = search.trials()[number].params
    return 0.9 - 0.1 * abs(math.log10(settings["optimizer.lr"]) + 2) - 0.001 * int(settings["head.reduction"])


def work(search: Search, most: int = 1000) -> None:
    for _ in range(most):
        for number in search.next() or [-1]:
            if number < 0:
                return
            finish(search, number, miou=score(search, number))


def test_it_finds_the_top_and_what_matters(tmp_path: Path) -> None:
    search = Search(tmp_path, SearchConfig(n_trials=40), SPACE, ["a=1"])
    work(search)
    (best, state, detail), *_ = ranking(search)
    learning_rate = search.trials()[best].params["optimizer.lr"]
    assert state == "done"
    assert 0.005 < learning_rate < 0.02
    assert detail == f"mIoU {100 * score(search, best):.2f}"
    assert search.overrides(best) == ["a=1", f"optimizer.lr={learning_rate}", search.settings(best)[1]]
    weights = importance(search)
    assert weights["optimizer.lr"] > 0.8
    assert sum(weights.values()) == pytest.approx(1)
    write_trials(search)
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    assert float(rows[best]["miou"]) == pytest.approx(score(search, best), abs=1e-6)


def test_a_search_in_several_starts_makes_the_choices_of_one(tmp_path: Path) -> None:
    whole = Search(tmp_path / "whole", SearchConfig(n_trials=16), SPACE, [])
    work(whole)
    for trials in (5, 11, 16):
        parts = Search(tmp_path / "parts", SearchConfig(n_trials=trials), SPACE, [])
        work(parts)
    assert [trial.params for trial in parts.trials()] == [trial.params for trial in whole.trials()]
    assert len({trial.params["optimizer.lr"] for trial in whole.trials()}) == 16
    other = Search(tmp_path / "other", SearchConfig(n_trials=1, seed=1), SPACE, [])
    work(other)
    assert other.trials()[0].params != whole.trials()[0].params


def test_what_was_interrupted_comes_first_and_what_failed_is_replaced(tmp_path: Path) -> None:
    options = SearchConfig(n_trials=4, n_jobs=2)
    first = Search(tmp_path, options, SPACE, [])
    assert first.next() == [0, 1]
    finish(first, 0, miou=0.5)  # and 1 is interrupted
    assert first.next() == [2, 3]
    first.place(2).mkdir()
    (first.place(2) / "error.txt").write_text("ValueError: no\nloss is nan\n")
    first.settle(2)
    first.place(3).mkdir()
    (first.place(3) / "result.json").write_text('{"miou": 0.7}')  # and the search is killed before it notes that
    assert first.next() == []

    second = Search(tmp_path, options, SPACE, [])
    assert second.wanted == 5
    assert second.next() == [1, 4]
    finish(second, 1, miou=0.6)
    finish(second, 4, miou=None)  # no class to score
    assert second.next() == []
    assert ranking(second) == [
        (3, "done", "mIoU 70.00"),
        (1, "done", "mIoU 60.00"),
        (0, "done", "mIoU 50.00"),
        (2, "failed", "loss is nan"),
        (4, "failed", "n/a"),
    ]


def test_optuna_has_what_a_run_needs_to_find_its_trial() -> None:
    """A run looks up its trial's id in the storage: by methods that Optuna does not call private, nor documents."""
    from optuna import __version__ as version
    from optuna.storages import JournalStorage

    needed = ("get_study_id_from_name", "get_trial_id_from_study_id_trial_number")
    missing = [name for name in needed if not hasattr(JournalStorage, name)]
    assert not missing, (
        f"Optuna {version} (known to work: 4 and 5): JournalStorage has no {', '.join(missing)}; "
        "Trial in danet/sweeps/trial.py needs another way to the id of a running trial"
    )
    for file in (REPOSITORY / "src" / "danet" / "sweeps").glob("*.py"):
        private = re.findall(r"(?<!self)\._[a-z]\w*", file.read_text())
        assert not private, f"{file.name} uses private names: {private}"


def test_a_folder_has_one_search(tmp_path: Path) -> None:
    Search(tmp_path, SearchConfig(), SPACE, [])
    with pytest.raises(ConfigError, match=r"holds a search of other keys .* another sweep\.name"):
        Search(tmp_path, SearchConfig(), {"optimizer.lr": NumberRange(low=0.1, high=1.0)}, [])
    (tmp_path / "search.json").rename(tmp_path / "sweep.json")
    with pytest.raises(ConfigError, match="holds a sweep, not a search"):
        Search(tmp_path, SearchConfig(), SPACE, [])


def test_fewer_trials_than_there_are_leave_none_to_do(tmp_path: Path) -> None:
    work(Search(tmp_path, SearchConfig(n_trials=3), SPACE, []))
    assert Search(tmp_path, SearchConfig(n_trials=1), SPACE, []).remaining() == 0


def test_all_trials_are_held_to_the_settings_of_a_later_start(tmp_path: Path) -> None:
    search = Search(tmp_path, SearchConfig(n_trials=3), SPACE, ["train.steps=4"])
    for _ in range(3):
        (number,) = search.next()
        finish(search, number, miou=0.5)
    compared: list[int] = []

    def conflicts(_: Search, numbers: list[int]) -> list[str]:
        compared.extend(numbers)
        return ["trial0: has another configuration"]

    with pytest.raises(SystemExit, match="trial0: has another configuration"):
        OptunaSweeper._run(SimpleNamespace(_trial_conflicts=conflicts), search)  # type: ignore[arg-type]
    assert compared == [0, 1, 2]


def test_a_trial_is_pruned_when_its_best_is_below_the_median_of_the_finished_at_that_evaluation(tmp_path: Path) -> None:
    search = Search(tmp_path, SearchConfig(n_startup_trials=4, n_warmup_evaluations=1, n_trials=40), SPACE, [])
    scores = np.random.default_rng(0).uniform(0, 1, (40, 3))
    finished: list[int] = []
    asked = pruned = 0
    for number, curve in enumerate(scores):
        assert search.next() == [number]
        trial = Trial(search.place(number))
        for evaluation, miou in enumerate(curve, start=1):
            stop = trial.report(evaluation, miou)
            best, median = curve[:evaluation].max(), np.median(scores[finished, evaluation - 1]) if finished else 0
            assert stop == (len(finished) >= 4 and evaluation > 1 and best < median)
            assert Trial(search.place(number)).report(evaluation, 0.0) == stop  # after a kill: nothing new
            asked += 1
            if stop:
                break
        pruned += stop
        if not stop:
            finished.append(number)
        finish(search, number, miou=float(curve.max()), **({"pruned": True} if stop else {}))
    assert 5 < pruned < 35
    assert asked < 120
    assert [trial.state.name for trial in search.trials()].count("PRUNED") == pruned
    assert not Trial(search.place(0).with_name("trial1")).report(9, math.nan)


def test_a_pruned_run_ends_at_the_evaluation_and_says_so(outputs: Path) -> None:
    search = Search(outputs / "sweeps" / "try", SearchConfig(n_startup_trials=1), SPACE, [])
    for number in search.next():
        Trial(search.place(number)).report(1, 0.99)
        finish(search, number, miou=0.99)
    (number,) = search.next()
    folder = search.place(number)
    outcome = run.start(load(TINY), sweep_folder=str(folder))
    result = json.loads((folder / "result.json").read_text())
    assert (outcome.finished, result["pruned"], result["step"]) == (True, True, 6)
    assert result["miou"] == outcome.result["miou"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 6
    search.settle(number)
    assert search.trials()[number].intermediate_values == {1: pytest.approx(result["miou"])}
    assert ranking(search)[-1] == (number, "pruned", f"mIoU {100 * result['miou']:.2f}")


COMMAND = [*TINY, "hydra/sweeper=optuna", "sweep.name=try", "sweep.any_code=true", "hydra.sweeper.n_startup_trials=1"]
KEYS = ["optimizer.lr=tag(log,interval(1e-3,1e-1))", "head.reduction=choice(1,2)"]


@pytest.mark.slow
def test_a_killed_search_goes_on_with_its_trials(train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "sweeps" / "try"
    arguments = ["-m", *COMMAND, *KEYS, "hydra.sweeper.n_trials=3"]
    process = subprocess.Popen(
        train_command(*arguments),
        env=environment(tmp_path / "outputs"),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("trial1/checkpoints/step_*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = (folder / "trial0" / "result.json").stat().st_mtime_ns

    done = train(*arguments)
    assert "2 of 3 trials to do" in done.stdout
    assert (folder / "trial0" / "result.json").stat().st_mtime_ns == first
    assert "resuming from step" in (folder / "trial1" / "train.log").read_text()
    assert sum(int(count) for count in re.findall(r"\b(\d+) (?:done|pruned)", done.stdout)) == 3
    assert "0 of 3 trials to do" in train(*arguments).stdout
    best = re.search(r"compare: python src/report.py (runs=\S+)", done.stdout)
    assert best
    report = subprocess.run(
        [*train_command()[:1], str(REPOSITORY / "src" / "report.py"), best[1]],
        env=environment(tmp_path / "outputs"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert report.returncode == 0, report.stderr


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("joblib") is None, reason="joblib is not installed")
def test_trials_run_at_the_same_time_and_failures_do_not_end_the_search(train: Train) -> None:
    parallel = [
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.n_trials=4",
    ]
    keys = ["optimizer.lr=interval(0.01,0.1)", "head.reduction=choice(1,0)"]  # 0 is refused
    done = train("-m", *COMMAND, *parallel, *keys, "hydra.sweeper.sampler=random", "runtime.num_workers=1")
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("  trial")]
    ends = {(line[1], line[-1]) for line in lines}
    assert ends <= {("done", "head.reduction=1"), ("failed", "head.reduction=0")}
    assert len(ends) == 2
    broken = train("-m", *COMMAND, "head.reduction=choice(0,-1)", "sweep.name=none", "hydra.sweeper.n_trials=2", code=1)
    assert "2 failed" in broken.stdout
