"""The attention sheet, the script that writes it, and the sheets of a training run."""

import itertools
import json
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from matplotlib.axes import Axes
from matplotlib.text import Text
from PIL import Image

import danet.config
from conftest import TINY, environment, load
from danet.analysis import attention_sheet
from danet.analysis.attention_maps import AttentionMaps, ChannelMaps, PositionMaps, position_maps
from danet.analysis.attention_sheet import plot_attention
from danet.config import REPOSITORY
from danet.interfaces import FilePair
from danet.registry import DATASETS
from danet.schema import ConfigError
from danet.tools import attention_report
from danet.tools.attention_report import find_samples
from danet.training import run
from test_attention_page import data_of
from test_figures import check_texts, record_texts

NAMES, PALETTE = ("sky", "road", "car", "tree"), ((0, 0, 255), (90, 90, 90), (255, 0, 0), (0, 200, 0))


def test_a_sheet_shows_each_weight_where_it_lies(tmp_path, monkeypatch):
    """One cell has all the weight: the map is bright there, and nowhere else."""
    from matplotlib.figure import Figure

    drawn = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), savefig(self, *a, **k)))
    weights = np.zeros((2, 4, 10), np.float32)
    weights[0, 1, 8] = weights[1, 3, 2] = 1
    prediction = np.zeros((40, 100), np.uint8)
    prediction[:, 50:] = 2
    maps = AttentionMaps(
        image=np.full((40, 100, 3), 128, np.uint8),
        prediction=prediction,
        points=((20, 10), (20, 90)),
        cells=((2, 1), (2, 9)),
        size=(4, 10),
        align_corners=False,
        position=PositionMaps(weights=weights, class_shares=np.eye(4, dtype=np.float32)[[2, 0]], gamma=-0.25),
        channel=None,
    )
    label = np.full((40, 100), 255, np.uint8)
    plot_attention(maps, NAMES, PALETTE, tmp_path / "sheet.png", "name", facts="facts", label=label)
    (figure,) = drawn
    texts = {text.get_text().strip() for text in figure.findobj(Text)}
    assert {"name", "facts", "1  sky", "2  car", "from car 100%", "prediction", "truth"} <= texts
    assert "Position attention   γ = −0.250" in texts
    axes = {title_of(axis): axis for axis in figure.findobj(Axes)}
    for title, cell in (("1  sky", (1, 8)), ("2  car", (3, 2))):
        picture = np.asarray(axes[title].images[0].get_array()).sum(axis=2)  # 288 x 720
        row, column = np.unravel_index(picture.argmax(), picture.shape)
        assert (row // 72, column // 72) == cell
        assert (picture > 2 * np.median(picture)).mean() < 0.1


def test_weights_that_are_all_alike_are_not_bright():
    equal = np.full((4, 10), 1 / 40)
    np.testing.assert_allclose(attention_sheet._relative(equal, equal), 0.1)
    strong = np.where(np.arange(40) == 7, 0.5, 0.5 / 39).reshape(4, 10)
    np.testing.assert_allclose(attention_sheet._relative(strong, strong), strong / 0.5)


@pytest.mark.parametrize(
    ("size", "points", "channels"),
    [
        ((400, 200), 5, 5),
        ((100, 100), 12, 5),
        ((360, 480), 1, 1),
        ((360, 480), 7, 0),
        ((360, 480), 0, 4),
        ((128, 256), 12, 5),
        ((100, 300), 5, 3),
    ],
)
def test_pictures_and_texts_of_a_sheet_lie_on_the_page_and_apart(tmp_path, monkeypatch, size, points, channels):
    drawn = record_texts(monkeypatch)
    random, cells = np.random.default_rng(0), (size[0] // 8, size[1] // 8)
    at = [tuple(random.integers(size).tolist()) for _ in range(points)]
    position = PositionMaps(
        weights=random.random((points, *cells), np.float32),
        class_shares=random.dirichlet(np.ones(4), points).astype(np.float32),
        gamma=0.5,
    )
    channel = ChannelMaps(
        weights=random.random((64, 64), np.float32),
        channels=tuple(range(channels)),
        maps=random.random((channels, *cells), np.float32),
        classes=((0, 2),) * channels,
        correlations=random.random((channels, 4), np.float32),
        beta=0.5,
    )
    maps = AttentionMaps(
        image=random.integers(0, 255, (*size, 3), np.uint8),
        prediction=random.integers(0, 4, size, np.uint8),
        points=tuple(at),
        cells=((0, 0),) * points,
        size=cells,
        align_corners=True,
        position=position if points else None,
        channel=channel if channels else None,
    )
    names = ("sky", "road", "traffic light", "vegetation")
    plot_attention(maps, names, PALETTE, tmp_path / "sheet.png", "name", facts="facts", label=maps.prediction)
    ((figure, boxes),) = drawn.items()
    # The numbers of the points may lie on each other.
    check_texts({text: box for text, box in boxes.items() if not text.get_text().isdecimal()}, tmp_path / "sheet.png")
    pictures = [axis for axis in figure.findobj(Axes) if axis.images]
    assert len(pictures) == 3 + points + (channels + 1 if channels else 0)
    others = [axis for axis in figure.findobj(Axes) if not axis.images and axis.axison]
    assert len(others) == (1 if points else 0)  # the color bar
    for axis in pictures:
        shown = axis.get_window_extent()
        assert shown.width / shown.height == pytest.approx(1 if "weights" in title_of(axis) else size[1] / size[0])
        assert shown.width > 30
    for axis, other in itertools.combinations(pictures, 2):
        assert not axis.get_window_extent().overlaps(other.get_window_extent()), (title_of(axis), title_of(other))


def title_of(axis: Axes) -> str:
    return axis.get_title(loc="left").strip()


# ---- scripts ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a run that logged one sheet at every evaluation."""
    wanted = ["tracking.mode=offline", "tracking.attention_images=1", "tracking.images=0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(danet.config, "OUTPUTS", tmp_path_factory.mktemp("outputs"))
        return run.start(load([*TINY, *wanted, "train.steps=4", "train.eval_every=2"])).folder


def test_training_keeps_the_best_sheets_and_mirrors_all_of_them(trained):
    page, kept = sorted((trained / "attention").iterdir())
    assert (page.name, kept.name) == ("scene_00000.html", "scene_00000.png")
    assert '"class_names": ["background"' in page.read_text()
    assert Image.open(kept).size == (2400, 1350)
    mirrored = list(trained.glob("wandb/offline-run-*/files/media/images/val/attention*.png"))
    assert len(mirrored) == 2  # of steps 2 and 4
    assert all(Image.open(path).size == (2400, 1350) for path in mirrored)


def test_the_script_writes_the_sheet_and_its_arrays(trained, tmp_path):
    command = [sys.executable, str(REPOSITORY / "src" / "attention.py"), f"run={trained}", "sample=scene_00002"]
    options = ["points=[[10,12],[40,50]]", "precision=fp32"]
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    folder = trained / "attention" / "scene_00002"
    assert {path.name for path in folder.iterdir()} == {"attention.png", "attention.npz"}
    assert str(folder) in done.stdout
    sample = DATASETS["shapes"]("val", size=64, val_images=6)[2]
    predictor = danet.load(trained, device="cpu", precision="fp32")
    with np.load(folder / "attention.npz") as arrays:
        np.testing.assert_array_equal(arrays["points"], [[10, 12], [40, 50]])
        np.testing.assert_array_equal(arrays["cells"], [[1, 1], [4, 6]])  # 10 * 7 / 63, 12 * 7 / 63 ...
        np.testing.assert_array_equal(arrays["label"], sample.label)
        np.testing.assert_array_equal(arrays["prediction"], predictor.predict(sample.image))
        np.testing.assert_array_equal(arrays["feature_size"], [8, 8])
        assert arrays["class_names"].tolist() == list(predictor.class_names)
        expected = position_maps(predictor, sample.image, [[10, 12], [40, 50]])
        np.testing.assert_allclose(arrays["position_maps"], expected, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(arrays["channel_weights"].sum(axis=1), 1, rtol=1e-5)
        gammas = {name: float(p) for name, p in predictor.model.named_parameters() if name.endswith("gamma")}
        assert [float(arrays["gamma"]), float(arrays["beta"])] == list(gammas.values())
        assert len(arrays["channel_maps"]) == len(arrays["channels"]) == len(arrays["channel_correlations"])


def test_the_script_writes_a_page_of_a_sample(trained, tmp_path):
    command = [sys.executable, str(REPOSITORY / "src" / "attention.py"), f"run={trained}", "sample=scene_00002"]
    options = ["points=[[10,12],[40,50]]", "page=pages"]
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "pages" / "scene_00002.html").read_text()
    assert '"pins": [[10, 12], [40, 50]]' in page
    assert '"truth"' in page


SHAPES = {"name": "shapes", "size": 64, "val_images": 6}


def report(run: Path, **changes) -> Path:
    (written,) = attention_report.run(attention_report.AttentionConfig(run=str(run), **changes))
    return written


def test_an_image_file_with_its_truth_needs_no_data_set(trained, tmp_path):
    sample = DATASETS["shapes"]("val", size=64)[1]
    Image.fromarray(sample.image).save(tmp_path / "photo.png")
    Image.fromarray(sample.label).save(tmp_path / "truth.png")
    files = {"image": str(tmp_path / "photo.png"), "label": str(tmp_path / "truth.png")}
    assert report(trained, **files) == trained / "attention" / "photo"
    with np.load(trained / "attention" / "photo" / "attention.npz") as arrays:
        np.testing.assert_array_equal(arrays["label"], sample.label)
        classes = [arrays["prediction"][tuple(point)] for point in arrays["points"]]
        assert classes == np.unique(arrays["prediction"]).tolist()

    Image.fromarray(sample.label[:50]).save(tmp_path / "truth.png")
    with pytest.raises(ValueError, match=r"truth.png: .*\(50, 64\)"):
        report(trained, **files)
    Image.fromarray(np.full((64, 64), 99, np.uint8)).save(tmp_path / "truth.png")
    with pytest.raises(ValueError, match=r"truth.png: .*value 99"):
        report(trained, **files)


def test_a_page_compares_what_is_asked_for(trained, tmp_path):
    other = tmp_path / "sweep" / "lowered" / "seed3"
    shutil.copytree(trained / "checkpoints", other / "checkpoints")
    shutil.copy(trained / "config.yaml", other)
    (other / "result.json").write_text("{}")
    (tmp_path / "sweep" / "sweep.json").write_text('{"seeds": [5, 3], "variants": {"lowered": {}, "unfinished": {}}}')
    moved = {"seeds": [3], "variants": {"lowered": {}}, "folders": {"lowered/seed3": "elsewhere"}}
    shutil.copytree(other, tmp_path / "moved" / "elsewhere")  # by hydra.sweep.subdir
    (tmp_path / "moved" / "sweep.json").write_text(json.dumps(moved))
    assert attention_report.sources_of(tmp_path / "moved") == [tmp_path / "moved" / "elsewhere"]
    compare = [str(trained / "checkpoints"), str(tmp_path / "sweep"), str(trained)]
    options = {"sample": "0, scene_00002", "dataset": SHAPES, "compare": compare, "page": str(tmp_path / "page.html")}
    page = data_of(report(trained, **options))
    steps = sorted(path.stem for path in (trained / "checkpoints").glob("step*.pt"))
    assert [model["name"] for model in page["models"]] == [trained.name, *steps, "lowered"]
    assert all(model["facts"].startswith("resnet_tiny, danet, step ") for model in page["models"])
    assert [picture["name"] for picture in page["pictures"]] == ["scene_00000", "scene_00002"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no run folder, no sweep with finished runs, and has no \.pt"):
        report(trained, **{**options, "compare": [str(tmp_path / "empty")]})


def test_models_are_called_by_what_tells_them_apart():
    for paths, names in (
        (["a/pam/seed0", "a/fcn/seed0"], ["pam", "fcn"]),
        (["a/pam/seed0", "a/pam/seed1"], ["seed0", "seed1"]),
        (["a/pam/seed0", "b/pam/seed0"], ["a/pam", "b/pam"]),
        (["d/x.1/checkpoints/best.pt", "d/x.1"], ["best", "x.1"]),
        (["d/x/checkpoints/best.pt", "d/y/checkpoints/best.pt"], ["x/best", "y/best"]),
        (["x.pt", "x.safetensors"], ["x.pt", "x.safetensors"]),
    ):
        assert attention_report.short_names([Path(path) for path in paths]) == names


def test_several_images_get_a_sheet_each(trained, tmp_path):
    config = attention_report.AttentionConfig(run=str(trained), sample="1,0", dataset=SHAPES, output=str(tmp_path))
    assert attention_report.run(config) == [tmp_path / "scene_00001", tmp_path / "scene_00000"]
    assert all((tmp_path / name / "attention.png").is_file() for name in ("scene_00000", "scene_00001"))


def test_samples_of_one_name_in_two_splits_get_a_sheet_each(trained):
    folders = [
        attention_report.run(
            attention_report.AttentionConfig(run=str(trained), sample="0", split=split, dataset=SHAPES)
        )
        for split in ("val", "test")
    ]
    assert folders == [[trained / "attention" / "scene_00000"], [trained / "attention" / "test_scene_00000"]]


@pytest.mark.parametrize("size", [(7, 3000), (3000, 7)])
def test_a_very_long_image_has_a_sheet(tmp_path, size):
    shape = (2, 60) if size[0] < size[1] else (60, 2)
    maps = AttentionMaps(
        image=np.full((*size, 3), 128, np.uint8),
        prediction=np.zeros(size, np.uint8),
        points=((2, 2),),
        cells=((0, 0),),
        size=shape,
        align_corners=False,
        position=PositionMaps(
            weights=np.full((1, *shape), 1 / 120, np.float32), class_shares=np.eye(4, dtype=np.float32)[:1], gamma=1.0
        ),
        channel=None,
    )
    plot_attention(maps, NAMES, PALETTE, tmp_path / "sheet.png", "name", label=maps.prediction)
    assert Image.open(tmp_path / "sheet.png").size == (2400, 1350)


def test_images_of_one_name_get_a_sheet_each(trained, tmp_path):
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    names = ("a/x.png", "b/X.png", "c/x_2.png")
    for name in names:
        Image.new("RGB", (64, 48)).save(tmp_path / name)
    images = [str(tmp_path / name) for name in names]
    config = attention_report.AttentionConfig(run=str(trained), image=images, output=str(tmp_path / "out"))
    assert [folder.name for folder in attention_report.run(config)] == ["x", "X_2", "x_2_2"]


def test_a_sample_that_is_not_there_is_refused(trained):
    with pytest.raises(ConfigError, match="sample = 6: the split has 6 images"):
        report(trained, sample="6", dataset=SHAPES)
    with pytest.raises(ConfigError, match="sample = 'scene_0002'.*did you mean 'scene_00002'"):
        report(trained, sample="scene_0002", dataset=SHAPES)


def test_bad_input_is_named(trained, tmp_path):
    def check(*overrides: str) -> attention_report.AttentionConfig:
        with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
            return danet.config.load_as(attention_report.AttentionConfig, compose("attention", overrides=[*overrides]))

    with pytest.raises(ConfigError) as error:
        check(f"run={trained}", "points=[[1,2,3]]", "image=nothing.png", "attention.max_classes=0")
    assert all(f"\n  {key} = " in str(error.value) for key in ("points", "image", "attention.max_classes"))
    with pytest.raises(ConfigError, match="image, sample: set exactly one"):
        check(f"run={trained}")
    with pytest.raises(ConfigError, match="compare: only valid for a page"):
        check(f"run={trained}", "sample='0'", f"compare=['{trained}']")
    with pytest.raises(ConfigError, match="sample: needs a data set; add dataset=NAME"):
        check(f"run={trained}", "sample='0'")
    with pytest.raises(ValueError, match="outside the image with 64 rows and 64 columns"):
        report(trained, sample="0", dataset=SHAPES, points=[[64, 0]], output=str(tmp_path / "here"))
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("given", ["ä%D5", unicodedata.normalize("NFD", "ä%D5"), "ä\udcd5"])
def test_a_sample_is_found_by_the_name_of_its_file(given: str) -> None:
    class Files(list[str]):
        files = [FilePair("0.png", None, "other"), FilePair("1.png", None, "ä%D5")]

    assert find_samples(Files(["0", "1"]), given) == ["1"]  # type: ignore[arg-type, comparison-overlap]
