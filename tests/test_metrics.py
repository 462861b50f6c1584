"""The confusion matrix and the boundaries against loops, torchmetrics, SciPy and hand-counted scores."""

import math

import numpy as np
import pytest
import torch

from danet.metrics import IGNORE, Calibration, ConfusionMatrix, boundary_counts, boundary_iou, image_scores, scores

K = 19  # in uint8 arithmetic, 18 * 19 would overflow


@pytest.fixture
def pixels():
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randint(0, K, (6, 11, 13), generator=generator)
    label = torch.randint(0, K - 1, (6, 11, 13), generator=generator)  # the last class is only predicted
    label[torch.rand(label.shape, generator=generator) < 0.2] = IGNORE
    return prediction, label


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_matrix_is_a_loop_over_pixels(pixels, dtype):
    from torchmetrics.classification import MulticlassConfusionMatrix  # takes seconds to import

    prediction, label = (tensor.to(dtype) for tensor in pixels)
    expected = np.zeros((K, K), np.int64)
    for guess, truth in zip(prediction.flatten().tolist(), label.flatten().tolist(), strict=True):
        if truth != IGNORE:
            expected[truth, guess] += 1
    confusion = ConfusionMatrix(K)
    before = prediction.clone(), label.clone()
    confusion.update(prediction, label)
    assert torch.equal(prediction, before[0])
    assert torch.equal(label, before[1])
    np.testing.assert_array_equal(confusion.matrix(), expected)
    oracle = MulticlassConfusionMatrix(K, ignore_index=IGNORE)(prediction.long(), label.long())
    assert torch.equal(confusion.matrix(), oracle)


def test_matrix_does_not_depend_on_batches_or_processes(pixels):
    whole, first, second = ConfusionMatrix(K), ConfusionMatrix(K), ConfusionMatrix(K)
    whole.update(*pixels)
    for index, (prediction, label) in enumerate(zip(*pixels, strict=True)):
        (first if index < 4 else second).update(prediction, label)
    first.counts += second.counts
    assert torch.equal(first.matrix(), whole.matrix())


def test_scores_of_logits_are_torchmetrics_and_forgotten_after_a_reset(pixels):
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    prediction, label = pixels
    logits = torch.nn.functional.one_hot(prediction, K).movedim(-1, 1).float()
    metric = ConfusionMatrix(K)
    for images, truth in zip(logits.split(2), label.split(2), strict=True):
        metric.update(images, truth)
    result = metric.compute()
    for key, oracle in (("iou", MulticlassJaccardIndex), ("accuracy", MulticlassAccuracy)):
        expected = oracle(K, average=None, ignore_index=IGNORE)(prediction, label)
        torch.testing.assert_close(
            result[key].nan_to_num(0), expected.double(), rtol=1e-6, atol=0
        )  # theirs are float32
    assert result["miou"] == pytest.approx(np.nanmean(result["iou"]))
    assert result["pixel_accuracy"] == pytest.approx((prediction == label).sum() / (label != IGNORE).sum())
    assert result["mean_accuracy"] == pytest.approx(np.nanmean(result["accuracy"]))
    metric.reset()
    assert metric.matrix().sum() == 0


@pytest.mark.parametrize("predicts_void", [False, True])
@pytest.mark.parametrize("void", ["ignore", "count"])
def test_void_is_left_out_or_counted_as_false_positives(pixels, void, predicts_void):
    """Beside a loop over pixels and torchmetrics, to which void is a class more that is left out of the mean."""
    from torchmetrics.classification import MulticlassJaccardIndex

    prediction, label = pixels
    if predicts_void:
        prediction[torch.rand(prediction.shape, generator=torch.Generator().manual_seed(1)) < 0.1] = K
    right, truth, predicted = np.zeros((3, K))
    for guess, true in zip(prediction.flatten().tolist(), label.flatten().tolist(), strict=True):
        if true != IGNORE:
            truth[true] += 1
            right[true] += guess == true
        if guess < K and (true != IGNORE or void == "count"):
            predicted[guess] += 1
    confusion = ConfusionMatrix(K, void=void, predicts_void=predicts_void)
    confusion.update(prediction, label)
    found = scores(confusion.matrix(), [str(index) for index in range(K)])
    iou = right / (truth + predicted - right)
    np.testing.assert_allclose(list(found.iou.values()), iou)
    assert found.miou == pytest.approx(iou.mean())
    assert found.pixel_accuracy == pytest.approx(right.sum() / truth.sum())  # void has no right answer
    assert list(found.pixels.values()) == truth.tolist()
    assert image_scores(confusion.matrix(), K)[1] == pytest.approx(iou[truth > 0].mean())
    assert torch.equal(confusion.matrix(), confusion.between_classes)

    oracle = MulticlassJaccardIndex(K + 1, average=None, ignore_index=K if void == "ignore" else None)
    expected = oracle(prediction, label.where(label != IGNORE, K))[:K]
    np.testing.assert_allclose(list(found.iou.values()), expected, rtol=1e-6)


def test_void_is_no_answer_of_a_model_without_an_output_for_it():
    confusion = ConfusionMatrix(3, void="count")
    confusion.update(torch.tensor([0, 3]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"1 pixels have a prediction outside 0\.\.2"):
        _ = confusion.matrix()


@pytest.mark.parametrize("label", [-1, 3, 254, 256, 300])
def test_a_label_that_is_not_a_class_is_an_error(label):
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([0, 1, 2]), torch.tensor([0, label, 255]))
    with pytest.raises(ValueError, match=r"1 pixels have a label that is neither in 0\.\.2 nor 255"):
        _ = confusion.matrix()


@pytest.mark.parametrize("prediction", [-1, 3, 255, 1000])
@pytest.mark.parametrize("label", [0, 255])
def test_a_prediction_that_is_not_a_class_is_an_error(prediction, label):
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([0, prediction, 2]), torch.tensor([0, label, 2]))
    with pytest.raises(ValueError, match=r"1 pixels have a prediction outside 0\.\.2"):
        _ = confusion.matrix()


def test_scores_counted_by_hand():
    # "only predicted" counts 0; "absent" is in neither truth nor prediction, and counts nowhere
    names = ["road", "car", "only predicted", "absent"]
    matrix = np.array([[6, 1, 1, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    result = scores(matrix, names)
    assert result.iou == pytest.approx(
        {"road": 6 / 8, "car": 2 / 3, "only predicted": 0, "absent": math.nan}, nan_ok=True
    )
    assert result.miou == pytest.approx((6 / 8 + 2 / 3 + 0) / 3)
    assert result.pixel_accuracy == pytest.approx(8 / 10)
    assert result.accuracy == pytest.approx(
        {"road": 6 / 8, "car": 1, "only predicted": math.nan, "absent": math.nan}, nan_ok=True
    )
    assert result.mean_accuracy == pytest.approx((6 / 8 + 1) / 2)
    assert result.frequency_weighted_iou == pytest.approx(0.8 * 6 / 8 + 0.2 * 2 / 3)
    assert result.pixels == {"road": 8, "car": 2, "only predicted": 0, "absent": 0}


def test_an_absent_class_is_left_out_of_the_mean():
    """Counted as 0, it would give 0.5."""
    assert scores(torch.tensor([[3, 1, 0], [0, 3, 0], [0, 0, 0]]), "abc").miou == 0.75


def test_nothing_scored_is_nan():
    confusion = ConfusionMatrix(2)
    confusion.update(torch.tensor([1, 0]), torch.tensor([255, 255]))
    result = scores(confusion.matrix(), ["a", "b"])
    for value in (result.miou, result.pixel_accuracy, result.mean_accuracy, result.frequency_weighted_iou):
        assert math.isnan(value)
    assert result.pixels == {"a": 0, "b": 0}


def test_an_image_is_scored_by_the_classes_that_its_truth_has():
    """The third class is only predicted: its pixels count against the others, not as a class of IoU 0."""
    accuracy, miou = image_scores(np.array([[6, 1, 1], [0, 2, 0], [0, 0, 0]]))
    assert accuracy == pytest.approx(8 / 10)
    assert miou == pytest.approx((6 / 8 + 2 / 3) / 2)
    assert all(math.isnan(value) for value in image_scores(np.zeros((3, 3), int)))


def boundaries_by_scipy(prediction, label, num_classes):
    """Mask by mask: what an erosion by d steps takes away is the boundary region."""
    ndimage = pytest.importorskip("scipy.ndimage")
    distance = max(1, round(0.02 * math.hypot(*label.shape)))
    counts = np.zeros((3, num_classes), np.int64)
    for k in range(num_classes):
        masks = label == k, (prediction == k) & (label != IGNORE)
        truth, guess = (m & ~ndimage.binary_erosion(m, np.ones((3, 3)), distance, border_value=0) for m in masks)
        counts[:, k] = (truth & guess).sum(), truth.sum(), guess.sum()
    return counts


@pytest.mark.parametrize("size", [(9, 7), (61, 43), (150, 201)])  # boundaries of 1, 1 and 5 pixels
def test_boundary_regions_are_what_erosion_takes_away(size):
    cv2, rng = pytest.importorskip("cv2"), np.random.default_rng(0)

    def regions():
        noise = rng.normal(size=(*size, 4)).astype(np.float32)
        return cv2.GaussianBlur(noise, (0, 0), 4).argmax(2).astype(np.uint8)

    for _ in range(4):
        prediction, label = regions(), regions()
        label[rng.random(size) < 0.003] = IGNORE
        label[2:4, 3:6] = IGNORE
        found = boundary_counts(prediction, label, 5)
        np.testing.assert_array_equal(found, boundaries_by_scipy(prediction, label, 5))
        assert found[0].sum() > 0
        assert np.isnan(boundary_iou(found)[4])


def test_boundary_iou_counted_by_hand():
    """A square of 10x10 moved by one pixel, in an image of 40x30: d = 1, so the regions are the outlines of 36 pixels.

    They cross in two pixels; nothing else of them coincides.
    """
    label, prediction = np.zeros((2, 40, 30), np.uint8)
    label[5:15, 5:15] = prediction[6:16, 6:16] = 1
    assert boundary_counts(prediction, label, 2)[:, 1].tolist() == [2, 36, 36]
    assert boundary_iou(boundary_counts(prediction, label, 2))[1] == pytest.approx(2 / 70)


def test_ignored_pixels_make_no_difference_to_the_boundaries():
    """Whatever is predicted there; and a prediction that is right elsewhere is perfect."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (12, 10)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
    label[30:60, 20:40] = IGNORE
    right = np.where(label == IGNORE, 1, label).astype(np.uint8)
    other = np.where(label == IGNORE, 2, label).astype(np.uint8)
    assert (boundary_iou(boundary_counts(right, label, 3)) == 1).all()
    np.testing.assert_array_equal(boundary_counts(other, label, 3), boundary_counts(right, label, 3))


@pytest.mark.parametrize("far", [2**32 + 1, -(2**32) + 1, 2**63 - 1, -(2**63)])
def test_numbers_beyond_32_bits_are_no_classes(far):
    for prediction, label, what in ((1, far, "label"), (far, 1, "prediction")):
        confusion = ConfusionMatrix(3)
        confusion.update(torch.tensor([0, prediction]), torch.tensor([0, label]))
        assert confusion.between_classes.sum() == 1
        with pytest.raises(ValueError, match=f"1 pixels have a {what}"):
            _ = confusion.matrix()


# ---- calibration -----------------------------------------------------------------------------------------------------


@pytest.fixture
def answers():
    """Probabilities that are too sure of themselves, with some that are exactly 1, and labels."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(6, 5, 30, 40, generator=generator)
    label = torch.distributions.Categorical(logits=logits.movedim(1, -1) / 2)
    torch.manual_seed(0)
    label = label.sample()
    label[torch.rand(label.shape, generator=generator) < 0.2] = IGNORE
    return logits.softmax(1), label


def test_calibration_is_a_loop_over_pixels_and_torchmetrics(answers):
    from torchmetrics.classification import MulticlassCalibrationError

    probabilities, label = answers
    probabilities[0, :, 0] = 0
    probabilities[0, 2, 0] = 1  # belongs to the last bin
    prediction = probabilities.argmax(1)
    metric = Calibration(5)
    for batch in zip(probabilities.split(4), prediction.split(4), label.split(4), strict=True):
        metric.update(*batch)
    found = metric.scores()

    cells = np.zeros((5, 15, 3))
    brier, nll = [], []
    pixels = zip(probabilities.movedim(1, -1).reshape(-1, 5).numpy(), label.flatten().tolist(), strict=True)
    for p, truth in pixels:
        if truth != IGNORE:
            guess = int(p.argmax())
            cells[guess, min(math.ceil(p[guess] * 15) - 1, 14)] += 1, p[guess], guess == truth
            brier.append(((p.astype(float) - np.eye(5)[truth]) ** 2).sum())
            nll.append(-math.log(max(p[truth], 2.0**-126)))
    whole = cells.sum(axis=0)
    assert found.pixels == len(nll)
    assert found.ece == pytest.approx(np.abs(whole[:, 2] - whole[:, 1]).sum() / len(nll))
    by_class = np.abs(cells[..., 2] - cells[..., 1]).sum(axis=1) / cells[..., 0].sum(axis=1)
    np.testing.assert_allclose(found.ece_by_class, by_class)
    assert (found.brier, found.nll) == pytest.approx((np.mean(brier), np.mean(nll)), rel=1e-6)
    filled = whole[:, 0] > 0
    np.testing.assert_allclose(found.accuracy[filled], whole[filled, 2] / whole[filled, 0])
    np.testing.assert_allclose(found.confidence[filled], whole[filled, 1] / whole[filled, 0])
    assert np.isnan(found.accuracy[~filled]).all()
    assert found.share.sum() == pytest.approx(1)

    surely_one = probabilities.amax(1) == 1  # torchmetrics gives these a bin of their own
    rest = label.where(~surely_one, IGNORE)
    metric.reset()
    metric.update(probabilities, prediction, rest)
    oracle = MulticlassCalibrationError(5, n_bins=15, ignore_index=IGNORE)(probabilities, rest)
    assert metric.compute()["ece"] == pytest.approx(float(oracle), rel=1e-5)
    assert metric.compute()["ece"] > 0.05, "worth comparing"


def test_risk_by_coverage_is_that_of_sorted_pixels(answers):
    probabilities, label = answers
    metric = Calibration(5)
    metric.update(probabilities, probabilities.argmax(1), label)
    found = metric.scores()
    confidence, guess = (x[label != IGNORE].numpy() for x in probabilities.max(1))
    order = np.argsort(-confidence, kind="stable")
    wrong = (guess != label[label != IGNORE].numpy())[order]
    risk = wrong.cumsum() / np.arange(1, len(wrong) + 1)
    assert found.risk_area == pytest.approx(risk.mean(), rel=2e-3)
    for coverage in (0.2, 0.5, 0.9, 1.0):
        assert found.risk_at(coverage) == pytest.approx(risk[int(coverage * len(risk)) - 1], abs=2e-3)
    assert found.risk_at(1.0) == pytest.approx(wrong.mean())
    assert risk[len(risk) // 5] < 0.5 * wrong.mean(), "worth comparing"


def test_processes_add_up_and_nothing_is_nan_quietly(answers):
    probabilities, label = answers
    prediction, metrics = probabilities.argmax(1), [Calibration(5) for _ in range(3)]
    metrics[0].update(probabilities, prediction, label)
    for metric, rows in ((metrics[1], slice(2)), (metrics[2], slice(2, 6))):
        metric.update(probabilities[rows], prediction[rows], label[rows])
    for state in ("bins", "uncertain", "sums"):
        both = getattr(metrics[1], state) + getattr(metrics[2], state)
        torch.testing.assert_close(both, getattr(metrics[0], state))
    nothing = Calibration(5)
    nothing.update(probabilities, prediction, torch.full_like(label, IGNORE))
    found = nothing.scores()
    assert found.pixels == 0
    assert all(math.isnan(x) for x in (found.ece, found.brier, found.nll, found.risk_area, found.risk_at(0.5)))
