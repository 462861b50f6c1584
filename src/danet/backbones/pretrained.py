"""Pretrained weights of a backbone, from anybody's file: all of them, or an error that lists what does not fit."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from danet.services import state_dicts

log = logging.getLogger(__name__)

Tensors = Mapping[str, torch.Tensor]

MOST_KEYS = 8  # of each kind that an error shows


def read_backbone(path: str, *, landmark: str) -> dict[str, torch.Tensor]:
    """Read a backbone's weights, alone in their file or as part of a whole model's.

    Args:
        path: a file of torch.save's or safetensors, ours or other people's.
        landmark: a key that every such backbone has; what stands before it in the file is cut off.

    Raises:
        ValueError: the file cannot be read, or has several such backbones.
    """
    try:
        tensors = state_dicts.read(Path(path)).tensors
    except ValueError as error:
        raise ValueError(f"pretrained: {error}") from None
    prefixes = [key.removesuffix(landmark) for key in tensors if f".{key}".endswith(f".{landmark}")]
    if not prefixes or "" in prefixes:
        return tensors
    if len(prefixes) > 1:
        places = ", ".join(map(repr, prefixes))
        raise ValueError(f"pretrained: {path} has several backbones, under {places}; leave one of them in the file")
    (prefix,) = prefixes
    taken = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    log.info(
        "backbone.pretrained: %s: took the %d tensors under %r and left out the other %d",
        path,
        len(taken),
        prefix.rstrip("."),
        len(tensors) - len(taken),
    )
    return taken


def load_backbone(model: nn.Module, tensors: Tensors, source: str, *, names: str, causes: Mapping[str, str]) -> None:
    """Copy weights into a backbone, all or none.

    Args:
        model: the backbone.
        tensors: by its own names.
        source: where they are from, which errors name.
        names: whose naming it is, for the error.
        causes: why a key may not fit, by the beginning of the key; the first one counts.

    Raises:
        ValueError: a tensor is missing, unexpected, of another shape or not finite; lists them.
    """
    own = model.state_dict()
    differing = differences(own, tensors)
    if wrong := [key for keys in differing.values() for key in keys]:
        if channels := _other_channels(own, tensors, differing):
            raise ValueError(
                f"pretrained: {source} holds weights for images of {channels} channels; pretrained takes those for 3. "
                "init_from=FILE takes a whole model for as many channels"
            )
        cause = next(cause for start, cause in causes.items() if any(key.startswith(start) for key in wrong))
        if not own.keys() & tensors.keys():
            cause = f"a file of something else, or with other names than {names}"
        raise ValueError(f"pretrained: {source} does not fit; probably {cause}. {in_words(differing)}")
    state_dicts.refuse_nonfinite(tensors, f"pretrained: {source}")
    model.load_state_dict(tensors)


def differences(own: Tensors, tensors: Tensors) -> dict[str, list[str]]:
    """The keys in which a file's tensors differ from a network's, by what is wrong with them."""
    return {
        # Files older than PyTorch 0.4.1 lack the counters, which nothing here reads.
        "missing": [key for key in own if key not in tensors and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in tensors if key not in own],
        "of another shape": [key for key in own if key in tensors and own[key].shape != tensors[key].shape],
    }


def _other_channels(own: Tensors, tensors: Tensors, differing: Mapping[str, list[str]]) -> int:
    """The channels of the images that weights are for, if nothing else differs; otherwise 0."""
    keys = differing["of another shape"]
    if sum(map(len, differing.values())) != len(keys):
        return 0
    here, there = ({(*own[key].shape[:1], *own[key].shape[2:]) for key in keys} for own in (own, tensors))
    widths = {tensors[key].shape[1] for key in keys if tensors[key].ndim == 4 and own[key].shape[1] == 3}
    return widths.pop() if here == there and len(widths) == 1 else 0


def in_words(differing: Mapping[str, list[str]]) -> str:
    """`differences` for an error, with the first keys of each kind."""
    return "; ".join(
        f"{len(keys)} {what}: {', '.join(keys[:MOST_KEYS])}{', ...' if len(keys) > MOST_KEYS else ''}"
        for what, keys in differing.items()
        if keys
    )
