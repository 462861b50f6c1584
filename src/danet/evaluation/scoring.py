"""Scores a trained model and writes the evaluation folder.

The folder has result.json, per_class.csv, per_image.csv, confusion_matrices.npz (of each image), confusion_matrix.png,
worst/ and best/ (pictures) and, where asked for, predictions/ and calibration.png. It appears when it is complete.
"""

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from danet import config, metrics
from danet.data.batch_sizes import Images, images_of, mixed_evaluation_batch
from danet.data.cache import cached
from danet.data.check import check
from danet.data.loader import ending
from danet.evaluation import evaluate as evaluation
from danet.evaluation import tracked
from danet.evaluation.checks import check_classes
from danet.evaluation.confidence import Confidence, wanted_confidence
from danet.evaluation.folder import draw, open_folder, publish, write_tables
from danet.evaluation.image_scores import ImageScores
from danet.evaluation.options import ScoringConfig, inference_options, look, protocol_followed
from danet.inference import temperature
from danet.inference.predictor import Predictor, load
from danet.interfaces import SegmentationDataset
from danet.registry import DATASETS, options_of
from danet.schema import ConfigError
from danet.services import atomic_files, console, distributed, failures, hardware, provenance
from danet.services.compute import Compute
from danet.services.nonfinite import NonFiniteError
from danet.services.score_tables import print_evaluation

log = logging.getLogger(__name__)

# Remedy if memory runs out.
MEMORY = "try evaluate.mode=slide with a smaller evaluate.crop_size, evaluate.batch_size=1 or fewer runtime.num_workers"


def score(scoring: ScoringConfig) -> tuple[dict[str, Any], Path]:
    """Score a model on the configured devices.

    Returns:
        The content of result.json, and its folder.

    Raises:
        ConfigError: model and data do not fit together, or the folder cannot be made.
        ValueError: the model or the data are missing or damaged.
        NonFiniteError: the model's scores for an image are not finite.
        OSError: the folder cannot be written.
        ResourceError: there is not enough memory, or no compiler.
        ChildProcessError: one of several processes failed, with any of these or otherwise.
    """
    expected = (ConfigError, ValueError, OSError, NonFiniteError, failures.ResourceError)
    return distributed.launch(_score, scoring.runtime.devices, scoring, expected=expected)


def _score(scoring: ScoringConfig) -> tuple[dict[str, Any], Path]:
    """One process's part: check that everything exists and fits, score, write."""
    runtime = scoring.runtime
    hardware.set_determinism(runtime.deterministic)
    device = hardware.select_device(runtime.device, distributed.local_rank())
    with distributed.process_group(device, runtime.rank_timeout) as world:
        compute = Compute(device, hardware.autocast_dtype(scoring.precision, device), world)
        console.setup_logging(None)
        if not world.is_main:
            logging.getLogger("danet").setLevel(logging.ERROR)
        if scoring.runtime.compile and device.type == "cpu" and (lack := failures.missing_compiler()):
            raise ConfigError([lack])
        if device.type == "mps" and scoring.evaluate.combine == "official":
            raise ConfigError(["evaluate.combine = 'official': needs float64, which MPS lacks; use runtime.device=cpu"])
        words = look(scoring)
        dataset = open_split(scoring)
        weights = scoring.run or str(scoring.checkpoint)
        predictor = load(
            weights, device="cpu", backbone=scoring.backbone, head=scoring.head, temperature=scoring.temperature
        )
        check_classes(predictor, dataset)
        if world.is_main and getattr(dataset, "labeled", True):
            report = check(
                dataset, cache_dir=config.OUTPUTS / ".cache", workers=runtime.num_workers, split=scoring.split
            )
            _check_batches(scoring, images_of(dataset, report), world.size)
        dataset = cached(dataset, runtime.cache, runtime.cache_gib, auto=config.OUTPUTS / "cache")
        final, part = distributed.from_main(open_folder(scoring) if world.is_main else None)
        try:
            with failures.explained(MEMORY), atomic_files.naming(final):
                result, matrix = _evaluate(scoring, predictor, dataset, compute, part)
                if world.is_main:
                    final = publish(part, final)
        except BaseException:
            if world.is_main:
                shutil.rmtree(part, ignore_errors=True)
            raise
        if world.is_main:
            if any(result["pixels"].values()):
                title = f"{dataset.description}, {scoring.split}, {result['num_images']} images; {words}"
                print_evaluation(title, result)
            _mirror(scoring, result, matrix, dataset, final)
            log.info("evaluation folder %s", final)
        return result, final


def _evaluate(
    scoring: ScoringConfig,
    predictor: Predictor,
    dataset: SegmentationDataset,
    compute: Compute,
    folder: Path,
) -> tuple[dict[str, Any], np.ndarray]:
    """Score, write everything, and return what result.json has and the confusion matrix."""
    options, names, started = scoring.evaluate, dataset.class_names, time.monotonic()
    model = predictor.model.to(compute.device)
    if scoring.runtime.compile:
        model.compile(dynamic=True)
    images = ImageScores(dataset, options.samples, folder / "predictions" if options.save_predictions else None)
    sizes: dict[str, Any] = {"batch_size": options.batch_size, "max_images": options.max_images}
    share = evaluation.Share(dataset, compute=compute, num_workers=scoring.runtime.num_workers, **sizes)
    confidence = wanted_confidence(scoring, predictor, share)
    with ending(share.loader):
        scored = evaluation.evaluate(
            model,
            share,
            inference=options,
            void=options.void,
            each=images.add,
            confidence=confidence.add if confidence else None,
            title=f"scoring {scoring.split}",
        )
    seconds = time.monotonic() - started
    images.share()
    boundary = images.boundary_iou.tolist()
    result = scored.result() | {
        "boundary_iou": dict(zip(names, boundary, strict=True)),
        "boundary_miou": metrics.defined_mean(images.boundary_iou),
    }
    if compute.world.is_main and scored.matrix.any():
        write_tables(folder, scored, images, boundary, names)
    result |= _facts(scoring, predictor, dataset, compute) | {"seconds": seconds}
    if confidence:
        result |= confidence.result(predictor.class_names)
        if compute.world.is_main:
            confidence.keep_temperature(result)
    if compute.world.is_main:
        atomic_files.write_json(folder / "result.json", result)
    title = f"{dataset.description}, {scoring.split}, {share.num_images} images"
    _draw(folder, scored, images, confidence, names, compute.world, title)
    distributed.barrier()
    return result, scored.matrix


def _mirror(
    scoring: ScoringConfig, result: dict[str, Any], matrix: np.ndarray, dataset: SegmentationDataset, folder: Path
) -> None:
    """Record the scores in Weights & Biases, in the group of the run that was scored."""
    split, names, step = scoring.split, dataset.class_names, result["step"] or 0
    runs = [Path(scoring.run)] if scoring.run else []
    with tracked.mirror(scoring.tracking, "evaluate", folder, runs, asdict(scoring)) as mirror:
        mirror.log_inputs(None, {split: result["dataset_fingerprint"]})
        totals = {f"{split}/{key}": result[key] for key in ("miou", "pixel_accuracy", "mean_accuracy", "boundary_miou")}
        mirror.log({**totals, **{f"{split}/iou/{name}": iou for name, iou in result["iou"].items()}}, step)
        mirror.set_summary({key: result[key] for key in ("protocol", "checkpoint", "checkpoint_sha256", "num_images")})
        if (picture := folder / "confusion_matrix.png").is_file():
            mirror.log_confusion_matrix(matrix, names, picture, step, split)


def _facts(
    scoring: ScoringConfig, predictor: Predictor, dataset: SegmentationDataset, compute: Compute
) -> dict[str, Any]:
    """What the scores depend on."""
    options = scoring.evaluate
    return {
        "split": scoring.split,
        "dataset": dataset.description,
        "dataset_fingerprint": dataset.fingerprint(),
        "protocol": protocol_followed(scoring),
        "inference": inference_options(scoring),
        "void": options.void,
        "batch_size": options.batch_size,
        "max_images": options.max_images,
        "run": scoring.run,
        "checkpoint": predictor.facts["checkpoint"],
        "step": predictor.facts.get("step"),
        "checkpoint_sha256": temperature.sha256(Path(predictor.facts["checkpoint"])),
        "dtype": str(compute.dtype).removeprefix("torch."),
        "device": hardware.describe(compute.device),
        "devices": compute.world.size,
        "environment": provenance.environment(config.REPOSITORY),
    }


def _draw(
    folder: Path,
    scored: evaluation.Evaluation,
    images: ImageScores,
    confidence: Confidence | None,
    class_names: Sequence[str],
    world: distributed.World,
    title: str,
) -> None:
    """Draw everything; if that fails, the scores are kept."""
    try:
        draw(folder, scored, images, class_names, is_main=world.is_main)
        if confidence and world.is_main:
            confidence.draw(folder / "calibration.png", title)
    except Exception as error:
        log.warning("some pictures are missing, drawing failed (%s: %s)", type(error).__name__, error)


def open_split(scoring: ScoringConfig) -> SegmentationDataset:
    """The split; where its labels are not public, its images alone, if only predictions are wanted of it."""
    kind: Any = DATASETS[scoring.dataset["name"]]
    if scoring.split == "test" and scoring.evaluate.save_predictions and hasattr(kind, "for_server"):
        return kind.for_server(**options_of(scoring.dataset))
    return DATASETS.build(scoring.dataset, scoring.split)


def _check_batches(scoring: ScoringConfig, images: Images, processes: int) -> None:
    """Check that every batch has images of one size.

    Raises:
        ConfigError: one does not.
    """
    options = scoring.evaluate
    problem = mixed_evaluation_batch(
        images, batch_size=options.batch_size, max_images=options.max_images, processes=processes
    )
    if problem:
        raise ConfigError([problem])
