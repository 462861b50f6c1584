"""The attention modules alone: time and memory by number of positions, of each form.

What would need more memory than there is, or more time than it is worth, is estimated from fewer positions: its time
with the square of N; its memory as a N^2 + b N from two measurements where N x N weights are kept, else in proportion.

Feature maps are of autocast's type, random and rectified, as behind batch normalization and ReLU. That matters on
processors: differences of the channel energies are so large that weights become subnormal numbers, with which many
processors compute slowly.

Shapes: C channels, N positions.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from danet.heads.danet import ChannelAttention, PositionAttention
from danet.ops.position_attention import FORMS, choose_form
from danet_benchmark import machine, networks, peers
from danet_benchmark.networks import Context
from danet_benchmark.timing import Contestant, contest

COPIES = {"forward": 2, "forward + backward": 4}  # of the N x N weights that exist at a time, written plainly
REPEATED = 5.0  # seconds; what takes ours longer is run once, what takes it a quarter of that twice
Row = dict[str, Any]
Known = dict[tuple[str, str], list[Row]]  # what was measured by direction and name, N rising


def rows(context: Context) -> Iterator[Row]:
    """A row for each module, N and direction; the first of a case is ours as configured."""
    settings = context.config.attention
    known: Known = {}
    for positions in settings.positions:
        for what in COPIES:
            yield from _position_rows(context, positions, what, known)
    for positions in settings.positions:
        yield from _channel_rows(context, positions, "forward + backward")


def _position_rows(context: Context, positions: int, what: str, known: Known) -> Iterator[Row]:
    settings, square = context.config.attention, positions**2
    channels = settings.channels
    chosen = choose_form(context.device, context.dtype, positions)

    def ours(form: Any) -> Callable[[], nn.Module]:
        return lambda: PositionAttention(channels, 8, form).to(memory_format=torch.channels_last)

    modules: dict[str, Callable[[], nn.Module]] = {"ours": ours("auto")}
    modules |= {f"ours, {form}": ours(form) for form in FORMS if form not in ("auto", chosen)}
    modules |= {
        "official formulas": lambda: peers.OfficialPositionAttention(channels),
        "mmsegmentation": lambda: peers.mmseg_module().decode_heads.da_head.PAM(channels, channels // 8),
    }
    keeps_weights = {"official formulas", "mmsegmentation", "ours, dense"} | ({"ours"} if chosen == "dense" else set())
    free = machine.available_memory(context.device)
    too_large = free is not None and COPIES[what] * 4 * square > 0.8 * free

    def predicted(name: str) -> float:
        before = known.get((what, name), [])
        return before[-1]["median"] * square / before[-1]["positions"] ** 2 if before else 0.0

    left_out = {name for name in modules if name != "ours" and predicted(name) > settings.longest}
    left_out |= keeps_weights if too_large else set()
    contestants = [
        Contestant(
            name,
            _build(context, positions, what, build, ours=name.startswith("ours")),
            f"form: {chosen}" if name == "ours" else "",
        )
        for name, build in modules.items()
        if name not in left_out
    ]
    at_least = 0 if predicted("ours") > REPEATED else 2 if predicted("ours") > REPEATED / 4 else 3
    case: Row = {"case": f"position attention, N = {positions}, {what}", "positions": positions, "what": what}
    case |= {"module": "position", "estimated": False}
    for timing in contest(contestants, device=context.device, seconds=settings.seconds, at_least=at_least):
        row = timing.row(**case, keeps_weights=timing.name in keeps_weights)
        if row["median"] and not row["error"]:
            known.setdefault((what, timing.name), []).append(row)
        yield row
    for name in modules:
        if name in left_out and (before := known.get((what, name))):
            yield {**case, **_estimate(before, positions), "keeps_weights": name in keeps_weights}


def _estimate(before: list[Row], positions: int) -> Row:
    """What more positions would take, from what fewer took."""
    last = before[-1]
    return {
        "name": last["name"],
        "seconds": [],
        "median": last["median"] * (positions / last["positions"]) ** 2,
        "memory": _estimated_memory(before[-2:], positions),
        "error": None,
        "note": f"estimated from N = {last['positions']}",
        "estimated": True,
    }


def _estimated_memory(before: list[Row], positions: int) -> int | None:
    """Bytes; a N^2 + b N, with b = 0 where there is but one measurement."""
    if any(row["memory"] is None for row in before):
        return None
    *earlier, (n, memory) = [(row["positions"], row["memory"]) for row in before]
    if not before[-1]["keeps_weights"]:
        return round(memory * positions / n)
    linear = 0.0
    if earlier and earlier[0][0] != n:
        fewer, less = earlier[0]
        # memory / N is a straight line in N; neither part of it can be negative.
        linear = min(max(0.0, (less / fewer * n - memory / n * fewer) / (n - fewer)), memory / n)
    return round((memory - linear * n) * (positions / n) ** 2 + linear * positions)


def _channel_rows(context: Context, positions: int, what: str) -> Iterator[Row]:
    modules: dict[str, Callable[[], nn.Module]] = {
        "ours": lambda: ChannelAttention().to(memory_format=torch.channels_last),
        "official formulas": peers.OfficialChannelAttention,
        "mmsegmentation": lambda: peers.mmseg_module().decode_heads.da_head.CAM(),
    }
    contestants = [
        Contestant(name, _build(context, positions, what, build, ours=name == "ours"))
        for name, build in modules.items()
    ]
    case = {"case": f"channel attention, N = {positions}, {what}", "positions": positions, "what": what}
    seconds = context.config.attention.seconds / 2
    for timing in contest(contestants, device=context.device, seconds=seconds, at_least=5):
        yield timing.row(**case, module="channel", estimated=False)


def _build(
    context: Context, positions: int, what: str, module: Callable[[], nn.Module], *, ours: bool
) -> Callable[[], Callable[[], Any]]:
    """A builder for a contest: the module on a random feature map of one image."""
    work, channels = context.work((1, 1)), context.config.attention.channels
    height = next(h for h in range(math.isqrt(positions), 0, -1) if positions % h == 0)

    def build() -> Callable[[], Any]:
        built = networks.wake(module()).to(context.device)
        x = torch.randn(1, channels, height, positions // height, device=context.device).relu_().to(context.dtype)
        if ours:  # as the layers before it give it
            x = x.contiguous(memory_format=torch.channels_last)
        if what == "forward":

            def forward() -> None:
                with torch.inference_mode(), work.autocast():
                    built(x)

            return forward
        gradient = torch.randn_like(x)
        x.requires_grad_()

        def both() -> None:
            nonlocal gradient
            with work.autocast():
                out = built(x)
            gradient = gradient.to(out.dtype)  # at most once
            out.backward(gradient)
            x.grad = None
            built.zero_grad(set_to_none=True)

        return both

    return build
