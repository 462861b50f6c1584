"""The attention page: its numbers beside PyTorch's, decoded here and computed by a browser; hostile names, limits."""

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmseg_peer
from danet.analysis.attention_maps import as_predictor, attention_maps, attention_modules
from danet.analysis.attention_page import contents
from danet.analysis.attention_page.page import PagePicture, Shown, page_file, write_comparison, write_page
from danet.analysis.attention_points import cell_of
from danet.inference.predictor import Predictor
from danet.model import Segmenter, build_model

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


def look_of(page: Path) -> dict[str, Any]:
    """What the only model of a page saw in its only image."""
    ((look,),) = (picture["looks"] for picture in data_of(page)["pictures"])
    return look


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
    data = look_of(write_page(model, IMAGE, tmp_path / "page.html", label=LABEL))
    (module,) = data["position"]
    assert module["kind"] == ("weights" if head in ("linear", "ccnet", "ann") else "query_key")
    expected = all_weights(model)
    np.testing.assert_allclose(weights_in(module), expected, atol=1e-3)
    assert head == "linear" or expected.max() > 3 / len(expected)  # not all equal
    np.testing.assert_allclose(weights_in(module).sum(axis=1), 1, atol=2e-3)


def test_layers_and_channels_are_those_of_the_model(tmp_path: Path) -> None:
    model = build("danet", align_corners=False)
    predictor = as_predictor(model)
    data = look_of(write_page(model, IMAGE, tmp_path / "page.html", label=LABEL))
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
    (module,) = look_of(write_page(model, IMAGE, tmp_path / "page.html"))["position"]
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
    assert look_of(page)["position"] == []


def test_a_page_compares_models_on_several_images(tmp_path: Path) -> None:
    first = PagePicture(image=IMAGE, name="a", label=LABEL, points=[(3, 4)])
    pictures = [first, PagePicture(image=IMAGE[:40], name="b")]
    danet, fcn = build("danet"), build("fcn")
    shown = [Shown(model=fcn, name="fcn"), Shown(model=danet, name="danet", facts="of both")]
    data = data_of(write_comparison(iter(shown), pictures, tmp_path / "page.html"))
    assert [(model["name"], model["facts"]) for model in data["models"]] == [("fcn", ""), ("danet", "of both")]
    assert [picture["pins"] for picture in data["pictures"]] == [[[3, 4]], []]
    for picture in data["pictures"]:
        without, with_attention = picture["looks"]
        assert without["position"] == []
        assert without["missing"] == ["FCNHead has no attention to show; take a model with head=danet"]
        assert with_attention["missing"] == []
    looks = data["pictures"][0]["looks"]
    np.testing.assert_array_equal(decoded(looks[0]["layers"]["prediction"]), as_predictor(fcn).predict(IMAGE))
    np.testing.assert_allclose(weights_in(looks[1]["position"][0]), all_weights(danet), atol=1e-3)
    other = build_model({"name": "resnet_tiny", "widths": [8, 8, 16, 64]}, {"name": "danet"}, K + 1)
    with pytest.raises(ValueError, match="other: its classes are not those of fcn"):
        write_comparison([*shown, Shown(model=other, name="other")], pictures, tmp_path / "other.html")
    with pytest.raises(ValueError, match="FCNHead has no attention"):
        write_comparison(shown[:1], pictures, tmp_path / "other.html")


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
