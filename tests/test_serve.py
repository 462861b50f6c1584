"""The served page: what it answers, what it refuses, and its page in a browser."""

import asyncio
import base64
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

import danet.config
from conftest import TINY, environment, load
from danet.analysis.attention_changes import changed
from danet.analysis.attention_maps import as_predictor, attention_maps, attention_modules
from danet.config import REPOSITORY
from danet.schema import ConfigError
from danet.tools.serve import server as serve
from danet.tools.serve import waiting
from danet.tools.serve.options import LimitsConfig, ServeConfig
from danet.tools.serve.server import make_app
from danet.training import run
from test_attention_page import IMAGE, SIZE, build, decoded, weights_in

pytest.importorskip("fastapi", reason="needs the extra serve: pip install 'danet[serve]'")
CELLS = (8, 12)
TOKEN = "a token"


def png(image: np.ndarray = IMAGE) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def bits(mask: np.ndarray) -> str:
    packed = base64.urlsafe_b64encode(np.packbits(mask.ravel()).tobytes()).decode()
    return f"hidden={packed}&positions={mask.size}"


def ask(url: str, data: bytes | None = None, **headers: str) -> tuple[int, Any]:
    """Status and answer of a request, text or what its JSON says."""
    request = urllib.request.Request(url, data, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, body = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, body = error.code, error.read()
    return status, json.loads(body) if body[:1] == b"{" else body.decode()


@pytest.fixture(scope="module")
def predictor() -> Any:
    return as_predictor(build("danet"))


class Server:
    """The application at a free port of this machine, in a thread."""

    def __init__(self, predictor: Any, **options: Any) -> None:
        import uvicorn

        limits = LimitsConfig(**{"megabytes": 0.2, "longest_side": 200, **options.pop("limits", {})})
        app = make_app(predictor, limits, **options)
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        while not self.server.started:
            self.thread.join(0.01)
        return f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}/"

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(20)


@pytest.fixture(scope="module")
def served(predictor: Any) -> Iterator[str]:
    with Server(predictor, hosts=serve.LOCAL) as url:
        yield url


# ---- what changes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["danet", "danet_article", "danet_clgd", "danet_gated", "nonlocal", "dnl"])
def test_hidden_positions_are_not_read(head: str) -> None:
    """The other weights of a row keep their proportions; rows of those that are no readers stay as they are."""
    if head == "danet_gated":
        pytest.importorskip("timm")
    model = build(head)
    modules = attention_modules(model)
    with torch.inference_mode():
        name = next(name for name in modules if name != "cam")
        x = 0.02 * torch.randn(1, channels_of(modules[name]), 6, 7, generator=torch.Generator().manual_seed(0))
        before, output = modules[name].attention(x), modules[name](x)
        mask = np.zeros(42, bool)
        mask[5:20] = True
        expected = before.clone()
        expected[..., mask] = 0
        expected /= expected.sum(dim=2, keepdim=True)
        with changed(modules, hidden=mask):
            torch.testing.assert_close(modules[name].attention(x), expected)
            hidden_output = modules[name](x)
        assert not torch.allclose(hidden_output, output)
        with changed(modules, hidden=mask, readers=[3]):
            some = modules[name].attention(x)
        torch.testing.assert_close(some[:, 3], expected[:, 3])
        torch.testing.assert_close(some[:, 4:], before[:, 4:])
        torch.testing.assert_close(modules[name](x), output)  # as before


def channels_of(module: Any) -> int:
    return next(part for part in module.modules() if isinstance(part, torch.nn.Conv2d)).in_channels


def test_an_attention_switched_off_is_as_with_a_scale_of_zero(predictor: Any) -> None:
    model = build("danet")
    with changed(attention_modules(model), off=["cam"]):
        without = as_predictor(model).probabilities(IMAGE)
    model.head.branches["cam"].attention.gamma.data.zero_()
    np.testing.assert_allclose(without, as_predictor(model).probabilities(IMAGE), atol=1e-6)
    assert not np.allclose(without, predictor.probabilities(IMAGE), atol=1e-3)


def test_changes_that_make_no_sense_are_refused() -> None:
    modules, all_cells = attention_modules(build("danet")), np.ones(96, bool)
    for options, text in (
        ({"off": ["pan"]}, "no attention pan; the model has pam, cam"),
        ({"hidden": all_cells}, "every position is hidden"),
        ({"hidden": all_cells & (np.arange(96) > 3), "readers": [96]}, r"readers: \[96\] are not among the 96"),
    ):
        with pytest.raises(ValueError, match=text), changed(modules, **options):  # type: ignore[arg-type]
            pass
    emanet = attention_modules(build("emanet"))
    with pytest.raises(ValueError, match="none can be masked"), changed(emanet, hidden=np.arange(96) > 3):
        pass
    model = as_predictor(build("danet"))
    wrong = pytest.raises(ValueError, match="hidden: has 95 positions, the feature map 96")
    with changed(attention_modules(model.model), hidden=np.arange(95) > 3), wrong:
        model.predict(IMAGE)


# ---- the server ----------------------------------------------------------------------------------------------------


def test_a_look_has_what_a_page_has(served: str, predictor: Any) -> None:
    status, answer = ask(f"{served}look", png())
    assert (status, answer["size"], answer["original"]) == (200, list(SIZE), list(SIZE))
    look = answer["look"]
    np.testing.assert_array_equal(decoded(look["layers"]["prediction"]), predictor.predict(IMAGE))
    rows = attention_maps(predictor, IMAGE, [(0, 0)]).position.weights.reshape(-1)  # type: ignore[union-attr]
    np.testing.assert_allclose(weights_in(look["position"][0])[0], rows, atol=1e-3)


def test_a_look_with_changes_is_that_of_the_changed_model(served: str, predictor: Any) -> None:
    mask = np.zeros(CELLS, bool)
    mask[:, :5] = True
    status, answer = ask(f"{served}look?off=cam&{bits(mask)}&readers=0,17", png())
    assert status == 200
    with changed(attention_modules(predictor.model), off=["cam"], hidden=mask.ravel(), readers=[0, 17]):
        expected = predictor.predict(IMAGE)
    np.testing.assert_array_equal(decoded(answer["look"]["layers"]["prediction"]), expected)
    weights = weights_in(answer["look"]["position"][0])
    assert weights[17][mask.ravel()].max() < 1e-6 < weights[18][mask.ravel()].max()
    assert decoded(ask(f"{served}look", png())[1]["look"]["layers"]["prediction"]).tolist() == (
        predictor.predict(IMAGE).tolist()
    )


def test_a_photo_is_turned_upright_and_reduced(served: str) -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((300, 600, 3), np.uint8)).save(file, "JPEG", exif=exif)
    answer = ask(f"{served}look", file.getvalue())[1]
    assert (answer["size"], answer["original"]) == ([200, 100], [600, 300])


def truncated() -> bytes:
    return png()[: len(png()) // 2]


def bomb() -> bytes:
    """A PNG of a few bytes that claims 9000 x 9000 pixels."""
    data = bytearray(png(np.zeros((1, 1, 3), np.uint8)))
    data[16:24] = (9000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


HOSTILE_FILES = {
    b"": "cannot be read",
    b"<svg onload=alert(1)>": "not a JPEG, PNG",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "not a JPEG, PNG",
}


def test_hostile_pictures_are_refused(served: str) -> None:
    for data, text in (
        HOSTILE_FILES | {truncated(): "cannot be read", bomb(): "9000x9000 pixels are too many"}
    ).items():
        status, answer = ask(f"{served}look", data)
        assert status == 422, data
        assert text in answer["detail"]
    status, answer = ask(f"{served}look", os.urandom(250_000))
    assert status == 413
    assert "more than 0.2 MB" in answer["detail"]
    assert ask(f"{served}look", png())[0] == 200


def test_malformed_changes_are_refused(served: str) -> None:
    for query, text in (
        ("off=pan", "no attention pan"),
        ("off=../../etc", "no attention"),
        ("hidden=%00&positions=8", "base64"),
        ("hidden=_w&positions=8", "base64"),
        ("hidden=_w==&positions=99", "8 bits for positions=99"),
        ("hidden=8A==&positions=8", "the feature map 96"),
        ("readers=x", "between commas"),
        ("positions=x", "valid integer"),
    ):
        status, answer = ask(f"{served}look?{query}", png())
        assert status == 422, query
        assert text in str(answer["detail"])


def test_no_path_reaches_the_disk(served: str) -> None:
    for path in ("../pyproject.toml", "%2e%2e/pyproject.toml", "etc/passwd", "static/../../x", "docs", "openapi.json"):
        assert ask(served + path)[0] == 404
    assert ask(f"{served}look")[0] == 405


def test_other_sites_and_names_are_refused(served: str) -> None:
    assert ask(f"{served}look", png(), Origin="http://elsewhere.example")[0] == 403
    assert ask(f"{served}look", png(), Origin="null")[0] == 403
    assert ask(f"{served}look", png(), Origin=served.rstrip("/"))[0] == 200
    for host in ("elsewhere.example", "[", "a b", "localhost.elsewhere.example", "elsewhere.example:x@localhost"):
        assert ask(served, Host=host)[0] in (400, 421), host
    port = served.rstrip("/").rpartition(":")[2]
    assert ask(served, Host=f"localhost:{port}")[0] == 200


def test_a_token_is_asked_for(predictor: Any) -> None:
    with Server(predictor, token=TOKEN) as url:
        for query, headers in (
            ("", {}),
            ("?token=wrong", {}),
            ("?token=%C3%A4", {}),
            ("", {"Authorization": "Bearer a"}),
        ):
            assert ask(url + query, **headers)[0] == 401
            assert ask(f"{url}look{query}", png(), **headers)[0] == 401
        assert ask(f"{url}?token=a%20token")[0] == 200
        assert ask(f"{url}look", png(), Authorization=f"Bearer {TOKEN}")[0] == 200


def test_an_upload_that_is_broken_off_is_no_error_of_the_server(
    predictor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with Server(predictor) as url:
        logging.getLogger("uvicorn.error").addHandler(caplog.handler)
        address = urllib.parse.urlsplit(url)
        head = f"POST /look HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 100000\r\n\r\n"
        for _ in range(3):
            with socket.create_connection((str(address.hostname), int(address.port or 0))) as connection:
                connection.sendall(head.encode() + b"abc")
                time.sleep(0.1)
        assert ask(f"{url}look", png())[0] == 200
    logging.getLogger("uvicorn.error").removeHandler(caplog.handler)
    assert caplog.records == []


def test_a_look_that_takes_too_long_is_broken_off(predictor: Any) -> None:
    with Server(predictor, limits={"seconds": 1e-6}) as url:
        status, answer = ask(f"{url}look", png())
    assert status in (408, 504)
    assert "seconds" in answer["detail"]


def test_a_queue_runs_one_at_a_time_and_refuses_too_many() -> None:
    running, most, done = 0, 0, []
    go = threading.Event()

    def work(name: int, deadline: waiting.Deadline) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        go.wait(20)
        running -= 1
        done.append(name)
        return name

    async def main() -> list[Any]:
        queue = waiting.Queue(LimitsConfig(waiting=2))
        tasks = [asyncio.create_task(queue.run(work, name)) for name in range(5)]
        await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(main())
    assert results[:3] == done == [0, 1, 2]
    assert most == 1
    assert all(isinstance(error, waiting.FullError) for error in results[3:])


def test_bad_options_are_named() -> None:
    def check(*overrides: str) -> ServeConfig:
        with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
            return danet.config.load_as(ServeConfig, compose("serve", overrides=[*overrides]))

    with pytest.raises(ConfigError) as error:
        check("port=70000", "limits.megabytes=0")
    assert all(f"\n  {key} = " in str(error.value) for key in ("port", "limits.megabytes"))
    assert all(serve.is_local(host) for host in ("127.0.0.1", "::1", "localhost", "127.0.0.9"))
    assert not any(serve.is_local(host) for host in ("0.0.0.0", "::", "192.168.0.7", "example.org", ""))


# ---- in a browser, and as a process --------------------------------------------------------------------------------


def test_a_browser_shows_a_picture_and_what_changes(chromium: Any, predictor: Any, tmp_path: Path) -> None:
    (tmp_path / "<img src=x onerror='window.hacked = 1'>.png").write_bytes(png())
    (tmp_path / "broken.png").write_bytes(truncated())
    with Server(predictor, token=TOKEN) as url:
        tab = chromium.new_page(viewport={"width": 1200, "height": 900})
        errors: list[str] = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(f"{url}?token=a%20token")
        tab.set_input_files("#file", str(tmp_path / "broken.png"))
        tab.wait_for_selector("#trouble:not([hidden])")
        assert "cannot be read" in tab.inner_text("#trouble")
        tab.set_input_files("#file", str(next(tmp_path.glob("<*"))))
        tab.wait_for_selector(".stage")
        assert not tab.locator("#trouble").is_visible()
        tab.check("text=without pam")
        tab.wait_for_selector("#stages[data-count='2']")
        with changed(attention_modules(predictor.model), off=["pam"]):
            without = predictor.predict(IMAGE)
        assert shown_prediction(tab, 1) == without.tolist()
        assert shown_prediction(tab, 0) == predictor.predict(IMAGE).tolist()
        tab.uncheck("text=without pam")
        tab.wait_for_selector("#stages[data-count='1']")

        tab.click("#paint")
        tab.select_option("#brush", "0")
        box = tab.locator(".stage").bounding_box()
        tab.mouse.move(box["x"] + 3, box["y"] + 3)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 3, box["y"] + box["height"] - 3, steps=30)
        tab.mouse.up()
        tab.wait_for_selector("#stages[data-count='2']")
        assert "8 of 96 positions hidden" in tab.inner_text("#stages")
        with tab.expect_download() as download:
            tab.click("#save")
        saved = np.asarray(Image.open(download.value.path()).convert("RGB"), int)
        left = saved[60 : saved.shape[0] - 20, : (saved.shape[1] - 12) // 2]  # the first of two, without its name
        column = left.shape[1] // CELLS[1]
        covered, free = left[:, 3 : column - 3], left[:, column + 3 : 2 * column - 3]
        redness = [part[..., 0].mean() - part[..., 1:].mean() for part in (covered, free)]
        assert redness[0] > redness[1] + 10
        mask = np.zeros(CELLS, bool)
        mask[:, 0] = True
        with changed(attention_modules(predictor.model), hidden=mask.ravel()):
            assert shown_prediction(tab, 1) == predictor.predict(IMAGE).tolist()
        row = tab.evaluate("() => { const p = window.attentionPage; return [...p.row(p.looks()[1].position[0], 40)]; }")
        assert max(np.array(row)[mask.ravel()]) == 0
        assert sum(row) == pytest.approx(1, abs=2e-3)
        assert tab.evaluate("window.hacked || 0") == 0
        tab.close()
    assert errors == []


def shown_prediction(tab: Any, model: int) -> list[list[int]]:
    flat = tab.evaluate(f"[...window.attentionPage.looks()[{model}].layers.prediction]")
    return np.reshape(flat, SIZE).tolist()


@pytest.mark.slow
def test_a_process_serves_until_it_is_interrupted(outputs: Path, tmp_path: Path, without_pictures: None) -> None:
    folder = run.start(load([*TINY, "train.steps=2"])).folder
    before = {path for path in tmp_path.rglob("*")}
    command = [sys.executable, str(REPOSITORY / "src" / "serve.py"), f"run={folder}", "port=0", "token='a token'"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        found = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        assert found
        assert ask(f"{found[0]}look", png(), Authorization="Bearer wrong")[0] == 401
        assert ask(f"{found[0]}look", b"no picture", Authorization=f"Bearer {TOKEN}")[0] == 422
        status, answer = ask(f"{found[0]}look", png(), Authorization=f"Bearer {TOKEN}")
        assert (status, answer["size"]) == (200, list(SIZE))
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
    assert (process.returncode, "Traceback" in rest) == (0, False)
    assert {path for path in tmp_path.rglob("*")} == before
