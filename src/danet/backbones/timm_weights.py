"""Weights for timm's networks: of the hub, or of a file with timm's names or others."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from danet.backbones.pretrained import differences, in_words
from danet.services import network, state_dicts

log = logging.getLogger(__name__)


@contextlib.contextmanager
def hub_unless_offline(wanted: bool) -> Iterator[None]:
    """Let the hub's client take weights from its cache at once where its server cannot be reached.

    It would try for more than a minute. Behind a proxy only the client can tell.
    """
    if not wanted:
        yield
        return
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        network.require(constants.ENDPOINT)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def read(timm: Any, model: str, options: Mapping[str, Any], path: str) -> tuple[dict[str, torch.Tensor], bool]:
    """A file's tensors by timm's names, and whether by those of the whole network, not of the one for feature maps.

    Raises:
        ValueError: the file cannot be read, or does not fit; lists what differs.
    """
    try:
        tensors = state_dicts.read(Path(path)).tensors
    except ValueError as error:
        raise ValueError(f"pretrained: {error}") from None
    prefix = "backbone.net."  # of a run with this backbone
    if any(key.startswith(prefix) for key in tensors):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    with torch.device("meta"):
        extractor = ("out_indices", "feature_location")  # options of feature extractors alone
        whole = timm.create_model(model, **{key: value for key, value in options.items() if key not in extractor})
        part = timm.create_model(model, features_only=True, **options)
    classifier = tuple(f"{name}." for name in _classifiers(whole))
    own = {key: value for key, value in whole.state_dict().items() if not key.startswith(classifier)}
    for names, of_whole in ((own, True), (part.state_dict(), False)):
        if all(key in tensors and tensors[key].shape == value.shape for key, value in _counted(names).items()):
            log.info("backbone.pretrained: %s: all %d tensors by timm's names", path, len(names))
            state_dicts.refuse_nonfinite(tensors, f"pretrained: {path}")
            return {key: value for key, value in tensors.items() if key in names}, of_whole
    ours, theirs = _counted(own), _counted(tensors)
    pairs = list(zip(ours, theirs, strict=False))
    if len(theirs) >= len(ours) and all(ours[a].shape == theirs[b].shape and _same_kind(a, b) for a, b in pairs):
        log.info(
            "backbone.pretrained: %s: its names are not timm's; its first %d tensors agree with %s in order and shape "
            "(%s is %s, ...)",
            path,
            len(ours),
            model,
            *pairs[0],
        )
        counters = {key: torch.zeros((), dtype=torch.int64) for key in own if key not in ours}
        state_dicts.refuse_nonfinite(tensors, f"pretrained: {path}")
        return {**{a: theirs[b] for a, b in pairs}, **counters}, True
    raise ValueError(f"pretrained: {path} does not fit {model}. {in_words(differences(ours, theirs))}")


def _classifiers(whole: Any) -> list[str]:
    """Names of the layers that timm leaves out when it returns feature maps."""
    names = whole.default_cfg.get("classifier") or ()
    return [names] if isinstance(names, str) else list(names)


def _counted(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without batch norm's counters, which old files lack and nothing here reads."""
    return {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}


def _same_kind(ours: str, theirs: str) -> bool:
    """Whether the ends of two names do not contradict each other: batch norm has four tensors of one shape."""
    kinds = ("weight", "bias", "running_mean", "running_var")
    own, other = (name.rpartition(".")[2] for name in (ours, theirs))
    return own == other or own not in kinds or other not in kinds
