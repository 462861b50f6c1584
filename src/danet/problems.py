"""What is wrong with a configuration though each of its sections is right by itself.

Nothing here trains or opens an image: files are listed, heads are built for a feature map of 3x3.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danet import failures, registry, schedules
from danet.config import RunConfig
from danet.registry import did_you_mean


def between_sections(config: RunConfig) -> list[str]:
    """What is wrong between sections, a line each."""
    train, problems = config.train, []
    parts = config.runtime.devices * train.accumulate_steps
    if train.batch_size % parts:
        problems.append(
            f"train.batch_size = {train.batch_size}: must be a multiple of runtime.devices * train.accumulate_steps, "
            f"which is {parts}"
        )
    problems += [f"evaluate.{line}" for line in config.evaluate.problems()]
    class_weights, num_classes = config.loss.get("class_weights"), _num_classes(config)
    if isinstance(class_weights, list) and len(class_weights) != num_classes:
        problems.append(
            f"loss.class_weights: {len(class_weights)} weights, {config.dataset['name']} has {num_classes} classes"
        )
    if config.init_from:
        problems += _checkpoint_problems(config)
    return problems


def _num_classes(config: RunConfig) -> int:
    return len(registry.DATASETS[config.dataset["name"]].class_names)  # type: ignore[attr-defined]


def between_parts(sections: Mapping[str, Any], *, auxiliary_head: bool) -> list[str]:
    """What only shows when parts meet: files that are not there, a head that does not fit, outputs without a weight.

    Args:
        sections: checked sections by name; None for one with problems, which is passed over here.
        auxiliary_head: whether there is one.
    """
    import torch

    def options(section: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in section.items() if key != "name"}

    problems = []
    if (runtime := sections["runtime"]) and runtime.compile:
        others = torch.cuda.is_available() or torch.backends.mps.is_available()
        on_cpu = runtime.device == "cpu" or (runtime.device == "auto" and not others)
        if on_cpu and (lack := failures.missing_compiler()):
            problems.append(f"runtime.compile = True: {lack}")
    backbone, head, loss, dataset, evaluate = (
        sections[name] for name in ("backbone", "head", "loss", "dataset", "evaluate")
    )
    for split in dict.fromkeys(("train", evaluate.split if evaluate else "val")) if dataset else ():
        try:
            registry.DATASETS[dataset["name"]](split, **options(dataset))
        except ValueError as error:
            problems.append(f"dataset: {error}")
            break
    if not backbone or not head:
        return problems
    try:
        with torch.device("meta"):  # channels alone: no memory, no time, and no weights from a file
            body = registry.BACKBONES[backbone["name"]](
                **{key: False if key == "pretrained" else value for key, value in options(backbone).items()}
            )
        channels = body.out_channels[-1]
        classifier = registry.HEADS[head["name"]](channels, 2, **options(head))  # any number of classes serves
        outputs = [*classifier.train()(torch.zeros(2, channels, 3, 3)), *(["aux"] if auxiliary_head else [])]
    except ValueError as error:
        return [*problems, f"head {head['name']} on backbone {backbone['name']}: {error}"]
    if (shown := sections["tracking"]) and shown.attention_images:
        from danet.attention_maps import attention_modules

        if not attention_modules(classifier):
            text = f"head {head['name']} has no attention to show; set it to 0, or take head=danet"
            problems.append(f"tracking.attention_images = {shown.attention_images}: {text}")
    if not loss:
        return problems
    weights = loss["weights"]
    problems += [
        f"loss.weights: the model has an output {name!r}; give its weight, such as loss.weights.{name}=0.4"
        for name in outputs
        if name not in weights
    ]
    problems += [
        f"loss.weights.{name}: no model has this output; {did_you_mean(name, outputs)}"
        for name in weights
        if name not in {*outputs, "main", "pam", "cam", "aux"}
    ]
    if not any(weights.get(name) for name in outputs):
        problems.append(f"loss.weights: all are 0 for this model's outputs ({', '.join(outputs)}); nothing would train")
    return problems


def _checkpoint_problems(config: RunConfig) -> list[str]:
    """Whether the weights to start from can be read."""
    from danet import weights

    try:
        weights.read(Path(str(config.init_from)))
    except ValueError as error:
        return [f"init_from: {error}"]
    return []


def warnings(config: RunConfig, num_images: int) -> list[str]:
    """What is allowed but hardly meant, a line each.

    Args:
        config: the run.
        num_images: images of the training split.
    """
    train, schedule = config.train, config.schedule
    epoch, total = num_images / train.batch_size, train.total_steps(num_images)
    # A run by epochs may end in a step that only a part of an epoch is left for: a decay there has no effect.
    looked_at = train.steps or math.floor(schedules.exact_steps(train.epochs, num_images, train.batch_size))
    bare = schedules.build_schedule({**schedule, "warmup": 0}, total, epoch)
    if schedule["name"] == "constant" or not schedules.never_changes(bare, looked_at):
        return []
    options = ", ".join(f"{k}={v}" for k, v in schedule.items() if k not in ("name", "warmup", "warmup_factor"))
    return [
        f"schedule {schedule['name']} ({options}) never takes effect in {total} steps ({total / epoch:g} epochs): "
        "the learning rate stays as it is"
    ]
