"""What the runs of a study must share: code, data, evaluation, and within a variant all settings."""

from collections.abc import Callable, Sequence

from danet.tools.report.collect import NO_VARIANT, plain, variant_config
from danet.tools.report.study import Run, Study


def differences_that_matter(study: Study) -> list[str]:
    """What the runs must share and do not, a line each.

    A setting of the evaluation may differ where the sweep declares it: it is then what the sweep is about.
    """
    declared = {o.lstrip("+~").partition("=")[0] for variant in study.variants for o in variant.overrides}
    keys = dict.fromkeys(key for run in study.runs for key in run.config if key.startswith("evaluate."))
    evaluation = [key for key in keys if key not in declared and not key.startswith(NO_VARIANT)]
    shared: dict[str, Callable[[Run], str]] = {
        "code version": lambda run: run.code,
        "data fingerprint": lambda run: run.data,
        "scored images": lambda run: f"{run.result.get('split')}, {run.result.get('num_images')} images",
        **{key: _setting(key) for key in evaluation},
    }
    lines = [_several(what, value, study.runs) for what, value in shared.items()]
    for variant in study.variants:
        runs = list(variant.runs.values())
        keys = dict.fromkeys(key for run in runs for key in variant_config(run) if key not in shared)
        lines += [_several(f"{key} within {variant.name}", _setting(key), runs) for key in keys]
    return [line for line in lines if line]


def _setting(key: str) -> Callable[[Run], str]:
    return lambda run: plain(run.config.get(key))


def _several(what: str, value: Callable[[Run], str], runs: Sequence[Run]) -> str:
    """Which runs have which value; nothing where they have one."""
    found: dict[str, list[str]] = {}
    for run in runs:
        found.setdefault(value(run), []).append(run.label)
    parts = []
    for text, labels in found.items():
        more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
        parts.append(f"{text} in {', '.join(labels[:3])}{more}")
    return f"{what}: {'; '.join(parts)}" if len(found) > 1 else ""
