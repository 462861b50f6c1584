"""Runs that wandb's own client sends to a server; the server (wandb_server.py) is on loopback."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import TINY, environment, train_command
from danet.config import REPOSITORY
from danet.services.metrics_file import MetricsFile
from test_tracking import SWEEP, chosen_by_the_server, history
from wandb_server import SWEEP as SWEEP_ID
from wandb_server import WandbServer

pytestmark = pytest.mark.slow
ONLINE = [*(o for o in TINY if not o.startswith("tracking")), "tracking.mode=online", "tracking.images=2"]


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


def variables(server: WandbServer, outputs: Path) -> dict[str, str]:
    """The environment of a script whose runs go to the server."""
    own = {key: value for key, value in environment(outputs).items() if not key.startswith("WANDB_")}
    return {**own, **server.environment}


def start(server: WandbServer, outputs: Path, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        train_command(*ONLINE, *overrides),
        cwd=outputs.parent,
        env=variables(server, outputs),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def numbers(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The losses and scores of rows, without empty ones."""
    chosen = [{k: v for k, v in row.items() if k.startswith(("train/", "val/miou"))} for row in rows]
    return [row for row in chosen if row]


def test_a_run_is_on_the_server_with_its_numbers_inputs_and_weights(tmp_path: Path, server: WandbServer) -> None:
    process = start(server, tmp_path / "outputs", "tracking.log_checkpoint=true", "tracking.tags=[night]")
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert "WARNING: Weights & Biases" not in text
    (folder,) = (path.parent for path in tmp_path.rglob("result.json"))
    ((name, run),) = server.runs.items()
    assert f"{server.address}/me/danet/runs/{name}" in text
    assert (run["jobType"], run["tags"], run["project"]) == ("train", ["night"], "danet")
    assert json.loads(run["config"])["train"]["value"]["steps"] == 12
    rows = numbers(MetricsFile(folder / "metrics.jsonl").rows())
    assert rows
    assert numbers(server.rows[name]) == [pytest.approx(row) for row in rows]
    kinds = {key: artifact["artifactTypeName"] for key, artifact in server.artifacts.items()}
    assert all(artifact["state"] == "COMMITTED" for artifact in server.artifacts.values())
    model = server.artifacts[f"checkpoint-{name}"]
    assert {alias["alias"] for alias in model["aliases"]} == {"best", "latest"}
    assert server.files[f"checkpoint-{name}/best.pt"] == (folder / "checkpoints" / "best.pt").read_bytes()
    assert len(server.used) == 2  # the fingerprints of train and val
    assert {kinds[used] for used in server.used} == {"dataset"}
    truths = [key for key in server.files if key.startswith("truths-") and key.endswith(".mask.png")]
    assert len(truths) == 2
    assert server.files[f"{name}/config.yaml"]


def test_a_server_that_goes_down_in_the_middle_costs_nothing(tmp_path: Path, server: WandbServer) -> None:
    process = start(server, tmp_path / "outputs", "train.steps=400", "train.eval_every=200", "tracking.images=0")
    outputs = tmp_path / "outputs"
    while not server.runs or not any(path.stat().st_size for path in outputs.rglob("metrics.jsonl")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    server.cut()
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    (folder,) = (path.parent for path in tmp_path.rglob("result.json"))
    rows = numbers(MetricsFile(folder / "metrics.jsonl").rows())
    assert len(rows) > 130
    (record,) = folder.glob("wandb/run-*/*.wandb")
    assert numbers(history(record)) == [pytest.approx(row, rel=1e-6) for row in rows]
    assert f"wandb sync {record.parent}" in text.replace("\n", "")


def test_a_server_that_answers_with_errors_costs_nothing(tmp_path: Path, server: WandbServer) -> None:
    server.break_down()
    process = start(server, tmp_path / "outputs", "tracking.images=0")
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert "the server is not usable; logging offline" in text
    (folder,) = (path.parent for path in tmp_path.rglob("result.json"))
    (record,) = folder.glob("wandb/offline-run-*/*.wandb")
    rows = numbers(MetricsFile(folder / "metrics.jsonl").rows())
    assert numbers(history(record)) == [pytest.approx(row, rel=1e-6) for row in rows]


def test_a_sweep_of_the_server_is_made_and_an_agent_runs_it(tmp_path: Path, server: WandbServer) -> None:
    env = variables(server, tmp_path / "outputs")
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"  # an activated environment

    def wandb(*arguments: str) -> str:
        command = [sys.executable, "-m", "wandb", *arguments]
        done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert f"wandb agent me/danet/{SWEEP_ID}" in wandb("sweep", "-e", "me", "-p", "danet", str(SWEEP))
    assert yaml.safe_load(server.sweep)["metric"] == {"name": "val/miou", "goal": "maximize"}
    tiny = dict(override.split("=", 1) for override in ONLINE)
    choice = chosen_by_the_server(yaml.safe_load(server.sweep)["parameters"])
    choice |= {key: {"value": value} for key, value in tiny.items()}
    server.commands = [{"type": "run", "run_id": "run00007", "program": "src/train.py", "args": choice}]
    wandb("agent", "--count", "1", f"me/danet/{SWEEP_ID}")
    assert server.runs["run00007"]["sweep"] == SWEEP_ID
    rows = server.rows["run00007"]
    assert [row["step"] for row in rows if "val/miou" in row] == [6, 12]
    config = json.loads(server.runs["run00007"]["config"])
    assert config["optimizer"]["value"]["lr"] == choice["optimizer.lr"]["value"]
