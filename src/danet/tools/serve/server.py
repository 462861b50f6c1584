"""Serve the attention page for uploaded pictures.

A picture is the body of a request and never reaches the disk; its name and path never reach this process. Requests are
computed one at a time, and one that takes too long is interrupted.
"""

import asyncio
import base64
import binascii
import hmac
import io
import ipaddress
import logging
import re
import secrets
import socket
from collections.abc import AsyncIterator, Collection, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageOps

from danet.analysis.attention_changes import changed
from danet.analysis.attention_maps import attention_modules
from danet.analysis.attention_page import contents, page
from danet.datasets.reading import EXIF_ORIENTATION, why_unreadable
from danet.inference.images import rgb
from danet.inference.predictor import Predictor, load
from danet.services.atomic_files import json_text
from danet.services.failures import is_out_of_memory
from danet.services.nonfinite import NonFiniteError
from danet.tools.serve.options import LimitsConfig, ServeConfig
from danet.tools.serve.waiting import Deadline, FullError, LargeError, Queue, SlowError

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MOST_DECODED = 64 * 2**20  # pixels of a picture before it is reduced: 192 MiB
GRACE = 10  # seconds that requests have to end after Ctrl-C; a second one ends them at once
LOCAL = ("localhost", "127.0.0.1", "::1")
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}


def run(config: ServeConfig) -> None:
    """Serve until Ctrl-C.

    Raises:
        ValueError: the model does not read RGB pictures, the port is taken, or the host is not this machine's.
    """
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.queue.stop()
            self.force_exit = self.should_exit  # at the second signal; uvicorn's own method passes the first one on
            self.should_exit = True

    predictor = load(
        config.run or str(config.checkpoint),
        device=config.runtime.device,
        precision=config.precision,
        backbone=config.backbone,
        head=config.head,
    )
    local = is_local(config.host)
    token = config.token or (None if local else secrets.token_urlsafe(16))
    app = make_app(predictor, config.limits, token=token, hosts={*LOCAL, config.host} if local else None)
    options = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE, server_header=False)
    with listening_at(config.host, config.port) as listening:
        host = f"[{config.host}]" if ":" in config.host else config.host
        query = f"?token={quote(token)}" if token else ""
        log.info("http://%s:%d/%s  (Ctrl-C stops the server)", host, listening.getsockname()[1], query)
        Server(options).run(sockets=[listening])
        log.info("stopped")


def listening_at(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        ValueError: the port is taken, or the host is not this machine's.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(f"host={host} port={port}: {error.strerror}; choose another, such as port=0") from None


def is_local(host: str) -> bool:
    """Whether only this machine can connect to an address."""
    try:
        return host in LOCAL or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_app(
    predictor: Predictor, limits: LimitsConfig, *, token: str | None = None, hosts: Collection[str] | None = None
) -> "FastAPI":
    """Make the application.

    GET / is the page. POST /look takes a picture as its body and returns what the page shows of it, as JSON.

    Args:
        predictor: the model.
        limits: of a request.
        token: required in the query or as `Authorization: Bearer TOKEN`; None for no token.
        hosts: allowed names in the Host header, against DNS rebinding; None for any.

    Raises:
        ValueError: the model does not read RGB pictures.
    """
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.responses import HTMLResponse, JSONResponse, Response
    from starlette.requests import ClientDisconnect

    if predictor.model.in_channels != 3 or predictor.reading:
        raise ValueError("the model reads other bands than red, green and blue; serve.py takes photos alone")
    modules = attention_modules(predictor.model)
    live = {
        "modules": {name: hasattr(module, "compared") for name, module in modules.items()},
        "megabytes": limits.megabytes,
    }
    start = page.page_data(predictor) | {"models": [{"name": "as trained", "facts": ""}]}
    html = page.render(start, live)
    queue = Queue(limits)
    app = FastAPI(openapi_url=None)  # its documentation pages load scripts from elsewhere
    app.state.queue = queue

    @app.middleware("http")
    async def guard(request: Request, proceed: Any) -> Response:
        refusal = refused(request.headers, request.query_params.get("token", ""), token, hosts)
        answer: Response = JSONResponse({"detail": refusal[1]}, refusal[0]) if refusal else await proceed(request)
        answer.headers.update(HEADERS)
        return answer

    @app.get("/")
    async def index() -> HTMLResponse:
        return HTMLResponse(html)

    @app.post("/look")
    async def look(
        request: Request, off: str = "", hidden: str = "", positions: int = 0, readers: str = ""
    ) -> Response:
        try:
            data = await received(request.stream(), limits)
            changes = parsed(off, hidden, positions, readers)
            answer = await queue.run(look_at, predictor, data, changes, limits)
        except ClientDisconnect:
            return Response()  # the client has gone
        except Exception as error:
            if (told := status_of(error, limits)) is None:
                raise
            raise HTTPException(*told) from None
        return Response(json_text(answer), media_type="application/json")

    return app


def refused(
    headers: Mapping[str, str], token_in_query: str, token: str | None, hosts: Collection[str] | None
) -> tuple[int, str] | None:
    """Why a request is not answered: status and reason; None if it is. See `make_app` for token and hosts."""
    given = headers.get("authorization", "").removeprefix("Bearer ") or token_in_query
    origin, host = headers.get("origin"), headers.get("host", "")
    if hosts is not None and re.sub(r":\d+$", "", host).strip("[]") not in hosts:
        return 421, "this address is not served here"
    if origin is not None and origin.partition("://")[2] != host:
        return 403, "requests from other sites are refused"
    if token is not None and not hmac.compare_digest(given.encode(), token.encode()):
        return 401, "the token is missing or wrong; open the address that serve.py has printed"
    return None


async def received(stream: AsyncIterator[bytes], limits: LimitsConfig) -> bytes:
    """The body of a request.

    Raises:
        SlowError: it does not arrive in time.
        LargeError: it is too large.
    """
    data, most = bytearray(), limits.megabytes * 1e6
    try:
        async with asyncio.timeout(limits.seconds):
            async for chunk in stream:  # to its end: who is still sending does not hear a refusal
                if len(data) <= most:
                    data += chunk
    except TimeoutError:
        raise SlowError from None
    if len(data) > most:
        raise LargeError
    return bytes(data)


def status_of(error: Exception, limits: LimitsConfig) -> tuple[int, str] | None:
    """The HTTP status and the text for an error that a request may cause; None for any other error."""
    match error:
        case SlowError():
            return 408, f"the picture did not arrive within {limits.seconds:g} seconds"
        case LargeError():
            return 413, f"the picture has more than {limits.megabytes:g} MB (limits.megabytes)"
        case FullError():
            return 503, str(error)
        case TimeoutError():
            text = f"interrupted after {limits.seconds:g} seconds, or because the server stops"
            return 504, f"{text}; a smaller picture takes less time"
        case ValueError() | NonFiniteError():
            return 422, str(error)
    return (507, "out of memory; use a smaller picture") if is_out_of_memory(error) else None


def parsed(off: str, hidden: str, positions: int, readers: str) -> dict[str, Any]:
    """The arguments of `changed` from a request's: names and numbers between commas, and a bit of each position.

    Raises:
        ValueError: they are malformed.
    """
    try:
        bits = np.unpackbits(np.frombuffer(base64.b64decode(hidden, altchars=b"-_", validate=True), np.uint8))
        cells = [int(cell) for cell in readers.split(",") if cell]
    except (binascii.Error, ValueError):
        raise ValueError("hidden, readers: must be bits in URL-safe base64 and numbers between commas") from None
    if not positions <= len(bits) < positions + 8:
        raise ValueError(f"hidden: has {len(bits)} bits for positions={positions}")
    return {"off": [name for name in off.split(",") if name], "hidden": bits[:positions].astype(bool), "readers": cells}


def look_at(
    predictor: Predictor, data: bytes, changes: dict[str, Any], limits: LimitsConfig, deadline: Deadline
) -> dict[str, Any]:
    """Return what the page shows of a picture.

    Raises:
        ValueError: it is not a picture, or the changes do not fit the model or the picture.
        TimeoutError: the deadline has passed.
    """
    image, original = decoded(data, limits.longest_side)
    tensor = predictor.tensor(image)
    with deadline.watching(predictor.model), changed(attention_modules(predictor.model), **changes):
        seen = contents.read(predictor, tensor, None, limits.page_size)
    return {"image": page.data_url(image), "size": list(image.shape[:2]), "original": list(original), "look": seen}


def decoded(data: bytes, longest_side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode a picture: its pixels (H, W, 3), upright and reduced to `longest_side`, and its own rows and columns.

    Raises:
        ValueError: it is not a picture, too large, or damaged.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MOST_DECODED:  # before the EXIF, for which Pillow decodes a whole PNG
                raise ValueError(f"{image.width}x{image.height} pixels are too many; reduce it first")
            turned = image.getexif().get(EXIF_ORIENTATION, 1) > 4
            size = image.size if turned else image.size[::-1]
            image.draft("RGB", (longest_side, longest_side))  # a JPEG can be decoded at a half, quarter, eighth
            upright = ImageOps.exif_transpose(image)
            upright.thumbnail((longest_side, longest_side))
            return rgb(upright), size
    except Exception as error:  # damaged files raise many types
        if is_out_of_memory(error):
            raise
        reason = why_unreadable(error, "a JPEG, PNG, WebP, BMP or GIF")
        raise ValueError(f"the picture cannot be read: {reason}") from None
