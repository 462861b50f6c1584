"""From what Hydra composed to one checked, frozen RunConfig, or a script's own dataclass.

A component's section (backbone, head, loss, dataset, optimizer, schedule) is checked against the signature of the
component it names, a run-level section (train, evaluate, runtime, tracking) against its dataclass in sections.py.
Every problem is reported at once, before data or model is touched.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from danet.arguments import ExistingFile, NonNegativeFloat, Text
from danet.config import resolve
from danet.config.identity import deciding, initial_values, without_files
from danet.config.resolve import REPOSITORY, DictConfig
from danet.config.sections import EvaluateConfig, RuntimeConfig, TrackingConfig, TrainConfig
from danet.config.source import source_problems
from danet.schema import COMPONENTS, ConfigError, check_component, check_dataclass, check_fields

T = TypeVar("T")

Normalization = Mapping[str, Sequence[NonNegativeFloat]]  # "mean", "std": by channel, in units of the 0..255 scale


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, checked. Components are dictionaries {"name": ..., option: value}."""

    name: Annotated[Text, Field(pattern=r"^[\w.-]+$")]  # part of the run folder's name
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    backbone: dict[str, Any]
    head: dict[str, Any]
    auxiliary_head: bool  # FCN head on stage 3, a training signal only
    loss: dict[str, Any]
    dataset: dict[str, Any]
    augment: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    train: TrainConfig
    evaluate: EvaluateConfig
    runtime: RuntimeConfig
    tracking: TrackingConfig
    normalization: Literal["backbone", "data"] | Normalization = "backbone"  # of images; data: measured over train
    init_from: ExistingFile | None = None  # weights to start from
    resume: str | None = None  # run folder to go on with, "auto" or "required"

    @property
    def in_channels(self) -> int:
        """Of the images that the network sees."""
        return image_channels(self.dataset)

    @property
    def mean_and_std(self) -> Normalization | None:
        """The numbers that take the place of the backbone's; None for the backbone's own, or before measuring."""
        return None if isinstance(self.normalization, str) else self.normalization

    def yaml(self) -> str:
        """The resolved configuration as YAML; `load` of the text gives an equal RunConfig."""
        return resolve.to_yaml(asdict(self))

    def initial_values(self) -> dict[str, str]:
        """What the weights start from, by key: the SHA-256 of a file, or a name such as "imagenet"."""
        return initial_values(asdict(self))

    def identity(self, initial: Mapping[str, str] | None = None) -> str:
        """A hash of all that decides the result except the data, which have a fingerprint of their own.

        Args:
            initial: the initial values that the run started from, for when their files are gone; None reads the files.
        """
        values = self.initial_values() if initial is None else initial
        decides = {**deciding(asdict(self)), "initial values": dict(values)}
        return hashlib.sha256(repr(sorted(decides.items())).encode()).hexdigest()[:16]


def checked(values: Mapping[str, Any], *, probe: bool = False) -> RunConfig:
    """The run that plain values describe.

    Args:
        values: by section.
        probe: also check whether the data set finds its files (none is opened) and whether the parts fit together.

    Raises:
        ConfigError: lists every problem.
    """
    from danet.config.cross_checks import between_parts, between_sections

    problems: list[str] = []
    values = {key: value for key, value in values.items() if key != "sweep"}  # the sweeper's
    fields = check_fields(RunConfig, values, problems)
    problems += _augment_problems(values.get("augment"))
    if probe:
        problems += between_parts(fields)
    if problems:
        raise ConfigError(problems)
    config = RunConfig(**fields)
    if problems := between_sections(config):
        raise ConfigError(problems)
    return config


def problems_at_once(values: Mapping[str, Any], named: Collection[str] = ()) -> list[str] | None:
    """What is wrong as far as it can be told without PyTorch, whose import takes seconds.

    Args:
        values: by section.
        named: sections of components, and "augment", that the command line names.

    Returns:
        A line for every problem. None where one of the named sections has none that its source shows: its other
        checks may have one, which belongs beside these.
    """
    problems: list[str] = []
    for section in named:
        found = source_problems(section, values.get(section)) if section in COMPONENTS else []
        if not found:
            return None
        problems += found
    check_fields(RunConfig, {k: v for k, v in values.items() if k != "sweep"}, problems, components=False)
    return problems


def load_as(schema: type[T], composed: DictConfig) -> T:
    """Check the configuration of a script against its dataclass.

    Raises:
        ConfigError: lists every problem.
    """
    problems: list[str] = []
    values = resolve.plain(composed)
    check_fields(schema, values, problems, components=False)  # at once: the components are with PyTorch
    config = None if problems else check_dataclass(schema, values, problems)
    if config is None:
        raise ConfigError(problems)
    return config


def load_section(composed: DictConfig, kind: str) -> dict[str, Any]:
    """Check the section of one component alone.

    Raises:
        ConfigError: lists every problem.
    """
    return _checked_component(kind, resolve.plain(composed))


def model_sections(text: str | None, **given: dict[str, Any] | None) -> dict[str, Any]:
    """What `build_model` needs of a configuration: "backbone", "head", "auxiliary_head".

    Besides "in_channels" if not 3, and "normalization" if it is not the backbone's own.

    Args:
        text: YAML, as stored in a checkpoint. Its other sections are ignored: their files may be elsewhere.
        given: sections that replace those in the text, if not None.

    Raises:
        ConfigError: this version of the code does not accept it.
    """
    saved = resolve.parse(text or "{}")
    if saved is None:
        raise ConfigError(["the configuration in the checkpoint is not YAML with sections"])
    values = without_files({**saved, **{kind: section for kind, section in given.items() if section is not None}})
    problems: list[str] = []
    sections = {kind: check_component(kind, values.get(kind), problems) for kind in ("backbone", "head")}
    if problems:
        raise ConfigError(problems)
    given_channels = values.get("in_channels")  # as model_yaml writes it
    channels = given_channels if isinstance(given_channels, int) else image_channels(values.get("dataset"))
    others: dict[str, Any] = {"in_channels": channels} if channels != 3 else {}
    if isinstance(values.get("normalization"), Mapping):
        others["normalization"] = values["normalization"]
    return {**sections, "auxiliary_head": bool(values.get("auxiliary_head")), **others}


def image_channels(dataset: Any) -> int:
    """How many channels a data set's images have, by its section: as many as its `bands`, but one is repeated."""
    bands = dataset.get("bands") if isinstance(dataset, Mapping) else None
    return len(bands) if isinstance(bands, Sequence) and len(bands) > 1 else 3


def image_reading(text: str | None) -> dict[str, Any]:
    """How a model's image files are read, as its data set's section in a run's configuration says: "bands", "range".

    Args:
        text: YAML, as stored in a checkpoint.
    """
    dataset = (resolve.parse(text or "{}") or {}).get("dataset")
    keys = ("bands", "range")
    return {key: dataset[key] for key in keys if dataset.get(key)} if isinstance(dataset, dict) else {}


def as_trained(text: str, config: RunConfig) -> str:
    """A run's configuration as its checkpoints store it: with the numbers that normalization=data came to.

    Args:
        text: YAML, as the run began.
        config: of the run, with these numbers.
    """
    if config.mean_and_std is None:
        return text
    return resolve.to_yaml({**(resolve.parse(text) or {}), "normalization": config.mean_and_std})


def model_yaml(sections: Mapping[str, Any]) -> str:
    """The reverse of `model_sections`: YAML text for a file of weights."""
    return resolve.to_yaml(sections)


def protocol_options(name: str) -> dict[str, Any]:
    """What conf/protocol/<name>.yaml sets in the section "evaluate"; nothing for a protocol of the user's own."""
    file = REPOSITORY / "conf" / "protocol" / f"{name}.yaml"
    return dict(resolve.read(file)["evaluate"]) if file.is_file() else {}


def _checked_component(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    problems: list[str] = []
    section = check_component(kind, values.get(kind), problems)
    if problems or section is None:
        raise ConfigError(problems)
    return section


def _augment_problems(section: Any) -> list[str]:
    from danet.data.augment import augment_problems  # here, because albumentations takes seconds to import

    if not isinstance(section, dict):
        return []  # reported with the other sections
    return [line if line.startswith("augment") else f"augment.{line}" for line in augment_problems(section)]
