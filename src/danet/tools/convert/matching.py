"""Tensors from one naming to another: every one, in its shape, or an error that lists all that do not fit."""

from collections.abc import Mapping

import torch

from danet.tools.convert.layouts import Layout
from danet.tools.convert.report import Report

Tensors = dict[str, torch.Tensor]


def take(
    theirs: Mapping[str, torch.Tensor], layout: Layout, model: Mapping[str, torch.Tensor], report: Report
) -> Tensors:
    """Our state dict from theirs.

    Args:
        theirs: tensors by their keys.
        layout: their naming.
        model: tensors of our model, whose keys and shapes are wanted; a deep stem's convolutions are "conv1.0" ...
        report: is told what went where.

    Raises:
        ValueError: lists every key that is missing, unknown or of another shape.
    """
    deep_stem = "backbone.conv1.0.weight" in model
    ours: Tensors = {}
    problems = []
    used = set()
    for own, wanted in model.items():
        key = layout.key(own, deep_stem=deep_stem)
        assert key is not None, own
        used.add(key)
        shape = layout.gamma if own.endswith(".gamma") else tuple(wanted.shape)
        if key in theirs and tuple(theirs[key].shape) == shape:
            ours[own] = theirs[key].reshape(wanted.shape)
            report.moved.append((key, own, tuple(wanted.shape)))
        elif key in theirs:
            problems.append(f"{key} has shape {tuple(theirs[key].shape)}, wanted is {shape}")
        elif own.endswith(".num_batches_tracked"):  # came with PyTorch 0.4.1; nothing reads them
            ours[own] = torch.zeros((), dtype=torch.int64)
            report.filled.append(own)
        else:
            problems.append(f"missing {key}, wanted for {own} {tuple(wanted.shape)}")
    for key in theirs.keys() - used:
        if why := next((why for prefix, why in layout.unused.items() if key.startswith(prefix)), None):
            report.dropped.append((key, why))
        else:
            problems.append(f"unknown {key} {tuple(theirs[key].shape)}")
    report.dropped.sort()
    _refuse(problems)
    return ours


def give(
    ours: Mapping[str, torch.Tensor], layout: Layout, model: Mapping[str, torch.Tensor], report: Report
) -> Tensors:
    """Their state dict from ours, the reverse of `take`.

    Raises:
        ValueError: lists every key that our model lacks, or for which their code has no name.
    """
    deep_stem = "backbone.conv1.0.weight" in model
    theirs: Tensors = {}
    problems = [f"unknown {own} {tuple(ours[own].shape)}" for own in ours.keys() - model.keys()]
    for own, wanted in model.items():
        key = layout.key(own, deep_stem=deep_stem)
        if own not in ours:
            problems.append(f"missing {own} {tuple(wanted.shape)}")
        elif ours[own].shape != wanted.shape:
            problems.append(f"{own} has shape {tuple(ours[own].shape)}, wanted is {tuple(wanted.shape)}")
        elif key is None and own.startswith("auxiliary."):
            report.dropped.append((own, "that code has no head on the third stage; predictions do not need it"))
        elif key is None:
            problems.append(f"{own} has no name there")
        else:
            theirs[key] = ours[own].reshape(layout.gamma) if own.endswith(".gamma") else ours[own]
            report.moved.append((own, key, tuple(theirs[key].shape)))
    _refuse(problems)
    return theirs


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ValueError(f"{len(problems)} keys do not fit, so nothing is written:\n  " + "\n  ".join(sorted(problems)))
