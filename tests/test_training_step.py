"""The training step against one written plainly, and what it promises about memory and waiting."""

import copy
import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import TINY, load
from danet.backbones.tiny import TinyResNet
from danet.config import RunConfig
from danet.data.augment import Augmentation
from danet.data.loader import training_loader
from danet.data.sampler import StepSampler
from danet.losses.segmentation_loss import build_loss
from danet.model import build_model
from danet.registry import DATASETS
from danet.schema import ConfigError
from danet.services.metrics_file import MetricsFile
from danet.training import loop, run
from test_run import assert_scored

pytestmark = pytest.mark.usefixtures("without_pictures")

# Few steps, a small rate and no dropout: what remains of rounding stays small.
PLAIN = [
    *TINY,
    "~recipe",
    "name=plain",
    "head.dropout=0.0",
    "train.steps=8",
    "train.log_every=1",
    "train.eval_every=8",
    "optimizer.lr=0.002",
    "optimizer.weight_decay=1e-4",
]

Row = dict[str, float]
State = dict[str, torch.Tensor]


def batches(config: RunConfig) -> Any:
    """The run's batches, one for each part of a step."""
    options = {key: value for key, value in config.dataset.items() if key != "name"}
    dataset = DATASETS[config.dataset["name"]]("train", **options)
    sampler = StepSampler(
        len(dataset),
        batch_size=config.train.batch_size,
        parts=config.train.accumulate_steps,
        rank=0,
        world_size=1,
        seed=config.seed,
        first_step=0,
        total_steps=config.train.steps or 0,
    )
    device = torch.device("cpu")
    augment = Augmentation(config.augment)
    return training_loader(dataset, augment, sampler, seed=config.seed, num_workers=0, device=device)


def plain_loss(model: Any, batch: Any) -> torch.Tensor:
    """Cross entropy of all outputs, at full size."""
    total = torch.tensor(0.0)
    for values in model(batch.image).values():
        size = batch.label.shape[-2:]
        enlarged = F.interpolate(values, size, mode="bilinear", align_corners=model.align_corners)
        total = total + F.cross_entropy(enlarged, batch.label.long(), ignore_index=255)
    return total


def plain_run(config: RunConfig, factor: Callable[[int], float] = lambda step: 1.0) -> tuple[list[Row], State, State]:
    """The usual loop: dense attention, unfused SGD; gives what it logs, its weights and their running average.

    Args:
        config: of the run; what it says of optimizer and schedule is not read.
        factor: of the learning rates, by step.
    """
    options = config.train
    model = build_model(config.backbone, {**config.head, "attention": "dense"}, 9, seed=config.seed).train()
    ema = {name: value.clone() for name, value in model.state_dict().items()}
    backbone = set(model.backbone.parameters())
    rates = {"backbone": 0.002, "head": 0.02}
    parts = {"backbone": list(backbone), "head": [p for p in model.parameters() if p not in backbone]}
    groups = [{"params": parts[name], "lr": rate} for name, rate in rates.items()]
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=1e-4, foreach=False)
    stream, rows = iter(batches(config)), []
    for step in range(options.steps or 0):
        for group, rate in zip(optimizer.param_groups, rates.values(), strict=True):
            group["lr"] = rate * factor(step)
        losses = [plain_loss(model, next(stream)) for _ in range(options.accumulate_steps)]
        loss = torch.stack(losses).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        row = {f"train/lr/{group}": rate * factor(step) for group, rate in rates.items()}
        rows.append({**row, "train/loss": loss.item(), "train/grad_norm": norm.item()})
        decay = min(options.ema_decay or 0.0, (step + 1) / (step + 10))  # after n steps n / (n + 9) at most
        for name, value in model.state_dict().items():
            ema[name] = decay * ema[name] + (1 - decay) * value if value.is_floating_point() else value.clone()
    return rows, model.state_dict(), ema


def assert_same_weights(found: State, expected: State) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name].contiguous(), value, rtol=1e-3, atol=1e-4, msg=name)


def assert_plain(folder: Path, rows: list[Row], weights: State) -> None:
    """Losses, gradient norms and rates of every step, then weights and batch statistics, are the plain loop's."""
    logged = [row for row in MetricsFile(folder / "metrics.jsonl").rows() if "train/loss" in row]
    for key in rows[0]:
        assert [row[key] for row in logged] == pytest.approx([row[key] for row in rows], rel=1e-4), key
    assert_same_weights(saved_at_the_end(folder)["model"], weights)


def saved_at_the_end(folder: Path) -> Any:
    return torch.load(folder / "checkpoints" / "step_00000008.pt", weights_only=True)


@pytest.mark.parametrize("attention", ["auto", "blocked", pytest.param("sdpa", marks=pytest.mark.slow)])
def test_a_run_is_the_plain_loop(outputs: Path, attention: str) -> None:
    config = load([*PLAIN, f"head.attention={attention}", "schedule=constant"])
    rows, weights, _ = plain_run(config)
    assert_plain(run.start(config).folder, rows, weights)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


def test_parts_of_a_batch_and_a_schedule_are_the_plain_loops(outputs: Path) -> None:
    config = load([*PLAIN, "train.accumulate_steps=2", "schedule=poly", "schedule.warmup=3"])
    warmup = [0.1, 0.4, 0.7, *5 * [1.0]]
    rows, weights, _ = plain_run(config, lambda step: warmup[step] * (1 - step / 8) ** 0.9)
    assert_plain(run.start(config).folder, rows, weights)


def test_clipped_gradients_and_averaged_weights_are_the_plain_loops(outputs: Path) -> None:
    """The averaged weights are those that are scored and kept."""
    config = load([*PLAIN, "train.max_grad_norm=1", "train.ema_decay=0.3", "schedule=constant"])
    rows, weights, ema = plain_run(config)
    outcome = run.start(config)
    assert min(row["train/grad_norm"] for row in rows) > 3
    assert_plain(outcome.folder, rows, weights)
    assert_same_weights(saved_at_the_end(outcome.folder)["ema"], ema)
    assert_same_weights(torch.load(outcome.folder / "checkpoints" / "best.pt", weights_only=True)["model"], ema)
    assert_scored(outcome.folder, torch.float32)


@pytest.mark.parametrize(
    "head",
    [
        {"name": "danet"},
        {"name": "danet_article", "shared_projection": False},
        {"name": "danet_article", "shared_projection": True},
    ],
    ids=str,
)
def test_averaged_weights_move_each_tensor_once(head: dict[str, Any]) -> None:
    """Parameters and batch statistics, shared ones too; counters are copied."""
    model = build_model({"name": "resnet_tiny"}, head, 5)
    ema = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.add_(torch.randint(1, 9, tensor.shape, generator=generator).to(tensor.dtype))
    before, now = ({name: value.clone() for name, value in m.state_dict().items()} for m in (ema, model))
    loop._average(ema, model, 0.9)
    for name, value in ema.state_dict().items():
        hand = 0.9 * before[name] + 0.1 * now[name] if value.is_floating_point() else now[name]
        torch.testing.assert_close(value, hand, msg=name)
        assert not torch.equal(value, before[name]), name
    assert len(set(map(id, model.parameters()))) < len(model.state_dict())
    torch.testing.assert_close(model.state_dict(), now)


@pytest.mark.parametrize("weights", [9 * [0.01], 9 * [1e-4], [1e-3, *8 * [1e-5]]], ids=str)
def test_weighted_cross_entropy_over_processes_is_pytorchs(monkeypatch: pytest.MonkeyPatch, weights: Any) -> None:
    """The processes' shares add up to it, though the weights of all valid pixels sum to less than 1."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 9, 6, 6, generator=generator, requires_grad=True)
    label = torch.randint(0, 9, (2, 6, 6), generator=generator)
    label[0, :3] = 255
    criterion = build_loss({"name": "cross_entropy", "class_weights": weights}, 9, list)
    terms = [criterion({"main": logits[i : i + 1]}, label[i : i + 1], align_corners=False) for i in (0, 1)]
    count = torch.stack([term["main"].count for term in terms]).sum()
    assert count < 1
    monkeypatch.setattr(loop.distributed, "sum_over_processes", lambda counts: count.expand_as(counts))
    total = torch.stack([loop._means(term)["main"] for term in terms]).sum()
    expected = F.cross_entropy(logits, label, torch.tensor(weights), ignore_index=255)
    torch.testing.assert_close(total, expected)
    gradients = (torch.autograd.grad(value, logits)[0] for value in (total, expected))
    torch.testing.assert_close(*gradients)


class Waits(TorchDispatchMode):
    """Counts how often a tensor's value is asked for: on a GPU each waits for all work before it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("policy", [pytest.param("stop", marks=pytest.mark.slow), "skip"])
def test_steps_between_two_logs_do_not_wait_for_the_device(outputs: Path, policy: str) -> None:
    counts = []
    for steps in (4, 12):
        every = [f"train.{name}_every={steps}" for name in ("log", "eval", "save")]
        options = [
            f"train.on_nonfinite={policy}",
            "train.max_grad_norm=1",
            "train.ema_decay=0.9",
            "dataset.val_images=1",
        ]
        config = load([*TINY, *every, f"train.steps={steps}", *options, f"name=steps{steps}"])
        with Waits() as waits:
            run.start(config)
        counts.append(waits.count)
    assert counts[0] > 0  # the mode sees them: those of the log and of the evaluation
    assert counts[0] == counts[1]


class Alive(TorchDispatchMode):
    """Knows every tensor that was made, and how many bytes of them are still held, views of `weights` aside."""

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.weights = {weight.untyped_storage()._cdata for weight in weights}
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def bytes(self) -> int:
        return sum(
            size for place, (storage, size) in self.made.items() if place not in self.weights and not storage.expired()
        )


def loss_of(network: Any) -> torch.Tensor:
    """Of a forward pass on random images."""
    image = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return network(image)["main"].square().sum()


def after_two_steps(network: Any, backbone: torch.nn.Module) -> dict[str, Any]:
    """Gradients, weights and batch statistics."""
    for _ in range(2):
        loss_of(network).backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in backbone.named_parameters()}
    return {**backbone.state_dict(), **gradients}


@pytest.mark.parametrize(("backbone", "share"), [("resnet_tiny", 0.8), ("resnet18", 0.8), ("resnet50", 0.6)])
def test_recomputed_blocks_give_the_same_bits_with_less_memory(backbone: str, share: float) -> None:
    """Gradients and batch statistics; the batch enters the statistics once."""
    results, kept = [], []
    for recompute in (False, True):
        model = build_model({"name": backbone}, {"name": "fcn", "dropout": 0.0}, 5).train()
        if recompute:
            model.backbone.recompute = True
        with Alive(model.parameters()) as alive:
            loss = loss_of(model)
        kept.append(alive.bytes())
        del loss
        results.append(after_two_steps(model, model.backbone))
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name
    counts = [value for name, value in results[1].items() if name.endswith("num_batches_tracked")]
    assert counts
    assert all(count == 3 for count in counts)
    assert kept[1] < share * kept[0]


def test_recomputed_blocks_can_be_compiled() -> None:
    """Gradients and batch statistics are those of the model that is neither."""
    results = []
    for changed in (False, True):
        model = build_model({"name": "resnet_tiny"}, {"name": "fcn", "dropout": 0.0}, 5).train()
        network: Any = model
        if changed:
            model.backbone.recompute = True
            network = torch.compile(model, backend="aot_eager")
        results.append(after_two_steps(network, model.backbone))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_with_recomputed_blocks_has_the_bits_of_one_without(outputs: Path, precision: str) -> None:
    weights = []
    for value in ("false", "true"):
        options = [f"runtime.recompute={value}", f"train.precision={precision}", "train.ema_decay=0.9"]
        outcome = run.start(load([*TINY, *options, f"name=recompute_{value}"]))
        saved = torch.load(outcome.folder / "checkpoints" / "step_00000012.pt", weights_only=True)
        weights.append({**saved["model"], **{f"ema {name}": value for name, value in saved["ema"].items()}})
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_backbone_that_cannot_is_not_recomputed_silently(monkeypatch) -> None:
    @functools.wraps(init := TinyResNet.__init__)
    def without(self: Any, **options: Any) -> None:
        init(self, **options)
        del self.recompute
        self.forward = lambda image: [image.new_zeros(len(image), channels, 8, 8) for channels in self.out_channels]

    monkeypatch.setattr(TinyResNet, "__init__", without)
    with pytest.raises(ConfigError, match=r"runtime\.recompute = True: backbone resnet_tiny .*Set it to false"):
        load(["runtime.recompute=true"], probe=True)


def test_the_compiled_model_has_one_graph_for_images_of_all_sizes() -> None:
    """What an evaluation of a compiled model meets: one graph, whatever the sizes."""
    model = build_model({"name": "resnet_tiny"}, {"name": "danet"}, 5).eval()
    graphs = []

    def count(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=count)
    with torch.no_grad():
        for size in ((200, 240), (217, 250), (288, 320), (300, 340)):  # the last two in blocks
            image = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
            torch.testing.assert_close(compiled(image)["main"], model(image)["main"])
    assert len(graphs) <= 2  # below and from FEWEST_POSITIONS
