"""Configuration: from what Hydra composed to one checked, frozen RunConfig.

A component's section (backbone, head, loss, dataset, augment, optimizer, schedule) is checked against the signature
of the component it names, a run-level section (train, evaluate, runtime, tracking) against its dataclass in
sections.py. Every problem found is reported at once, before data or model is touched. After `load` there is no
OmegaConf anywhere.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from danet.registry import ExistingFile, Text, did_you_mean, keyword_parameters
from danet.schema import COMPONENTS, ConfigError, T, check_component, check_dataclass, check_values
from danet.sections import EvaluateConfig, RuntimeConfig, TrackingConfig, TrainConfig

REPOSITORY = Path(__file__).resolve().parents[2]
OUTPUTS = Path(os.environ.get("DANET_OUTPUTS", REPOSITORY / "outputs")).absolute()

# Paths in YAML files start from the repository, whatever the current directory is.
OmegaConf.register_new_resolver("repo_root", lambda: str(REPOSITORY), replace=True)
OmegaConf.register_new_resolver("outputs", lambda: str(OUTPUTS), replace=True)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, checked. Components are dictionaries {"name": ..., option: value}."""

    name: Annotated[Text, pydantic.Field(pattern=r"^[\w.-]+$")]  # part of the run folder's name
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**63)]
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
    init_from: ExistingFile | None = None  # weights to start from
    resume: str | None = None  # run folder to go on with, or "auto"

    def yaml(self) -> str:
        """The resolved configuration as YAML; `load(OmegaConf.create(text))` gives an equal RunConfig."""
        return OmegaConf.to_yaml(OmegaConf.create(asdict(self)))

    def identity(self) -> str:
        """A hash of all that decides the result: of what must not change when a run is resumed."""
        flat = _flat(OmegaConf.create(asdict(self)))
        decides = {k: v for k, v in flat.items() if not k.startswith(MAY_CHANGE) and k != "backbone.pretrained"}
        return hashlib.sha256(repr(sorted(decides.items())).encode()).hexdigest()[:16]


SECTIONS: dict[str, Callable[..., Any]] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "runtime": RuntimeConfig,
    "tracking": TrackingConfig,
}


def load(composed: DictConfig, overrides: Sequence[str] = (), *, probe: bool = False) -> RunConfig:
    """Check a composed configuration.

    Args:
        composed: what Hydra composed.
        overrides: the command line's overrides; with `resume=<run folder>` they apply to that run's configuration.
        probe: also look whether the data set finds its files (none is opened) and whether the parts fit together.

    Raises:
        ConfigError: lists every problem.
    """
    resume = composed.get("resume")
    if resume and resume != "auto":
        composed = _resumed(composed, Path(resume).expanduser(), overrides)
    raw = _plain(composed)
    raw.pop("sweep", None)  # the sweeper's
    problems: list[str] = []
    sections: dict[str, Any] = {}
    for key, component_registry in COMPONENTS.items():
        sections[key] = check_component(key, component_registry, raw.get(key), problems)
    sections["augment"] = _check_augment(raw.get("augment"), problems)
    for key, section in SECTIONS.items():
        values = raw.get(key)
        sections[key] = None
        if not isinstance(values, dict):
            problems.append(f"{key} = {values!r}: a section with keys is needed here")
        elif checked := check_values(values, keyword_parameters(section), f"{key}.", problems):
            sections[key] = section(**checked)
    top_level = {name: p for name, p in keyword_parameters(RunConfig).items() if name not in sections}
    known = {*top_level, *sections}
    rest = {str(k): v for k, v in raw.items() if k not in sections}
    values = check_values(rest, top_level, "", problems, known=sorted(known))
    from danet.problems import between_parts, between_sections

    if probe:
        problems += between_parts(sections, auxiliary_head=bool(rest.get("auxiliary_head")))
    if problems:
        raise ConfigError(problems)
    config = RunConfig(**values, **sections)
    if problems := between_sections(config):
        raise ConfigError(problems)
    return config


def quote_paths(arguments: Sequence[str], keys: Collection[str]) -> list[str]:
    """A script's arguments, with the values of `keys` quoted for Hydra.

    So a path may have spaces, commas, equals signs and letters of any language as it is; Hydra's grammar takes few of
    them. Values already in quotes and `null` stay as they are, and all of them in a multirun, where commas separate.
    """
    if {"-m", "--multirun"} & set(arguments):
        return list(arguments)

    def quoted(argument: str) -> str:
        key, equals, value = argument.partition("=")
        if key.lstrip("+") not in keys or value in ("", "null") or re.fullmatch(r"""(["']).*\1""", value):
            return argument
        # In quotes a backslash is itself, but before a quote, where it must be doubled.
        escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), value)
        return f"{key}='{escaped}'"

    return [quoted(argument) for argument in arguments]


def check_arguments(arguments: Sequence[str], primary: str | None = None) -> None:
    """Check the names on a command line against the YAML files, before Hydra does: it suggests nothing.

    Args:
        arguments: of the script, such as `backbone=resnet50` or `head.aux_loss=true`.
        primary: name of the script's primary configuration, whose keys are then checked, too. A script with recipes
            leaves it out, for they may add keys.

    Raises:
        ConfigError: an option of a group, or a key without "+", is not there.
    """
    own = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "conf" / f"{primary}.yaml")) if primary else None
    problems = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        group, _, rest = key.partition(".")
        if not equals or group == "hydra":
            continue
        if isinstance(own, dict) and re.fullmatch(r"[\w.]+", key):
            problems += _unknown_key(key, own)
        folders = [f for f in (REPOSITORY / "conf" / group, REPOSITORY / "experiments" / group) if f.is_dir()]
        if not folders or not group.isidentifier():
            continue
        files = {file.stem: file for file in folders[0].glob("*.yaml")}
        if not rest:
            options = [option for option in value.split(",") if option.isidentifier() and option != "null"]
            problems += [
                f"{group}={o}: unknown option; {did_you_mean(o, list(files))}" for o in options if o not in files
            ]
            continue
        keys = {str(name) for file in files.values() for name in OmegaConf.load(file)}
        if (name := rest.split(".")[0]) not in keys:
            problems.append(f"{key}: unknown key; {did_you_mean(name, sorted(keys))}")
    if problems:
        raise ConfigError(problems)


def _unknown_key(key: str, own: dict[Any, Any]) -> list[str]:
    """A line if a dotted key is neither one of a primary configuration nor of a group in its defaults list."""
    groups = {name: None for entry in own["defaults"] if isinstance(entry, dict) for name in entry if " " not in name}
    section: Any = {**own, **groups}
    for name in key.split("."):
        if not isinstance(section, dict):
            break
        if name not in section:
            return [f"{key}: unknown key; {did_you_mean(name, sorted(section.keys() - {'defaults', 'hydra'}))}"]
        section = section[name]
    return []


def load_as(schema: type[T], composed: DictConfig) -> T:
    """Check the configuration of a script against its dataclass.

    Raises:
        ConfigError: lists every problem.
    """
    problems: list[str] = []
    config = check_dataclass(schema, _plain(composed), problems)
    if config is None:
        raise ConfigError(problems)
    return config


def with_dataset_of_run(arguments: Sequence[str]) -> list[str]:
    """A script's arguments, with the data set of the run that `run=FOLDER` names before the others.

    So the run's data set is the default, and dataset.key=value changes a key of it.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    file = Path(given.get("run", "")).expanduser() / "config.yaml"
    if "run" not in given or "dataset" in given or not file.is_file():
        return list(arguments)
    section = OmegaConf.to_container(OmegaConf.create(file.read_text()).dataset)
    assert isinstance(section, dict)
    name = str(section.pop("name"))
    # JSON is how Hydra writes texts, numbers and lists, too.
    options = [f"dataset.{key!s}={json.dumps(value, ensure_ascii=False)}" for key, value in section.items()]
    return [f"dataset={name}", *options, *arguments]


def protocol_options(name: str) -> dict[str, Any]:
    """What conf/protocol/<name>.yaml sets in the section "evaluate".

    Raises:
        ConfigError: there is no such file.
    """
    files = {file.stem: file for file in (REPOSITORY / "conf" / "protocol").glob("*.yaml")}
    if name not in files:
        raise ConfigError([f"protocol = {name!r}: unknown; {did_you_mean(name, list(files))}"])
    options = OmegaConf.to_container(OmegaConf.load(files[name]).evaluate)
    assert isinstance(options, dict)
    return {str(key): value for key, value in options.items()}


def model_sections(text: str | None, **given: dict[str, Any] | None) -> dict[str, Any]:
    """What `build_model` needs from a run's configuration: "backbone", "head" and "auxiliary_head".

    Args:
        text: YAML, as a checkpoint has it. Its other sections are not looked at: their files may be elsewhere.
        given: sections that replace those in the text, if not None.

    Raises:
        ConfigError: this version of the code does not take it.
    """
    try:
        read = OmegaConf.create(text or "{}")
    except (yaml.YAMLError, OmegaConfBaseException, AssertionError):  # the last one of a number
        read = None
    if not isinstance(read, DictConfig):
        raise ConfigError(["its configuration is not YAML with sections"])
    raw = {**_plain(read), **{kind: section for kind, section in given.items() if section is not None}}
    problems: list[str] = []
    if isinstance(backbone := raw.get("backbone"), dict) and "pretrained" in backbone:
        raw["backbone"] = {**backbone, "pretrained": False}  # all weights are in the checkpoint
    sections = {kind: check_component(kind, COMPONENTS[kind], raw.get(kind), problems) for kind in ("backbone", "head")}
    if problems:
        raise ConfigError(problems)
    return {**sections, "auxiliary_head": bool(raw.get("auxiliary_head"))}


def model_yaml(sections: Mapping[str, Any]) -> str:
    """The reverse of `model_sections`: YAML text for a file of weights."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(sections)))


def load_section(composed: DictConfig, kind: str) -> dict[str, Any]:
    """Check the section of one component alone.

    Raises:
        ConfigError: lists every problem.
    """
    problems: list[str] = []
    section = check_component(kind, COMPONENTS[kind], _plain(composed).get(kind), problems)
    if problems or section is None:
        raise ConfigError(problems)
    return section


def _plain(composed: DictConfig) -> dict[Any, Any]:
    """The configuration as plain values, interpolations resolved."""
    crop_size = OmegaConf.select(composed, "augment.crop_size")
    if isinstance(crop_size, int | float | str):  # the transforms take it apart
        raise ConfigError([f"augment.crop_size = {crop_size!r}: must be [height, width] in pixels"])
    try:
        raw = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([f"{error.full_key or 'interpolation'}: {str(error).splitlines()[0]}"]) from None
    assert isinstance(raw, dict)
    return raw


def _check_augment(section: Any, problems: list[str]) -> Any:
    from danet.data.augment import augment_problems  # here, for albumentations takes seconds to import

    if not isinstance(section, dict):
        problems.append(f"augment = {section!r}: a section is needed here, such as augment=standard")
        return None
    problems += [line if line.startswith("augment") else f"augment.{line}" for line in augment_problems(section)]
    return section


# ---- run folders -----------------------------------------------------------------------------------------------------

# What may change when a run goes on; anything else would make it another run.
MAY_CHANGE = (
    *("name", "resume", "init_from", "runtime.", "tracking.", "evaluate.samples", "evaluate.batch_size"),
    *("train.log_every", "train.save_every", "train.early_stop_patience"),
)


def of_run(folder: Path) -> RunConfig:
    """The configuration of an existing run.

    Raises:
        ConfigError: the folder has none, or one that this version of the code does not take.
    """
    return load(_read_yaml(folder))


def _read_yaml(folder: Path) -> DictConfig:
    file = folder / "config.yaml"
    if not file.is_file():
        raise ConfigError(
            [f"resume = {str(folder)!r}: no config.yaml there; give a run folder, or resume=auto for the newest"]
        )
    read = OmegaConf.create(file.read_text())
    assert isinstance(read, DictConfig)
    # A resumed run takes its weights from its checkpoint: the files that it began with may be gone.
    read.init_from = None
    if "pretrained" in read.backbone:
        read.backbone.pretrained = False
    return read


def _resumed(composed: DictConfig, folder: Path, overrides: Sequence[str]) -> DictConfig:
    """The configuration of the run in `folder` with the command line's changes, where they leave it the same run.

    With options of groups (such as recipe=...) on it, the command line must compose to what the run began with; else
    its keys are changes of the run's configuration.
    """
    saved = _read_yaml(folder)
    wanted = saved.copy()
    changes = dict(o.lstrip("+~").split("=", 1) for o in overrides if "=" in o and not o.startswith("hydra"))
    if any(key in saved and OmegaConf.is_dict(saved[key]) for key in changes) or {"recipe", "ablation"} & set(changes):
        wanted = composed.copy()
    else:
        for key, value in changes.items():
            OmegaConf.update(wanted, key, OmegaConf.from_dotlist([f"value={value}"])["value"], force_add=True)
    before, now = _flat(saved), _flat(wanted)
    before.pop("backbone.pretrained", None)  # see _read_yaml
    now.pop("backbone.pretrained", None)
    problems = [
        f"{key} = {now.get(key)!r}: the run in {folder} has {before.get(key)!r} and can only go on as it is (runtime.* "
        "and tracking.* may change). For another run leave out resume; "
        f"init_from={folder}/checkpoints/best.pt takes its weights"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key) and not key.startswith(MAY_CHANGE)
    ]
    if problems:
        raise ConfigError(problems)
    merged = saved.copy()
    for key in MAY_CHANGE:
        name = key.rstrip(".")
        OmegaConf.update(merged, name, OmegaConf.select(wanted, name))
    merged.update({"name": saved.name, "init_from": None, "resume": str(folder.resolve())})
    return merged


def _flat(config: DictConfig) -> dict[str, Any]:
    """Values by dotted key; lists are values."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(f"{prefix}{key}.", value)
            else:
                flat[f"{prefix}{key}"] = value

    walk("", _plain(config))
    return flat
