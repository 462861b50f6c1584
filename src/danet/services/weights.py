"""Files of trained weights: the framework's checkpoints, and safetensors, the format for publishing.

Both hold the model's tensors and everything needed to build and use it. No code in them is run when they are read.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from danet.services import atomic_files, checkpoint, state_dicts
from danet.services.palettes import voc_palette
from danet.services.places import command

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A model's weights with their metadata.

    Attributes:
        tensors: the model's state dict.
        config: YAML with at least the sections "backbone" and "head"; None if the file has none.
        class_names: K names.
        palette: K colors, red, green and blue in 0..255.
        facts: other metadata, such as "step", "miou" and "source".
    """

    tensors: dict[str, torch.Tensor]
    config: str | None
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    facts: dict[str, Any]


def read(path: Path) -> Weights:
    """Read a .safetensors file or a checkpoint (.pt), which needs no manifest here.

    Raises:
        ValueError: the file is missing, damaged or of another kind, or has weights that are not finite.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    state, tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
    state_dicts.refuse_nonfinite(tensors, path)
    try:
        names = tuple(str(name) for name in state.pop("class_names", ()))
        palette = tuple((int(r), int(g), int(b)) for r, g, b in state.pop("palette", ()))
        count = int(state.pop("num_classes", None) or 0) or len(names) or _num_classes(tensors)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: its class names or colors are damaged ({error})") from None
    config = state.pop("config", None)
    if len(names) != count:
        names = tuple(f"class {index}" for index in range(count))
    if len(palette) != count:
        palette = voc_palette(count)
    facts = {key: value for key, value in state.items() if isinstance(value, str | int | float | None)}
    return Weights(tensors=tensors, config=config, class_names=names, palette=palette, facts=facts)


def load_into(model: nn.Module, path: Path, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
    """Copy weights into a model, either all or none.

    Args:
        model: model to load into.
        path: file of the weights, for the error message.
        tensors: the file's tensors; None reads the file.

    Raises:
        ValueError: the file cannot be read, a key is missing, unexpected or has the wrong shape, or a value is not
            finite; the message lists the keys.
    """
    if tensors is None:
        tensors = read(path).tensors
    else:
        state_dicts.refuse_nonfinite(tensors, path)
    own = model.state_dict()
    problems = [f"missing {key}" for key in own if key not in tensors]
    problems += [f"unexpected {key}" for key in tensors if key not in own]
    problems += [
        f"{key} has shape {tuple(tensors[key].shape)}, the model's is {tuple(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        cause = (
            "a different backbone or head?"
            if own.keys() & tensors.keys()
            else f"from other code? {command('convert')} reads such files"
        )
        raise ValueError(f"{path} does not fit the model ({cause}):\n  " + "\n  ".join(problems[:10]) + more)
    model.load_state_dict(tensors)


def start_from(
    model: nn.Module, path: Path, twin: Callable[[int], nn.Module], class_names: Sequence[str] = ()
) -> list[str]:
    """Copy weights to start training from: all, or all but the classifiers if the number of classes differs.

    An auxiliary head, which training alone uses, may be in the model or in the file only.

    Args:
        model: model to load into, with `num_classes`.
        path: file of the weights.
        twin: function that builds the same model for another number of classes.
        class_names: of the data, to tell where the weights are of as many others.

    Returns:
        Names of the tensors that keep their initial values; they are also logged.

    Raises:
        ValueError: as for `load_into`, for any difference that the number of classes does not explain.
    """
    content = read(path)
    tensors, classes = content.tensors, len(content.class_names)
    own, kept = model.state_dict(), []
    if classes not in (0, model.num_classes):
        with torch.device("meta"):  # only its keys and shapes are needed
            other = twin(classes).state_dict()
        kept = [
            key
            for key in own
            if key in tensors and own[key].shape != other.get(key, own[key]).shape == tensors[key].shape
        ]
    elif classes and class_names and tuple(class_names) != tuple(content.class_names):
        log.warning(
            "init_from: %s has the classes %s, the data %s: its classifiers are taken as they are",
            path,
            ", ".join(content.class_names),
            ", ".join(class_names),
        )
    there, here = ({key for key in keys if key.startswith("auxiliary.")} for keys in (tensors, own))
    extra, lacking = (there, []) if not here else (set(), [] if there else [key for key in own if key in here])
    taken = {key: value for key, value in tensors.items() if key not in extra}
    load_into(model, path, {**taken, **{key: own[key] for key in (*kept, *lacking)}})
    if extra:
        log.info("init_from: %s has an auxiliary head, which this model lacks (auxiliary_head=false): left out", path)
    if lacking:
        log.info("init_from: %s has no auxiliary head (auxiliary_head=true): newly initialized", path)
    if kept:
        log.info(
            "init_from: %s has %d classes, the data %s; newly initialized instead of loaded: %s",
            path,
            classes,
            model.num_classes,
            ", ".join(kept),
        )
    return kept + lacking


def write(path: Path, weights: Weights) -> None:
    """Write a .safetensors file; metadata that are not strings are stored as JSON."""
    from safetensors.torch import save_file

    metadata = {
        "format": "pt",  # other readers require it
        "framework": "danet",
        "class_names": json.dumps(weights.class_names, ensure_ascii=False),
        "palette": json.dumps(weights.palette),
        "facts": json.dumps(weights.facts),  # file names may not be valid Unicode
    }
    if weights.config is not None:
        metadata["config"] = weights.config
    # Copies, since safetensors rejects tensors that share memory, as those of shared layers do.
    tensors = {key: value.clone(memory_format=torch.contiguous_format) for key, value in weights.tensors.items()}
    with atomic_files.replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # the user's default for new files; safetensors makes its files private
        save_file(tensors, temporary, metadata)
        temporary.chmod(mode)


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    state = checkpoint.load(path, trusting=True)
    if "model" in state:
        # If the run kept averaged weights, they are the ones that were scored.
        tensors = state.pop("ema", None) or state["model"]
        if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
            raise ValueError(f"{path}: its 'model' is not a state dict")
        tensors = state_dicts.unwrapped(tensors)
    else:  # a model of this framework, saved in another way
        tensors = state_dicts.find(state, path).tensors
    if not tensors:
        raise ValueError(f"{path}: holds no weights; {command('convert')} reads files of other code")
    state.pop("tracker_id", None)  # belongs to the run, not to its weights
    return state, tensors


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    metadata, tensors = state_dicts.read_safetensors(path)
    try:
        state = {key: json.loads(metadata[key]) for key in ("class_names", "palette") if key in metadata}
        facts = dict(json.loads(metadata.get("facts", "{}")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: its metadata are damaged ({error})") from None
    return {**facts, **state, "config": metadata.get("config")}, tensors


def _num_classes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Output width of the head's last classifier, if nothing else gives the number of classes; 0 if there is none."""
    widths = [
        tensors[key].shape[0]
        for key in sorted(tensors)
        if key.startswith(("head.classifier", "head.outconv")) and tensors[key].ndim == 4
    ]
    return widths[-1] if widths else 0
