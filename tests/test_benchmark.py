"""The benchmark: contests are fair, failures are named, and the report says truly what is reached.

No test here depends on how long anything takes: clocks are made up.
"""

import itertools
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

import mmseg_peer
from danet.config import REPOSITORY
from danet.heads.danet import ChannelAttention, DANetHead, PositionAttention
from danet.interfaces import Stage
from danet.services.figures import STYLE
from danet.tools.export.exported import FORMS
from danet_benchmark import (
    attention,
    deployed,
    figures,
    heads,
    machine,
    metrics,
    peers,
    report,
    suite,
    tables,
    timing,
    training,
)
from danet_benchmark.networks import Context, DANet, Work
from danet_benchmark.results import Results
from danet_benchmark.settings import HeadSettings, InferenceSettings
from danet_benchmark.targets import LARGEST_N, TARGETS, judge
from danet_benchmark.timing import Contestant, contest, time_ratio
from danet_benchmark.trainers import Parts

CPU = torch.device("cpu")
PAGE = f"benchmark_{machine.slug(CPU)}"
MACHINE = {
    **{"device": "cpu", "cpu": "a processor", "cores": 2, "threads": 2, "memory": 2**34, "gpu_memory": None},
    **{
        "platform": "Linux",
        "python": "3.11",
        "versions": {"torch": "2"},
        "matmul": {"float32": 1e11, "bfloat16": 2.5e11},
        "copy": 1e10,
    },
}


@pytest.mark.parametrize(
    ("model", "bf16", "slug"),
    [
        ("Intel(R) Xeon(R) Processor @ 2.50GHz", "0", "intel_xeon"),
        ("AMD EPYC", "1", "amd_epyc_bf16"),
        ("Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz", "0", "intel_core_i7_8700"),
    ],
)
def test_each_processor_has_its_own_report(model: str, bf16: str, slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANET_CPU_BF16", bf16)
    monkeypatch.setattr("danet.services.provenance.cpu_name", lambda: model)
    assert machine.slug(CPU) == slug


def test_the_machines_rate_is_that_of_the_faster_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of 64 rows take 2 * 64^3 operations; 3x3 kernels of 16 channels, 48 x 64 positions 27 times as many."""
    monkeypatch.setattr(machine, "_types", lambda _: {"float32": torch.float32, "bfloat16": torch.bfloat16})

    def seconds(builds: Mapping[str, Callable[[], Callable[[], torch.Tensor]]], _: torch.device) -> dict[str, float]:
        shapes = {name: build()().shape for name, build in builds.items()}
        assert shapes["matrices float32"] == (64, 64)
        assert shapes["convolution bfloat16"] == (1, 16, 48, 64)
        return dict(zip(builds, (0.1, 0.1, 2.0, 5.4), strict=True))

    monkeypatch.setattr(machine, "_seconds", seconds)
    assert machine.matmul_rates(CPU, 64) == {"float32": 27 * 2 * 64**3 / 2, "bfloat16": 2 * 64**3 / 0.1}


class Clock:
    """A clock that only work moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, *seconds: float, calls: list[str] | None = None, name: str = "") -> Callable[[], Any]:
        """A contestant's builder, whose runs take these seconds, the last again and again."""
        left = itertools.chain(seconds, itertools.repeat(seconds[-1]))

        def run() -> None:
            self.now += next(left)
            if calls is not None:
                calls.append(name)

        return lambda: run


# ---- contests -------------------------------------------------------------------------------------------------------


def test_contestants_take_turns_and_every_other_round_is_reversed() -> None:
    clock, calls = Clock(), []
    contestants = [Contestant(name, clock.takes(0.1, calls=calls, name=name)) for name in "abc"]
    contest(contestants, device=CPU, seconds=0, at_least=3, clock=clock)
    assert "".join(calls) == "abc" + "cba" + "abc" + "cba"  # the first runs warm up


def test_medians_and_spread_are_those_of_the_runs_after_the_first() -> None:
    clock = Clock()
    contestants = [Contestant("a", clock.takes(0.9, 0.3, 0.1, 0.2)), Contestant("b", clock.takes(0.5, 0.4, 0.4, 0.7))]
    a, b = contest(contestants, device=CPU, seconds=0, at_least=3, clock=clock)
    assert a.seconds == pytest.approx([0.3, 0.1, 0.2])
    assert (a.row()["median"], a.row()["low"], a.row()["high"]) == pytest.approx((0.2, 0.1, 0.3))
    assert b.median == pytest.approx(0.4)


def test_long_first_runs_count_for_all_or_for_none() -> None:
    clock = Clock()
    both_long = [Contestant("a", clock.takes(5.0, 3.0)), Contestant("b", clock.takes(2.0))]
    a, b = contest(both_long, device=CPU, seconds=0, at_least=2, clock=clock)
    assert a.seconds == pytest.approx([5, 3])
    assert b.seconds == pytest.approx([2, 2])
    one_short = [Contestant("a", clock.takes(5.0, 3.0)), Contestant("b", clock.takes(0.5))]
    a, b = contest(one_short, device=CPU, seconds=0, at_least=2, clock=clock)
    assert a.seconds == pytest.approx([3, 3])
    assert len(b.seconds) == 2


def test_rounds_go_on_while_the_next_one_fits_in_the_time() -> None:
    clock = Clock()
    [a] = contest([Contestant("a", clock.takes(0.25))], device=CPU, seconds=2.0, at_least=3, clock=clock)
    assert len(a.seconds) == 7  # and the first run, which does not count, is within the time
    [a] = contest([Contestant("a", clock.takes(0.25))], device=CPU, seconds=99, at_most=5, clock=clock)
    assert len(a.seconds) == 5
    [a] = contest([Contestant("a", clock.takes(0.25))], device=CPU, seconds=0, at_least=0, clock=clock)
    assert a.seconds == [0.25]


def test_a_contestant_can_be_content_with_fewer_runs() -> None:
    clock, calls = Clock(), []
    contestants = [Contestant("a", clock.takes(2.0, calls=calls, name="a"), at_most=1)]
    contestants += [Contestant(name, clock.takes(2.0, calls=calls, name=name)) for name in "bc"]
    a, b, c = contest(contestants, device=CPU, seconds=0, at_least=3, clock=clock)
    assert "".join(calls) == "abc" + "cb" + "bc"
    assert [len(timing.seconds) for timing in (a, b, c)] == [1, 3, 3]


def test_ratios_are_taken_round_by_round() -> None:
    """What slows a round slows both."""
    ours = {"median": 2.0, "seconds": [1.0, 2.0, 3.0]}
    theirs = {"median": 4.0, "seconds": [2.0, 4.0, 6.0, 100.0]}
    assert time_ratio(theirs, ours) == 2.0
    assert time_ratio({"median": 9.0, "seconds": [3.0, 4.0, 9.0]}, {"median": 4.0, "seconds": [1.0, 4.0, 4.5]}) == 2.0
    assert time_ratio({"median": 9.0, "seconds": []}, ours) == 4.5  # estimated
    assert time_ratio({"median": None, "seconds": []}, ours) is None


def test_who_fails_is_named_with_the_error_and_the_others_go_on() -> None:
    clock = Clock()

    def cannot_build() -> Any:
        raise ImportError("no such library\nmore lines")

    def breaks() -> Any:
        runs = iter([None, None])
        return lambda: next(runs)  # StopIteration at the third run

    contestants = [
        Contestant("absent", cannot_build),
        Contestant("good", clock.takes(0.1)),
        Contestant("broken", breaks, note="a note"),
    ]
    absent, good, broken = contest(contestants, device=CPU, seconds=0, at_least=3, clock=clock)
    assert absent.error == "ImportError: no such library"
    assert absent.median is None
    assert good.error is None
    assert len(good.seconds) == 3
    assert (broken.error or "").startswith("StopIteration")
    assert len(broken.seconds) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from Linux's /proc")
def test_memory_is_each_contestants_own() -> None:
    mebibytes = {"large": 96, "small": 24, "large again": 96}

    def fill(count: int) -> Any:
        def run() -> None:
            # Pages of its own: the allocator may have free ones left from other tests.
            np.frombuffer(mmap.mmap(-1, count * 2**20), np.uint8).fill(1)

        return lambda: run

    contestants = [Contestant(name, fill(count)) for name, count in mebibytes.items()]
    for found in contest(contestants, device=CPU, seconds=0, at_least=1):
        assert found.memory is not None
        assert mebibytes[found.name] <= found.memory / 2**20 + 1 < mebibytes[found.name] + 16


# ---- parts of a step ------------------------------------------------------------------------------------------------


def test_a_steps_time_goes_to_the_part_that_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, forward: float, backward: float) -> torch.Tensor:
            ctx.backward_takes = backward
            clock.now += forward
            return x * 2

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
            clock.now += ctx.backward_takes
            return gradient * 2, None, None

    class Part(nn.Module):
        def __init__(self, forward: float, backward: float) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.takes = (forward, backward)

        def forward(self, x: Any) -> Any:
            x = sum(x) if isinstance(x, tuple) else x
            y = Slow.apply(x * self.scale, *self.takes)
            return y, y + 1

    backbone, head, other_head = Part(1, 2), Part(4, 8), Part(16, 32)
    parts = Parts(CPU)
    for module, name in ((backbone, "backbone"), (head, "head"), (other_head, "head")):
        parts.watch(module, name)
    parts.begin()
    clock.now += 64
    features = backbone(torch.ones(2))
    losses = [Slow.apply(each.forward(features)[0].sum(), 128, 256) for each in (head, other_head)]
    torch.stack(losses).sum().backward()
    parts.enter("optimizer")
    clock.now += 512
    parts.end()
    expected = {"input": 64, "backbone": 3, "head": 4 + 8 + 16 + 32, "losses": 2 * (128 + 256), "optimizer": 512}
    assert parts.medians() == expected
    assert backbone.scale.grad == 2 * 2 * 2**4  # two elements, two heads, doubled four times: marks change nothing


# ---- peers ----------------------------------------------------------------------------------------------------------


def test_the_official_formulas_equal_our_modules() -> None:
    x = torch.randn(2, 32, 5, 7, dtype=torch.float64, requires_grad=True)
    ours, official = PositionAttention(32).double(), peers.OfficialPositionAttention(32).double()
    official.load_state_dict(ours.state_dict())
    for own, theirs in ((ours, official), (ChannelAttention().double(), peers.OfficialChannelAttention().double())):
        results = []
        for module in (own, theirs):
            nn.init.constant_(module.gamma, 0.7)
            out = module(x)
            names = [name for name, _ in module.named_parameters()]
            gradients = torch.autograd.grad(
                (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), [x, *module.parameters()]
            )
            results.append((out, dict(zip(["x", *names], gradients, strict=True))))
        torch.testing.assert_close(results[0][0], results[1][0])
        torch.testing.assert_close(results[0][1], results[1][1])


def test_the_official_head_equals_ours() -> None:
    ours, official = DANetHead([Stage(2048, 8)], 5).double().eval(), peers.OfficialHead(5).double().eval()
    for own, theirs in (
        (ours.branches["pam"], official.pam),
        (ours.branches["cam"], official.cam),
        (ours.classifier, official.classifiers[0]),
    ):
        values = [value.fill_(0.5) if "gamma" in name else value for name, value in own.state_dict().items()]
        theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))  # layer by layer
    x = torch.randn(1, 2048, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(official(x)[0], ours([x])["main"])


@pytest.mark.parametrize("num_classes", [3, 150])
def test_all_metrics_count_the_same(num_classes: int) -> None:
    mmseg_peer.mmseg_models()
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randint(0, num_classes, (40, 50), generator=generator)
    label = torch.randint(0, num_classes, (40, 50), generator=generator, dtype=torch.uint8)
    label[:3] = 255
    intersect, _, predicted, true = metrics.mmseg(num_classes, CPU)(prediction, label)
    ours = metrics.ConfusionMatrix(num_classes)
    ours.update(prediction, label)
    torch.testing.assert_close(ours.matrix().diagonal().float(), intersect)
    torch.testing.assert_close(ours.matrix().sum(0).float(), predicted)
    torch.testing.assert_close(ours.matrix().sum(1).float(), true)


def test_a_steps_operations_are_three_times_those_of_the_convolutions_and_products() -> None:
    danet = DANet(
        backbone={"name": "resnet_tiny", "widths": [8, 8, 16, 32]},
        head={"name": "danet", "pam": True, "cam": True, "reduction": 8},
        loss={"name": "cross_entropy"},
        optimizer={"name": "sgd", "lr": 0.1},
        auxiliary_head=False,
    )
    work = Work(device=CPU, dtype=torch.float32, size=(64, 64), batch_size=2, num_classes=3)
    model = danet.build(3).train()
    counted = 0

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal counted
        assert isinstance(module, nn.Conv2d)
        counted += 2 * output.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    features = model.backbone(torch.zeros(2, 3, 64, 64))
    model.head(features)
    positions, channels = features[-1].shape[2] * features[-1].shape[3], 8  # of the attentions: C = 32 / 4, D = 1
    counted += 2 * 2 * positions**2 * (1 + channels)
    counted += 2 * 2 * (1 + 0.75) * channels**2 * positions  # a quarter of the channels' products is known by symmetry
    assert training.step_operations(danet, work) == 3 * counted


# ---- estimates ------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_in_memory_is_estimated_from_fewer_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 3 * 4 * 40**2 / 0.8  # two copies of 40 x 40 weights fit, not four
    monkeypatch.setattr("danet_benchmark.machine.available_memory", lambda device: limit)

    def memory(positions: int) -> int:
        return 16 * positions**2 + 100 * positions

    def fake(contestants: Any, **options: Any) -> list[timing.Timing]:
        positions = next(numbers)
        return [timing.Timing(each.name, [positions**2 / 400], memory=memory(positions)) for each in contestants]

    numbers = iter([10, 10, 20, 20, 40, 40, 10, 20, 40])
    monkeypatch.setattr(attention, "contest", fake)
    settings = SimpleNamespace(positions=(10, 20, 40), channels=8, seconds=0, longest=1000)
    context: Any = SimpleNamespace(config=SimpleNamespace(attention=settings), device=CPU, dtype=torch.float32)
    context.work = lambda size: Work(device=CPU, dtype=torch.float32, size=size, batch_size=1, num_classes=2)
    rows = {
        (row["what"], row["name"], row["positions"]): row
        for row in attention.rows(context)
        if row["module"] == "position"
    }
    estimated = rows["forward + backward", "official formulas", 40]
    assert estimated["note"] == "estimated from N = 20"
    assert (estimated["median"], estimated["memory"]) == (40**2 / 400, memory(40))
    names = [key for key, row in rows.items() if row["estimated"]]
    dense = ("ours", "official formulas", "mmsegmentation")  # so few positions are best computed densely by ours, too
    assert names == [("forward + backward", name, 40) for name in dense]


# ---- results and report ---------------------------------------------------------------------------------------------


def made_up(good: bool, matmul: Mapping[str, float] = MACHINE["matmul"]) -> dict[str, Any]:
    """Sections in which every target of a CPU is reached, by a little, or missed by a little."""
    better, worse = (0.98, 1.02) if good else (1.02, 0.98)

    def row(case: str, name: str, median: float, memory: float, **more: Any) -> dict[str, Any]:
        figures = {"seconds": [median], "median": median, "low": median, "high": median, "memory": round(memory)}
        return {"case": case, "name": name, **figures, "error": None, "note": "", **more}

    both = {"module": "position", "what": "forward + backward", "estimated": False}
    sections = {
        "attention": [
            row("a", "ours", 0.1, 2**20, **both, positions=1024),
            row("a", "ours, dense", 0.01, 2**20, **both, positions=1024),  # below 2048 nothing is aimed at
            row("b", "ours", 1.0 * better, 2**20, **both, positions=2048),
            row("b", "ours, dense", 1.0, 2**20, **both, positions=2048),
            row("b", "mmsegmentation", 1.01, 2**20, **both, positions=2048),
            row("c", "mmsegmentation", 0.1, 2**20, **both, positions=LARGEST_N),  # beyond what is compared
            row("d", "ours", 1.0 * better, 2**20, **{**both, "module": "channel"}, positions=2048),
            row("d", "mmsegmentation", 1.0, 2**20, **{**both, "module": "channel"}, positions=2048),
            row("c", "ours", 1.0, 2**30 / 8 * better, **both, positions=LARGEST_N),
            row("c", "ours, dense", 9.0, 2**30, **{**both, "estimated": True}, positions=LARGEST_N),
        ],
        "training": [
            row("2 x 3", "ours", 1.0, 2**30, num_classes=19, operations=10**9),
            row("2 x 3", "ours, recompute", 3.0, 0.7 * 2**30 * better, num_classes=19, operations=10**9),
            row("2 x 3", "ours, float32", 2.0 * better, 2**30, num_classes=19, operations=10**9),
            row("2 x 3", "mmsegmentation", 3.1 if good else 1.99, 2**30, num_classes=19, operations=10**9),
        ],
        "inference": [
            row("1024 x 2048", "ours", 1.0, 6 * 2**30 * better, size=[1024, 2048]),
            row("1024 x 2048", "mmsegmentation", 0.1, 2**30, size=[1024, 2048]),  # run once: nothing is aimed at
            row("4 x 5", "ours", 1.0, 2**30, size=[4, 5]),
            row("4 x 5", "mmsegmentation", 0.86 * 2.5 * worse, 2**30, size=[4, 5]),
        ],
        "loader": [
            {
                **{"what": "all", "size": "9x9", "format": "png", "pipeline": name, "error": None},
                **{"images_per_second": speed, "median": 1 / speed, "seconds": []},
            }
            for name, speed in (("ours", 150 * worse), ("mmsegmentation", 90), ("torchvision", 100))
        ],
    }
    found = {
        name: {
            "state": "done",
            "error": None,
            "commit": "abc",
            "command": ["python", "x"],
            "seconds": 0.0,
            "rates": {"matmul": matmul, "copy": 1e10},
            "rows": rows,
        }
        for name, rows in sections.items()
    }
    for name in ("metrics", "startup", "growth", "profile"):
        found[name] = {**found["loader"], "rows": []}
    found["loader"]["seconds"] = 600 * better
    return found


@pytest.mark.parametrize("good", [True, False])
def test_the_report_says_of_every_target_truly_whether_it_holds(good: bool, tmp_path: Path) -> None:
    results = Results(tmp_path / f"{PAGE}.json", MACHINE)
    results.sections = made_up(good)
    report.write(results, tmp_path / "page.md")
    lines = (tmp_path / "page.md").read_text().splitlines()
    aims = [target for target in TARGETS if target.device != "cuda"]
    assert len(aims) == 12
    for target in aims:
        [line] = [line for line in lines if line.startswith(f"| {target.what} |")]
        assert line.endswith("| yes |" if good else "| **no** |"), line
        assert "not measured" not in line


def test_what_was_not_measured_neither_holds_nor_fails() -> None:
    verdicts = judge({}, MACHINE)
    assert len(verdicts) == 12
    assert all(verdict.holds is None and verdict.reached is None for verdict in verdicts)


def test_a_processor_without_bfloat16_is_to_be_as_fast_as_the_peer() -> None:
    what = "training step: times as fast as mmsegmentation as it ships, by what bfloat16 is faster"
    reached = {}
    for name, rates in (("with", MACHINE["matmul"]), ("without", {"float32": 1e11})):
        (reached[name],) = (v.reached for v in judge(made_up(True, rates), MACHINE) if v.target.what == what)
    assert reached["without"] == pytest.approx(3.1)
    assert reached["with"] == pytest.approx(3.1 / 2.5)


def test_a_gpus_utilisation_is_of_its_own_measured_rate() -> None:
    sections = made_up(True, {"bfloat16": 2e9, "float32": 1e9})
    verdicts = {verdict.target.what: verdict for verdict in judge(sections, MACHINE | {"device": "A GPU"})}
    found = verdicts["training step: model FLOPs over the measured bf16 matmul rate"]
    assert found.reached == pytest.approx(50)  # 1e9 operations in a second
    assert found.holds


def test_an_interrupted_benchmark_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(name: str, context: Any) -> Iterator[dict[str, Any]]:
        row = {"case": f"the case of {name}", "name": "ours", "seconds": [1.0], "median": 1.0, "memory": 2**20}
        yield row | {"error": None, "note": "", "low": 1.0, "high": 1.0}
        if name == "startup":
            raise RuntimeError("this section broke")
        if name == "inference":
            raise KeyboardInterrupt

    monkeypatch.setattr(suite, "ROWS", {name: partial(rows, name) for name in suite.ROWS})
    monkeypatch.setattr("danet_benchmark.machine.describe", lambda *_: MACHINE)
    monkeypatch.setattr(peers, "preload", lambda: None)
    monkeypatch.setattr("danet.services.hardware.set_determinism", lambda wanted: None)
    parts: dict[str, Any] = {"backbone": {}, "head": {}, "loss": {}, "optimizer": {}}
    config = suite.BenchmarkConfig(
        **parts, sections=("metrics", "startup", "inference", "growth"), output=str(tmp_path)
    )
    with pytest.raises(KeyboardInterrupt):
        suite.run(config)
    sections = json.loads((tmp_path / f"{PAGE}.json").read_text())["sections"]
    states = {name: section["state"] for name, section in sections.items()}
    assert states == {"metrics": "done", "startup": "failed", "inference": "interrupted"}
    page = (tmp_path / f"{PAGE}.md").read_text()
    for text in ("the case of metrics", "the case of startup", "RuntimeError: this section broke", "Interrupted"):
        assert text in page
    assert "the case of inference" in page

    # Later the rest: what was measured stays.
    suite.run(suite.BenchmarkConfig(**parts, sections=("startup",), output=str(tmp_path)))
    again = json.loads((tmp_path / f"{PAGE}.json").read_text())["sections"]
    assert again["metrics"] == sections["metrics"]


def test_each_section_keeps_the_rates_that_were_measured_with_it(tmp_path: Path) -> None:
    """They differ from hour to hour: the limit that a figure is held against is that of its own hour."""
    path = tmp_path / "r.json"
    with Results(path, MACHINE).section("training", "abc"):
        pass
    with (results := Results(path, MACHINE | {"matmul": {"float32": 5e10}})).section("deployed", "def"):
        pass
    rates = {name: section["rates"]["matmul"] for name, section in results.sections.items()}
    assert rates == {"training": MACHINE["matmul"], "deployed": {"float32": 5e10}}
    assert "matmul" not in json.loads(path.read_text())["machine"]


def test_an_older_file_has_the_rates_of_its_machine(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"machine": MACHINE, "sections": {"training": {"state": "done", "rows": []}}}))
    assert Results(path, None).sections["training"]["rates"]["matmul"] == MACHINE["matmul"]


def test_sections_of_another_machine_are_not_kept(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.json", MACHINE)
    with results.section("metrics", "abc"):
        results.add("metrics", [{"case": "x"}])
    assert "metrics" in Results(tmp_path / "r.json", MACHINE).sections
    assert not Results(tmp_path / "r.json", MACHINE | {"versions": {"torch": "3"}}).sections


@pytest.mark.slow
def test_deployed_forms_are_measured_and_one_that_cannot_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    settings = suite.BenchmarkConfig(
        backbone={"name": "resnet_tiny", "widths": [8, 8, 16, 32]},
        head={"name": "danet", "reduction": 2},
        loss={},
        optimizer={},
        auxiliary_head=False,
        inference=InferenceSettings(sizes=[(32, 48)], seconds=0, at_least=1),
    )
    context = Context(config=settings, device=torch.device("cpu"), dtype=torch.float32, machine={})

    def no_runtime(path: Path) -> Any:
        raise RuntimeError("no runtime here")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setitem(FORMS, "onnx", replace(FORMS["onnx"], run=no_runtime))
    rows = {row["name"]: row for row in deployed.rows(context)}
    assert list(rows)[0] == "PyTorch, float32"
    assert "no runtime here" in rows.pop("ONNX Runtime, float32")["error"]
    assert rows.keys() == {"PyTorch, float32", "OpenVINO, float32", "torch.compile, float32"}
    assert all(row["median"] > 0 and row["note"].startswith("ready after") for row in rows.values())


@pytest.mark.slow
def test_the_script_measures_reports_and_names_peers_that_cannot_run(tmp_path: Path) -> None:
    arguments = [
        *("sections=[attention,training,metrics,profile]", f"output={tmp_path}", "matmul_size=64"),
        *("attention.positions=[16,64]", "attention.channels=64", "attention.seconds=0"),
        *("backbone=resnet_tiny", "~backbone.stem", "training.size=[32,32]", "training.seconds=0"),
        *("metrics.size=[16,16]", "metrics.num_classes=[19]", "metrics.seconds=0"),
    ]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "src" / "benchmark.py"), *arguments],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / f"{PAGE}.json").read_text())
    assert {name: section["state"] for name, section in found["sections"].items()} == dict.fromkeys(
        ("attention", "training", "metrics", "profile"), "done"
    )
    trained = {row["name"]: row for row in found["sections"]["training"]["rows"]}
    assert trained["ours"]["median"] > 0
    assert trained["ours"]["parts"].keys() == {"input", "backbone", "head", "losses", "optimizer"}
    assert trained["mmsegmentation"]["error"]  # it has no such backbone
    page = (tmp_path / f"{PAGE}.md").read_text()
    assert trained["mmsegmentation"]["error"] in page
    assert "## Could not run" in page
    assert (tmp_path / f"{PAGE}_attention.png").stat().st_size > 10_000


def test_heads_are_counted_and_a_head_that_cannot_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """FCN by hand: a 3x3 convolution from 2048 channels to 512 without bias, batch norm, a classifier with bias."""
    settings = HeadSettings(names=("fcn", "danet", "unknown"), sizes=((32, 64), (64, 64)), seconds=0)
    context = SimpleNamespace(config=SimpleNamespace(heads=settings), device=torch.device("cpu"))
    context.work = lambda size, batch_size, num_classes: Work(
        device=context.device, dtype=torch.float32, size=tuple(size), batch_size=1, num_classes=num_classes
    )
    monkeypatch.setattr(heads, "STAGES", (Stage(256, 4), Stage(2048, 8)))
    measured = list(heads.rows(cast(Any, context)))
    assert [(row["what"], row["size"]) for row in measured[::3]] == [
        ("forward", [32, 64]),
        ("forward + backward", [32, 64]),
        ("forward", [64, 64]),
    ]
    fcn = measured[0]
    assert fcn["parameters"] == 9 * 2048 * 512 + 2 * 512 + 512 * 19 + 19
    assert fcn["operations"] == 2 * 4 * 8 * (9 * 2048 * 512 + 512 * 19)
    assert measured[1]["median"] > 0
    assert "unknown" in measured[2]["error"]
    page = "\n".join(tables.TABLES["heads"](measured))
    assert "32 x 64, 2 images, forward + backward:" in page
    assert f"| fcn | {fcn['parameters'] / 1e6:.2f} M | 1 |" in page


@pytest.mark.parametrize(
    ("count", "text"), [(2**20, "1 MiB"), (999 * 2**20, "999 MiB"), (1010 * 2**20, "0.986 GiB"), (2**31, "2 GiB")]
)
def test_sizes_have_no_exponent(count: int, text: str) -> None:
    assert tables.size(count) == text


def test_logarithmic_axes_have_plain_numbers() -> None:
    """STYLE shows text as it is, formulas with their dollar signs included."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure()
        axis = figure.subplots()
        axis.plot([2048, 4096], [0.02, 300])
        figures._logarithmic(axis, [2048, 4096])
        figure.draw_without_rendering()
        labels = [label.get_text() for label in axis.get_yticklabels()]
    assert {"0.1", "1", "10", "100"} <= set(labels)
