"""The attention page: its numbers beside PyTorch's, decoded here and computed by a browser; hostile names, limits."""

import base64
import json
import re
import shutil
import subprocess
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmseg_peer
from danet.analysis.attention_maps import as_predictor, attention_maps, attention_modules
from danet.analysis.attention_points import cell_of
from danet.inference.predictor import Predictor
from danet.model import Segmenter, build_model
from danet.tools.attention_page import contents
from danet.tools.attention_page.page import page_file, write_page

K, SIZE = 4, (61, 93)  # an odd size
IMAGE = (
    np.random.default_rng(0)
    .integers(0, 256, (4, 6, 3), np.uint8)
    .repeat(16, axis=0)
    .repeat(16, axis=1)[: SIZE[0], : SIZE[1]]
)
LABEL = np.random.default_rng(1).integers(0, K, SIZE).astype(np.uint8)
HOSTILE = (
    "<script>window.hacked = 1</script>",
    "</script><img src=x onerror='window.hacked = 1'>",
    "a & b",
    "'\"{{ 7 * 7 }}",
)
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def build(head: str, **options: Any) -> Segmenter:
    """A small model whose attention differs between positions."""
    model = build_model({"name": "resnet_tiny", "widths": [8, 8, 16, 64]}, {"name": head, **options}, K)
    mmseg_peer.randomize(model.head)
    for name, parameter in model.head.named_parameters():
        if re.search(r"query|key|theta|phi|conv_mask", name):
            parameter.data *= 20
    return model.eval()


def hostile(model: Segmenter) -> Predictor:
    predictor = as_predictor(model)
    predictor.class_names = HOSTILE
    return predictor


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


def decoded(value: dict[str, Any]) -> np.ndarray:
    raw = zlib.decompress(base64.b64decode(value["data"]))
    array = np.frombuffer(raw, np.dtype(value["type"]).newbyteorder("<")).reshape(value["shape"])
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def weights_in(module: dict[str, Any]) -> np.ndarray:
    """All N x N weights, from what a page has."""
    if module["kind"] == "weights":
        stored = decoded(module["weights"])
        return stored / len(stored)
    energies = decoded(module["query"]) @ decoded(module["key"]).T
    return np.exp(energies - decoded(module["log_sums"])[:, None])


def pixels_of_all_cells(size: tuple[int, int], align_corners: bool) -> list[tuple[int, int]]:
    first: dict[tuple[int, int], tuple[int, int]] = {}
    for point in np.ndindex(SIZE):
        first.setdefault(cell_of(point, SIZE, size, align_corners), point)
    return [first[cell] for cell in np.ndindex(size)]


def all_weights(model: Segmenter) -> np.ndarray:
    """All N x N weights, as danet.analysis.attention_maps has them."""
    size = attention_maps(model, IMAGE, [(0, 0)]).size
    maps = attention_maps(model, IMAGE, pixels_of_all_cells(size, model.align_corners)).position
    assert maps is not None
    return maps.weights.reshape(len(maps.weights), -1)


@pytest.mark.parametrize("head", ["danet", "danet_article", "danet_clgd", "nonlocal", "dnl", "linear", "ccnet", "ann"])
def test_the_page_has_the_weights_of_the_model(head: str, tmp_path: Path) -> None:
    model = build(head)
    data = data_of(write_page(model, IMAGE, tmp_path / "page.html", label=LABEL))
    (module,) = data["position"]
    assert module["kind"] == ("weights" if head in ("linear", "ccnet", "ann") else "query_key")
    expected = all_weights(model)
    np.testing.assert_allclose(weights_in(module), expected, atol=1e-3)
    assert head == "linear" or expected.max() > 3 / len(expected)  # not all equal
    np.testing.assert_allclose(weights_in(module).sum(axis=1), 1, atol=2e-3)


def test_layers_and_channels_are_those_of_the_model(tmp_path: Path) -> None:
    model = build("danet", align_corners=False)
    predictor = as_predictor(model)
    data = data_of(write_page(model, IMAGE, tmp_path / "page.html", label=LABEL))
    layers = {name: decoded(layer) for name, layer in data["layers"].items()}
    probabilities = predictor.probabilities(IMAGE)
    np.testing.assert_array_equal(layers["prediction"], predictor.predict(IMAGE))
    np.testing.assert_array_equal(layers["truth"], LABEL)
    np.testing.assert_allclose(layers["confidence"] / 255, probabilities.max(axis=0), atol=0.003)
    entropy = -(probabilities * np.log(probabilities)).sum(axis=0) / np.log(K)
    np.testing.assert_allclose(layers["entropy"] / 255, entropy, atol=0.003)
    channel = data["channel"]
    count = len(channel["low"])
    maps = attention_maps(model, IMAGE, channels=range(count)).channel
    assert maps is not None
    np.testing.assert_allclose(decoded(channel["weights"]) / count, maps.weights, atol=1e-3)
    np.testing.assert_allclose(decoded(channel["correlations"]), maps.correlations, atol=1e-5)
    low, high = (np.array(channel[name])[:, None, None] for name in ("low", "high"))
    shown = low + decoded(channel["maps"]) / 255 * (high - low)
    assert (np.abs(shown - maps.maps) <= 0.003 * (high - low) + 1e-3).all()


def test_where_half_precision_is_too_coarse_the_page_has_single(tmp_path: Path) -> None:
    model = build("danet")
    pam: Any = attention_modules(model)["pam"]
    pam.query.weight.data *= 40
    pam.key.weight.data *= 40
    (module,) = data_of(write_page(model, IMAGE, tmp_path / "page.html"))["position"]
    assert module["type"] == "float32"
    np.testing.assert_allclose(weights_in(module), all_weights(model), atol=1e-3)


def test_what_cannot_be_shown_is_refused_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.html"
    with pytest.raises(ValueError, match=r"attention.page_size=0.001; take a smaller image"):
        write_page(build("danet"), IMAGE, page, page_size=0.001)
    with pytest.raises(ValueError, match=r"page: would have 0.\d MB, more than attention.page_size=0.05"):
        write_page(build("danet"), IMAGE, page, page_size=0.05)
    with pytest.raises(ValueError, match="FCNHead has no attention"):
        write_page(build("fcn"), IMAGE, page)
    with pytest.raises(ValueError, match="7 are given, but a page pins at most 6"):
        write_page(build("danet"), IMAGE, page, points=[(0, 0)] * 7)
    with pytest.raises(ValueError, match=r"label is \(60, 93\)"):
        write_page(build("danet"), IMAGE, page, label=LABEL[:-1])
    monkeypatch.setattr(contents, "MOST_POSITIONS", 10)
    with pytest.raises(ValueError, match="bases: .*at most 10 positions are allowed; take a smaller image"):
        write_page(build("emanet"), IMAGE, page)
    assert list(tmp_path.iterdir()) == []
    write_page(build("danet", pam=False), IMAGE, page)
    assert data_of(page)["position"] == []


def test_a_page_needs_nothing_but_itself_and_its_names_are_text(tmp_path: Path) -> None:
    text = write_page(hostile(build("danet")), IMAGE, tmp_path / "page.html", name="<b>x</b>").read_text("utf-8")
    assert "<title>Attention: &lt;b&gt;x&lt;/b&gt;</title>" in text
    assert data_of(tmp_path / "page.html")["class_names"] == list(HOSTILE)
    assert not re.search(r"hacked[^\"]*</script>|<img src=x|<b>x", text)
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text


def test_a_folder_gets_a_page_with_the_name_of_the_image(tmp_path: Path) -> None:
    assert page_file(str(tmp_path), "photo") == tmp_path / "photo.html"
    assert page_file(str(tmp_path / "a.html"), "photo") == tmp_path / "a.html"


# ---- in a browser ----------------------------------------------------------------------------------------------------

DRIVER = r"""
<script>
window.addEventListener("load", async () => {
  const errors = [];
  addEventListener("error", (event) => errors.push(event.message));
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  const drawn = async () => { await frame(); await frame(); };
  while (!window.attentionPage) await frame();
  const { page, state, row, column, statistics, cellOf, channelRow } = window.attentionPage;
  const $ = (id) => document.getElementById(id);
  const module = page.position[0], stage = $("stage"), box = stage.getBoundingClientRect();
  const at = ([y, x]) => ({ clientX: box.left + ((x + 0.5) / page.size[1]) * box.width,
    clientY: box.top + ((y + 0.5) / page.size[0]) * box.height, bubbles: true, pointerType: "mouse" });
  const send = async (type, point) => { stage.dispatchEvent(new PointerEvent(type, at(point))); await drawn(); };
  const key = async (name) => {
    stage.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
    await drawn();
  };
  const indices = [0, 17, 95], result = { rows: [], columns: [], cells: [] };
  for (const index of indices) {
    result.rows.push([...row(module, index)]);
    result.columns.push([...column(module, index)]);
  }
  for (const point of POINTS) result.cells.push(cellOf(module, point));
  const found = statistics(module, 17, row(module, 17));
  Object.assign(result, { entropy: found.entropy, prediction: [...found.prediction], truth: [...found.truth] });
  result.channel = [...channelRow(5)];
  await send("pointermove", [30, 47]);
  const canvas = $("heat"), pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const light = (_, i) => pixels[4 * i + 3] * (pixels[4 * i] + pixels[4 * i + 1]);
  result.heat = { size: [canvas.height, canvas.width], light: Array.from({ length: pixels.length / 4 }, light) };
  result.hovered = [state.point, $("title").textContent, $("by-prediction").textContent];
  await key("ArrowRight");
  result.moved = cellOf(module, state.point);
  for (let i = 0; i < 7; i++) {
    await send("pointerdown", [8, 8 + 12 * i]);
    await send("pointerup", [8, 8 + 12 * i]);
  }
  result.pins = state.pins.length;
  result.refusal = $("status").textContent;
  await key("Delete");
  await key("s");
  await key("l");
  result.after = [state.pins.length, state.direction, state.layer, $("legend").textContent];
  result.hash = location.hash;
  const heard = new Promise((done) => addEventListener("hashchange", done, { once: true }));
  location.hash = "#p=60,92&pins=1,2;3,4;999,1&v=row&l=entropy";
  await heard;
  result.recalled = [state.point, state.pins, state.direction, state.layer];
  Object.assign(result, { hacked: window.hacked || 0, errors });
  Object.assign(result, { scripts: document.scripts.length, images: document.images.length });
  console.log("RESULT " + btoa(unescape(encodeURIComponent(JSON.stringify(result)))) + " END");
});
</script>
"""
POINTS = [(0, 0), (60, 92), (30, 47), (7, 88), (3, 4)]


@pytest.fixture(scope="module", params=[True, False], ids=["align_corners", "equal_cells"])
def browsed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Segmenter, dict[str, Any]]:
    """A model, and what a browser computed and showed on its page."""
    if BROWSER is None:
        pytest.skip("needs a browser: apt-get install chromium")
    folder = tmp_path_factory.mktemp("page")
    model = build("danet", align_corners=request.param)
    page = write_page(hostile(model), IMAGE, folder / "page.html", label=LABEL)
    driver = DRIVER.replace("POINTS", json.dumps(POINTS))
    page.write_text(page.read_text("utf-8").replace("</body>", f"{driver}</body>"), "utf-8")
    return model, console_of(page, folder / "profile")


def console_of(page: Path, profile: Path) -> dict[str, Any]:
    """What the driver logs when it is done; the browser runs in real time until then."""
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900", f"--user-data-dir={profile}"]
    command = [BROWSER, *options, "--enable-logging=stderr", "--remote-debugging-port=0", page.as_uri()]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as browser:
        alarm = threading.Timer(120, browser.terminate)
        alarm.start()
        try:
            assert browser.stderr
            lines = []
            for line in browser.stderr:
                lines.append(line)
                if found := re.search(r"RESULT (\S+) END", line):
                    return json.loads(base64.b64decode(found[1]))
        finally:
            alarm.cancel()
            browser.terminate()
    pytest.fail(f"the browser said nothing:\n{''.join(lines)[-2000:]}")


def test_a_browser_computes_the_weights_of_the_model(browsed: tuple[Segmenter, dict[str, Any]]) -> None:
    model, result = browsed
    expected = all_weights(model)
    np.testing.assert_allclose(result["rows"], expected[[0, 17, 95]], atol=1e-3)
    np.testing.assert_allclose(result["columns"], expected[:, [0, 17, 95]].T, atol=1e-3)
    maps = attention_maps(model, IMAGE, [pixels_of_all_cells((8, 12), model.align_corners)[17]], channels=[0])
    assert maps.position is not None
    assert maps.channel is not None
    np.testing.assert_allclose(result["prediction"][:K], maps.position.class_shares[0], atol=1e-3)
    np.testing.assert_allclose(result["channel"], maps.channel.weights[5], atol=1e-3)
    assert sum(result["truth"]) == pytest.approx(1, abs=1e-3)
    assert result["entropy"] == pytest.approx(-(expected[17] * np.log(expected[17])).sum(), abs=2e-3)
    cells = [cell_of(point, SIZE, (8, 12), model.align_corners) for point in POINTS]
    assert result["cells"] == [row * 12 + column for row, column in cells]


def test_the_page_follows_pointer_and_keys(browsed: tuple[Segmenter, dict[str, Any]]) -> None:
    model, result = browsed
    prediction = as_predictor(model).predict(IMAGE)
    assert result["hovered"][:2] == [[30, 47], f"{HOSTILE[prediction[30, 47]]} reads from"]
    row, column = cell_of((30, 47), SIZE, (8, 12), model.align_corners)
    assert result["moved"] == row * 12 + column + 1
    light = np.array(result["heat"]["light"]).reshape(result["heat"]["size"])
    assert light.shape == SIZE
    brightest = tuple(int(index) for index in np.unravel_index(light.argmax(), SIZE))
    largest = all_weights(model)[row * 12 + column]
    at = cell_of((brightest[0], brightest[1]), SIZE, (8, 12), model.align_corners)
    assert largest[at[0] * 12 + at[1]] > 0.8 * largest.max()
    assert result["pins"] == 6
    assert result["refusal"] == "At most 6 pins; remove one."
    assert result["after"][:3] == [5, "column", "prediction"]
    assert "v=column&l=prediction" in result["hash"]
    assert result["recalled"] == [[60, 92], [[1, 2], [3, 4]], "row", "entropy"]


def test_hostile_names_are_text_in_the_browser(browsed: tuple[Segmenter, dict[str, Any]]) -> None:
    _, result = browsed
    assert (result["hacked"], result["scripts"], result["images"], result["errors"]) == (0, 3, 1, [])
    assert any(name in result["hovered"][2] for name in HOSTILE)
