"""The benchmark's page: targets first, then a table for each section, then what it was measured on."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danet.services import atomic_files
from danet_benchmark import figures, tables
from danet_benchmark.results import Results
from danet_benchmark.targets import judge

Row = dict[str, Any]
TITLES = {
    "attention": "Attention modules",
    "training": "Training step",
    "inference": "Inference, one image to labels",
    "loader": "Loader",
    "metrics": "Adding an image to the scores",
    "startup": "Start-up",
    "growth": "Cost as work grows",
    "profile": "Where a training step's time goes",
    "heads": "Heads alone",
    "deployed": "Deployed forms, one image to labels",
}
NOTES = {
    "attention": "One image; median (lowest–highest), times ours. *Ours* is the form that `auto` chooses; its dense "
    "form, the official formulas and mmsegmentation keep N x N weights. *est.*: from the next smaller N, time with N², "
    "memory with N² where N x N weights are kept, else with N.",
    "training": "Forward, losses, backward and optimizer, from uint8 images in main memory. Memory holds weights, "
    "gradients, momentum and activations. *Other networks* are what a user might take instead: they do less or "
    "other work.",
    "inference": "From uint8 in main memory to labels on the device.",
    "metrics": "",
    "startup": "A process each, from its start to its end.",
    "growth": "Small images, so that many sizes fit in the time.",
    "profile": "One step of ours under torch.profiler; the rate counts convolutions and matrix products, a "
    "multiply-add as two operations. They cannot be faster than the processor multiplies; the others read and write "
    "memory (`copy_`: mostly from one memory format to another).",
    "heads": "Feature maps of a ResNet-50 at stride 8 (256, 512, 1024 and 2048 channels), 19 classes; "
    "memory holds them, the weights and what is computed. GFLOPs are a forward pass's, a multiply-add as two.",
    "deployed": "The same network and image. Exported forms give logits of its size, too; PyTorch labels alone.",
}
PICTURES = {"attention": figures.plot_attention, "growth": figures.plot_growth}
SCRIPT = "benchmark.py"


def write(results: Results, page: Path) -> None:
    """Write the page and its pictures."""
    for name, plot in PICTURES.items():
        rows = results.sections.get(name, {}).get("rows", [])
        if any(row.get("median") for row in rows):
            plot(rows, _picture(page, name))
    write_page(results, page)


def _picture(page: Path, name: str) -> Path:
    return page.with_name(f"{page.stem}_{name}.png")


def write_page(results: Results, page: Path) -> None:
    """Write the page alone."""
    sections = {name: results.sections[name] for name in TITLES if name in results.sections}
    device = results.machine["device"] if results.machine["gpu_memory"] else results.machine["cpu"]
    parts = [f"# Benchmark: {device}", _targets(sections, results.machine)]
    for name, section in sections.items():
        parts += [f"## {TITLES[name]}", _state(section), NOTES.get(name, "")]
        parts += tables.TABLES.get(name, tables.cases)(section["rows"])
        if _picture(page, name).exists():
            parts.append(f"![{TITLES[name]}]({_picture(page, name).name})")
    parts += ["## What it was measured on", _machine(results.machine), _commands(sections)]
    parts += _failures(sections)
    atomic_files.write_text(page, "\n\n".join(part for part in parts if part) + "\n")


def _targets(sections: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    lines = []
    verdicts = judge(sections, machine)
    if all(verdict.reached is None for verdict in verdicts):  # of sections without targets
        return ""
    for verdict in verdicts:
        target = verdict.target
        sign = ">=" if target.at_least else "<="
        reached = "not measured" if verdict.reached is None else f"{verdict.reached:.3g}{target.unit}"
        if verdict.remark:
            reached += f" ({verdict.remark})"
        holds = {True: "yes", False: "**no**", None: ""}[verdict.holds]
        lines.append([target.what, f"{sign} {target.limit:.3g}{target.unit}", reached, holds])
    return tables.table(["what", "target", "reached", "holds"], lines)


def _state(section: Mapping[str, Any]) -> str:
    """A line where a section is not complete."""
    if section["state"] == "done":
        return ""
    words = {"failed": f"Failed: {section['error']}.", "interrupted": "Interrupted.", "running": "Not finished."}
    return f"**{words[section['state']]}** What is here was measured before."


def _machine(machine: Mapping[str, Any]) -> str:
    versions = (f"{name} {version or 'not installed'}" for name, version in machine["versions"].items())
    lines = {
        "processor": f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads used",
        "memory": tables.size(machine["memory"]),
        "GPU": f"{machine['device']}, {tables.size(machine['gpu_memory'])}" if machine["gpu_memory"] else "",
        "system": f"{machine['platform']}, Python {machine['python']}",
        "versions": ", ".join(versions),
    }
    return "\n".join(f"- {name}: {text}" for name, text in lines.items() if text)


def _commands(sections: Mapping[str, Any]) -> str:
    """Which command, at which commit, measured which sections, how fast the machine was then, and for how long."""
    by_run: dict[tuple[str, str, str], list[str]] = {}
    for name, section in sections.items():
        _, *arguments = section["command"]
        command = shlex.join(["python", *(f"src/{SCRIPT}" if Path(a).name == SCRIPT else a for a in arguments)])
        taken = f"{name} ({section['seconds']:.0f} s)" if section.get("seconds") else name
        rates = [f"{key} {rate / 1e12:.3g} TFLOP/s" for key, rate in section["rates"]["matmul"].items()]
        speed = f"products {', '.join(rates)}, copying {section['rates']['copy'] / 1e9:.3g} GB/s"
        by_run.setdefault((command, section["commit"] or "unknown", speed), []).append(taken)
    return "\n".join(
        f"- `{run}` at commit {commit}, with {speed}: {', '.join(names)}"
        for (run, commit, speed), names in by_run.items()
    )


def _failures(sections: Mapping[str, Any]) -> list[str]:
    """Who could not run, with the error, at the end of the page."""
    failures = {
        (row.get("name") or row.get("pipeline"), row["error"]): name
        for name, section in sections.items()
        for row in section["rows"]
        if row.get("error")
    }
    if not failures:
        return []
    lines = "\n".join(f"- {who} ({TITLES[where].lower()}): {error}" for (who, error), where in failures.items())
    return ["## Could not run", lines]
