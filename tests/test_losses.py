"""Losses against PyTorch's, against loops over pixels and against published numbers."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danet.interfaces import IGNORE, LossTerm
from danet.losses.cross_entropy import median_frequency_weights
from danet.losses.segmentation_loss import SegmentationLoss, build_loss, mean_loss
from danet.registry import LOSSES

CAMVID = Path(__file__).parents[2] / "shared" / "camvid" / "trainannot"
K = 5  # classes; the last one never occurs
OPTIONS = [
    {"name": "cross_entropy"},
    {"name": "cross_entropy", "class_weights": [0.5, 2.0, 1.0, 0.1, 3.0]},
    {"name": "cross_entropy", "label_smoothing": 0.1},
    {"name": "ohem", "threshold": 0.3, "min_kept": 0.2},
    {"name": "focal"},
    {"name": "focal", "gamma": 0.5},
    {"name": "dice"},
    {"name": "lovasz"},
]


def no_labels():
    raise AssertionError("only median_frequency may read the labels")


def criterion(name, **options):
    return LOSSES[name](K, no_labels, **options)


def value(term):
    return mean_loss(term.total, term.count)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, K, 7, 9, generator=generator)
    label = torch.randint(0, K - 1, (3, 7, 9), generator=generator).to(torch.uint8)
    label[0, :3] = IGNORE
    return logits, label


def pixels(logits, label):
    """(probabilities of the classes, label) of every valid pixel of one image, in float64."""
    probability = torch.softmax(logits.double(), 0).numpy()
    return [(probability[:, y, x], int(label[y, x])) for y, x in np.argwhere(label.numpy() != IGNORE)]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_weights", ["none", [0.5, 2.0, 1.0, 0.1, 3.0], K * [0.01], K * [1e-4]], ids=str)
def test_cross_entropy_is_pytorchs_mean(batch, class_weights, label_smoothing):
    logits, label = batch
    term = criterion("cross_entropy", class_weights=class_weights, label_smoothing=label_smoothing)(logits, label)
    expected = F.cross_entropy(
        logits,
        label.long(),
        None if class_weights == "none" else torch.tensor(class_weights),
        ignore_index=IGNORE,
        label_smoothing=label_smoothing,
    )
    torch.testing.assert_close(value(term), expected)


def test_focal_is_a_loop_over_pixels(batch):
    losses = [
        (1 - p[truth]) ** 2 * -math.log(p[truth]) for image in zip(*batch, strict=True) for p, truth in pixels(*image)
    ]
    assert value(criterion("focal", gamma=2.0)(*batch)).item() == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.3, 0.0), (0.3, 0.9), (1e-9, 0.25), (1e-9, 0.0)])
def test_ohem_keeps_the_hard_pixels_of_each_image(batch, threshold, min_kept):
    kept = []
    for image in zip(*batch, strict=True):
        hardest_first = sorted((p[truth] for p, truth in pixels(*image)))
        least = max(1, math.ceil(min_kept * len(hardest_first)))
        kept += [p for rank, p in enumerate(hardest_first) if rank < least or p < threshold]
    term = criterion("ohem", threshold=threshold, min_kept=min_kept)(*batch)
    assert term.count.item() == len(kept)
    assert term.total.item() == pytest.approx(-np.log(kept).sum(), rel=1e-5)


def test_dice_is_a_loop_over_classes_and_pixels(batch):
    losses = []
    for image in zip(*batch, strict=True):
        valid = pixels(*image)
        losses.append(
            1
            - np.mean(
                [
                    2 * sum(p[c] for p, truth in valid if truth == c) / sum(p[c] + (truth == c) for p, truth in valid)
                    for c in {truth for _, truth in valid}
                ]
            )
        )
    term = criterion("dice")(*batch)
    assert term.count.item() == len(losses)
    assert term.total.item() == pytest.approx(sum(losses), rel=1e-5)


def test_lovasz_is_one_minus_iou_for_certain_predictions(batch):
    _, label = batch
    prediction = torch.randint(0, K, label.shape, generator=torch.Generator().manual_seed(1))
    losses = []
    for guess, truth in zip(prediction.numpy(), label.numpy(), strict=True):
        guess, truth = guess[truth != IGNORE], truth[truth != IGNORE]
        ious = [((guess == c) & (truth == c)).sum() / ((guess == c) | (truth == c)).sum() for c in np.unique(truth)]
        losses.append(1 - np.mean(ious))
    certain = 100 * F.one_hot(prediction, K).permute(0, 3, 1, 2)
    assert value(criterion("lovasz")(certain, label)).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_lovasz_is_the_average_jaccard_loss_over_thresholds(batch):
    """The extension of a set function f at errors m is the integral of f({i: m_i >= t}) over t in 0..1."""
    losses = []
    for image in zip(*batch, strict=True):
        valid = pixels(*image)
        per_class = []
        for c in {truth for _, truth in valid}:
            member = np.array([truth == c for _, truth in valid])
            errors = np.array([abs((truth == c) - p[c]) for p, truth in valid])
            integral = 0.0
            for low, high in itertools.pairwise(sorted({0.0, *errors})):
                wrong = errors >= high
                integral += (high - low) * wrong.sum() / (wrong | member).sum()
            per_class.append(integral)
        losses.append(np.mean(per_class))
    assert value(criterion("lovasz")(*batch)).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_ohem_does_not_count_all_pixels_without_a_loss():
    """Where the quota reaches them: of 100 pixels 4 have a loss, 10 are to count, the other 90 are not their ties."""
    logits = torch.zeros(1, 2, 10, 10)
    logits[:, 0] = 30.0  # its float32 cross entropy is exactly 0
    logits[0, :, 0, :4] = torch.tensor([[0.5, 0.2, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]])
    label = torch.zeros(1, 10, 10, dtype=torch.long)
    term = criterion("ohem", threshold=0.7, min_kept=0.1)(logits, label)
    losses = F.cross_entropy(logits, label, reduction="none").flatten()
    assert (losses > 0).sum() == 4
    assert value(term) == pytest.approx(losses.topk(10).values.mean().item())


def test_a_count_that_is_no_number_stays_visible():
    assert mean_loss(torch.tensor(5.0), torch.tensor(float("nan"))).isnan()


def test_a_term_without_a_count_is_0_whatever_its_total():
    """A crop of a class with weight 0 has a sum by label smoothing, and nothing to divide it by."""
    logits = torch.randn(1, K, 6, 7, requires_grad=True)
    weighted = criterion("cross_entropy", class_weights=[0.0, 1.0, 1.0, 1.0, 1.0], label_smoothing=0.1)
    term = weighted(logits, torch.zeros(1, 6, 7, dtype=torch.long))
    assert term.total > 0
    assert value(term) == 0
    value(term).backward()
    assert not logits.grad.any()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_ignored_batch_is_zero_with_zero_gradients(batch, options):
    logits, label = batch
    logits = (50 * logits).requires_grad_()  # saturated, as late in training
    term = criterion(**options)(logits, torch.full_like(label, IGNORE))
    value(term).backward()
    assert value(term).item() == 0
    assert logits.grad.abs().max() == 0
    term = criterion(**options)(logits, label)
    value(term).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_ignored_pixels_and_the_division_of_the_batch_change_nothing(batch, options):
    logits, label = batch
    loss = criterion(**options)
    whole = loss(logits, label)
    changed = torch.where((label == IGNORE).unsqueeze(1), torch.randn_like(logits), logits)
    torch.testing.assert_close(loss(changed, label), whole)
    parts = [loss(logits[part], label[part]) for part in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    torch.testing.assert_close(sum(part.count for part in parts), whole.count)
    assert not whole.count.requires_grad


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_autocast_and_half_precision_change_nothing(batch, options):
    logits, label = batch
    logits = logits.bfloat16()
    expected = criterion(**options)(logits.float(), label)
    with torch.autocast("cpu", torch.bfloat16):
        term = criterion(**options)(logits, label)
    assert term.total.dtype == term.count.dtype == torch.float32
    assert torch.equal(torch.stack(term[:2]), torch.stack(expected[:2]))


@pytest.mark.parametrize("align_corners", [True, False])
def test_every_output_is_upsampled_to_the_label(align_corners):
    generator = torch.Generator().manual_seed(0)
    outputs = {name: torch.randn(2, K, 4, 5, generator=generator) for name in ("main", "pam", "aux")}
    label = torch.randint(0, K, (2, 27, 33), generator=generator)
    section = {"name": "cross_entropy", "weights": {"main": 1.0, "pam": 0.5, "cam": 1.0, "aux": 0}}
    terms = build_loss(section, K, no_labels)(outputs, label, align_corners=align_corners)
    assert list(terms) == ["main", "pam"]  # not aux, whose weight is 0
    for name, term in terms.items():
        upsampled = F.interpolate(outputs[name], size=(27, 33), mode="bilinear", align_corners=align_corners)
        torch.testing.assert_close(value(term), F.cross_entropy(upsampled, label))


def test_an_output_without_weight_is_an_error():
    loss = build_loss({"name": "dice", "weights": {"main": 1.0}}, K, no_labels)
    with pytest.raises(ValueError, match="loss.weights has no entry for the model's output 'pam'"):
        loss({"pam": torch.zeros(1, K, 2, 2)}, torch.zeros(1, 4, 4), align_corners=False)


def test_a_class_weight_per_class():
    with pytest.raises(ValueError, match="class_weights has 2 values for 5 classes"):
        criterion("cross_entropy", class_weights=[1.0, 2.0])


def test_median_frequency_of_absent_classes():
    label = np.array([[0, 0, 0, 1]], np.uint8)
    other = np.array([[0, 0, 255, 255]], np.uint8)
    # frequencies: 5 of 8 pixels, and 1 of the 4 in the only image with class 1; their median is 7 / 16
    assert median_frequency_weights([label, other], 3) == pytest.approx([0.7, 1.75, 0])
    with pytest.raises(ValueError, match="no class at all"):
        median_frequency_weights([np.full((2, 2), 255, np.uint8)], 3)


@pytest.mark.skipif(not CAMVID.is_dir(), reason="needs CamVid")
def test_median_frequency_of_camvid():
    from PIL import Image

    def labels():
        for file in sorted(CAMVID.glob("*.png")):
            label = np.asarray(Image.open(file))
            yield np.where(label == 11, IGNORE, label)

    section = {"name": "cross_entropy", "class_weights": "median_frequency"}
    weight = build_loss(section, 11, labels).criterion.weight
    published = [0.279, 0.202, 4.787, 0.149, 1.0, 0.422, 3.847, 1.974, 0.789, 6.375, 8.859]
    assert weight.tolist() == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("options", OPTIONS)
def test_in_parts_as_on_the_whole_batch_at_full_size(batch, options, images, align_corners, monkeypatch):
    """Total, count and gradient of the plain form, which enlarges everything and lets autograd go back through it."""
    low, label = batch
    label = label.repeat_interleave(4, 1).repeat_interleave(4, 2)
    loss = build_loss({**options, "weights": {"main": 1.0}}, K, no_labels)
    plain = low.clone().requires_grad_()
    enlarged = F.interpolate(plain, label.shape[-2:], mode="bilinear", align_corners=align_corners)
    expected = loss.criterion(enlarged, label)
    (3 * value(expected)).backward()

    monkeypatch.setattr("danet.ops.enlarged_loss.PART_ELEMENTS", images * enlarged[0].numel())
    parts = low.clone().requires_grad_()
    term = loss({"main": parts}, label, align_corners=align_corners)["main"]
    (3 * value(term)).backward()
    torch.testing.assert_close(term.total, expected.total)
    torch.testing.assert_close(term.count, expected.count)
    torch.testing.assert_close(parts.grad, plain.grad, rtol=1e-4, atol=1e-7)
    assert plain.grad.any()


def test_full_size_tensors_of_the_whole_batch_never_exist(batch, monkeypatch):
    monkeypatch.setattr("danet.ops.enlarged_loss.PART_ELEMENTS", 1)
    low, label = batch[0].requires_grad_(), batch[1].repeat_interleave(8, 1).repeat_interleave(8, 2)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(result) if torch.is_tensor(t))
            return result

    loss = build_loss({"name": "cross_entropy"}, K, no_labels)
    with Watch():
        value(loss({"main": low}, label, align_corners=True)["main"]).backward()
    assert max(sizes) <= K * label[0].numel() < K * label.numel()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_half_precision_logits_have_their_type_and_are_computed_in_float32(batch, dtype):
    loss = build_loss({"name": "cross_entropy"}, K, no_labels)
    found = []
    for kind in (dtype, torch.float32):
        low = batch[0].to(dtype).to(kind).requires_grad_()
        value(loss({"main": low}, batch[1], align_corners=True)["main"]).backward()
        assert low.grad.dtype == kind
        found.append(low.grad.to(dtype))
    assert torch.equal(*found)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_second_derivatives_are_refused_not_incomplete(batch, options):
    """Of a gradient penalty on the layer before the loss; the criterion on enlarged logits has them."""
    logits, label = batch
    loss = build_loss(options, K, no_labels)
    weight = torch.eye(K, requires_grad=True)
    mixed = torch.einsum("kc,bchw->bkhw", weight, logits)
    total = loss({"main": mixed}, label, align_corners=False)["main"].total
    with pytest.raises(NotImplementedError, match="second derivatives cannot pass .* `criterion"):
        torch.autograd.grad(total, weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="torch.func's transforms cannot pass .* `criterion"):
        torch.func.grad(lambda x: loss({"main": x}, label, align_corners=False)["main"].total)(logits)

    def directly(x):
        return loss.criterion(x, label).total

    logits.requires_grad_()
    (first,) = torch.autograd.grad(directly(logits), logits, create_graph=True)
    torch.testing.assert_close(torch.func.grad(directly)(logits.detach()), first.detach())
    (second,) = torch.autograd.grad(first.square().sum(), logits)
    assert second.abs().max() > 0


class Several(nn.Module):
    """Cross entropy with a learned temperature, and Dice, as somebody may register them."""

    def __init__(self) -> None:
        super().__init__()
        self.cross_entropy, self.dice = criterion("cross_entropy"), criterion("dice")
        self.temperature = nn.Parameter(torch.tensor(1.5))

    def forward(self, logits, label):
        dice = self.dice(logits, label)._replace(weight=0.5)
        return {"cross_entropy": self.cross_entropy(logits / self.temperature, label), "dice": dice}


@pytest.mark.parametrize("images", [1, 3])
def test_a_loss_may_have_several_terms_and_parameters_of_its_own(batch, images, monkeypatch):
    """Each term with its own count and weight, part by part as on the whole batch at full size."""
    logits, label = batch
    monkeypatch.setattr("danet.ops.enlarged_loss.PART_ELEMENTS", images * K * 14 * 18)
    label = label.repeat_interleave(2, 1).repeat_interleave(2, 2)
    loss = SegmentationLoss(Several(), weights={"main": 2.0})
    low = logits.clone().requires_grad_()
    terms = loss({"main": low}, label, align_corners=False)
    assert {name: term.weight for name, term in terms.items()} == {"main/cross_entropy": 2.0, "main/dice": 1.0}
    sum(term.weight * value(term) for term in terms.values()).backward()

    plain, reference = logits.clone().requires_grad_(), Several()
    whole = F.interpolate(plain, label.shape[-2:], mode="bilinear", align_corners=False)
    expected = reference(whole, label)
    for name, term in expected.items():
        torch.testing.assert_close(value(terms[f"main/{name}"]), value(term))
    (2 * value(expected["cross_entropy"]) + value(expected["dice"])).backward()
    torch.testing.assert_close(low.grad, plain.grad)
    torch.testing.assert_close(loss.criterion.temperature.grad, reference.temperature.grad)


def test_a_loss_that_is_no_sum_over_images_gets_the_batch_whole(batch, monkeypatch):
    logits, label = batch
    seen = []

    class Batchwise(nn.Module):
        per_batch = True

        def forward(self, logits, label):
            seen.append(len(logits))
            return LossTerm(logits.mean().square(), torch.ones(()))

    monkeypatch.setattr("danet.ops.enlarged_loss.PART_ELEMENTS", 1)
    SegmentationLoss(Batchwise())({"main": logits.requires_grad_()}, label, align_corners=False)
    assert seen == [3]
