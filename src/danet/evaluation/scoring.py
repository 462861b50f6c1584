"""Scores a trained model by the book, and writes the folder with all that there is to know of the result.

The folder has result.json, per_class.csv, per_image.csv, confusion_matrices.npz (of each image), confusion_matrix.png,
worst/ and best/ (pictures) and, where asked for, predictions/. It appears when it is complete.
"""

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from danet import config, metrics
from danet.arguments import ExistingFolder, Folder, NonNegativeInt, PositiveInt
from danet.config.sections import InferenceConfig, ModelSource, RuntimeConfig
from danet.data.cache import cached
from danet.data.check import Images, check, images_of, mixed_evaluation_batch
from danet.data.loader import ending
from danet.evaluation import evaluate as evaluation
from danet.evaluation.image_scores import ImageScores
from danet.inference.predictor import Predictor, load
from danet.interfaces import SegmentationDataset
from danet.registry import DATASETS
from danet.schema import ConfigError
from danet.services import atomic_files, console, distributed, failures, figures, hardware, provenance, tables
from danet.services.compute import Compute
from danet.services.nonfinite import NonFiniteError
from danet.sweeps.sweep import finished_runs

log = logging.getLogger(__name__)

# Where that runs out.
MEMORY = "try evaluate.mode=slide with a smaller evaluate.crop_size, evaluate.batch_size=1 or fewer runtime.num_workers"


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(InferenceConfig):
    """How to look at the images, and what to keep of them."""

    batch_size: PositiveInt = 1  # images of equal size at a time
    max_images: PositiveInt | None = None  # score only the first so many
    samples: NonNegativeInt = 8  # pictures of so many of the worst images, and of the best
    save_predictions: bool = False  # every image's prediction as PNG


@dataclass(frozen=True, kw_only=True)
class ScoringConfig(ModelSource):
    """What to score, on which images, and where the result goes."""

    dataset: dict[str, Any]
    sweep: ExistingFolder | None = None  # each of its finished runs that has no such evaluation yet, instead of `run`
    split: Literal["val", "test", "train"] = "val"
    output: Folder | None = None  # must be new; None: one in RUN/evaluations, for a file in outputs/evaluations
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where the hardware computes it natively
    protocol: str | None = None  # the published one that `evaluate` follows; see conf/protocol/
    evaluate: ScoringOptions = field(default_factory=ScoringOptions)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def problems(self) -> list[str]:
        """What is wrong between the keys, a line each."""
        lines = super().problems()
        if self.sweep and self.output:
            lines.append("output: belongs to one run; leave it out with sweep=FOLDER")
        if self.output and Path(self.output).exists():
            lines.append(f"output = {self.output!r}: is there already; name a new folder, or remove it")
        return lines


def score(scoring: ScoringConfig) -> tuple[dict[str, Any], Path]:
    """Score a model, on all devices that are wanted.

    Returns:
        What result.json has, and its folder.

    Raises:
        ConfigError: model and data do not fit together, or the folder cannot be made.
        ValueError: the model or the data are missing or damaged.
        NonFiniteError: what the model says of an image is not finite.
        OSError: the folder cannot be written.
        ResourceError: there is not enough memory, or no compiler.
        ChildProcessError: one of several processes failed, with any of these or otherwise.
    """
    expected = (ConfigError, ValueError, OSError, NonFiniteError, failures.ResourceError)
    return distributed.launch(_score, scoring.runtime.devices, scoring, expected=expected)


def score_sweep(scoring: ScoringConfig) -> None:
    """Score each finished run of a sweep that has no such evaluation yet; `score` says what may go wrong."""
    name = evaluation_name(scoring)
    runs = finished_runs(Path(str(scoring.sweep)))
    todo = [run for run in runs if not (run / "evaluations" / name / "result.json").is_file()]
    log.info("%s: %d of %d finished runs have %s already", scoring.sweep, len(runs) - len(todo), len(runs), name)
    for number, run in enumerate(todo, 1):
        log.info("run %d of %d: %s", number, len(todo), run)
        score(replace(scoring, sweep=None, run=str(run)))


def _score(scoring: ScoringConfig) -> tuple[dict[str, Any], Path]:
    """One process's part: look whether everything is there and fits, then score, then write."""
    runtime = scoring.runtime
    hardware.set_determinism(runtime.deterministic)
    device = hardware.select_device(runtime.device, distributed.local_rank())
    with distributed.process_group(device) as world:
        compute = Compute(device, hardware.autocast_dtype(scoring.precision, device), world)
        console.setup_logging(None)
        if not world.is_main:
            logging.getLogger("danet").setLevel(logging.ERROR)
        if scoring.runtime.compile and device.type == "cpu" and (lack := failures.missing_compiler()):
            raise ConfigError([lack])
        if device.type == "mps" and scoring.evaluate.combine == "official":
            raise ConfigError(["evaluate.combine = 'official': needs float64, which MPS lacks; use runtime.device=cpu"])
        words = look(scoring)
        dataset = _open(scoring)
        weights = scoring.run or str(scoring.checkpoint)
        predictor = load(weights, device="cpu", backbone=scoring.backbone, head=scoring.head)
        check_classes(predictor, dataset)
        if world.is_main and getattr(dataset, "labelled", True):
            report = check(
                dataset, cache_dir=config.OUTPUTS / ".cache", workers=runtime.num_workers, split=scoring.split
            )
            _check_batches(scoring, images_of(dataset, report), world.size)
        dataset = cached(dataset, runtime.cache, runtime.cache_gib, auto=config.OUTPUTS / "cache")
        final, part = distributed.from_main(_folders(scoring) if world.is_main else None)
        try:
            with failures.explained(MEMORY), atomic_files.naming(final):
                result = _evaluate(scoring, predictor, dataset, compute, part)
                if world.is_main:
                    final = _publish(part, final)
        except BaseException:
            if world.is_main:
                shutil.rmtree(part, ignore_errors=True)
            raise
        if world.is_main:
            if any(result["pixels"].values()):
                title = f"{dataset.description}, {scoring.split}, {result['num_images']} images; {words}"
                console.print_evaluation(title, result)
            log.info("evaluation folder %s", final)
        return result, final


def _evaluate(
    scoring: ScoringConfig,
    predictor: Predictor,
    dataset: SegmentationDataset,
    compute: Compute,
    folder: Path,
) -> dict[str, Any]:
    """Score, write everything, and return what result.json has."""
    options, names, started = scoring.evaluate, dataset.class_names, time.monotonic()
    model = predictor.model.to(compute.device)
    if scoring.runtime.compile:
        model.compile(dynamic=True)
    images = ImageScores(dataset, options.samples, folder / "predictions" if options.save_predictions else None)
    share = evaluation.Share(
        dataset,
        compute=compute,
        batch_size=options.batch_size,
        max_images=options.max_images,
        num_workers=scoring.runtime.num_workers,
    )
    title = f"scoring {scoring.split}"
    with ending(share.loader):
        scored = evaluation.evaluate(model, share, inference=options, each=images.add, title=title)
    seconds = time.monotonic() - started
    images.share()
    boundary = dict(zip(names, images.boundary_iou.tolist(), strict=True))
    result = scored.result() | {"boundary_iou": boundary, "boundary_miou": metrics.defined_mean(images.boundary_iou)}
    if compute.world.is_main and scored.matrix.any():
        images.write(folder)
        if scored.image_matrices:
            tables.write_matrices(folder / "confusion_matrices.npz", scored.image_matrices, names)
        columns = [list(result[key].values()) for key in ("iou", "accuracy", "boundary_iou", "pixels")]
        header = ("class", "iou", "accuracy", "boundary_iou", "pixels")
        tables.write_csv(folder / "per_class.csv", header, list(zip(names, *columns, strict=True)))
    result |= {
        "split": scoring.split,
        "dataset": dataset.description,
        "dataset_fingerprint": dataset.fingerprint(),
        "protocol": protocol_followed(scoring),
        "inference": {key.name: getattr(options, key.name) for key in fields(InferenceConfig)},
        "batch_size": options.batch_size,
        "max_images": options.max_images,
        "run": scoring.run,
        "checkpoint": predictor.facts["checkpoint"],
        "step": predictor.facts.get("step"),
        "checkpoint_sha256": _sha256(Path(predictor.facts["checkpoint"])),
        "dtype": str(compute.dtype).removeprefix("torch."),
        "device": hardware.describe(compute.device),
        "devices": compute.world.size,
        "seconds": seconds,
        "environment": provenance.environment(config.REPOSITORY),
    }
    if compute.world.is_main:
        atomic_files.write_json(folder / "result.json", result)
    _draw(images, scored, names, folder, compute.world)
    distributed.barrier()
    return result


def _draw(
    images: ImageScores,
    scored: evaluation.Evaluation,
    class_names: Sequence[str],
    folder: Path,
    world: distributed.World,
) -> None:
    """Draw this process's images and the confusion matrix; where that fails, the scores are kept all the same."""
    try:
        images.draw(folder, show_progress=world.is_main)
        if world.is_main and scored.matrix.any():
            figures.plot_confusion_matrix(scored.matrix, class_names, folder / "confusion_matrix.png")
    except Exception as error:
        log.warning("some pictures are missing, drawing failed (%s: %s)", type(error).__name__, error)


def _open(scoring: ScoringConfig) -> SegmentationDataset:
    """The split; where its labels are not public, its images alone, if only predictions are wanted of it."""
    options = {key: value for key, value in scoring.dataset.items() if key != "name"}
    kind: Any = DATASETS[scoring.dataset["name"]]
    if scoring.split == "test" and scoring.evaluate.save_predictions and hasattr(kind, "for_server"):
        return kind.for_server(**options)
    return kind(scoring.split, **options)


def _check_batches(scoring: ScoringConfig, images: Images, processes: int) -> None:
    """See whether every batch has images of one size.

    Raises:
        ConfigError: one does not.
    """
    options = scoring.evaluate
    problem = mixed_evaluation_batch(
        images, batch_size=options.batch_size, max_images=options.max_images, processes=processes
    )
    if problem:
        raise ConfigError([problem])


def check_classes(predictor: Predictor, dataset: SegmentationDataset) -> None:
    """See whether the model's classes are those of the data.

    Raises:
        ConfigError: their number or their names differ.
    """
    own, wanted = predictor.class_names, tuple(dataset.class_names)
    where = f"{predictor.facts['checkpoint']} does not fit {dataset.description}"
    remedy = "take the data set that it was trained on (dataset=...)"
    if len(own) != len(wanted):
        raise ConfigError([f"{where}: it has {len(own)} classes, the data {len(wanted)}; {remedy}"])
    unnamed = tuple(f"class {index}" for index in range(len(own)))  # the names of a file that has none
    pairs = zip(range(len(own)), own, wanted, strict=True)
    differ = [f"class {index} is {a!r}, in the data {b!r}" for index, a, b in pairs if a != b]
    if own != unnamed and differ:
        raise ConfigError([f"{where}: {'; '.join(differ[:3])}; {remedy}"])


def protocol_followed(scoring: ScoringConfig) -> str | None:
    """The protocol's name, with what differs from it; None where none is followed.

    Raises:
        ConfigError: it is not known.
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
    """How the images are looked at, in words."""
    if protocol := protocol_followed(scoring):
        return protocol
    options = scoring.evaluate
    words = ["slide {}x{}".format(*options.crop_size) if options.mode == "slide" and options.crop_size else "whole"]
    if tuple(options.scales) != (1.0,):
        words.append(f"{len(options.scales)} scales" if len(options.scales) > 1 else f"scale {options.scales[0]:g}")
    return ", ".join([*words, *(["flip"] if options.flip else [])])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- the folder ------------------------------------------------------------------------------------------------------


def evaluation_name(scoring: ScoringConfig) -> str:
    """Name of the folder in a run's evaluations/, such as test_whole."""
    return re.sub(r"[^\w.-]+", "_", f"{scoring.split} {look(scoring)}")


def _folders(scoring: ScoringConfig) -> tuple[Path, Path]:
    """Where the result is to be, and the folder beside it, newly made, where it is put together.

    Raises:
        ConfigError: the folder cannot be made.
    """
    name = evaluation_name(scoring)
    if scoring.output:
        final = Path(scoring.output)
    elif scoring.run:
        final = Path(scoring.run) / "evaluations" / name
    else:
        final = config.OUTPUTS / "evaluations" / f"{Path(str(scoring.checkpoint)).stem}_{name}"
    part = final.with_name(f".{final.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise ConfigError([f"output: {final} cannot be made ({error}); name another folder, output=FOLDER"]) from None
    return final, part


def _publish(part: Path, final: Path) -> Path:
    """Move the complete folder to its place or, where that is taken, to one with a number behind the name."""
    places = itertools.chain([final], (final.with_name(f"{final.name}_{number}") for number in itertools.count(2)))
    return part.rename(next(place for place in places if not place.exists()))
