"""What needs a CUDA device: `make test-gpu`. Everything else is tested on the CPU."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import TINY, load
from danet.interfaces import Stage
from danet.ops.position_attention import choose_form, position_attention
from danet.registry import HEADS
from danet.services import hardware
from danet.training import run

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


@pytest.mark.parametrize("name", [name for name in HEADS if name not in ("smp", "torchvision", "u2net", "dfanet")])
def test_a_head_has_a_deterministic_gradient(name: str) -> None:
    """PyTorch refuses some of a GPU's gradients otherwise, such as that of adaptive pooling."""
    hardware.set_determinism(True)
    try:
        head = HEADS[name]([Stage(8, 4), Stage(16, 8), Stage(32, 8), Stage(64, 8)], 5).cuda().train()
        features = [
            torch.randn(2, s, 104 // t, 136 // t, device="cuda") for s, t in ((8, 4), (16, 8), (32, 8), (64, 8))
        ]
        sum(logits.square().mean() for logits in head(features).values()).backward()
        assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)
    finally:
        hardware.set_determinism(False)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)])
@pytest.mark.parametrize("form", ["dense", "blocked", "sdpa", "auto"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_forms_of_position_attention_are_the_dense_one_in_float64(
    form: Any, dtype: torch.dtype, tolerance: float, deterministic: bool
) -> None:
    """Forward and backward at a feature map's real widths; what "auto" takes works with deterministic algorithms."""
    if deterministic and form != "auto":
        pytest.skip("a form that was asked for may have no deterministic kernel")
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, 3001, width, generator=generator) for width in (64, 64, 512, 512)]
    *rounded, gradient = ((0.3 if t.shape[2] == 64 else 1) * t.transpose(1, 2).cuda().to(dtype) for t in tensors)

    def results(inputs: list[torch.Tensor], form: Any) -> list[torch.Tensor]:
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        output = position_attention(*inputs, form=form)
        return [output.detach(), *torch.autograd.grad(output, inputs, gradient.to(output.dtype))]

    before = torch.are_deterministic_algorithms_enabled()
    hardware.set_determinism(deterministic)
    try:
        found = results(rounded, form)
    finally:
        hardware.set_determinism(before)
    for value, expected in zip(found, results([t.double() for t in rounded], "dense"), strict=True):
        assert value.dtype == dtype
        assert (value.double() - expected).norm() / expected.norm() < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chosen_form_needs_linear_memory(dtype: torch.dtype) -> None:
    """Forward and backward at N = 32768, where N x N weights take 2 or 4 GiB each."""
    count = 32768
    inputs = [torch.randn(1, width, count, device="cuda", dtype=dtype, requires_grad=True) for width in (64, 64, 512)]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    position_attention(*inputs).sum().backward()
    assert choose_form(torch.device("cuda"), dtype, count) != "dense"
    assert torch.cuda.max_memory_allocated() - before < 3 * 4 * count**2 / 8


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_steps_between_two_logs_do_not_wait_for_the_gpu(outputs: Path, policy: str) -> None:
    counts = []
    for steps in (4, 12):
        every = [f"train.{name}_every={steps}" for name in ("log", "eval", "save")]
        config = load([*ON_GPU, *every, f"train.steps={steps}", f"train.on_nonfinite={policy}", f"name=steps{steps}"])
        run.start(config)  # what waits at the first time only
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run.start(config)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchroniz" in str(warning.message) for warning in caught))
    assert counts[0] > 0
    assert counts[0] == counts[1]
