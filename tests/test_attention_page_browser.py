"""The attention page in a real browser: its numbers beside PyTorch's, pointer, keys, pins, hostile names, widths."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from danet.analysis.attention_maps import as_predictor, attention_maps
from danet.analysis.attention_page.page import PagePicture, Shown, write_comparison, write_page
from danet.analysis.attention_points import cell_of
from test_attention_page import HOSTILE, IMAGE, LABEL, SIZE, K, all_weights, build, hostile, pixels_of_all_cells

POINTS = [(0, 0), (60, 92), (30, 47), (7, 88), (3, 4)]
CELLS = (8, 12)


@pytest.fixture
def tab(chromium: Any) -> Iterator[Any]:
    """A tab whose errors fail the test."""
    tab, errors = chromium.new_page(viewport={"width": 1200, "height": 900}), []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    yield tab
    tab.close()
    assert errors == []


def visit(tab: Any, page: Path, fragment: str = "") -> None:
    tab.goto(page.as_uri() + fragment)
    tab.wait_for_selector("html[data-ready]")


def drawn(tab: Any) -> None:
    tab.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def at(tab: Any, point: tuple[int, int], stage: int = 0) -> tuple[float, float]:
    """The center of an image's pixel on the screen."""
    box = tab.locator(".stage").nth(stage).bounding_box()
    return box["x"] + (point[1] + 0.5) / SIZE[1] * box["width"], box["y"] + (point[0] + 0.5) / SIZE[0] * box["height"]


def hover(tab: Any, point: tuple[int, int], stage: int = 0) -> None:
    tab.mouse.move(*at(tab, point, stage))
    drawn(tab)


def state(tab: Any, key: str) -> Any:
    return tab.evaluate(f"window.attentionPage.state.{key}")


def until(tab: Any, key: str, value: Any) -> None:
    """Wait for a value of the page's state; Playwright's own waiting would need eval."""
    for _ in range(500):
        if state(tab, key) == value:
            return
        tab.wait_for_timeout(20)
    pytest.fail(f"{key} stays {state(tab, key)}")


@pytest.mark.parametrize("align_corners", [True, False], ids=["align_corners", "equal_cells"])
def test_a_browser_computes_the_weights_of_the_model(align_corners: bool, tab: Any, tmp_path: Path) -> None:
    model = build("danet", align_corners=align_corners)
    visit(tab, write_page(model, IMAGE, tmp_path / "page.html", label=LABEL))
    found = tab.evaluate(
        """([indices, points]) => {
          const { looks, row, column, statistics, cellOf, channelRow } = window.attentionPage;
          const module = looks()[0].position[0];
          const { entropy, prediction, truth } = statistics(module, 17, row(module, 17));
          return {
            rows: indices.map((index) => [...row(module, index)]),
            columns: indices.map((index) => [...column(module, index)]),
            cells: points.map((point) => cellOf(module, point)),
            entropy, prediction: [...prediction], truth: [...truth], channel: [...channelRow(5)],
          };
        }""",
        [[0, 17, 95], POINTS],
    )
    expected = all_weights(model)
    np.testing.assert_allclose(found["rows"], expected[[0, 17, 95]], atol=1e-3)
    np.testing.assert_allclose(found["columns"], expected[:, [0, 17, 95]].T, atol=1e-3)
    maps = attention_maps(model, IMAGE, [pixels_of_all_cells(CELLS, align_corners)[17]], channels=[0])
    assert maps.position is not None
    assert maps.channel is not None
    np.testing.assert_allclose(found["prediction"][:K], maps.position.class_shares[0], atol=1e-3)
    np.testing.assert_allclose(found["channel"], maps.channel.weights[5], atol=1e-3)
    assert sum(found["truth"]) == pytest.approx(1, abs=1e-3)
    assert found["entropy"] == pytest.approx(-(expected[17] * np.log(expected[17])).sum(), abs=2e-3)
    cells = [cell_of(point, SIZE, CELLS, align_corners) for point in POINTS]
    assert found["cells"] == [row * CELLS[1] + column for row, column in cells]


def test_the_page_follows_pointer_and_keys(tab: Any, tmp_path: Path) -> None:
    model = build("danet")
    prediction, weights = as_predictor(model).predict(IMAGE), all_weights(model)
    visit(tab, write_page(hostile(model), IMAGE, tmp_path / "page.html", label=LABEL))
    hover(tab, (30, 47))
    assert state(tab, "point") == [30, 47]
    assert tab.inner_text("#title") == f"{HOSTILE[prediction[30, 47]]} reads from"
    light = tab.evaluate(
        """() => {
          const canvas = document.querySelector(".heat"), { width, height } = canvas;
          const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
          return Array.from({ length: height }, (_, y) => Array.from({ length: width }, (_, x) => {
            const i = 4 * (y * width + x);
            return data[i + 3] * (data[i] + data[i + 1]);
          }));
        }"""
    )
    assert np.shape(light) == SIZE
    row, column = cell_of((30, 47), SIZE, CELLS, model.align_corners)
    brightest = np.unravel_index(np.argmax(light), SIZE)
    there = cell_of((int(brightest[0]), int(brightest[1])), SIZE, CELLS, model.align_corners)
    largest = weights[row * 12 + column]
    assert largest[there[0] * 12 + there[1]] > 0.8 * largest.max()

    tab.locator(".stage").press("ArrowRight")
    assert cell_of(tuple(state(tab, "point")), SIZE, CELLS, model.align_corners) == (row, column + 1)
    for index in range(7):
        tab.mouse.click(*at(tab, (8, 8 + 12 * index)))
    assert len(state(tab, "pins")) == 6
    drawn(tab)
    tab.mouse.click(*at(tab, (50, 8)))
    assert "At most 6 pins; remove one." in tab.inner_text("#pins")
    for key in ("Delete", "s", "l"):
        tab.locator(".stage").press(key)
    assert [len(state(tab, "pins")), state(tab, "direction"), state(tab, "layer")] == [5, "column", "prediction"]
    assert "v=column&l=prediction" in tab.url
    tab.click("#row")
    tab.get_by_role("button", name="Remove pin 1").click()
    assert [len(state(tab, "pins")), state(tab, "direction")] == [4, "row"]
    tab.evaluate("location.hash = '#p=60,92&pins=1,2;3,4;999,1&v=row&l=entropy'")
    until(tab, "layer", "entropy")
    assert [state(tab, "point"), state(tab, "pins")] == [[60, 92], [[1, 2], [3, 4]]]
    with tab.expect_download() as download:
        tab.click("#save")
    assert download.value.suggested_filename == "page_attention.png"


def test_hostile_names_are_text_in_the_browser(tab: Any, tmp_path: Path) -> None:
    predictor, name = hostile(build("danet")), "<img src=x onerror='window.hacked = 1'>"
    shown = [Shown(model=predictor, name=name, facts=name), Shown(model=predictor, name=HOSTILE[1])]
    pictures = [PagePicture(image=IMAGE, name=text, label=LABEL, points=[(9, 9), (40, 40)]) for text in HOSTILE]
    visit(tab, write_comparison(shown, pictures, tmp_path / "page.html"))
    hover(tab, (30, 47))
    for _ in range(7):
        tab.locator(".stage").first.press("l")
    tab.locator(".stage").first.press("n")
    until(tab, "picture", 1)
    assert tab.evaluate("[window.hacked || 0, document.scripts.length]") == [0, 2]
    assert tab.evaluate("document.images.length") == len(pictures) + len(shown)
    assert name in tab.inner_text("#stages")
    assert HOSTILE[1] in tab.inner_text("#name")


def test_models_are_seen_side_by_side_under_one_pointer(tab: Any, tmp_path: Path) -> None:
    first, second = build("danet"), build("danet", cam=False)
    second.head.classifier[1].bias.data[3] += 0.5
    shown = [Shown(model=model, name=name) for model, name in ((first, "one"), (build("fcn"), "fcn"), (second, "two"))]
    upright, turned = PagePicture(image=IMAGE, name="a", label=LABEL), IMAGE[::-1].copy()
    pictures = [upright, PagePicture(image=turned, name="b", label=LABEL)]
    visit(tab, write_comparison(shown, pictures, tmp_path / "page.html"), "#l=change")
    tab.click("text=b")
    until(tab, "picture", 1)
    hover(tab, (30, 47), stage=2)
    assert [state(tab, "point"), state(tab, "model"), state(tab, "layer")] == [[30, 47], 2, "change"]
    for index, model in ((0, first), (2, second)):
        largest = attention_maps(model, IMAGE[::-1].copy(), [(30, 47)]).position.weights.max()  # type: ignore[union-attr]
        text = tab.locator(".view").nth(index).locator(".scale-bar").inner_text()
        assert float(text.split()[-2]) == pytest.approx(100 * largest, abs=0.1)
    notes = [tab.locator(".view").nth(index).locator("p").inner_text() for index in range(3)]
    before, after = (as_predictor(model).predict(IMAGE[::-1].copy()) for model in (first, second))
    right, differ = (float(number) for number in re.findall(r"([\d.]+)\s% of the pixels", notes[2]))
    assert right == pytest.approx(100 * (after == LABEL).mean(), abs=0.06)
    assert differ == pytest.approx(100 * (before != after).mean(), abs=0.06)
    assert "FCNHead has no attention" in notes[1]
    rows = tab.locator("#models tr").all_inner_texts()
    assert len(rows) == 4
    assert [row.split("\t")[0] for row in rows[1:]] == ["one", "fcn", "two"]
    assert not tab.locator("#channels").is_visible()  # the second has none
    hover(tab, (30, 47), stage=1)
    assert not tab.locator("#details").is_visible()
    hover(tab, (30, 47), stage=0)
    assert tab.locator("#details").is_visible()
    assert tab.locator("#channels").is_visible()


@pytest.mark.parametrize("width", [400, 1600])
def test_nothing_lies_beside_the_screen(width: int, tab: Any, tmp_path: Path) -> None:
    shown = [Shown(model=build("danet"), name=f"a variant with a long name {index}") for index in range(2)]
    picture = PagePicture(image=IMAGE, name="an image", label=LABEL, points=[(9, 9), (40, 40)])
    tab.set_viewport_size({"width": width, "height": 800})
    visit(tab, write_comparison(shown, [picture], tmp_path / "page.html"), "#l=prediction")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    boxes = [tab.locator(".stage").nth(index).bounding_box() for index in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert all(box["width"] / box["height"] == pytest.approx(SIZE[1] / SIZE[0], rel=0.02) for box in boxes)
