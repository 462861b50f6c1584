"""Provenance of a study's numbers: what was run, and what comparable runs must share."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from danet.tools.report.study import NOT_OF_VARIANT, Run, Study, plain, variant_config, without_places
from danet.tools.report.tables import MISSING


def differences_that_matter(study: Study) -> list[str]:
    """What the runs should share but do not, a line each: code, data, evaluation, and all settings within a variant.

    An evaluation setting may differ if the sweep declares it: it is what the sweep studies.
    """
    declared = {o.lstrip("+~").partition("=")[0] for variant in study.variants for o in variant.overrides}
    keys = dict.fromkeys(key for run in study.runs for key in run.config if key.startswith("evaluate."))
    kept = [] if "protocol" in declared else list(keys)  # a protocol sets them
    evaluation = [key for key in kept if key not in declared and not key.startswith(NOT_OF_VARIANT)]
    shared: dict[str, Callable[[Run], str]] = {
        "code version": partial(_code, key="shared_code"),
        "data fingerprint": _data,
        "scored images": _scored,
        **{key: partial(_setting, key) for key in evaluation},
    }
    lines = [_difference(what, value, study.runs) for what, value in shared.items()]
    for variant in study.variants:
        runs = list(variant.runs.values())
        keys = dict.fromkeys(key for run in runs for key in variant_config(run) if key not in shared)
        lines.append(_difference(f"code version within {variant.name}", _code, runs))
        lines += [_difference(f"{key} within {variant.name}", partial(_setting, key), runs) for key in keys]
    return [line for line in lines if line]


def _difference(what: str, value: Callable[[Run], str], runs: Sequence[Run]) -> str:
    """Which runs have which value; empty if all have the same."""
    labels_of: dict[str, list[str]] = {}
    for run in runs:
        labels_of.setdefault(value(run), []).append(run.label)
    parts = []
    for text, labels in labels_of.items():
        more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
        parts.append(f"{text} in {', '.join(labels[:3])}{more}")
    return f"{what}: {'; '.join(parts)}" if len(parts) > 1 else ""


def settings(study: Study, report_command: str) -> list[tuple[str, str]]:
    """What was run, as terms and texts. A text lists several values if runs differ."""

    def values(value: Callable[[Run], str]) -> str:
        return "; ".join(sorted({text for run in study.runs if (text := value(run))}))

    def of_environments(value: Callable[[Mapping[str, Any]], str]) -> str:
        return values(lambda run: "; ".join(sorted({text for e in run.environments if (text := value(e))})))

    steps = values(lambda run: str(run.last_step or "")) or MISSING
    lines = [
        ("Data", values(lambda run: run.result.get("dataset") or "")),
        ("Scored", values(_scored)),
        ("Data fingerprint", values(_data)),
        ("Evaluation", values(_evaluation)),
        ("Training", f"{steps} steps of {values(partial(_setting, 'train.batch_size'))} images"),
        ("Seeds", ", ".join(map(str, study.seeds))),
        ("Code", values(_code)),
        ("Commit", of_environments(lambda e: _commit(e) if e.get("code") else "")),
        ("Hardware", of_environments(_hardware)),
        ("Software", of_environments(_software)),
    ]
    lines += [(f"Variant {v.name}", " ".join(map(without_places, v.overrides))) for v in study.variants if v.overrides]
    commands = sorted({_command(run.environments[0]) for run in study.runs if run.environments})
    shown = commands if len(commands) <= 3 else [*commands[:3], f"and {len(commands) - 3} more"]
    lines = [(term, text) for term, text in lines if text]
    return [*lines, ("Command", "\n".join(shown) or MISSING), ("This report", report_command)]


# ---- of a run --------------------------------------------------------------------------------------------------------


def _setting(key: str, run: Run) -> str:
    return plain(run.config.get(key))


def _scored(run: Run) -> str:
    return f"{run.result.get('split')}, {run.result.get('num_images')} images"


def _code(run: Run, key: str = "code") -> str:
    """The code version: the recorded hash of the source, else the commit; several if it changed before a resume.

    Args:
        run: the run.
        key: "code" includes the components that the run uses, "shared_code" does not; older runs have the first alone.
    """
    hashes = [e.get(key) or e.get("code") for e in run.environments]
    versions = [
        f"source {source[:16]}" if source else _commit(e, "commit ")
        for source, e in zip(hashes, run.environments, strict=True)
    ]
    return " then ".join(dict.fromkeys(version or "unknown" for version in versions)) or "unknown"


def _data(run: Run) -> str:
    """The data's fingerprints; several if they changed before a resume."""
    versions = [
        ", ".join(f"{split} {facts.get('fingerprint')}" for split, facts in e["data"].items())
        for e in run.environments
        if e.get("data")
    ]
    return " then ".join(dict.fromkeys(versions)) or "unknown"


def _evaluation(run: Run) -> str:
    keys = ("mode", "crop_size", "stride", "scales", "flip", "long_side", "short_side", "combine")
    given = {key: run.config.get(f"evaluate.{key}") for key in keys}
    return ", ".join(f"{key} {plain(value)}" for key, value in given.items() if value is not None) or "whole images"


# ---- of an environment -----------------------------------------------------------------------------------------------


def _commit(environment: Mapping[str, Any], prefix: str = "") -> str:
    git = environment.get("git") or {}
    changes = ", with uncommitted changes" if git.get("dirty") else ""
    return f"{prefix}{git['commit'][:12]}{changes}" if git.get("commit") else ""


def _hardware(environment: Mapping[str, Any]) -> str:
    # "device" already names the GPU; the processor is listed after it.
    parts = [environment.get("device") or ", ".join(environment.get("gpus") or []), environment.get("cpu")]
    return ", ".join(part for part in parts if part)


def _software(environment: Mapping[str, Any]) -> str:
    packages = environment.get("packages") or {}
    versions = [f"{name} {packages[name]}" for name in ("torch", "torchvision", "numpy") if packages.get(name)]
    return ", ".join([f"Python {environment.get('python')}", *versions])


def _command(environment: Mapping[str, Any]) -> str:
    script, *arguments = environment.get("command") or [""]
    script = "/".join(script.replace("\\", "/").split("/")[-2:])
    return without_places(shlex.join(["python", script, *arguments]))
