"""Write the attention page: one HTML file that shows, under the mouse, where a position attends to.

    from danet.tools.attention_page.page import write_page
    write_page(danet.load("outputs/DATE/RUN"), "photo.jpg", "photo.html")

The page needs no network. It has the query and key of each position and computes any row or column of the weights.
"""

import base64
import functools
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from danet.analysis.attention_maps import as_predictor
from danet.analysis.attention_points import inside
from danet.inference.predictor import ImageLike, Predictor
from danet.model import Segmenter
from danet.services.atomic_files import json_text, replacing
from danet.services.weights import default_palette
from danet.tools.attention_page import contents

if TYPE_CHECKING:
    import jinja2

log = logging.getLogger(__name__)

MOST_PINS = 6
PAGE_SIZE = 40.0  # megabytes; 1024x2048 with DANet-R50 takes about 20
SCRIPTS = ("numbers.js", "picture.js", "panel.js", "channels.js", "main.js")
COLOR_STEPS = 33  # of a color scale; the page interpolates


def write_page(
    model: Predictor | Segmenter,
    image: ImageLike,
    path: str | Path,
    *,
    label: np.ndarray | None = None,
    points: Sequence[Sequence[int]] = (),
    name: str = "",
    facts: str = "",
    page_size: float = PAGE_SIZE,
) -> Path:
    """Write the page of one image.

    Args:
        model: as `danet.load` gives it, or a bare one, which computes in float32 and is left in evaluation mode.
        image: as for `Predictor.predict`; (H, W) pixels.
        path: the page's file.
        label: the truth, (H, W) train ids with 255 for ignored.
        points: [row, column] each in pixels, at most six, pinned from the start.
        name: heading; empty for the file's name.
        facts: a line about the model.
        page_size: most megabytes that the page may have.

    Returns:
        The file.

    Raises:
        ValueError: the head has no attention, the page would be larger than `page_size`, a point lies outside the
            image or is one too many, or the label has another size than the image.
        NonFiniteError: the model's scores are NaN or infinite.
    """
    path = Path(path)
    predictor = as_predictor(model)
    tensor = predictor.tensor(image)
    size = (tensor.shape[-2], tensor.shape[-1])
    pins = [list(inside(point, size)) for point in points]
    if len(pins) > MOST_PINS:
        raise ValueError(f"points: {len(pins)} are given, but a page pins at most {MOST_PINS}; leave some out")
    if label is not None and label.shape != size:
        raise ValueError(f"label is {label.shape}, its image {size} (rows, columns)")
    count = predictor.model.num_classes
    data = {
        "name": name or path.stem,
        "facts": facts,
        "image": _data_url(tensor[0].permute(1, 2, 0).cpu().numpy()),
        "class_names": list(predictor.class_names) or [f"class {index}" for index in range(count)],
        "palette": [list(color) for color in predictor.palette or default_palette(count)],
        "pins": pins,
        "colors": {name: _color_scale(name) for name in ("inferno", "viridis")},
        **contents.read(predictor, tensor, label, page_size),
    }
    page = _template().render(title=data["name"], data=_for_script(data), scripts=SCRIPTS).encode()
    if len(page) > page_size * 1e6:
        raise ValueError(
            f"page: would have {len(page) / 1e6:.1f} MB, more than attention.page_size={page_size:g}; take a smaller "
            "image, or raise it"
        )
    with replacing(path) as temporary:
        temporary.write_bytes(page)
    log.info("%s: %.1f MB; open it in a browser", path, len(page) / 1e6)
    return path


def page_file(wanted: str, name: str) -> Path:
    """The file that `page` means: itself if it ends in .html, else NAME.html in this folder."""
    path = Path(wanted)
    return path if path.suffix.lower() in (".html", ".htm") else path / f"{name}.html"


def _data_url(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _color_scale(name: str) -> list[list[int]]:
    import matplotlib

    return (255 * matplotlib.colormaps[name](np.linspace(0, 1, COLOR_STEPS))[:, :3]).round().astype(int).tolist()


def _for_script(data: dict[str, Any]) -> str:
    """JSON for a script element: names may hold what would end it."""
    text = json_text(data)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@functools.cache
def _template() -> "jinja2.Template":
    import jinja2  # here, since what is wrong with the image need not wait for it

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("danet.tools.attention_page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")
