"""Configuration: from what Hydra composed to one checked, frozen RunConfig.

A component's section (backbone, head, loss, dataset, augment, optimizer, schedule) is checked against the signature
of the component it names, a run-level section (train, evaluate, runtime, tracking) against its dataclass in
sections.py. Every problem found is reported at once, before data or model is touched. After `load` there is no
OmegaConf anywhere.
"""

import copy
import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from danet.config.sections import EvaluateConfig, RuntimeConfig, TrackingConfig, TrainConfig
from danet.registry import ExistingFile, Folder, Text, did_you_mean, keyword_parameters, takes
from danet.schema import COMPONENTS, ConfigError, T, check_component, check_dataclass, check_values
from danet.services import records

REPOSITORY = Path(__file__).resolve().parents[3]
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

    def initial_values(self) -> dict[str, str]:
        """What the weights start from, by key: the SHA-256 of a file, or a name such as "imagenet"."""
        return _initial_values(asdict(self))

    def identity(self, initial_values: Mapping[str, str] | None = None) -> str:
        """A hash of all that decides the result but the data, which have a fingerprint of their own.

        Args:
            initial_values: those the run started from, where the files may be gone; None reads the files.
        """
        initial = self.initial_values() if initial_values is None else initial_values
        decides = {**_deciding(asdict(self)), "initial values": dict(initial)}
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
    if _given("train.epochs", overrides):
        composed = _without_steps(composed, overrides)
    if resume and resume != "auto":
        return _checked(_resumed(composed, Path(resume).expanduser(), overrides), probe=probe)
    return _checked(_plain(composed), probe=probe)


def _checked(raw: dict[Any, Any], *, probe: bool = False) -> RunConfig:
    """The run that plain values describe. Arguments and errors as for `load`."""
    raw = {key: value for key, value in raw.items() if key != "sweep"}  # the sweeper's
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
    from danet.config.cross_checks import between_parts, between_sections

    if probe:
        problems += between_parts(sections, auxiliary_head=bool(rest.get("auxiliary_head")))
    if problems:
        raise ConfigError(problems)
    config = RunConfig(**values, **sections)
    if problems := between_sections(config):
        raise ConfigError(problems)
    return config


def _without_steps(composed: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration without a recipe's train.steps, for train.epochs is on the command line.

    Raises:
        ConfigError: train.steps is there, too.
    """
    if _given("train.steps", overrides):
        raise ConfigError(
            ["train.epochs, train.steps: both are on the command line and say how long; give one of them"]
        )
    composed = composed.copy()
    if OmegaConf.select(composed, "train.steps") is not None:
        composed.train.steps = None
    return composed


def _given(name: str, overrides: Sequence[str]) -> bool:
    """Whether a command line sets a key of a section to something, by itself or as section={key: value, ...}."""
    section, key = name.split(".")
    pattern = rf"\+*{section}(?:\.{key}\s*=|=\{{(?:.*[ ,])?{key}\s*:)\s*(?P<value>.*)"
    values = [found["value"] for override in overrides if (found := re.match(pattern, override))]
    return bool(values) and not re.match(r"null\b", values[-1])


def quoted(text: str) -> str:
    """A text in quotes, as Hydra's grammar takes any."""
    # In quotes a backslash is itself, but before a quote, where it must be doubled.
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text) + "'"


def unquoted(value: str) -> str:
    """The reverse of `quoted`, for double quotes, too; a value without quotes stays as it is."""
    if not re.fullmatch(r"""(["']).*\1""", value, re.DOTALL):
        return value
    return re.sub(rf"(\\*)({value[0]}|$)", lambda found: found[1][: len(found[1]) // 2] + found[2], value[1:-1])


def shell_word(argument: str) -> str:
    """An argument as a shell takes it, for commands that people copy; square brackets stay as they are."""
    return argument if re.fullmatch(r"[\w@%+=:,./\[\]-]*", argument) else shlex.quote(argument)


def check_arguments(
    arguments: Sequence[str], primary: str | None = "train", folders: Sequence[Path] | None = ()
) -> None:
    """Check the names on a command line against the YAML files, before Hydra does: it suggests nothing.

    Args:
        arguments: of the script, such as `backbone=resnet50` or `head.aux_loss=true`.
        primary: name of the script's primary configuration; None for one of the user's own, whose keys are unknown
            here.
        folders: with options of the user's own, besides conf/ and experiments/. None: they are unknown, and so is
            which options there are.

    Raises:
        ConfigError: an option of a group, or a key without "+", is not there.
    """
    own = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "conf" / f"{primary}.yaml")) if primary else {}
    assert isinstance(own, dict)
    groups = _groups(own)
    problems = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key.lstrip("+") == "hydra.run.dir":
            problems.append(RUN_DIR)
        if not equals or key.partition(".")[0] == "hydra":
            continue
        if re.fullmatch(r"\+\w+", key) and key[1:] in groups:
            problems.append(f"{argument}: {key[1:]} has an option already; leave out the +: {argument[1:]}")
        if primary and "recipe" not in groups and re.fullmatch(r"[\w.]+", key):  # recipes may add keys
            problems += _unknown_key(key, {**own, **groups})
        if folders is not None:
            problems += _unknown_option(key, value, folders)
    if problems:
        raise ConfigError(problems)


RUN_DIR = (
    "hydra.run.dir: not used here; a run's folder is outputs/<date>/<time>_<name>, and the environment variable "
    "DANET_OUTPUTS=FOLDER takes the place of outputs/"
)


def _groups(primary: dict[Any, Any]) -> dict[str, None]:
    """The groups in a primary configuration's defaults list."""
    entries = [entry for entry in primary.get("defaults", ()) if isinstance(entry, dict)]
    return {name: None for entry in entries for name in entry if " " not in name}


def _unknown_option(key: str, value: str, own_folders: Sequence[Path]) -> list[str]:
    """Lines for the options of a group that are not there, or for a key that none of its options has."""
    group, _, rest = key.partition(".")
    if not group.isidentifier():
        return []
    places = (REPOSITORY / "conf", REPOSITORY / "experiments", *own_folders)
    files = {file.stem: file for place in places for file in (place / group).glob("*.yaml")}
    if not files:
        return []
    if not rest:
        options = [option for option in value.split(",") if option.isidentifier() and option != "null"]
        hints = {o: did_you_mean(o, list(files)) for o in options if o not in files}
        own = "" if own_folders else " (extensions=FOLDER adds your own)"
        return [f"{group}={o}: unknown option; {hint}{own if '?' not in hint else ''}" for o, hint in hints.items()]
    keys = {str(name) for file in files.values() for name in OmegaConf.load(file)}
    if (name := rest.split(".")[0]) not in keys:
        return [f"{key}: unknown key; {did_you_mean(name, sorted(keys))}"]
    return []


def _unknown_key(key: str, section: Any) -> list[str]:
    """A line if a dotted key is neither one of a primary configuration nor of a group in its defaults list."""
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
    file = Path(unquoted(given.get("run", ""))).expanduser() / "config.yaml"
    if "run" not in given or "dataset" in given or not file.is_file():
        return list(arguments)
    section = read_saved(file.parent).get("dataset")
    if not isinstance(section, dict) or "name" not in section:
        raise ConfigError([f"{file}: has no section dataset with a name"])
    options = [f"dataset.{key}={_hydra_text(value)}" for key, value in section.items() if key != "name"]
    return [f"dataset={section['name']}", *options, *arguments]


def with_changes_of_resume(arguments: Sequence[str]) -> list[str]:
    """A command line of src/train.py whose keys may be those of the run that `resume=FOLDER` names.

    They need not be in what is composed, which has the data set of the recipe, say: "++" lets Hydra add them.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if given.get("resume", "null") in ("", "null", "auto"):
        return list(arguments)
    return [f"++{a}" if re.match(r"\w+(\.\w+)+=", a) and not a.startswith("hydra.") else a for a in arguments]


def _hydra_text(value: Any) -> str:
    """A plain value as Hydra's grammar takes it: as JSON, but for texts, which no interpolation is made of."""
    if isinstance(value, str):
        return quoted(value.replace("${", "\\${"))
    if isinstance(value, list):
        return f"[{','.join(map(_hydra_text, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_hydra_text(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


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
    saved = _parse(text or "{}")
    if saved is None:
        raise ConfigError(["its configuration is not YAML with sections"])
    raw = _without_files({**saved, **{kind: section for kind, section in given.items() if section is not None}})
    problems: list[str] = []
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

# What may change when a run is resumed; anything else would make it another run. So may paths to data, whose
# fingerprint is compared, and paths to weights, whose content is.
MAY_CHANGE = (
    *("name", "resume", "runtime.", "tracking.", "evaluate.samples", "evaluate.batch_size"),
    *("train.log_every", "train.save_every", "train.early_stop_patience"),
)


def of_run(folder: Path) -> RunConfig:
    """The configuration of an existing run, without the files that its weights started from, which may be gone.

    Raises:
        ConfigError: the folder has none, or one that this version of the code does not take.
    """
    return _checked(_without_files(read_saved(folder)))


def identity_of_run(folder: Path) -> str:
    """`RunConfig.identity` of an existing run, with the weights it started from.

    Raises:
        ConfigError: as `of_run`.
        ValueError: environment.json is damaged.
    """
    return of_run(folder).identity(initial_values_of_run(folder))


def initial_values_of_run(folder: Path) -> dict[str, str]:
    """`RunConfig.initial_values` of an existing run, as recorded when it started.

    Raises:
        ConfigError: config.yaml is missing or damaged.
        ValueError: environment.json is damaged.
    """
    file = folder / "environment.json"
    recorded = records.read_json(file).get("initial_values") if file.is_file() else None
    return recorded if recorded is not None else _initial_values(read_saved(folder))


def read_saved(folder: Path) -> dict[str, Any]:
    """A run's config.yaml as plain values. Nothing in it is resolved, for it may come from anybody.

    Raises:
        ConfigError: it is missing or damaged.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise ConfigError(
            [f"resume = {str(folder)!r}: no config.yaml there. Give a run folder, or resume=auto for the newest"]
        )
    saved = _parse(file.read_bytes().decode("utf-8", errors="replace"))
    if saved is None:
        raise ConfigError([f"{file}: not YAML with sections. Restore the file, or start a new run"])
    return saved


def _parse(text: str) -> dict[str, Any] | None:
    """YAML text with sections as plain values, nothing resolved; None where it is something else."""
    try:
        read = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, AssertionError):  # the last one of a number
        return None
    saved = OmegaConf.to_container(read, resolve=False)
    return {str(key): value for key, value in saved.items()} if isinstance(saved, dict) else None


def _resumed(composed: DictConfig, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of the run in `folder` with the command line's changes, where they leave it the same run.

    From its first checkpoint on, a run needs the files no longer that its weights started from.

    Raises:
        ConfigError: lists what would make it another run.
    """
    saved = read_saved(folder)
    wanted = _with_changes(saved, _plain(composed), overrides)
    recorded = initial_values_of_run(folder)
    started = any((folder / "checkpoints").glob("step_*.pt"))
    initial = recorded if started and _starting(wanted) == _starting(saved) else _initial_values(wanted)
    if started:
        wanted = _without_files(wanted)
    before, now = (_deciding(asdict(_checked(raw))) for raw in (_without_files(saved), wanted))
    problems = [
        f"{key} = {now.get(key)!r}: the run in {folder} has {before.get(key)!r} and can only be resumed as it is "
        "(runtime.*, tracking.* and dataset.root may change). For another run leave out resume; "
        f"init_from={folder}/checkpoints/best.pt takes its weights"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]
    problems += [
        f"{key}: other weights ({initial.get(key)}) than the run in {folder} started from ({recorded.get(key)})"
        for key in dict.fromkeys([*recorded, *initial])
        if recorded.get(key) != initial.get(key)
    ]
    if problems:
        raise ConfigError(problems)
    return {**wanted, "name": saved["name"], "resume": str(folder.resolve())}


def _with_changes(saved: Mapping[str, Any], composed: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """What the command line makes of a run's configuration.

    With a recipe or an ablation, which may set anything, it is all that was composed. Otherwise an option of a group
    gives its section, and a key its value.
    """
    keys = [o.lstrip("+").partition("=")[0] for o in overrides if "=" in o and not o.startswith(("hydra", "~"))]
    if {"recipe", "ablation", "scale"} & set(keys):
        return {key: value for key, value in composed.items() if key != "sweep"}
    wanted = copy.deepcopy(dict(saved))
    for key in [*keys, *(["train.steps"] if "train.epochs" in keys else [])]:  # which it replaces
        *path, last = key.split(".")
        target, source = wanted, composed
        for name in path:
            target, source = target.setdefault(name, {}), source[name]
        target[last] = source[last]
    return wanted


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted key, what decides a run's result besides the content of the files that it reads."""
    paths = {*_starting(config), *_options_of_type(config, ExistingFile), *_options_of_type(config, Folder)}
    return {k: v for k, v in _flat(config).items() if not k.startswith(MAY_CHANGE) and k not in {*paths, "init_from"}}


def _initial_values(config: Mapping[str, Any]) -> dict[str, str]:
    return {key: _content(value) for key, value in _starting(config).items()}


def _starting(config: Mapping[str, Any]) -> dict[str, str]:
    """By dotted key, the files (or names, such as "imagenet") that a configuration's weights start from."""
    values = {**_options_of_type(config, ExistingFile), "init_from": config.get("init_from")}
    return {key: value for key, value in values.items() if value}


def _without_files(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with random initial values."""
    plain = copy.deepcopy(dict(config))
    for key in _starting(config):
        kind, _, option = key.partition(".")
        plain.pop(kind) if not option else plain[kind].pop(option)
    return plain


def _options_of_type(config: Mapping[str, Any], wanted: Any) -> dict[str, Any]:
    """By dotted key, the values of the components' options whose annotation has `wanted` among its alternatives."""
    found = {}
    for kind, components in COMPONENTS.items():
        section = config.get(kind)
        if isinstance(section, Mapping) and section.get("name") in components:
            options = [k for k, p in components.schema(section["name"]).items() if takes(p.annotation, wanted)]
            found.update({f"{kind}.{key}": section[key] for key in options if key in section})
    return found


def _content(value: str) -> str:
    """What a path to weights stands for: a hash of the file's content, or the value itself where it is no file."""
    file = Path(value).expanduser()
    if not file.is_file():
        return f"{value} (no such file)" if file.is_absolute() else value
    with file.open("rb") as opened:
        return f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
