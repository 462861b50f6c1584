import collections
import itertools
import math

import cv2
import numpy as np
import pytest
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from danet.services.curves import plot_curves
from danet.services.figures import plot_confusion_matrix, plot_sample

PALETTE = [(255, 0, 0), (0, 200, 0), (0, 0, 255)]
NAMES = ["red", "green", "blue"]


@pytest.fixture
def figures(monkeypatch):
    """Collects every figure that is drawn, for a look at what it says."""
    from matplotlib.figure import Figure

    drawn = []
    original = Figure.savefig

    def savefig(self, *args, **kwargs):
        drawn.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return drawn


def read(path):
    return cv2.imread(str(path))[..., ::-1]


def test_curves_mark_the_best_miou(tmp_path, figures):
    rows = [{"step": step, "train/loss": 5 / step, "train/loss/main": 3 / step, "train/loss/pam": 2 / step}
            for step in range(1, 301)]  # fmt: skip
    scores = {100: 0.3, 200: 0.512, 300: None}
    rows += [{"step": step, "val/miou": score, "val/pixel_accuracy": 0.8} for step, score in scores.items()]
    rows += [{"step": 300, "train/lr/head": 0.1, "train/gamma/pam": 0.2, "train/gamma/cam": -0.1}]
    plot_curves(rows, tmp_path / "curves.png")
    losses, scores, rates, gammas = figures[0].axes
    assert [text.get_text() for text in losses.get_legend().texts] == ["total", "main", "pam"]
    assert "best mIoU 51.2% at step 200" in [text.get_text() for text in scores.get_legend().texts]
    assert [text.get_text() for text in gammas.get_legend().texts] == ["pam", "cam"]
    height, width, _ = read(tmp_path / "curves.png").shape
    assert width > height > 500


def test_curves_show_the_split_that_is_scored(tmp_path, figures):
    rows = [{"step": 1, "test/miou": 0.25, "test/pixel_accuracy": 0.5}, {"step": 2, "val/miou": 0.75}]
    plot_curves(rows, tmp_path / "curves.png", "test")
    scores = figures[0].axes[1]
    assert "test" in scores.get_title(loc="left")
    assert "best mIoU 25.0% at step 1" in [text.get_text() for text in scores.get_legend().texts]


def test_smoothed_loss_is_the_running_mean(tmp_path, figures):
    losses = np.random.default_rng(0).uniform(1, 2, 200)
    losses[50] = math.nan
    rows = [{"step": step, "train/loss": None if math.isnan(loss) else loss} for step, loss in enumerate(losses)]
    plot_curves(rows, tmp_path / "curves.png")
    raw, smooth = (line.get_ydata() for line in figures[0].axes[0].lines)
    np.testing.assert_array_equal(raw, losses)
    expected = [np.nanmean(losses[max(index - 5, 0) : index + 6]) for index in range(200)]
    np.testing.assert_allclose(smooth, expected)


def test_curves_of_a_run_that_hardly_began(tmp_path, recwarn):
    plot_curves([], tmp_path / "none.png")
    plot_curves([{"step": 1, "train/loss": math.nan}], tmp_path / "one.png")
    assert not recwarn.list
    assert (tmp_path / "one.png").stat().st_size > 0


def test_confusion_matrix_shows_row_percentages(tmp_path, figures):
    matrix = np.array([[90, 10, 0], [1, 3, 0], [0, 0, 0]])
    plot_confusion_matrix(matrix, NAMES, tmp_path / "matrix.png")
    cells = {text.get_position(): text.get_text() for text in figures[0].axes[0].texts}
    assert cells.pop((1, 2)) == "no pixels in the truth"
    assert cells == {(0, 0): "90", (1, 0): "10", (0, 1): "25", (1, 1): "75"}  # (column, row)
    plot_confusion_matrix(np.eye(32, dtype=np.int64), [f"class {i}" for i in range(32)], tmp_path / "large.png")
    assert not figures[1].axes[0].texts


def record_texts(monkeypatch):
    """The texts of each figure with their boxes [pixels of the PNG], as they were drawn last."""
    draw, drawn = Text.draw, collections.defaultdict(dict)

    def record(self, *arguments, **options):
        if self.get_visible() and self.get_text().strip():
            box = self.get_window_extent()
            if self.get_text().endswith("\n"):  # whose last line is left empty, for another text
                box = Bbox.from_extents(box.x0, (box.y0 + box.y1) / 2, box.x1, box.y1)
            drawn[self.get_figure(root=True)][self] = box
        return draw(self, *arguments, **options)

    monkeypatch.setattr(Text, "draw", record)
    return drawn


def check_texts(boxes, path):
    """Every text lies on the page, and overlaps no other unless one of them is rotated."""
    height, width, _ = read(path).shape
    for text, box in boxes.items():
        assert min(box.x0, box.y0) >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    for (text, box), (other, other_box) in itertools.combinations(boxes.items(), 2):
        assert text.get_rotation() or other.get_rotation() or not box.overlaps(other_box), (text, other)


@pytest.mark.parametrize("length", [1, 40])
def test_every_text_is_on_the_page_and_beside_the_others(tmp_path, monkeypatch, length):
    drawn = record_texts(monkeypatch)
    names = [f"{name} {'wide ' * (length // 5)}".strip() for name in ("Bus", "Car", "Dog", "Egg", "Fan", "Gas")]
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    plot_confusion_matrix(np.eye(6, dtype=np.int64), names, paths[0])
    label = np.arange(48 * 48, dtype=np.uint8).reshape(48, 48) % 6
    colors = [(40 * index, 0, 0) for index in range(6)]
    plot_sample(label[..., None].repeat(3, 2), label, label, names, colors, paths[1], length * "t i")
    rows = [{"step": 90_000, "train/loss": 1.5e4, "train/lr/head": 1.25e-7, "val/miou": 1.0, "train/gamma/pam": -1e-5}]
    plot_curves([{**rows[0], "step": 1}, *rows], paths[2])
    plot_curves([{"step": 1, "train/lr/a": 0.0, "val/miou": 0.0}, {"step": 9, "train/lr/a": 2.5e-4}], paths[3])
    for boxes, path in zip(drawn.values(), paths, strict=True):
        check_texts(boxes, path)


@pytest.mark.parametrize("size", [(96, 96), (360, 480), (64, 200)])
def test_sample_shows_the_classes_in_their_colors(tmp_path, figures, size):
    label = np.zeros(size, np.uint8)
    label[: size[0] // 2] = 2
    label[:, : size[1] // 4] = 255
    prediction = np.full(size, 2, np.uint8)
    image = np.full((*size, 3), (10, 20, 30), np.uint8)
    plot_sample(image, label, prediction, NAMES, PALETTE, tmp_path / "sample.png", "a title")
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.texts] == ["red", "blue", "ignored"]

    picture = read(tmp_path / "sample.png")
    assert picture.shape[1] > 900  # a tiny image is enlarged

    def share(column, color):
        third = np.array_split(picture, 3, axis=1)[column]
        return np.all(third == color, axis=-1).mean()

    area = share(0, (10, 20, 30))  # what one picture takes of its third
    assert area > 0.4
    assert share(1, PALETTE[0]) == pytest.approx(area * 3 / 8, abs=0.02)
    assert share(1, PALETTE[2]) == pytest.approx(area * 3 / 8, abs=0.02)
    assert share(1, (153, 153, 153)) > 0.01  # the stripes of ignored pixels
    assert share(2, PALETTE[2]) == pytest.approx(area, abs=0.02)


@pytest.mark.parametrize("size", [(3000, 7), (7, 3000)])
def test_the_picture_of_a_very_long_image_has_an_end(tmp_path, size):
    ids = np.zeros(size, np.uint8)
    plot_sample(np.zeros((*size, 3), np.uint8), ids, ids, NAMES, PALETTE, tmp_path / "sample.png", "a title")
    assert max(read(tmp_path / "sample.png").shape) < 3000


def test_the_error_picture_shows_wrong_pixels_alone(tmp_path, figures):
    label, prediction = np.zeros((2, 80, 100), np.uint8)
    label[:, :20] = 255
    prediction[:40] = 1  # wrong in the upper half, where it counts
    image = np.full((80, 100, 3), (10, 20, 30), np.uint8)
    plot_sample(image, label, prediction, NAMES, PALETTE, tmp_path / "sample.png", "a title", error=True)
    assert [axis.get_title() for axis in figures[0].axes] == ["image", "truth", "prediction", "error"]
    error = figures[0].axes[3].images[0].get_array()
    wrong = np.zeros((80, 100), bool)
    wrong[:40, 20:] = True
    assert (error[wrong] == (0xD5, 0x5E, 0x00)).all()
    assert (error[~wrong].min(axis=-1) > 150).all()  # pale
    assert (error[~wrong] == error[79, 99]).all()


@pytest.mark.parametrize("name", ["\udcd5\udcd5Ƭ1", "照片 (1)", "a$b_{$\\frac", "two\nlines"])
def test_every_name_can_be_drawn_without_a_word(tmp_path, recwarn, name):
    label = np.zeros((8, 9), np.uint8)
    names = [name if name.isprintable() else "class", "b$2$", "车"]
    plot_sample(np.zeros((8, 9, 3), np.uint8), label, label, names, PALETTE, tmp_path / "a.png", name, error=True)
    plot_confusion_matrix(np.eye(3, dtype=int), names, tmp_path / "b.png")
    assert all(read(tmp_path / file).std() > 0 for file in ("a.png", "b.png"))
    assert not recwarn.list


def test_a_dollar_sign_is_a_letter(tmp_path, figures):
    """As a formula it would be drawn otherwise."""
    label = np.zeros((8, 9), np.uint8)
    plot_sample(np.zeros((8, 9, 3), np.uint8), label, label, ["$a_b$"], PALETTE, tmp_path / "a.png", "$a_b$")
    texts = [text for text in figures[0].findobj(Text) if "$" in text.get_text()]
    assert len(texts) == 2
    assert not any(text.get_parse_math() for text in texts)
