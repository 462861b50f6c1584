"""Options of src/evaluate.py, and the published protocol that it follows."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from danet import config
from danet.arguments import ExistingFolder, Folder, NonNegativeInt, PositiveInt, Temperature, Void
from danet.config.sections import InferenceConfig, ModelSource, RuntimeConfig, TrackingConfig


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(InferenceConfig):
    """How to run inference, and what to save."""

    batch_size: PositiveInt = 1  # images of equal size at a time
    max_images: PositiveInt | None = None  # score only this many images, the first ones; None: all
    void: Void = "ignore"  # pixels that the truth leaves out; count: as false positives
    samples: NonNegativeInt = 8  # pictures of so many of the worst images, and of the best
    save_predictions: bool = False  # every image's prediction as PNG
    calibration: bool = False  # whether the probabilities are as high as they are right
    fit_temperature: bool = False  # find the one of the probabilities on split=val, and keep it beside the weights


@dataclass(frozen=True, kw_only=True)
class ScoringConfig(ModelSource):
    """What to score, on which images, and where the result goes."""

    dataset: dict[str, Any]
    sweep: ExistingFolder | None = None  # each of its finished runs that has no such evaluation yet, instead of `run`
    split: Literal["val", "test", "train"] = "val"
    output: Folder | None = None  # must be new; None: one in RUN/evaluations, for a file in outputs/evaluations
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where the hardware computes it natively
    temperature: Temperature = "auto"  # of the probabilities; auto: as fitted to the weights, else 1
    protocol: str | None = None  # the published one that `evaluate` follows; see conf/protocol/
    evaluate: ScoringOptions = field(default_factory=ScoringOptions)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    tracking: TrackingConfig = field(default_factory=lambda: TrackingConfig(mode="disabled"))

    def problems(self) -> list[str]:
        """Problems between the keys, one line each."""
        lines = super().problems()
        if self.sweep and self.output:
            lines.append("output: belongs to one run; leave it out with sweep=FOLDER")
        if self.output and Path(self.output).exists():
            lines.append(f"output = {self.output!r}: already exists; name a new folder, or remove it")
        return lines + self._confidence_problems()

    def _confidence_problems(self) -> list[str]:
        lines, options = [], self.evaluate
        if options.combine == "official" and (options.calibration or options.fit_temperature):
            key = "calibration" if options.calibration else "fit_temperature"
            text = "combine=official has scores, not probabilities; use combine=probabilities or mmseg"
            lines.append(f"evaluate.{key}: {text}")
        if options.fit_temperature and self.split != "val":
            text = f"a temperature is fitted on split=val, not on split={self.split}, whose scores would flatter it"
            lines.append(f"evaluate.fit_temperature: {text}")
        if options.fit_temperature and self.temperature not in ("auto", 1):
            lines.append(
                f"temperature = {self.temperature}: evaluate.fit_temperature determines it; leave out one of them"
            )
        return lines


def protocol_followed(scoring: ScoringConfig) -> str | None:
    """The protocol's name, with what differs from it; None where none is followed.

    Of one of the user's own it is the name alone.
    """
    if scoring.protocol is None:
        return None
    published = config.protocol_options(scoring.protocol)
    changes = [
        f"{key}={json.dumps(own)}"
        for key, value in published.items()
        if (own := _plain(getattr(scoring.evaluate, key))) != _plain(value)
    ]
    return f"{scoring.protocol}, but {', '.join(changes)}" if changes else scoring.protocol


def look(scoring: ScoringConfig) -> str:
    """The inference options in words."""
    if protocol := protocol_followed(scoring):
        return protocol
    options = scoring.evaluate
    words = ["slide {}x{}".format(*options.crop_size) if options.mode == "slide" and options.crop_size else "whole"]
    if options.mode == "slide" and options.stride:
        words.append("stride {}x{}".format(*options.stride))
    if tuple(options.scales) != (1.0,):
        words.append(f"scale{'s' if len(options.scales) > 1 else ''} {'-'.join(f'{s:g}' for s in options.scales)}")
    words += [f"{key} side {size}" for key in ("long", "short") if (size := getattr(options, f"{key}_side"))]
    words += ["flip"] if options.flip else []
    words += [options.combine] if options.combine != "probabilities" else []
    return ", ".join([*words, *(["void counted"] if options.void == "count" else [])])


def inference_options(scoring: ScoringConfig) -> dict[str, Any]:
    """How images are predicted, as result.json has it."""
    return {key.name: _plain(getattr(scoring.evaluate, key.name)) for key in fields(InferenceConfig)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
