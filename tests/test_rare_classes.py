"""Images repeated for their rare classes, against LVIS's rule worked out by hand."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import TINY, load
from danet.config import ConfigError
from danet.config.identity import deciding
from danet.data.augment import Augmentation
from danet.data.loader import training_loader
from danet.data.rare_classes import class_presence, repeat_factors
from danet.data.sampler import Key, StepSampler, repeats, round_length
from danet.datasets.shapes import Shapes
from danet.training import run

# Of 8 images all have class 0, one half class 1, one class 2, none class 3.
PRESENCE = np.zeros((8, 4), bool)
PRESENCE[:, 0] = PRESENCE[:4, 1] = PRESENCE[3, 2] = True
FACTORS = np.array([1.0, 1.0, 2.5, 1.0, 3.75, 1.25, 1.0])  # sum 11.5


def stream(rounds: int, factors: np.ndarray = FACTORS, **options: int) -> list[list[Key]]:
    """The keys of every batch of the images' stream, by one process, or by the part that `options` say."""
    length = int(np.ceil(factors.sum()))
    arguments = {"parts": 1, "rank": 0, "world_size": 1, "seed": 5, "first_step": 0, **options}
    steps = rounds * length // 6
    return list(StepSampler(len(factors), batch_size=6, total_steps=steps, factors=factors, **arguments))


def test_repeat_factors_are_those_of_lvis() -> None:
    # t = 1/2: class 2 in 1/8 of the images has sqrt(4) = 2, class 1 in 1/2 of them 1.
    assert repeat_factors(PRESENCE, threshold=0.5).tolist() == [1, 1, 1, 2, 1, 1, 1, 1]
    # t = 1: sqrt(2) for class 1, sqrt(8) for class 2; an image takes the largest of its classes'.
    expected = [2**0.5] * 3 + [8**0.5] + [1] * 4
    assert repeat_factors(PRESENCE, threshold=1.0) == pytest.approx(expected)
    assert repeat_factors(PRESENCE, threshold=0.125).tolist() == [1] * 8
    assert repeat_factors(PRESENCE, threshold=None).tolist() == [1] * 8


def test_a_share_of_the_drawn_images_has_a_rare_class() -> None:
    for threshold, share in ((None, 0.75), (1.0, 0.75), (None, 0.9)):
        factors = repeat_factors(PRESENCE, threshold=threshold, rare=[2, 3], share=share)
        assert factors[3] / factors.sum() == pytest.approx(share)
        assert factors.min() >= 1
    reached = repeat_factors(PRESENCE, threshold=None, rare=[1], share=0.3)  # one half has it anyway
    assert reached.tolist() == [1] * 8
    with pytest.raises(ValueError, match="no training image has one of them"):
        repeat_factors(PRESENCE, threshold=None, rare=[3], share=0.5)


def test_rounds_have_one_length_and_every_image_its_factor_on_average() -> None:
    rng = np.random.default_rng(0)
    counts = np.array([repeats(FACTORS, rng) for _ in range(4000)])
    mean = FACTORS * 12 / 11.5
    assert (counts.sum(1) == 12).all()
    assert (counts >= np.floor(mean)).all()  # so at least once a round
    assert (counts <= np.ceil(mean)).all()
    assert counts.mean(0) == pytest.approx(mean, abs=4 * 0.5 / 4000**0.5)  # a count's deviation is 0.5 at most


def test_a_sum_of_factors_that_is_whole_but_for_rounding_adds_no_place() -> None:
    factors = np.array([1.6, 1.6, 1.6, 2.2])
    assert factors.sum() > 7  # by the last bit
    assert round_length(factors) == 7
    assert round_length(factors + 0.001) == 8


def test_every_image_appears_in_every_round_and_each_time_under_a_key_of_its_own() -> None:
    keys = [key for batch in stream(50) for key in batch]
    assert len(set(keys)) == len(keys) == 600
    for number in range(50):
        part = keys[12 * number : 12 * (number + 1)]
        assert {key[0] for key in part} == {number}
        assert {key[1] for key in part} == set(range(7))
    share = Counter(key[1] for key in keys)
    assert [share[index] / 600 for index in range(7)] == pytest.approx(FACTORS / 11.5, abs=0.01)


def test_the_stream_with_repeats_depends_on_the_seed_and_the_step_alone() -> None:
    whole = stream(4)
    for world_size, parts in ((2, 1), (3, 1), (1, 3), (2, 3)):
        shares = [stream(4, rank=rank, world_size=world_size, parts=parts) for rank in range(world_size)]
        together = [
            [key for part in range(parts) for share in shares for key in share[step * parts + part]]
            for step in range(len(whole))
        ]
        assert together == whole
    assert stream(4, first_step=5) == whole[5:]
    assert stream(4, seed=6) != whole


def test_batches_with_repeats_and_crops_by_class_are_the_same_for_any_workers_and_after_a_resume() -> None:
    data = Shapes("train", size=64, train_images=7)
    augment = Augmentation(load(["augment=rare", "augment.crop_size=[32,40]"]).augment, data.class_names)

    def batches(num_workers: int, first_step: int = 0) -> list[tuple[list[str], torch.Tensor, torch.Tensor]]:
        sampler = StepSampler(
            7,
            batch_size=4,
            parts=1,
            rank=0,
            world_size=1,
            seed=3,
            first_step=first_step,
            total_steps=6,
            factors=FACTORS,
        )
        options = {"seed": 3, "num_workers": num_workers, "device": torch.device("cpu")}
        return [(b.names, b.image, b.label) for b in training_loader(data, augment, sampler, **options)]

    alone = batches(0)
    for others, first in ((batches(2), 0), (batches(1, first_step=4), 4)):
        assert len(others) == 6 - first
        for (names, image, label), (other_names, other_image, other_label) in zip(alone[first:], others, strict=True):
            assert names == other_names
            assert torch.equal(image, other_image)
            assert torch.equal(label, other_label)
    # Image 4 comes at least three times in a round of 12, never twice with the same crop.
    crops = [image for names, images, _ in alone[:3] for name, image in zip(names, images, strict=True) if "4" in name]
    assert len(crops) >= 3
    assert not any(torch.equal(one, other) for place, one in enumerate(crops) for other in crops[:place])


class Labels(Shapes):
    """Counts how often labels are read."""

    read = 0

    def read_label(self, index: int) -> np.ndarray:
        self.read += 1
        return super().read_label(index)


def test_the_classes_in_the_images_are_read_once_and_again_when_the_data_or_the_result_changed(tmp_path: Path) -> None:
    data = Labels("train", size=64, train_images=5)
    expected = [[(data[index].label == number).any() for number in range(len(data.class_names))] for index in range(5)]
    for _ in range(2):
        assert class_presence(data, cache_dir=tmp_path, workers=2).tolist() == expected
    assert data.read == 5
    (file,) = tmp_path.glob("classes-*.npy")
    file.write_bytes(file.read_bytes()[:-7])  # cut off
    assert class_presence(data, cache_dir=tmp_path, workers=2).tolist() == expected
    assert data.read == 10
    other = Labels("train", size=64, train_images=5, scene_seed=1)
    class_presence(other, cache_dir=tmp_path, workers=2)
    assert other.read == 5


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["train.repeat_threshold=0"], ["train.repeat_threshold = 0: must be greater than 0"]),
        (["train.repeat_threshold=1.5"], ["train.repeat_threshold = 1.5: must be less than or equal to 1"]),
        (["train.rare_share=1", "train.rare_classes=[x]"], ["train.rare_share = 1: must be less than 1"]),
        (["train.rare_share=0.5"], ["train.rare_share = 0.5: of which classes?"]),
        (["train.rare_classes=[x]"], ["train.rare_classes = ['x']: has no effect"]),
        (
            ["train.rare_share=0.5", "train.rare_classes=[rings_red,ring_blue]"],
            ["train.rare_classes = 'rings_red': no class of shapes; did you mean"],
        ),
    ],
)
def test_mistakes_are_named_before_work(overrides: list[str], lines: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load(overrides)
    assert len(error.value.problems) == len(lines)
    for problem, line in zip(error.value.problems, lines, strict=True):
        assert problem.startswith(line)


def test_what_is_off_leaves_a_run_the_one_that_it_was() -> None:
    plain = load()
    assert not any("repeat" in key or "rare" in key for key in deciding({"train": vars(plain.train)}))
    for on in (["train.repeat_threshold=0.5"], ["train.rare_share=0.5", "train.rare_classes=[ring_red]"]):
        assert load(on).identity() != plain.identity()


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_a_run_with_repeats_resumes_with_the_images_that_it_would_have_had(outputs: Path) -> None:
    options = [*TINY, "augment=rare", "augment.crop_size=[48,48]", "train.repeat_threshold=1", "train.eval_every=6"]
    straight = run.start(load([*options, "train.steps=6"])).folder
    stopped = run.start(load([*options, "train.steps=6", "train.save_every=3", "name=other"])).folder
    for file in ("result.json", "checkpoints/best.pt"):
        (stopped / file).unlink()
    newest = max((stopped / "checkpoints").glob("step_*.pt"), key=lambda path: int(path.stem.split("_")[1]))
    newest.unlink()
    run.start(load([f"resume={stopped}"]))
    one, other = (torch.load(next(f.glob("checkpoints/step_*6.pt")), weights_only=False) for f in (straight, stopped))
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name])
