"""A loss or gradient that is NaN or infinite never reaches the weights, the batch statistics or the best score."""

import itertools
import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from conftest import TINY, load, run_folders
from danet.services import checkpoint
from danet.services.metrics_file import MetricsFile
from danet.services.nonfinite import NonFiniteError
from danet.training import loop, run, state
from danet.training.state import RunState

pytestmark = pytest.mark.usefixtures("without_pictures")

BAD_STEP = 7  # counted from 1; checkpoints are at 4, 8 and 12


class Poison(nn.Module):
    """The run's loss, corrupted in one step; keeps the weights before that step."""

    def __init__(self, criterion: Any, models: list[nn.Module], kind: str) -> None:
        super().__init__()
        self.criterion, self.weights, self.models, self.kind = criterion, criterion.weights, models, kind
        self.steps, self.before = 0, {}

    def forward(self, *arguments: Any, **options: Any) -> Any:
        self.steps += 1
        terms = self.criterion(*arguments, **options)
        if self.steps == BAD_STEP:
            self.before = {name: p.detach().clone() for name, p in self.models[0].named_parameters()}
            for module in self.models[0].modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.data[0] = math.nan  # as features that overflow leave it
            bad = terms["main"].total
            # The second is finite, and so is the loss, but its derivative is not.
            bad = bad * math.nan if self.kind == "loss" else bad + torch.sqrt(bad * 0)
            terms["main"] = terms["main"]._replace(total=bad)
        return terms


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Corrupt the loss or the gradient of step BAD_STEP; holds the models and the criterion."""
    seen: dict[str, Any] = {"models": [], "names": []}
    build_model, build_loss = state.build_model, state.build_loss

    def model(*arguments: Any, **options: Any) -> Any:
        seen["models"].append(build_model(*arguments, **options))
        return seen["models"][-1]

    def spoil(kind: str) -> dict[str, Any]:
        def criterion(*arguments: Any) -> Poison:
            seen["criterion"] = Poison(build_loss(*arguments), seen["models"], kind)
            return seen["criterion"]

        monkeypatch.setattr(state, "build_model", model)
        monkeypatch.setattr(state, "build_loss", criterion)
        return seen

    return spoil


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_stop_names_step_and_images_and_leaves_the_weights(outputs: Path, poisoned: Any, kind: str) -> None:
    seen = poisoned(kind)
    with pytest.raises(NonFiniteError) as raised:
        run.start(load(TINY))
    text = str(raised.value)
    assert f"step {BAD_STEP}:" in text
    assert text.count("scene_") == 4  # the batch
    after = dict(seen["models"][0].named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in seen["criterion"].before.items())

    (folder,) = run_folders(outputs)
    saved = checkpoint.load_newest(folder / "checkpoints")
    assert saved is not None
    assert saved["step"] == 4
    assert all(value.isfinite().all() for value in saved["model"].values())
    assert max(row["step"] for row in MetricsFile(folder / "metrics.jsonl").rows()) == 6
    assert not (folder / "result.json").exists()


def test_the_processes_of_a_failed_run_end_even_if_its_error_is_kept(outputs: Path, poisoned: Any) -> None:
    """As in a sweep, which keeps the error; the program used to wait for them forever."""
    poisoned("loss")
    with pytest.raises(NonFiniteError) as raised:
        run.start(load([*TINY, "runtime.num_workers=1", "train.eval_every=3"]))
    assert multiprocessing.active_children() == []
    assert raised.value.__traceback__ is not None


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_skip_continues_without_the_bad_batch(outputs: Path, poisoned: Any, kind: str) -> None:
    seen = poisoned(kind)
    after: list[dict[Any, torch.Tensor]] = []  # weights and the optimizer's tensors after every step

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        state = optimizer.state_dict()["state"].items()
        own = {(key, name): value.clone() for key, values in state for name, value in values.items()}
        after.append(own | {name: value.clone() for name, value in seen["models"][0].named_parameters()})

    hook = register_optimizer_step_post_hook(note)
    outcome = run.start(load([*TINY, "train.on_nonfinite=skip", "train.ema_decay=0.9"]))
    hook.remove()
    assert outcome.finished
    assert seen["criterion"].steps == len(after) == 12
    for step, (before, now) in enumerate(itertools.pairwise(after), start=2):
        unchanged = [name for name, value in before.items() if torch.equal(value, now[name])]
        if step == BAD_STEP:
            assert len(unchanged) == len(now)
        else:  # the key's bias shifts all energies of a softmax alike: its gradient is 0, or what rounding leaves
            assert not [name for name in unchanged if now[name].any()], step
    assert f"step {BAD_STEP}:" in (outcome.folder / "train.log").read_text()

    saved = checkpoint.load_newest(outcome.folder / "checkpoints")
    assert saved is not None
    assert saved["step"] == 12
    for part in ("model", "ema"):
        assert all(value.isfinite().all() for value in saved[part].values()), part
    # The row over steps 7 to 9, one of which is bad.
    (row,) = [r for r in MetricsFile(outcome.folder / "metrics.jsonl").rows() if r["step"] == 9]
    assert math.isfinite(row["train/loss"])


def test_a_skipped_step_counts_in_no_mean() -> None:
    state = RunState()
    for loss, counts in ((1.0, True), (math.nan, False), (3.0, True)):
        state.add({"train/loss": torch.tensor(loss)}, torch.tensor(counts))
    assert state.averages() == {"train/loss": 2.0}
    assert state.averages() == {}  # since the last call


def test_an_undefined_score_never_replaces_a_best_one() -> None:
    state = RunState()
    assert state.judge({"miou": math.nan, "step": 1})  # better than nothing: there must be a best.pt
    assert state.judge({"miou": 0.3, "step": 2})
    assert not state.judge({"miou": math.nan, "step": 3})
    assert not state.judge({"miou": 0.3, "step": 4})
    assert (state.best["step"], state.since_best) == (2, 2)
    assert state.judge({"miou": 0.31, "step": 5})
    assert state.since_best == 0


@pytest.mark.slow
def test_a_run_whose_last_score_is_undefined_keeps_its_best(outputs: Path, monkeypatch) -> None:
    evaluate, calls = loop.evaluate, []

    def without_labels_at_the_end(model: Any, share: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            kind = type(share.dataset)
            monkeypatch.setattr(kind, "__getitem__", ignored(kind.__getitem__))
        return evaluate(model, share, **options)

    def ignored(getitem: Any) -> Any:
        return lambda self, index: getitem(self, index)._replace(label=getitem(self, index).label * 0 + 255)

    monkeypatch.setattr(loop, "evaluate", without_labels_at_the_end)
    outcome = run.start(load(TINY))
    assert len(calls) == 2
    assert outcome.result["step"] == 6
    assert checkpoint.load(outcome.folder / "checkpoints" / "best.pt")["step"] == 6
