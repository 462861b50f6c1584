"""The words of a report: what the runs show, what they cannot, what was run. Only what the run folders say."""

import math
import shlex
from collections.abc import Callable
from typing import Any

from danet.tools.report import intervals as statistics
from danet.tools.report.analysis import Analysis
from danet.tools.report.collect import plain
from danet.tools.report.formats import MISSING, limits, p_value, points, without_places
from danet.tools.report.study import NOT_GIVEN, Run, Study


def holes(study: Study) -> list[str]:
    """A line for each cell without a result."""
    return [
        f"{variant.name}, seed {cell.seed}: {cell.state}{f': {without_places(cell.error)}' if cell.error else ''}"
        for variant in study.variants
        for cell in variant.cells
        if not cell.run and cell.state != NOT_GIVEN
    ]


def findings(analysis: Analysis) -> list[str]:
    """A sentence for each comparison."""
    sentences = []
    for row in analysis.compared:
        assert row.comparison
        interval, count = row.comparison.over_seeds, len(row.comparison.seeds)
        start = f"{row.name} against {analysis.study.baseline}: {points(interval.mean)} points"
        if math.isnan(interval.low):
            sentences.append(f"{start} with one seed: no statement about other seeds.")
            continue
        side = "better" if interval.low > 0 else "worse" if interval.high < 0 else ""
        verdict = f"{side}; the interval excludes 0" if side else "not told apart; the interval includes 0"
        found = f"p {p_value(row.comparison.p)}"
        found += f", corrected {p_value(row.comparison.p_holm)}" if len(analysis.compared) > 1 else ""
        sentences.append(f"{start} {limits(interval)} over {count} seeds: {verdict} ({found}).")
    return sentences


def power_notes(analysis: Analysis) -> list[str]:
    """What so few or so many seeds can show."""
    tests = len(analysis.compared)
    counts = [len(row.comparison.seeds) for row in analysis.compared if row.comparison]
    bounds = statistics.holm([statistics.smallest_p(count) for count in counts])
    notes = []
    for count, corrected in sorted(set(zip(counts, bounds, strict=True))):
        smallest = statistics.smallest_p(count)
        holm = f", {p_value(corrected)} after Holm's correction over {tests} variants" if tests > 1 else ""
        least = f"2/2^{count} = {p_value(smallest)}"
        text = f"With {count} {_seeds(count)} the sign-flip test's p cannot be below {least}{holm}."
        if smallest > 0.05:
            text += " It cannot fall below 0.05 whatever the effect (that takes 6 seeds): a large p says nothing here."
        elif corrected > 0.05:
            text += " The corrected p cannot fall below 0.05 whatever the effect; that takes more seeds."
        if count == 1:
            text += " One seed gives no interval over seeds, either."
        elif count < 6:
            text += " The interval leans on the differences being about normal, which so few cannot show."
        notes.append(text)
    return notes


def _seeds(count: int) -> str:
    return "seed" if count == 1 else "seeds"


def how_to_read(analysis: Analysis) -> list[tuple[str, str]]:
    """Terms and what they mean."""
    split, baseline = analysis.study.runs[0].result.get("split"), analysis.study.baseline
    lines = [
        (
            "mIoU",
            f"of each run's best evaluation on {split}. The same images chose that evaluation, so it is a little too"
            " high, for every variant alike. SD is the standard deviation over the seeds.",
        )
    ]
    if not analysis.compared:
        return lines
    tests = len(analysis.compared)
    lines += [
        (
            "Δ over seeds",
            f"the mean difference to {baseline}, in percentage points. A variant and the baseline with the same seed"
            " are a pair; the interval is Student's t over these differences. It says what other seeds would give"
            " on the same data. Each interval stands for itself; only p is corrected for their number.",
        ),
        (
            "p",
            "exact two-sided sign-flip test of the paired differences: the share of all sign patterns with a mean"
            " at least as far from 0. In brackets: after Holm's correction for"
            f" {tests} comparison{'s' if tests > 1 else ''}.",
        ),
    ]
    if any(row.comparison and row.comparison.over_images for row in analysis.compared):
        lines.append(
            (
                "Δ over images",
                "another uncertainty, not to be added to the first. The images of the split are drawn anew with"
                f" replacement, {statistics.DRAWS:,} times, the same draw for both variants and all seeds; each draw's"
                " mIoU comes from its summed confusion matrices, and its differences are averaged over the seeds. The"
                " trained models stay as they are: it says what other images would give with these very models.",
            )
        )
    lines.append(("By class", "intervals are not corrected for the number of classes: a place to look, no proof."))
    if any(row.variant.published for row in analysis.rows):
        lines.append(
            ("Published", "values of others, on their data and with their training; beside ours for orientation.")
        )
    return lines


# ---- what was run -----


def settings(study: Study, report_command: str) -> list[tuple[str, str]]:
    """What the numbers rest on. Several values stand where runs differ."""
    runs = study.runs

    def all_values(value: Callable[[Run], str | None]) -> str:
        return "; ".join(sorted({text for run in runs if (text := value(run))})) or MISSING

    steps = all_values(lambda run: str(run.last_step) if run.last_step else None)
    lines = [
        ("Data", all_values(lambda run: run.result.get("dataset"))),
        ("Scored", all_values(lambda run: f"{run.result.get('split')}, {run.result.get('num_images')} images")),
        ("Data fingerprint", all_values(lambda run: run.data)),
        ("Evaluation", all_values(_evaluation)),
        ("Training", f"{steps} steps of {all_values(lambda run: plain(run.config.get('train.batch_size')))} images"),
        ("Seeds", ", ".join(map(str, study.seeds))),
        ("Code", all_values(lambda run: run.code)),
        ("Commit", all_values(lambda run: "; ".join(sorted({_commit(e) for e in run.environments if e.get("code")})))),
        ("Hardware", all_values(lambda run: "; ".join(sorted({_hardware(e) for e in run.environments})))),
        ("Software", all_values(lambda run: "; ".join(sorted({_software(e) for e in run.environments})))),
    ]
    lines += [(f"Variant {v.name}", " ".join(map(without_places, v.overrides))) for v in study.variants if v.overrides]
    commands = sorted({_command(run.environments[0]) for run in runs if run.environments})
    shown = commands if len(commands) <= 3 else [*commands[:3], f"and {len(commands) - 3} more"]
    lines = [(term, text) for term, text in lines if text != MISSING]
    return [*lines, ("Command", "\n".join(shown) or MISSING), ("This report", report_command)]


def _evaluation(run: Run) -> str:
    keys = ("mode", "crop_size", "stride", "scales", "flip", "long_side", "short_side", "combine")
    given = {key: run.config.get(f"evaluate.{key}") for key in keys}
    return ", ".join(f"{key} {plain(value)}" for key, value in given.items() if value is not None) or "whole images"


def _commit(environment: dict[str, Any]) -> str:
    git = environment.get("git") or {}
    return f"{str(git.get('commit'))[:12]}{', with uncommitted changes' if git.get('dirty') else ''}"


def _hardware(environment: dict[str, Any]) -> str:
    # The device's own line names the GPU; the processor stands beside it.
    parts = [environment.get("device") or ", ".join(environment.get("gpus") or []), environment.get("cpu")]
    return ", ".join(part for part in parts if part)


def _software(environment: dict[str, Any]) -> str:
    packages = environment.get("packages") or {}
    parts = [
        f"Python {environment.get('python')}",
        *(f"{n} {packages[n]}" for n in ("torch", "torchvision", "numpy") if packages.get(n)),
    ]
    return ", ".join(parts)


def _command(environment: dict[str, Any]) -> str:
    script, *arguments = environment.get("command") or [""]
    script = "/".join(script.replace("\\", "/").split("/")[-2:])
    return without_places(shlex.join(["python", script, *arguments]))
