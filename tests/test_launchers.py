"""Sweeps by Hydra's launchers: the same cells, and under Slurm what a signal interrupts goes on where it was."""

import importlib.util
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

import slurm
from conftest import TINY, Train, environment, train_command

SWEEP = [*TINY, "ablation=attention", "sweep.name=try", "seed=0"]
CELLS = [f"{name}/seed0" for name in ("fcn", "pam", "cam", "both")]


def ends(output: str) -> list[list[str]]:
    """The table at a sweep's end: cells and how they ended."""
    return [line.split()[:2] for line in output.splitlines() if line.startswith("  ") and "/seed0" in line]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "package", "options"),
    [
        ("joblib", "hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
        ("submitit_local", "hydra_submitit_launcher", []),
        (
            "ray",
            "hydra_ray_launcher",
            ["+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false"],
        ),
    ],
)
def test_all_launchers_run_the_same_cells(launcher: str, package: str, options: list[str], train: Train) -> None:
    if importlib.util.find_spec(f"hydra_plugins.{package}") is None:
        pytest.skip(f"{package} is not installed")
    steps = ["train.steps=6", "runtime.num_workers=1"]
    done = train("-m", *SWEEP, *steps, f"hydra/launcher={launcher}", *options)
    assert ends(done.stdout) == [[cell, "done"] for cell in CELLS]


@pytest.mark.slow
def test_slurm_gets_an_array_and_what_it_interrupts_is_saved_and_goes_on(tmp_path: Path) -> None:
    slurm.install(tmp_path)
    request = [
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.gpus_per_node=1",
        "hydra.launcher.cpus_per_task=8",
        "hydra.launcher.timeout_min=240",
        "hydra.launcher.array_parallelism=2",
    ]
    steps = ["train.steps=40", "train.eval_every=40", "train.save_every=40"]  # no checkpoint but the signal's
    process = subprocess.Popen(
        train_command("-m", *SWEEP, *steps, *request),
        env=environment(tmp_path)
        | {"SLURM_STAND_IN": str(tmp_path), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    second = tmp_path / "sweeps" / "try" / "pam" / "seed0"
    deadline = time.monotonic() + 200
    while not (second / "metrics.jsonl").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(int((tmp_path / "pid_1").read_text()), signal.SIGUSR2)
    output, _ = process.communicate(timeout=250)

    assert ends(output) == [[cell, "done"] for cell in CELLS]
    assert process.returncode == 0
    script = (tmp_path / "script.sh").read_text()
    for line in (
        "--array=0-3%2",
        "--partition=gpu",
        "--gpus-per-node=1",
        "--cpus-per-task=8",
        "--time=240",
        "--signal=USR2@120",  # seconds before the end
    ):
        assert f"#SBATCH {line}\n" in script
    assert (tmp_path / "requeued").read_text().split() == ["17_1"]
    (step,) = re.findall(r"resuming from step (\d+)", (second / "train.log").read_text())
    assert 0 < int(step) < 40
    assert (second / "train.log").read_text().count("SIGUSR2 received: saving") == 1
