"""Problems of a configuration whose sections are each valid.

Nothing is trained and no image is opened: files are listed, heads are tried on small empty maps. data_checks.py opens
the images.
"""

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danet import registry, schedules
from danet.registry import did_you_mean
from danet.services import failures
from danet.services.text import position

if TYPE_CHECKING:
    from danet.config.run_config import RunConfig


def between_sections(config: "RunConfig") -> list[str]:
    """What is wrong between sections, a line each."""
    train, problems = config.train, []
    parts = config.runtime.devices * train.accumulate_steps
    if train.batch_size % parts:
        problems.append(
            f"train.batch_size = {train.batch_size}: must be a multiple of runtime.devices * train.accumulate_steps, "
            f"which is {parts}"
        )
    problems += _class_problems(config)
    problems += _normalization_problems(config)
    if config.init_from:
        problems += _checkpoint_problems(config)
    return problems


def _normalization_problems(config: "RunConfig") -> list[str]:
    """Numbers to normalize by that do not fit the images."""
    given = config.mean_and_std
    if given is None:
        return []
    if given.keys() != {"mean", "std"}:
        return [f"normalization = {dict(given)!r}: must be backbone, data or {{mean: [...], std: [...]}}"]
    counts = [len(given[key]) for key in ("mean", "std")]
    if counts != 2 * [config.in_channels]:
        text = f"has {counts[0]} means and {counts[1]} deviations; images have {config.in_channels} channels"
        return [f"normalization = {dict(given)!r}: {text}"]
    return [] if all(given["std"]) else [f"normalization = {dict(given)!r}: a deviation must be more than 0"]


def with_classes(dataset: Mapping[str, Any]) -> Any:
    """What has the class names and the palette of a data set: its type, or its training split if the files decide.

    Raises:
        ValueError: the files are not there, or are unfit.
    """
    kind: Any = registry.DATASETS[dataset["name"]]
    named = isinstance(getattr(kind, "class_names", None), Sequence)
    return kind if named else registry.DATASETS.build(dataset, "train")


def _class_problems(config: "RunConfig") -> list[str]:
    """Weights and names that are not those of the data set's classes."""
    from danet.data.augment import class_problems, named_classes

    weights, rare, named = config.loss.get("class_weights"), config.train.rare_classes, named_classes(config.augment)
    if not (isinstance(weights, list) or rare or named):
        return []  # a data set may have to list its files to tell its classes
    dataset = config.dataset["name"]
    try:
        names = with_classes(config.dataset).class_names
    except ValueError:
        return []  # between_parts tells it
    problems = [
        f"train.rare_classes = {name!r}: no class of {dataset}; {did_you_mean(name, list(names))}"
        for name in rare
        if position(name, names) is None
    ]
    if isinstance(weights, list) and len(names) != len(weights):
        problems.append(f"loss.class_weights: {len(weights)} weights, {dataset} has {len(names)} classes")
    return problems + class_problems(config.augment, names)


def between_parts(fields: Mapping[str, Any]) -> list[str]:
    """What only shows when parts meet: files that are not there, a head that does not fit, outputs without a weight.

    Args:
        fields: of a RunConfig, checked; None for a section with problems of its own, which is left out here.
    """
    problems = [*_compiler_problems(fields), *_dataset_problems(fields)]
    if not fields["backbone"] or not fields["head"]:
        return problems
    try:
        body, head, outputs = _tried(fields)
    except ValueError as error:
        return [*problems, str(error)]
    problems += _capability_problems(fields, body, head)
    return problems + (_weight_problems(fields["loss"]["weights"], outputs) if fields["loss"] else [])


def _compiler_problems(fields: Mapping[str, Any]) -> list[str]:
    """Whether there is a compiler for runtime.compile."""
    import torch

    runtime = fields["runtime"]
    if not runtime or not runtime.compile:
        return []
    others = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_cpu = runtime.device == "cpu" or (runtime.device == "auto" and not others)
    return [lack] if on_cpu and (lack := failures.missing_compiler()) else []


def _dataset_problems(fields: Mapping[str, Any]) -> list[str]:
    """Whether the data set finds its files and has classes to tell apart."""
    dataset, evaluate = fields["dataset"], fields["evaluate"]
    for split in dict.fromkeys(("train", evaluate.split if evaluate else "val")) if dataset else ():
        try:
            with _without_warnings():
                names = registry.DATASETS.build(dataset, split).class_names
        except ValueError as error:
            return [f"dataset: {error}"]
        if len(names) < 2:
            return [
                f"dataset {dataset['name']}: has one class ({', '.join(names)}), which is always right; name the "
                "background as a class of its own"
            ]
    return []


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """No warnings of a data set: the run opens it again, and they are logged then."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def _tried(fields: Mapping[str, Any]) -> tuple[Any, Any, list[str]]:
    """The backbone, the head and the names of the outputs in training, from a run on small empty maps.

    Raises:
        ValueError: one refuses its options, or they do not fit.
    """
    import torch

    from danet.model import stages_of

    backbone, head = fields["backbone"], fields["head"]
    try:
        with torch.device("meta"):  # channels alone: no memory, no time, and no weights from a file
            bare = {key: False if key == "pretrained" else value for key, value in backbone.items()}
            body = registry.BACKBONES.build(bare)
            shapes = [feature.shape for feature in body.eval()(torch.zeros(2, body.in_channels, 64, 64))]
    except ValueError as error:
        raise ValueError(f"backbone {backbone['name']}: {error}") from error
    try:
        classifier = registry.HEADS.build(head, stages_of(body), 2)  # any number of classes serves
        outputs = list(classifier.train()([torch.zeros(shape) for shape in shapes]))
    except ValueError as error:
        raise ValueError(f"head {head['name']} on backbone {backbone['name']}: {error}") from error
    return body, classifier, [*outputs, *(["aux"] if fields.get("auxiliary_head") else [])]


def _capability_problems(fields: Mapping[str, Any], body: Any, head: Any) -> list[str]:
    """Options that ask of a backbone or a head what it cannot do."""
    name, problems = fields["backbone"]["name"], []
    if fields["runtime"] and fields["runtime"].recompute:
        try:
            body.recompute = not body.recompute
        except (AttributeError, ValueError):
            problems.append(f"runtime.recompute = True: backbone {name} cannot recompute. Set it to false")
    decay = (fields.get("optimizer") or {}).get("layer_decay")
    if decay is not None and not _has_groups(body):
        problems.append(f"optimizer.layer_decay = {decay}: backbone {name} has no layer groups. Set it to null")
    shown = fields["tracking"].attention_images if fields["tracking"] else 0
    if shown and not getattr(head, "attention_modules", dict)():
        text = f"head {fields['head']['name']} has no attention to show. Set it to 0, or use head=danet"
        problems.append(f"tracking.attention_images = {shown}: {text}")
    return problems


def _has_groups(body: Any) -> bool:
    try:
        return bool(body.layer_groups())
    except (AttributeError, ValueError):
        return False


def _weight_problems(weights: Mapping[str, float], outputs: list[str]) -> list[str]:
    """Outputs without a weight, weights without an output."""
    from danet.losses.segmentation_loss import OUTPUT_WEIGHTS, weight_of

    problems = [
        f"loss.weights: the model has an output {name!r}; give its weight, such as loss.weights.{name}=0.4"
        for name in outputs
        if weight_of(name, weights) is None
    ]
    problems += [
        f"loss.weights.{name}: no model has this output; {did_you_mean(name, outputs)}"
        for name in weights
        if name not in {*outputs, *OUTPUT_WEIGHTS}
    ]
    if not any(weight_of(name, weights) for name in outputs):
        problems.append(f"loss.weights: all are 0 for this model's outputs ({', '.join(outputs)}); nothing would train")
    return problems


def _checkpoint_problems(config: "RunConfig") -> list[str]:
    """Whether the weights to start from can be read."""
    from danet.config import resolve
    from danet.services import weights

    try:
        stored = weights.read(Path(str(config.init_from)))
    except ValueError as error:
        return [f"init_from: {error}"]
    trained = (resolve.parse(stored.config or "{}") or {}).get("normalization")
    if isinstance(trained, Mapping) and config.normalization == "backbone":
        given = ", ".join(f"{key}: [{', '.join(f'{value:g}' for value in values)}]" for key, values in trained.items())
        return [f"init_from: its weights were trained with other numbers; add 'normalization={{{given}}}', or data"]
    return []


def warnings(config: "RunConfig", num_images: int) -> list[str]:
    """Settings that are valid but probably unintended, a line each.

    Args:
        config: the run.
        num_images: images of the training split.
    """
    train, schedule, lines = config.train, config.schedule, []
    if config.normalization != "backbone" and config.backbone.get("pretrained"):
        text = f"backbone.pretrained={config.backbone['pretrained']} was trained with its own"
        lines = [f"normalization: {text}; normalization=backbone suits these weights better"]
    frozen = [key for key in ("freeze", "freeze_batchnorm") if config.backbone.get(key)]
    if frozen and not config.resume and not (config.init_from or config.backbone.get("pretrained")):
        keys = ", ".join(f"backbone.{key}" for key in frozen)
        lines.append(f"{keys}: freezes random weights; set backbone.pretrained or init_from")
    unheard = [key for key in ("alerts", "log_checkpoint") if getattr(config.tracking, key)]
    if unheard and config.tracking.mode == "tensorboard":
        lines.append(f"{', '.join(f'tracking.{key}' for key in unheard)}: without effect in TensorBoard")
    epoch, total = num_images / train.batch_size, train.total_steps(num_images)
    if schedules.to_steps(schedule.get("warmup", 0), epoch) >= total:
        lines.append(f"schedule.warmup = {schedule['warmup']}: the run of {total} steps ends before the warm-up does")
    # A run by epochs may end in a step that only a part of an epoch is left for: a decay there has no effect.
    looked_at = train.steps or math.floor(schedules.exact_steps(train.epochs, num_images, train.batch_size))
    bare = schedules.build_schedule({**schedule, "warmup": 0}, total, epoch)
    if schedule["name"] == "constant" or not schedules.never_changes(bare, looked_at):
        return lines
    options = ", ".join(f"{k}={v}" for k, v in schedule.items() if k not in ("name", "warmup", "warmup_factor"))
    return [
        *lines,
        f"schedule {schedule['name']} ({options}) never takes effect in {total} steps ({total / epoch:g} epochs): "
        "the learning rate stays as it is",
    ]
