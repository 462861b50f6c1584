"""Scores of a split against counts made by other means."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from danet.config.sections import InferenceConfig
from danet.datasets.shapes import Shapes
from danet.evaluation.evaluate import ScoredPicture, Share, evaluate
from danet.inference.views import predict_labels
from danet.interfaces import IGNORE, Sample
from danet.metrics.calibration import Calibration
from danet.model import build_model
from danet.services import distributed
from danet.services.compute import Compute
from danet.services.distributed import World
from danet.services.nonfinite import NonFiniteError

CPU = torch.device("cpu")
SIZES = [(33, 47), (40, 31), (25, 25), (64, 39), (31, 50)]


class OddSizes:
    """Random images, no two of a size; the label's size is the image's. Class 3 never occurs in the truth."""

    class_names: ClassVar = ("a", "b", "c", "d")
    palette: ClassVar = ((0, 0, 0),) * 4
    description = "random"

    def __len__(self) -> int:
        return len(SIZES)

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        label = rng.choice([0, 1, 2, IGNORE], size=SIZES[index], p=[0.5, 0.2, 0.1, 0.2]).astype(np.uint8)
        if index == 2:
            label[:] = IGNORE
        return Sample(rng.integers(0, 256, (*SIZES[index], 3), np.uint8), label, f"image{index}")


def make_model(num_classes: int = 4) -> Any:
    """A network with random weights and batch statistics that has something to say about every class."""
    model = build_model(
        {"name": "resnet_tiny", "widths": [8, 8, 8, 16]}, {"name": "danet", "reduction": 4}, num_classes, seed=1
    )
    images = torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(20):
            model.train()(images)
        logits = model.eval()(images)["main"]
        model.head.classifier[-1].bias -= logits.mean(dim=(0, 2, 3))  # else one class may win everywhere
    return model


def predictions(model: Any, dataset: Any) -> list[np.ndarray]:
    """Per image: logits at stride 8, resized to the label, the largest wins."""
    model.eval()
    found = []
    for index in range(len(dataset)):
        image, label, _ = dataset[index]
        with torch.no_grad():
            logits = model(torch.from_numpy(image).permute(2, 0, 1)[None])["main"]
            logits = F.interpolate(logits, label.shape, mode="bilinear", align_corners=True)
        found.append(logits[0].argmax(0).numpy())
    return found


def test_the_matrix_equals_a_pixel_loop_and_torchmetrics() -> None:
    from torchmetrics.classification import MulticlassConfusionMatrix  # here: other modules import this one

    data, model = OddSizes(), make_model()
    found = evaluate(model, Share(data, compute=Compute(CPU)))

    expected = np.zeros((4, 4), np.int64)
    reference = MulticlassConfusionMatrix(4, ignore_index=IGNORE)
    for index, prediction in enumerate(predictions(model, data)):
        label = data[index].label
        for truth, answer in zip(label.ravel(), prediction.ravel(), strict=True):
            if truth != IGNORE:
                expected[truth, answer] += 1
        if (label != IGNORE).any():
            reference.update(torch.from_numpy(prediction)[None], torch.from_numpy(label).long()[None])
    assert len(np.unique(np.concatenate([p.ravel() for p in predictions(model, data)]))) > 1  # worth comparing
    np.testing.assert_array_equal(found.matrix, expected)
    np.testing.assert_array_equal(found.matrix, reference.compute().numpy())
    ignored = sum(int((data[index].label == IGNORE).sum()) for index in range(len(data)))
    assert found.matrix.sum() == sum(h * w for h, w in SIZES) - ignored
    assert found.num_images == len(SIZES)

    ious = [
        expected[k, k] / union for k in range(4) if (union := expected[k].sum() + expected[:, k].sum() - expected[k, k])
    ]
    assert found.scores.miou == pytest.approx(np.mean(ious), abs=1e-15)
    assert found.scores.pixel_accuracy == pytest.approx(np.trace(expected) / expected.sum(), abs=1e-15)


def test_a_limit_scores_the_first_images_and_pictures_are_what_was_scored() -> None:
    data, model = OddSizes(), make_model()
    found = evaluate(model, Share(data, compute=Compute(CPU), max_images=2), num_pictures=8)
    assert found.num_images == 2
    assert [picture.name for picture in found.pictures] == ["image0", "image1"]
    for picture, prediction, index in zip(found.pictures, predictions(model, data), range(2), strict=False):
        np.testing.assert_array_equal(picture.image, data[index].image)
        np.testing.assert_array_equal(picture.label, data[index].label)
        np.testing.assert_array_equal(picture.prediction, prediction)
    expected = sum(int((data[index].label != IGNORE).sum()) for index in range(2))
    assert found.matrix.sum() == expected


def test_scoring_changes_nothing_in_the_model_and_draws_no_random_numbers() -> None:
    data, model = OddSizes(), make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(model, Share(data, compute=Compute(CPU), num_workers=1))
    assert not model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_split_without_a_labelled_pixel_has_no_score() -> None:
    class AllIgnored(OddSizes):
        def __getitem__(self, index: int) -> Sample:
            image, label, name = super().__getitem__(index)
            return Sample(image, np.full_like(label, IGNORE), name)

    found = evaluate(make_model(), Share(AllIgnored(), compute=Compute(CPU)))
    assert found.matrix.sum() == 0
    assert np.isnan(found.scores.miou)


def test_the_batch_size_changes_no_count() -> None:
    data, model = Shapes("val", size=72, val_images=7), make_model(num_classes=9)
    alone = evaluate(model, Share(data, compute=Compute(CPU))).matrix
    np.testing.assert_array_equal(evaluate(model, Share(data, compute=Compute(CPU), batch_size=3)).matrix, alone)


def test_every_image_is_handed_over_with_what_was_scored() -> None:
    data, model = OddSizes(), make_model()
    given: dict[int, ScoredPicture] = {}
    share = Share(data, compute=Compute(CPU))
    found = evaluate(model, share, each=lambda index, picture: given.update({index: picture}))
    assert list(given) == list(range(len(SIZES)))
    total = np.zeros((4, 4), np.int64)
    for index, picture in given.items():
        np.testing.assert_array_equal(picture.image, data[index].image)
        np.testing.assert_array_equal(picture.label, data[index].label)
        counted = picture.label != IGNORE
        before = total.copy()
        np.add.at(total, (picture.label[counted], picture.prediction[counted]), 1)
        np.testing.assert_array_equal(picture.matrix, total - before)
        np.testing.assert_array_equal(found.image_matrices[picture.name], total - before)
    np.testing.assert_array_equal(total, found.matrix)
    assert not found.pictures


def test_images_are_looked_at_as_the_configuration_says() -> None:
    data, model = OddSizes(), make_model()
    look = InferenceConfig(mode="slide", crop_size=(24, 24), scales=(0.75, 1.5), flip=True)
    expected = np.zeros((4, 4), np.int64)
    for index in range(len(data)):
        image, label, _ = data[index]
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
        prediction = predict_labels(model.eval(), tensor, label.shape, look)[0].numpy()
        np.add.at(expected, (label[label != IGNORE], prediction[label != IGNORE]), 1)
    found = evaluate(model, Share(data, compute=Compute(CPU)), inference=look)
    np.testing.assert_array_equal(found.matrix, expected)
    assert (found.matrix != evaluate(model, Share(data, compute=Compute(CPU))).matrix).any()


# ---- scores that are not finite --------------------------------------------------------------------------------------


def spoiled(model: Any, broken: list[int]) -> Any:
    """The model, but for images of these of OddSizes, of which a score is NaN."""
    forward, sizes = model.forward, {SIZES[index] for index in broken}

    def spoil(image: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = forward(image)
        if tuple(image.shape[-2:]) in sizes:
            logits["main"][-1, 1, 0, 0] = float("nan")
        return logits

    model.forward = spoil
    return model


@pytest.mark.parametrize("broken", [[0], [1, 4], [0, 1, 2, 3, 4]])
def test_images_whose_scores_are_not_finite_are_never_scored_in_silence(broken: list[int]) -> None:
    names = ", ".join(f"image{index}" for index in broken[:4])
    with pytest.raises(NonFiniteError) as refusal:
        evaluate(spoiled(make_model(), broken), Share(OddSizes(), compute=Compute(CPU)), title="scoring val")
    text = str(refusal.value)
    assert text.startswith(
        f"{names}{' ...' if len(broken) > 4 else ''}: {len(broken)} of 5 images (scoring val): the model"
    )
    assert "Its weights are finite, so the arithmetic overflows: set precision=fp32" in text


def test_scores_that_are_not_finite_are_told_where_probabilities_are_counted() -> None:
    counted = Calibration(len(OddSizes().class_names))

    def watch(indices: Any, probabilities: torch.Tensor, prediction: torch.Tensor, label: torch.Tensor) -> None:
        counted.update(probabilities, prediction, label)

    with pytest.raises(NonFiniteError, match="^image1: 1 of 5 images"):
        evaluate(spoiled(make_model(), [1]), Share(OddSizes(), compute=Compute(CPU)), confidence=watch)


def test_weights_that_are_not_finite_are_named_as_the_cause() -> None:
    model = make_model()
    model.head.classifier[1].weight.data[0, 0] = float("inf")
    with pytest.raises(
        NonFiniteError, match=r"of 5 images: .*Of its weights, 1 of \d+ tensors .*head\.classifier\.1\.weight"
    ):
        evaluate(model, Share(OddSizes(), compute=Compute(CPU)))


def test_images_of_the_other_processes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes raise, so that none waits for another."""
    monkeypatch.setattr(distributed, "gather", lambda value: [value, ["image3"]])
    with pytest.raises(NonFiniteError, match=r"^image3: 1 of 5 images"):
        evaluate(make_model(), Share(OddSizes(), compute=Compute(CPU, world=World(0, 2))))
