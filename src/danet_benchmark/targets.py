"""What was aimed at, and whether it is reached."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from danet_benchmark.settings import SECTIONS
from danet_benchmark.timing import memory_ratio, time_ratio

Row = dict[str, Any]
Sections = Mapping[str, Mapping[str, Any]]
Find = Callable[[Sections, Mapping[str, Any]], tuple[float, str] | None]

LARGEST_COMPARED = 9216  # positions; of more, mmsegmentation's N x N weights take gigabytes
LARGEST_N = 32768  # positions of an image of 1024 x 2048 pixels at stride 8
WHOLE = [1024, 2048]
SECONDS = 600.0  # of the whole benchmark on a CPU


@dataclass(frozen=True)
class Target:
    """One aim.

    Attributes:
        what: is compared.
        limit: that is to be reached.
        at_least: whether the limit is the least (or the most) that holds.
        unit: behind the numbers.
        find: the figure that was reached, with a remark; None where it was not measured.
        device: "cpu" or "cuda" where the aim is for one alone.
    """

    what: str
    limit: float
    at_least: bool
    unit: str
    find: Find
    device: str | None = None


@dataclass(frozen=True)
class Verdict:
    """A target and what came of it; `reached` and `holds` are None where it was not measured."""

    target: Target
    reached: float | None
    holds: bool | None
    remark: str = ""


def judge(sections: Sections, machine: Mapping[str, Any]) -> list[Verdict]:
    """A verdict for every target of the machine's kind."""
    kind = "cpu" if machine["device"] == "cpu" else "cuda"
    verdicts = []
    for target in TARGETS:
        if target.device not in (None, kind):
            continue
        verdict = target.find(sections, machine)
        if verdict is None:
            verdicts.append(Verdict(target, None, None))
            continue
        reached, remark = verdict
        holds = reached >= target.limit if target.at_least else reached <= target.limit
        verdicts.append(Verdict(target, reached, holds, remark))
    return verdicts


def _rows(sections: Sections, section: str, **wanted: Any) -> list[Row]:
    """A section's rows with these values, those without a median left out."""
    rows: Sequence[Row] = sections.get(section, {}).get("rows", [])
    return [row for row in rows if row.get("median") and all(row.get(key) == value for key, value in wanted.items())]


def _attention_memory(sections: Sections, machine: Mapping[str, Any]) -> tuple[float, str] | None:
    rows = _rows(sections, "attention", module="position", positions=LARGEST_N, what="forward + backward")
    memory = {row["name"]: row for row in rows if row["memory"]}
    dense = memory.get("ours, dense") or memory.get("official formulas")
    if dense is None or "ours" not in memory or memory["ours"].get("estimated"):
        return None
    return memory["ours"]["memory"] / dense["memory"], f"dense {dense['note']}" if dense["estimated"] else ""


def _attention_time(sections: Sections, machine: Mapping[str, Any]) -> tuple[float, str] | None:
    """The worst case; what is estimated does not count."""
    ratios = []
    for dense in _rows(sections, "attention", module="position", name="ours, dense", estimated=False):
        case = {key: dense[key] for key in ("module", "positions", "what")}
        for ours in _rows(sections, "attention", name="ours", **case):
            if dense["positions"] >= 2048:
                ratios.append((time_ratio(ours, dense) or 0.0, f"worst: N = {dense['positions']}, {dense['what']}"))
    return max(ratios, default=None)


def _module_speed(module: str) -> Find:
    """How many times as fast a module's forward and backward pass are as mmsegmentation's, in the worst case."""

    def find(sections: Sections, machine: Mapping[str, Any]) -> tuple[float, str] | None:
        case = {"module": module, "what": "forward + backward", "estimated": False}
        ratios = []
        for theirs in _rows(sections, "attention", name="mmsegmentation", **case):
            count = theirs["positions"]
            for ours in _rows(sections, "attention", name="ours", positions=count, **case):
                if count <= LARGEST_COMPARED:
                    ratios.append((time_ratio(theirs, ours) or 0.0, f"worst: N = {count}"))
        return min(ratios, default=None)

    return find


def _inference_speed(sections: Sections, machine: Mapping[str, Any]) -> tuple[float, str] | None:
    """How many times as fast an image is as with mmsegmentation, as both ship; WHOLE is run once only."""
    own = {row["case"]: row for row in _rows(sections, "inference", name="ours") if row.get("size") != WHOLE}
    theirs = _rows(sections, "inference", name="mmsegmentation")
    ratios = [(time_ratio(row, own[row["case"]]) or 0.0, row["case"]) for row in theirs if row["case"] in own]
    return min(ratios, default=None)


def _by_bfloat16(section: str, find: Find) -> Find:
    """A section's speed-up, divided by how many times as fast the processor multiplies in bfloat16 (1: it cannot)."""

    def share(sections: Sections, machine: Mapping[str, Any]) -> tuple[float, str] | None:
        if (found := find(sections, machine)) is None:
            return None
        speed, remark = found
        rates = sections[section]["rates"]["matmul"]
        limit = max(1.0, rates.get("bfloat16", 0.0) / rates["float32"])
        return speed / limit, f"{speed:.3g}x; in bfloat16 products are {limit:.3g}x as fast; {remark}"

    return share


def _inference_memory(sections: Sections, machine: Mapping[str, Any]) -> tuple[float, str] | None:
    rows = _rows(sections, "inference", name="ours", size=WHOLE)
    return (rows[0]["memory"] / 2**30, "") if rows and rows[0]["memory"] else None


def _step(ours: Sequence[str], compare: Callable[[Row, Row], float | None], worst: Callable[..., Any]) -> Find:
    """Compares a training step of ours, the first that is there, with mmsegmentation's, for the worst K."""

    def find(sections: Sections, machine: Mapping[str, Any]) -> tuple[float, str] | None:
        ratios = []
        for theirs in _rows(sections, "training", name="mmsegmentation"):
            rows = {row["name"]: row for row in _rows(sections, "training", case=theirs["case"])}
            own = next((rows[name] for name in ours if name in rows), None)
            ratio = compare(own, theirs) if own else None
            if own and ratio:
                plain = compare(rows["ours"], theirs) if "recompute" in own["name"] and "ours" in rows else None
                remark = f"K = {theirs['num_classes']}" + (f"; without it {plain:.3g}" if plain else "")
                ratios.append((ratio, remark))
        return worst(ratios, default=None)

    return find


def _speed(own: Row, theirs: Row) -> float | None:
    return time_ratio(theirs, own)


def _utilisation(sections: Sections, machine: Mapping[str, Any]) -> tuple[float, str] | None:
    rows = [row for row in _rows(sections, "training", name="ours") if row.get("operations")]
    rate = sections["training"]["rates"]["matmul"].get("bfloat16") if rows else None
    if not rate:
        return None
    return 100 * rows[0]["operations"] / rows[0]["median"] / rate, f"of {rate / 1e12:.0f} TFLOP/s measured"


def _loader(sections: Sections, machine: Mapping[str, Any]) -> tuple[float, str] | None:
    """The worst case, against the better of the others."""
    rows = _rows(sections, "loader")
    cases: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        cases.setdefault((row["what"], str(row["size"]), row["format"]), []).append(row)
    ratios = []
    for case, several in cases.items():
        own = [row for row in several if is_ours(row["pipeline"])]
        times = [time_ratio(row, own[0]) for row in several if own and not is_ours(row["pipeline"])]
        if times:
            ratios.append((min(time or 0.0 for time in times), f"worst: {', '.join(map(str, case))}"))
    return min(ratios, default=None)


def is_ours(name: str) -> bool:
    """Whether a contestant is this project's."""
    return name.startswith("ours")


def _duration(sections: Sections, machine: Mapping[str, Any]) -> tuple[float, str] | None:
    if any(sections.get(name, {}).get("state") != "done" for name in SECTIONS):
        return None
    return sum(sections[name]["seconds"] for name in SECTIONS) / 60, "all sections"


TARGETS = (
    Target(
        f"position attention, forward + backward at N = {LARGEST_N}: memory over dense's",
        1 / 8,
        False,
        "",
        _attention_memory,
    ),
    Target("position attention for N >= 2048: time over dense's", 1.0, False, "", _attention_time),
    Target(
        f"position attention, forward + backward up to N = {LARGEST_COMPARED}: times as fast as mmsegmentation's",
        1.0,
        True,
        "x",
        _module_speed("position"),
        "cpu",
    ),
    Target(
        f"channel attention, forward + backward up to N = {LARGEST_COMPARED}: times as fast as mmsegmentation's",
        1.0,
        True,
        "x",
        _module_speed("channel"),
        "cpu",
    ),
    Target("inference at 1024 x 2048: peak memory", 6.0, False, " GiB", _inference_memory, "cpu"),
    Target(
        "inference: times as fast as mmsegmentation as it ships, by what bfloat16 is faster",
        0.86,
        True,
        "",
        _by_bfloat16("inference", _inference_speed),
        "cpu",
    ),
    Target(
        "training step: times as fast as mmsegmentation as it ships, by what bfloat16 is faster",
        0.83,
        True,
        "",
        _by_bfloat16("training", _step(("ours",), _speed, min)),
        "cpu",
    ),
    Target(
        "training step at equal float32: times as fast as mmsegmentation",
        1.0,
        True,
        "x",
        _step(("ours, float32", "ours"), _speed, min),
        "cpu",
    ),
    Target(
        "training step with runtime.recompute=true: times as fast as mmsegmentation as it ships",
        1.0,
        True,
        "x",
        _step(("ours, recompute",), _speed, min),
        "cpu",
    ),
    Target(
        "training step with runtime.recompute=true: peak memory over mmsegmentation's",
        0.7,
        False,
        "",
        _step(("ours, recompute",), memory_ratio, max),
        "cpu",
    ),
    Target(
        "training step: times as fast as mmsegmentation under the same autocast",
        1.5,
        True,
        "x",
        _step(("ours",), _speed, min),
        "cuda",
    ),
    Target(
        "the same with runtime.recompute=true",
        1.5,
        True,
        "x",
        _step(("ours, recompute",), _speed, min),
        "cuda",
    ),
    Target(
        "training step with runtime.recompute=true: peak memory over mmsegmentation's",
        0.6,
        False,
        "",
        _step(("ours, recompute",), memory_ratio, max),
        "cuda",
    ),
    Target("training step: model FLOPs over the measured bf16 matmul rate", 40.0, True, " %", _utilisation, "cuda"),
    Target("images decoded and augmented: times as many as the better peer", 1.5, True, "x", _loader),
    Target("the whole benchmark", SECONDS / 60, False, " min", _duration, "cpu"),
)
