"""Tensor names in our models and in other code, and the conversion between them.

The tables contain key prefixes. All code bases name a ResNet's stages as torchvision does, after a prefix of their own.
mmsegmentation's names for the other attention heads are given in those heads, as `foreign_keys`.
"""

from collections.abc import Mapping
from typing import Any

import torch

from danet.registry import HEADS
from danet.tools.convert.report import ConversionReport

Tensors = dict[str, torch.Tensor]
Names = tuple[tuple[str, str], ...]  # (our key prefix, theirs)

# ours, in the official code (encoding/models/sseg/danet.py), in mmsegmentation (DAHead)
DANET_HEAD = (
    ("head.branches.pam.conv_in.0", "head.conv5a.0", "decode_head.pam_in_conv.conv"),
    ("head.branches.pam.conv_in.1", "head.conv5a.1", "decode_head.pam_in_conv.bn"),
    ("head.branches.pam.attention.query", "head.sa.query_conv", "decode_head.pam.query_project"),
    ("head.branches.pam.attention.key", "head.sa.key_conv", "decode_head.pam.key_project"),
    ("head.branches.pam.attention.value", "head.sa.value_conv", "decode_head.pam.value_project"),
    ("head.branches.pam.attention.gamma", "head.sa.gamma", "decode_head.pam.gamma.scale"),
    ("head.branches.pam.conv_out.0", "head.conv51.0", "decode_head.pam_out_conv.conv"),
    ("head.branches.pam.conv_out.1", "head.conv51.1", "decode_head.pam_out_conv.bn"),
    ("head.branches.cam.conv_in.0", "head.conv5c.0", "decode_head.cam_in_conv.conv"),
    ("head.branches.cam.conv_in.1", "head.conv5c.1", "decode_head.cam_in_conv.bn"),
    ("head.branches.cam.attention.gamma", "head.sc.gamma", "decode_head.cam.gamma.scale"),
    ("head.branches.cam.conv_out.0", "head.conv52.0", "decode_head.cam_out_conv.conv"),
    ("head.branches.cam.conv_out.1", "head.conv52.1", "decode_head.cam_out_conv.bn"),
    ("head.aux_classifiers.pam.1", "head.conv6.1", "decode_head.pam_conv_seg"),
    ("head.aux_classifiers.cam.1", "head.conv7.1", "decode_head.cam_conv_seg"),
    ("head.classifier.1", "head.conv8.1", "decode_head.conv_seg"),
)

# ours, in mmsegmentation (FCNHead with one convolution, on the third stage)
AUXILIARY_HEAD = (
    ("auxiliary.conv_in.0", "auxiliary_head.convs.0.conv"),
    ("auxiliary.conv_in.1", "auxiliary_head.convs.0.bn"),
    ("auxiliary.classifier.1", "auxiliary_head.conv_seg"),
)

# ours, in the article, whose convB is query, key and value in one
ARTICLE_HEAD = (
    ("head.pam.0.0", "decoder.conv1.0"),
    ("head.pam.0.1", "decoder.conv1.1"),
    ("head.pam.1.query", "decoder.PositionAttention.convB"),
    ("head.pam.1.key", "decoder.PositionAttention.convB"),
    ("head.pam.1.value", "decoder.PositionAttention.convB"),
    ("head.pam.1.gamma", "decoder.PositionAttention.gamma"),
    ("head.cam.0.0", "decoder.conv2.0"),
    ("head.cam.0.1", "decoder.conv2.1"),
    ("head.cam.1.gamma", "decoder.ChannelAttention.beta"),
    ("head.fuse.0", "decoder.conv3.0"),
    ("head.fuse.1", "decoder.conv3.1"),
    ("head.classifier.0.0", "decoder.conv4.0"),
    ("head.classifier.0.1", "decoder.conv4.1"),
    ("head.classifier.1", "decoder.conv4.3"),
)

# ours, in mmsegmentation: the three convolutions of a deep stem with their normalizations
MMSEG_STEM = (("bn1", "stem.7"), *((f"conv1.{index}", f"stem.{index}") for index in (0, 1, 3, 4, 6)))

BACKBONES = {"official": "pretrained.", "mmseg": "backbone.", "article": "ResNet50."}  # prefixes

# The classifier's weight, of shape (K, ...); the second key of mmsegmentation is that of a cascade (OCRNet).
CLASSIFIERS = {
    "official": ("head.conv8.1.weight",),
    "mmseg": ("decode_head.conv_seg.weight", "decode_head.1.conv_seg.weight"),
    "article": ("decoder.conv4.3.weight",),
}

# Prefixes of keys that do not affect the model's output -> why.
UNUSED = {
    "official": {"pretrained.fc.": "the backbone's ImageNet classifier, kept by the code of 2018"},
    "mmseg": {},
    "article": {
        f"decoder.PositionAttention.{name}.": "the article's code never calls it" for name in ("convC", "convD")
    },
}


def of_model(source: str, head: str, stem: str) -> Names:
    """The table for a complete model.

    Args:
        source: the code base.
        head: our name for the head.
        stem: our name for the ResNet's stem.
    """
    names: Names = ARTICLE_HEAD
    if source == "official":
        names = tuple((ours, official) for ours, official, _ in DANET_HEAD)
    elif source == "mmseg" and head == "danet":
        names = (*((ours, mmseg) for ours, _, mmseg in DANET_HEAD), *AUXILIARY_HEAD)
    elif source == "mmseg":
        own: Any = HEADS[head]
        pairs = (
            (f"head.{ours}".rstrip("."), f"decode_head.{mmseg}".rstrip("."))
            for mmseg, ours in own.foreign_keys["mmseg"]
        )
        names = (("head", "decode_head"), *pairs, *AUXILIARY_HEAD)
    return of_backbone(BACKBONES[source], deep=source == "mmseg" and stem != "conv7") + names


def of_backbone(prefix: str, *, deep: bool) -> Names:
    """The table for a ResNet; `deep`: whether its stem is named as in mmsegmentation's ResNetV1c."""
    stem = MMSEG_STEM if deep else ()
    return (("backbone", prefix.rstrip(".")), *((f"backbone.{ours}", f"{prefix}{mmseg}") for ours, mmseg in stem))


def theirs_of(own: str, names: Names) -> list[str]:
    """Their names for our key, by the longest prefix; several if their file contains the tensor more than once."""
    fitting = [(ours, theirs) for ours, theirs in names if f"{own}.".startswith(f"{ours}.")]
    longest = max((len(ours) for ours, _ in fitting), default=0)
    return [f"{theirs}{own[len(ours) :]}".lstrip(".") for ours, theirs in fitting if len(ours) == longest]


def take(theirs: Tensors, names: Names, unused: Mapping[str, str], model: Tensors, report: ConversionReport) -> Tensors:
    """Convert their state dict to ours.

    Args:
        theirs: their tensors by key.
        names: the table.
        unused: prefixes of keys that do not affect the model's output -> why.
        model: tensors of our model, for keys and shapes.
        report: receives what went where.

    Raises:
        ValueError: lists every key that is missing, unknown or has a wrong shape.
    """
    ours: Tensors = {}
    problems: list[str] = []
    used: set[str] = set()
    for own, wanted in model.items():
        keys = theirs_of(own, names)
        used.update(keys)
        for key in keys:
            shape = _shape_there(key, wanted)
            if key in theirs and tuple(theirs[key].shape) != shape:
                problems.append(f"{key} has shape {tuple(theirs[key].shape)}, expected {shape}")
            elif key in theirs and own not in ours:
                ours[own] = theirs[key].reshape(wanted.shape)
                report.moved.append((key, own, tuple(wanted.shape)))
            elif key in theirs and torch.equal(theirs[key], ours[own]):
                report.dropped.append((key, f"identical to {keys[0]}"))
            elif key in theirs:
                problems.append(f"{key} differs from {keys[0]}; here they share one tensor")
            elif not own.endswith(".num_batches_tracked"):
                problems.append(f"missing {key}, needed for {own} {tuple(wanted.shape)}")
            elif own not in ours:  # batch counters were added in PyTorch 0.4.1; nothing reads them
                ours[own] = torch.zeros((), dtype=torch.int64)
                report.filled.append(own)
    for key in theirs.keys() - used:
        if why := next((why for prefix, why in unused.items() if key.startswith(prefix)), None):
            report.dropped.append((key, why))
        else:
            problems.append(f"unknown {key} {tuple(theirs[key].shape)}")
    report.dropped.sort()
    _refuse(problems)
    return ours


def give(ours: Tensors, names: Names, model: Tensors, report: ConversionReport) -> Tensors:
    """Convert our state dict to theirs, the reverse of `take`.

    Raises:
        ValueError: lists every key that our model lacks or that has no name in the other code.
    """
    theirs: Tensors = {}
    problems = [f"unknown {own} {tuple(ours[own].shape)}" for own in ours.keys() - model.keys()]
    for own, wanted in model.items():
        keys = theirs_of(own, names)
        if own not in ours:
            problems.append(f"missing {own} {tuple(wanted.shape)}")
        elif ours[own].shape != wanted.shape:
            problems.append(f"{own} has shape {tuple(ours[own].shape)}, expected {tuple(wanted.shape)}")
        elif not keys and own.startswith("auxiliary."):
            report.dropped.append((own, "the other code has no head on the third stage; predictions do not need it"))
        elif not keys:
            problems.append(f"{own} has no equivalent there")
        else:
            for key in keys:
                theirs[key] = ours[own].reshape(_shape_there(key, wanted))
                report.moved.append((own, key, tuple(theirs[key].shape)))
    _refuse(problems)
    return theirs


def _shape_there(key: str, wanted: torch.Tensor) -> tuple[int, ...]:
    """The shape of our tensor in their file: mmsegmentation's gammas are scalars."""
    return () if key.endswith(".gamma.scale") else tuple(wanted.shape)


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ValueError(f"{len(problems)} keys do not fit; nothing was written:\n  " + "\n  ".join(sorted(problems)))
