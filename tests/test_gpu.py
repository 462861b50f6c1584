"""What needs a CUDA device: `make test-gpu`. Everything else is tested on the CPU."""

import json
from pathlib import Path

import pytest
import torch

from conftest import TINY, load
from danet import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ON_GPU = [*(o for o in TINY if not o.startswith("runtime.device")), "runtime.device=cuda"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("compiled", ["true", "false"])
def test_a_run_on_the_gpu_learns(outputs: Path, precision: str, compiled: str) -> None:
    overrides = [*ON_GPU, f"train.precision={precision}", f"runtime.compile={compiled}", "runtime.deterministic=false"]
    outcome = run.start(load(overrides))
    rows = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < losses[0]


def test_gpu_and_cpu_agree_in_float32(outputs: Path) -> None:
    """A few steps at a small learning rate, without dropout: the same weights up to rounding."""
    common = [*ON_GPU, "head.dropout=0.0", "train.steps=3", "optimizer.lr=1e-4", "train.precision=fp32"]
    weights = []
    for device in ("cuda", "cpu"):
        outcome = run.start(load([*common, f"runtime.device={device}"]))
        weights.append(torch.load(outcome.folder / "checkpoints" / "step_00000003.pt", weights_only=True)["model"])
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-2, atol=1e-3, msg=name)


def test_a_resumed_run_on_the_gpu_is_exact(outputs: Path) -> None:
    whole = run.start(load(ON_GPU))
    final = whole.folder / "checkpoints" / "step_00000012.pt"
    weights = torch.load(final, weights_only=True)["model"]
    (whole.folder / "result.json").unlink()
    final.unlink()
    run.start(load([f"resume={whole.folder}", "runtime.num_workers=1"]))
    again = torch.load(final, weights_only=True)["model"]
    assert all(torch.equal(again[name], value) for name, value in weights.items())
