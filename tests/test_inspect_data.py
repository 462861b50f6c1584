"""The page of src/inspect_data.py: its numbers beside NumPy's, what it finds in spoiled data, how it looks."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

import danet.config
from conftest import environment
from danet.config import REPOSITORY, ConfigError, RunConfig
from danet.data.measure import measure, nearest, perceptual_hash
from danet.datasets.folder import ImageFolder
from danet.datasets.shapes import Shapes
from danet.registry import DATASETS
from danet.tools.inspect_data.inspection import InspectionConfig, InspectOptions, percent, run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CROPS = ("augment=standard", "augment.crop_size=[32,32]")
HOSTILE = ("<img src=x onerror='window.hacked = 1'>", "a & b", "{{ 7 * 7 }}")


def photo(seed: int, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    """Blurred noise, which has the spectrum of a photo, more or less."""
    noise = np.random.default_rng(seed).normal(128, 400, (*size, 3)).astype(np.float32)
    return np.clip(cv2.GaussianBlur(noise, (0, 0), 4), 0, 255).astype(np.uint8)


def write(root: Path, split: str, name: str, image: np.ndarray, label: np.ndarray) -> None:
    for kind, pixels in (("images", image), ("masks", label)):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / kind / split / f"{name}.png")


def label(seed: int, classes: int = 2, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    codes = np.random.default_rng(seed).integers(0, classes, (3, 4), np.uint8).repeat(20, 0).repeat(20, 1)
    codes[:, -1] = 255
    return codes[: size[0], : size[1]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight training and four validation images of three classes, the last of which is in one image alone."""
    root = tmp_path / "data"
    for number in range(8):
        write(root, "train", f"drive_{number}", photo(number), label(number, 3 if number == 7 else 2))
    for number in range(4):
        write(root, "val", f"walk_{number}", photo(100 + number), label(100 + number))
    (root / "classes.txt").write_text("\n".join(HOSTILE))
    return root


def run_of(dataset: str, options: dict[str, Any], augment: Sequence[str] = CROPS) -> RunConfig:
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        composed = compose("train", overrides=[f"dataset={dataset}", *augment])
    values = danet.config.load(composed)
    return RunConfig(**{**vars(values), "dataset": {**values.dataset, **options}})


def page_of(root: Path, output: Path, augment: Sequence[str] = CROPS) -> str:
    shown = InspectionConfig(output=str(output), inspect=InspectOptions(examples=2, crops=3, pairs=2))
    return run(run_of("folder", {"root": str(root)}, augment), shown).read_text("utf-8")


def findings(page: str) -> list[tuple[str, str]]:
    """Level and text of each finding."""
    found = re.findall(r'<li data-level="(\w+)">.*?</b>(.*?)</div></li>', page, re.DOTALL)
    return [(level, " ".join(re.sub(r"<.*?>", " ", text).split())) for level, text in found]


# ---- measurements ----------------------------------------------------------------------------------------------------


def test_mean_deviation_and_pixels_are_those_of_all_pixels_together(folder: Path, tmp_path: Path) -> None:
    write(folder, "train", "large", photo(50, (90, 120)), np.ones((90, 120), np.uint8))
    dataset = ImageFolder("train", root=str(folder))
    found = measure(dataset, cache_dir=tmp_path / "cache", workers=2)
    images = [dataset[index] for index in range(len(dataset))]
    pixels = np.concatenate([sample.image.reshape(-1, 3) for sample in images]).astype(float)
    np.testing.assert_allclose(found.mean, pixels.mean(0))
    np.testing.assert_allclose(found.std, pixels.std(0))
    labels = np.concatenate([sample.label.ravel() for sample in images])
    assert found.class_pixels.tolist() == [int((labels == number).sum()) for number in range(3)]
    assert found.pixels[:, -1].sum() == (labels == 255).sum()
    assert found.sizes.tolist() == [list(sample.label.shape) for sample in images]


def test_a_split_is_measured_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ImageFolder("train", root=str(folder))
    first = measure(dataset, cache_dir=tmp_path / "first", workers=1)
    read = ImageFolder.read_image
    opened: list[int] = []
    monkeypatch.setattr(
        ImageFolder, "read_image", lambda self, index, **o: opened.append(index) or read(self, index, **o)
    )
    again = measure(dataset, cache_dir=tmp_path / "first", workers=1)
    assert not opened
    assert all(np.array_equal(value, getattr(again, name)) for name, value in vars(first).items())
    write(folder, "train", "drive_0", photo(77), label(0))
    dataset, cache = ImageFolder("train", root=str(folder)), tmp_path / "cache"
    changed = measure(dataset, cache_dir=cache, workers=1)
    assert len(opened) == 8
    assert (changed.images != first.images).tolist() == [True] + 7 * [False]
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:100])  # damaged
    assert np.array_equal(measure(dataset, cache_dir=cache, workers=1).hashes, changed.hashes)


def test_hashes_tell_copies_from_other_images() -> None:
    """Changed copies stay below the default of 0.25 of the bits, different images above."""
    images = [photo(seed, (120, 160)) for seed in range(40)] + [Shapes("train")[index].image for index in range(40)]
    hashes = np.stack([perceptual_hash(image) for image in images])
    assert nearest(hashes)[1].min() > 0.25
    for change in (
        lambda image: cv2.resize(image, (61, 47), interpolation=cv2.INTER_AREA),
        lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_COLOR),
        lambda image: (image * 0.6 + 30).astype(np.uint8),
        lambda image: image[2:-2, 2:-2],
    ):
        index, share = nearest(np.stack([perceptual_hash(change(image)) for image in images]), hashes)
        assert index.tolist() == list(range(80))
        assert share.max() < 0.25
    bits = np.unpackbits(hashes, axis=1)
    index, share = nearest(hashes[:3], hashes[3:])
    assert share.tolist() == [min((bits[row] != other).mean() for other in bits[3:]) for row in range(3)]


# ---- the page --------------------------------------------------------------------------------------------------------


def test_what_is_wrong_in_any_split_is_on_the_page(folder: Path, tmp_path: Path, outputs: Path) -> None:
    train, val = (ImageFolder(split, root=str(folder)) for split in ("train", "val"))
    write(folder, "val", "copy", train[2].image, train[2].label)
    smaller = cv2.resize(train[3].image, (72, 54), interpolation=cv2.INTER_AREA)
    write(folder, "val", "smaller", smaller, train[3].label[:54, :72])
    write(folder, "train", "again", train[1].image, 1 - train[1].label % 2)
    write(folder, "train", "high", photo(60), np.zeros((50, 80), np.uint8))
    (folder / "images" / "val" / "walk_1.png").write_bytes(b"broken")
    page = page_of(folder, tmp_path / "page")
    found = findings(page)
    assert found[0][0] == found[1][0] == "problem"
    text = "\n".join(f"{level}: {line}" for level, line in found)
    for expected in (
        r"problem: Files of train: 1 problem\(s\) .*high\.png: label is 80x50, its image 80x60",
        r"problem: Files of val: 1 problem\(s\) .*walk_1\.png: cannot be decoded",
        r"warning: Images of val that are in train, too: 1 of 5",
        r"warning: Images of val that look like one of train: 1 of 5",
        r"warning: train has 1 image\(s\) with several labels that differ (again, drive_1|drive_1, again)",
        r"note: Classes in fewer than 5 images of train: 1 .* \{\{ 7 \* 7 \}\} \(1\)",
    ):
        assert re.search(expected, text), f"{expected}\n{text}"
    assert {file.name for file in (tmp_path / "page" / "pictures" / "similar").iterdir()} == {
        f"val_train_0{number}{side}.jpg" for number in (1, 2) for side in "ab"
    }
    assert len(val) == 4


def test_what_training_would_refuse_is_a_problem(folder: Path, tmp_path: Path, outputs: Path) -> None:
    write(folder, "train", "large", photo(50, (90, 120)), label(50).repeat(2, 0).repeat(2, 1)[:90, :120])
    found = findings(page_of(folder, tmp_path / "page", ["augment=none"]))
    assert found[0][0] == "problem"
    assert "images of different sizes would be in one batch" in found[0][1]
    assert [level for level, _ in findings(page_of(folder, tmp_path / "page"))].count("problem") == 0
    assert len(list((tmp_path / "page" / "pictures" / "crops").iterdir())) == 3


def test_crops_are_those_of_the_first_step(folder: Path, tmp_path: Path, outputs: Path) -> None:
    from danet.data.augment import Augmentation
    from danet.data.sampler import StepSampler

    page_of(folder, tmp_path / "page")
    config = run_of("folder", {"root": str(folder)})
    options = {"parts": 1, "rank": 0, "world_size": 1, "seed": config.seed, "first_step": 0, "total_steps": 1}
    keys = next(iter(StepSampler(8, batch_size=config.train.batch_size, **options)))
    dataset = ImageFolder("train", root=str(folder))
    image, codes = Augmentation(config.augment)(*dataset[keys[1][1]][:2], seed=(config.seed, *keys[1]))
    with Image.open(tmp_path / "page" / "pictures" / "crops" / "02.jpg") as file:
        shown = np.asarray(file).astype(float)
    colors = np.array([*dataset.palette, (0, 0, 0)])[np.minimum(codes, 3)]
    expected = image + (colors - image.astype(float)) * 128 / 255
    labeled = codes != 255
    assert np.abs(shown - expected)[labeled].mean() < 6  # JPEG
    assert np.corrcoef(shown[labeled].ravel(), expected[labeled].ravel())[0, 1] > 0.97


def test_names_of_the_data_are_text_and_nothing_is_fetched(folder: Path, tmp_path: Path, outputs: Path) -> None:
    page = page_of(folder, tmp_path / "page")
    assert "&lt;img src=x onerror=" in page
    assert "<img src=x" not in page
    assert "{{ 7 * 7 }}" in page
    assert not re.findall(r"https?://", page)
    assert "default-src 'none'" in page


def test_frames_of_one_video_in_two_splits_are_noticed(tmp_path: Path, outputs: Path) -> None:
    """Neighboring frames look alike within a split, though not the nearest ones of two splits."""
    root = tmp_path / "data"
    for split, place in (("train", 0), ("val", 40)):
        for number in range(6):
            scene = photo(place + number // 2, (60, 80))
            write(root, split, f"seq1_{place + number:03}", np.roll(scene, number % 2, axis=1), label(number))
    for number in range(3):
        write(root, "train", f"other_{number}", photo(200 + number), label(number))
    (root / "classes.txt").write_text("a\nb\n")
    found = dict(
        reversed([(text.partition("…")[0], level) for level, text in findings(page_of(root, tmp_path / "page"))])
    )
    (shared,) = [(text, level) for text, level in found.items() if "share series of names" in text]
    assert shared[1] == "warning"
    assert shared[0].endswith("seq1_")


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_data_set_has_a_page(name: str, tmp_path: Path, outputs: Path) -> None:
    kind: Any = DATASETS[name]
    config = run_of(name, kind.tiny(tmp_path / "data"))
    page = run(config, InspectionConfig(inspect=InspectOptions(examples=1, crops=1)))
    assert page.parent.parent == outputs / "data"
    text = page.read_text("utf-8")
    assert text.count("<figure>") > 2
    assert (page.parent / "pictures" / "crops" / "01.jpg").is_file()


def test_shares_keep_two_digits_that_count() -> None:
    values = (0, 1, 0.123456, 0.0123456, 0.000123456, 1e-9, 0.99996)
    assert [percent(value) for value in values] == [
        "0 %", "100 %", "12.3 %", "1.2 %", "0.012 %", "< 0.0001 %", "100 %",
    ]  # fmt: skip


def test_all_keys_of_training_are_known() -> None:
    danet.config.check_arguments(["recipe=finetune", "inspect.crops=3", "train.batch_size=4"], "inspect_data")
    with pytest.raises(ConfigError) as caught:
        danet.config.check_arguments(["recipe=finetun", "inspect.crop=3", "train.batchsize=4"], "inspect_data")
    assert [line.rpartition("; ")[2] for line in caught.value.problems] == [
        "did you mean 'finetune'?",
        "did you mean 'inspect.crops'?",
        "did you mean 'train.batch_size'?",
    ]


@pytest.mark.slow
def test_the_script_takes_the_arguments_of_training(folder: Path, tmp_path: Path) -> None:
    arguments = ["recipe=finetune", "dataset=folder", f"dataset.root={folder}", "backbone.pretrained=false"]
    command = [sys.executable, str(REPOSITORY / "src" / "inspect_data.py"), *arguments]
    done = subprocess.run(command, env=environment(tmp_path / "out"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (page,) = (tmp_path / "out" / "data").glob("folder_*/index.html")
    assert f"{page}: open it in a browser" in done.stdout
    assert "recipe=finetune dataset=folder" in page.read_text("utf-8")


DRIVER = """
<script>
const slider = document.getElementById("opacity"), layer = document.querySelector(".layer");
slider.value = 25;
slider.dispatchEvent(new Event("input"));
const broken = [...document.images].filter((image) => !image.naturalWidth).length;
const result = { fits: document.documentElement.scrollWidth <= innerWidth, opacity: getComputedStyle(layer).opacity,
  hacked: window.hacked || 0, broken, unnamed: document.querySelectorAll("img:not([alt])").length };
document.body.dataset.result = JSON.stringify(result);
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium")
@pytest.mark.parametrize("width", [500, pytest.param(1400, marks=pytest.mark.slow)])  # 500: a headless window's least
def test_the_page_fits_and_answers_in_a_browser(folder: Path, tmp_path: Path, outputs: Path, width: int) -> None:
    page = tmp_path / "page" / "index.html"
    text = page_of(folder, page.parent)
    page.write_text(text.replace("</body>", f"{DRIVER}</body>"), "utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
    command = [str(BROWSER), *options, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r'data-result="(.*?)"', shown)
    assert found, shown[:500]
    result = json.loads(found[1].replace("&quot;", '"'))
    assert result == {"fits": True, "opacity": "0.25", "hacked": 0, "broken": 0, "unnamed": 0}
