"""Several processes train and score as one does; they stop, resume and fail as one, too."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from conftest import TINY, Train, environment, load, run_folders, train_command
from danet import config
from danet.config import REPOSITORY
from danet.evaluation.evaluate import Share, evaluate
from danet.losses.segmentation_loss import build_loss
from danet.model import build_model
from danet.services import checkpoint, distributed
from danet.services.compute import Compute
from danet.services.metrics_file import MetricsFile
from danet.services.synchronized_batchnorm import SummedBatchNorm, synchronize_batchnorm
from danet.training import run
from danet.training.network import leaves_some_unused
from test_evaluation import OddSizes, make_model

CPU = torch.device("cpu")

# Two parts of two images in each of two processes, or of four images in one: the same parts, the same statistics.
# Dropout would draw other masks in each process. Few and small steps: rounding is amplified by each of them.
PAIR = [
    *TINY,
    "seed=1",
    "head.dropout=0.0",
    "optimizer=sgd",
    "optimizer.lr=0.001",
    "schedule.warmup=0",
    "train.batch_size=8",
    "train.accumulate_steps=2",
    "train.steps=6",
    "train.eval_every=3",
    "train.save_every=6",
    "train.precision=fp32",
    "train.ema_decay=0.5",
]


# ---- in processes of our own ----


def in_processes(function: Any, size: int, folder: Path, *arguments: Any) -> list[Any]:
    """Call `function(world, *arguments)` in a process group of `size`; its results by rank."""
    mp.spawn(_member, (size, str(folder), function, arguments), nprocs=size)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _member(rank: int, size: int, folder: str, function: Any, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    result = function(distributed.World(rank, size), *arguments)
    torch.save(result, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


SHARES = [slice(0, 3), slice(3, 4)]  # of a batch of four: uneven


def batch() -> torch.Tensor:
    """(4, 3, 5, 7), with another mean and scale in each image and channel."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(4, 3, 1, 1, generator=generator, dtype=torch.float64) * 5
    return torch.randn(4, 3, 5, 7, generator=generator, dtype=torch.float64) * scale + scale.flip(0)


def norm() -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
        module.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    return module


def _normalize(world: distributed.World) -> Any:
    module = nn.Sequential(norm())
    synchronize_batchnorm(module, CPU)
    assert isinstance(module[0], SummedBatchNorm)
    x = batch()[SHARES[world.rank]].requires_grad_()
    out = module(x)
    (out.tanh() * torch.arange(7)).sum().backward()
    parameters = [distributed.sum_over_processes(p.grad.clone()) for p in module.parameters()]
    evaluated = module.eval()(batch())
    return out.detach(), x.grad, parameters, module.state_dict(), evaluated.detach()


def test_summed_batchnorm_is_batchnorm_of_the_joined_batch(pair: list[Any]) -> None:
    first, second = (results["normalized"] for results in pair)
    module, x = nn.Sequential(norm()), batch().requires_grad_()
    out = module(x)
    (out.tanh() * torch.arange(7)).sum().backward()

    def close(one: torch.Tensor, other: torch.Tensor) -> None:
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)

    close(torch.cat([first[0], second[0]]), out.detach())
    assert x.grad is not None
    close(torch.cat([first[1], second[1]]), x.grad)
    for own, parameter in zip(first[2], module.parameters(), strict=True):
        close(own, parameter.grad)
    for result in (first, second):
        assert result[3].keys() == module.state_dict().keys()
        for name, value in module.state_dict().items():
            close(result[3][name], value)
        close(result[4], module.eval()(batch()).detach())


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_summed_batchnorm_has_the_options_of_pytorchs(options: dict[str, Any]) -> None:
    plain = nn.BatchNorm2d(3, **options).double()
    summed = SummedBatchNorm.like(plain)
    own, other = (batch().requires_grad_() for _ in range(2))
    for _ in range(2):
        out, expected = summed(own), nn.functional.batch_norm(other, None, None, plain.weight, plain.bias, True)
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    out.tanh().sum().backward()
    expected.tanh().sum().backward()
    torch.testing.assert_close(own.grad, other.grad, rtol=1e-9, atol=1e-12)
    if plain.running_mean is not None:
        reference = nn.BatchNorm2d(3, **options).double()
        for _ in range(2):
            reference(batch())
        for name, value in reference.state_dict().items():
            torch.testing.assert_close(summed.state_dict()[name], value)


HEADS: dict[str, dict[str, Any]] = {"danet": {}, "encnet": {"presence_loss": False}}  # the latter normalizes vectors


def _steps(world: distributed.World, head: str) -> dict[str, torch.Tensor]:
    """Three optimizer steps in float64, where rounding hides nothing; the processes' shares are uneven."""
    model = build_model(
        {"name": "resnet_tiny", "widths": [8, 8, 16, 32]}, {"name": head, "dropout": 0.0, **HEADS[head]}, 4
    ).double()
    synchronize_batchnorm(model, CPU)
    network = distributed.wrap(model, CPU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    mine = SHARES[world.rank] if world.size > 1 else slice(0, 4)
    for _ in range(3):
        image = torch.randint(0, 256, (4, 3, 40, 48), dtype=torch.uint8, generator=generator)[mine]
        label = torch.randint(0, 4, (4, 5, 6), generator=generator)[mine]
        loss = sum(F.cross_entropy(logits, label, reduction="sum") / 120 for logits in network(image).values())
        optimizer.zero_grad()
        (loss * world.size).backward()
        optimizer.step()
    return dict(model.state_dict())


@pytest.mark.parametrize("head", HEADS)
def test_two_processes_take_the_steps_of_one(pair: list[Any], head: str) -> None:
    expected = _steps(distributed.World(), head)
    for results in pair:
        for name, value in expected.items():
            torch.testing.assert_close(
                results[head][name], value, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize(
    ("overrides", "some"),
    [
        (TINY, False),
        ([*TINY, "head=ocrnet"], False),
        ([*TINY, "loss.weights.pam=0"], True),
        (["backbone=timm", "backbone.model=convnext_atto", "head=danet"], False),
        (["backbone=timm", "backbone.model=hrnet_w18_small", "head=danet"], True),  # which reads the last stage alone
    ],
    ids=["danet", "ocrnet", "weight", "convnext", "hrnet"],
)
def test_parameters_without_a_gradient_are_foreseen(overrides: list[str], some: bool) -> None:
    config = load(overrides)
    model = (
        build_model({**config.backbone, "pretrained": False}, config.head, 4)
        if some
        else build_model(config.backbone, config.head, 4)
    )
    criterion = build_loss(config.loss, 4, lambda: iter(()))
    trained: Any = SimpleNamespace(model=model, criterion=criterion)
    assert leaves_some_unused(config, trained) == some


def _score(world: distributed.World) -> Any:
    found = evaluate(make_model(), Share(OddSizes(), compute=Compute(CPU, world=world)), num_pictures=3)
    return found.matrix, found.scores.miou, found.num_images, [picture.name for picture in found.pictures]


def assert_same_scores(results: list[Any]) -> None:
    alone = evaluate(make_model(), Share(OddSizes(), compute=Compute(CPU)), num_pictures=3)  # five images
    for matrix, miou, num_images, pictures in results:
        np.testing.assert_array_equal(matrix, alone.matrix)
        assert miou == alone.scores.miou
        assert num_images == 5
        assert pictures == ["image0", "image2", "image4"]


def _all(world: distributed.World) -> dict[str, Any]:
    return {
        "normalized": _normalize(world),
        "scores": _score(world),
        **{head: _steps(world, head) for head in HEADS},
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of two processes computed; to start them takes longer than all of it."""
    return in_processes(_all, 2, tmp_path_factory.mktemp("pair"))


def test_scores_are_the_same_for_two_processes(pair: list[Any]) -> None:
    assert_same_scores([results["scores"] for results in pair])


@pytest.mark.slow
def test_scores_are_the_same_for_three_processes(tmp_path: Path) -> None:
    assert_same_scores(in_processes(_score, 3, tmp_path))


# ---- whole runs ----


def final(folder: Path) -> dict[str, Any]:
    state = checkpoint.load_newest(folder / "checkpoints")
    assert state is not None
    return state


def assert_close_runs(folder: Path, reference: Path) -> None:
    """Weights, averages and metrics are those of the reference, to rounding."""
    one, other = final(folder), final(reference)
    assert one["step"] == other["step"] == 6
    options = load(PAIR)
    start = build_model(options.backbone, options.head, 9, seed=options.seed).state_dict()
    for part in ("model", "ema"):
        # Of the way that all weights went together: where an activation lies within rounding of ReLU's kink, single
        # weights differ by a percent.
        away = torch.cat([(one[part][name] - other[part][name]).flatten() for name in start]).double().norm()
        moved = torch.cat([(other[part][name] - start[name]).flatten() for name in start]).double().norm()
        assert moved > 0
        assert away < 1e-3 * moved, part
    rows, others = (MetricsFile(f / "metrics.jsonl").rows() for f in (folder, reference))
    for row, expected in zip(rows, others, strict=True):
        assert row.keys() == expected.keys()
        for key in row:
            if key != "seconds" and not key.startswith("perf/"):
                assert row[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-6), key


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "OUTPUTS", tmp_path_factory.mktemp("alone"))
        return run.start(load(PAIR)).folder


@pytest.mark.slow
def test_two_devices_train_as_one(outputs: Path, alone: Path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("DANET_OUTPUTS", str(outputs))
    assert_close_runs(run.start(load([*PAIR, "runtime.devices=2"])).folder, alone)
    shown = capfd.readouterr()
    assert "Warning" not in shown.err, shown.err
    assert shown.out.count("mean IoU") == 1  # one process speaks


@pytest.mark.slow
def test_torchrun_trains_as_one(tmp_path: Path, alone: Path) -> None:
    _, script, *overrides = train_command(*PAIR)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, *overrides]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(tmp_path / "outputs"), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    (folder,) = run_folders(tmp_path / "outputs")
    assert_close_runs(folder, alone)


@pytest.mark.slow
def test_two_nodes_train_as_one(tmp_path: Path, alone: Path) -> None:
    """Each under its own torchrun, as docs/clusters.md has it; here they meet on loopback."""
    _, script, *overrides = train_command(*PAIR)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    node = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    node += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    nodes = [
        subprocess.Popen(
            [*node, f"--node-rank={rank}", script, *overrides],
            cwd=tmp_path,
            env=environment(tmp_path / "outputs"),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=200)[1] for process in nodes]
    assert [process.returncode for process in nodes] == [0, 0], errors
    (folder,) = run_folders(tmp_path / "outputs")
    assert_close_runs(folder, alone)


@pytest.mark.slow
def test_a_sweep_of_jobs_on_two_devices(train: Train, tmp_path: Path, alone: Path) -> None:
    train("-m", *PAIR, "runtime.devices=2", "seed=1,2")
    first, second = run_folders(tmp_path / "outputs")
    assert (first.name, second.name) == ("seed1", "seed2")
    assert_close_runs(first, alone)
    assert final(second)["step"] == 6


@pytest.mark.slow
def test_an_output_without_weight_on_two_devices(train: Train, tmp_path: Path) -> None:
    for devices in (1, 2):
        train(*PAIR, "loss.weights.pam=0", f"runtime.devices={devices}")
    assert_close_runs(*run_folders(tmp_path / "outputs"))


@pytest.mark.slow
def test_without_synchronized_statistics_the_main_process_decides(train: Train, tmp_path: Path) -> None:
    train(*PAIR, "runtime.devices=2", "train.sync_batchnorm=false")
    (folder,) = run_folders(tmp_path / "outputs")
    assert all(value.isfinite().all() for value in final(folder)["model"].values())


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True], ids=["SIGTERM to the parent", "Ctrl-C to all"])
def test_a_signal_stops_two_devices_and_they_resume(tmp_path: Path, train: Train, whole_group: bool) -> None:
    outputs = tmp_path / "outputs"
    overrides = [*TINY, "runtime.devices=2", "train.batch_size=4", "runtime.num_workers=1", "train.save_every=1000"]
    process = subprocess.Popen(
        train_command(*overrides, "train.steps=30", "train.eval_every=30"),
        env=environment(outputs),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: next(outputs.rglob("metrics.jsonl"), None), process)
    started = time.monotonic()
    if whole_group:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=100)
    assert process.returncode == 75, text
    assert time.monotonic() - started < 25
    (folder,) = run_folders(outputs)
    stopped_at = final(folder)["step"]
    assert 0 < stopped_at < 30
    assert "Resume with" in text
    train(f"resume={folder}")
    assert final(folder)["step"] == 30
    steps = [row["step"] for row in MetricsFile(folder / "metrics.jsonl").rows() if "train/loss" in row]
    assert steps == list(range(3, 31, 3))


@pytest.mark.slow
def test_workers_outlive_no_killed_launcher(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    process = subprocess.Popen(
        train_command(*TINY, "runtime.devices=2", "train.steps=100000", "train.eval_every=100000"),
        env=environment(outputs),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: next(outputs.rglob("metrics.jsonl"), None), process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while members(process.pid):
        assert time.monotonic() < deadline, members(process.pid)
        time.sleep(0.2)


def members(session: int) -> list[str]:
    """Command lines of the living processes of a session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((entry / "cmdline").read_text())
        except (OSError, IndexError):
            continue
    return found


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    for _ in itertools.takewhile(lambda _: not condition(), itertools.count()):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


@pytest.mark.slow
def test_a_worker_that_fails_ends_the_run_with_its_message(train: Train) -> None:
    done = train(*TINY, "runtime.devices=2", "optimizer.lr=1e30", "train.steps=30", code=1)
    assert "NonFiniteError: step" in done.stderr
    assert "Traceback" not in done.stderr


def _fail(kind: str) -> None:
    with distributed.process_group(CPU) as world:
        if world.rank == 1:
            if kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise {"expected": ValueError, "unexpected": TypeError}[kind]("no such image")
        distributed.barrier()  # fails as the other one is gone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("expected", r"\Aprocess 1: ValueError: no such image\Z"),
        pytest.param("unexpected", r"process 1: TypeError: no such image\nTraceback", marks=pytest.mark.slow),
        pytest.param("killed", r"\(SIGKILL\)", marks=pytest.mark.slow),
    ],
)
def test_the_first_failure_is_the_one_that_is_told(kind: str, text: str, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "tests"))
    with pytest.raises(ChildProcessError, match=text):
        distributed.launch(_fail, 2, kind, expected=(ValueError,))


def test_derived_exceptions_are_expected_with_their_bases() -> None:
    class DataError(ValueError):
        pass

    class WorseError(DataError):
        pass

    names = distributed._names((ValueError, OSError))
    assert {"ValueError", "DataError", "WorseError", "UnicodeDecodeError", "PermissionError"} <= names
    assert not {"TypeError", "Exception", "RuntimeError"} & names
