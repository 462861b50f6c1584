"""Write the attention page: one HTML file that shows, under the mouse, where a position attends to.

    from danet.analysis.attention_page.page import write_page
    write_page(danet.load("outputs/DATE/RUN"), "photo.jpg", "photo.html")

The page needs no network. It has the query and key of each position and computes any row or column of the weights.
"""

import base64
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from danet.analysis.attention_maps import as_predictor
from danet.analysis.attention_page import contents
from danet.analysis.attention_points import inside
from danet.inference.predictor import ImageLike, Predictor
from danet.model import Segmenter
from danet.services.atomic_files import json_text, replacing
from danet.services.figures import as_rgb
from danet.services.palettes import voc_palette
from danet.services.templates import page_template

log = logging.getLogger(__name__)

MOST_PINS = 6
PAGE_SIZE = 40.0  # megabytes; 1024x2048 with DANet-R50 takes about 20
SCRIPTS = ("numbers.js", "picture.js", "panel.js", "channels.js", "main.js")
LIVE_SCRIPT = "live.js"
COLOR_STEPS = 33  # of a color scale; the page interpolates


@dataclass(frozen=True, kw_only=True)
class PagePicture:
    """An image of the page."""

    image: ImageLike  # as for `Predictor.predict`; (H, W) pixels
    name: str
    label: np.ndarray | None = None  # the truth, (H, W) train ids with 255 for ignored
    points: Sequence[Sequence[int]] = ()  # [row, column] each in pixels, at most six, pinned from the start


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A model of the page."""

    model: Predictor | Segmenter  # a bare one computes in float32 and is left in evaluation mode
    name: str = ""
    facts: str = ""  # a line about the model


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
    """Write the page of one model and one image.

    Args:
        model: see Shown.
        image: see PagePicture, like `label` and `points`.
        path: the page's file.
        label: the truth.
        points: pinned from the start.
        name: heading; empty for the file's name.
        facts: a line about the model.
        page_size: most megabytes that the page may have.

    Returns:
        The file, and errors, as for `write_comparison`.
    """
    picture = PagePicture(image=image, name=name or Path(path).stem, label=label, points=points)
    return write_comparison([Shown(model=model, facts=facts)], [picture], path, page_size=page_size)


def write_comparison(
    models: Iterable[Shown], pictures: Sequence[PagePicture], path: str | Path, *, page_size: float = PAGE_SIZE
) -> Path:
    """Write the page of several models, side by side, and several images.

    Args:
        models: used one at a time, so a generator may load them. They must have the same classes.
        pictures: the images.
        path: the page's file.
        page_size: most megabytes that the page may have.

    Returns:
        The file.

    Raises:
        ValueError: no model has attention to show, the page would be larger than `page_size`, a point lies outside its
            image or is one too many, a label has another size than its image, or the models have different classes.
        NonFiniteError: a model's scores are NaN or infinite.
    """
    path, data = Path(path), None
    for shown in models:
        predictor = as_predictor(shown.model)
        data = data or page_data(predictor, pictures)
        if data["class_names"] != class_names(predictor):
            raise ValueError(f"{shown.name}: its classes are not those of {data['models'][0]['name']}")
        data["models"].append({"name": shown.name, "facts": shown.facts})
        for picture, entry in zip(pictures, data["pictures"], strict=True):
            entry["looks"].append(contents.read(predictor, predictor.tensor(picture.image), picture.label, page_size))
    if data is None or not data["pictures"]:
        raise ValueError("a page needs a model and an image")
    looks = [look for entry in data["pictures"] for look in entry["looks"]]
    if not any(look["position"] or look["channel"] for look in looks):
        lines = dict.fromkeys(line for look in looks for line in look["missing"])
        raise ValueError("; ".join(lines))
    page = render(data).encode()
    if len(page) > page_size * 1e6:
        raise ValueError(
            f"page: would have {len(page) / 1e6:.1f} MB, more than attention.page_size={page_size:g}; take a smaller "
            "image, or raise it"
        )
    with replacing(path) as temporary:
        temporary.write_bytes(page)
    log.info("%s: %.1f MB; open it in a browser", path, len(page) / 1e6)
    return path


def page_data(predictor: Predictor, pictures: Sequence[PagePicture] = ()) -> dict[str, Any]:
    """Return the page's data before any model has run.

    Raises:
        ValueError: as for `write_comparison`, about points and labels.
    """
    return {
        "models": [],
        "class_names": class_names(predictor),
        "palette": [list(color) for color in predictor.palette or voc_palette(predictor.model.num_classes)],
        "colors": {name: _color_scale(name) for name in ("inferno", "viridis")},
        "pictures": [_entry(predictor, picture) for picture in pictures],
    }


def class_names(predictor: Predictor) -> list[str]:
    """Return the model's class names, or "class 0" and so on."""
    return list(predictor.class_names) or [f"class {index}" for index in range(predictor.model.num_classes)]


def _entry(predictor: Predictor, picture: PagePicture) -> dict[str, Any]:
    tensor = predictor.tensor(picture.image)
    size = (tensor.shape[-2], tensor.shape[-1])
    if len(picture.points) > MOST_PINS:
        given = len(picture.points)
        raise ValueError(f"points: {given} are given, but a page pins at most {MOST_PINS}; leave some out")
    if picture.label is not None and picture.label.shape != size:
        raise ValueError(f"label is {picture.label.shape}, its image {size} (rows, columns)")
    pins = [list(inside(point, size)) for point in picture.points]
    image = data_url(as_rgb(tensor[0].permute(1, 2, 0).cpu().numpy()))
    return {"name": picture.name, "image": image, "size": list(size), "pins": pins, "looks": []}


def page_file(wanted: str, name: str) -> Path:
    """The file that `page` means: itself if it ends in .html, else NAME.html in this folder."""
    path = Path(wanted)
    return path if path.suffix.lower() in (".html", ".htm") else path / f"{name}.html"


def data_url(image: np.ndarray) -> str:
    """Encode an image (H, W, 3) as a JPEG data URL."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _color_scale(name: str) -> list[list[int]]:
    import matplotlib

    return (255 * matplotlib.colormaps[name](np.linspace(0, 1, COLOR_STEPS))[:, :3]).round().astype(int).tolist()


def render(data: dict[str, Any], live: dict[str, Any] | None = None) -> str:
    """Render the page as HTML.

    Args:
        data: see `page_data`.
        live: settings of the server behind the page; None for a static page.
    """
    names = [picture["name"] for picture in data["pictures"]]
    title = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0] if names else "your own picture"
    scripts = [*SCRIPTS[:-1], *([] if live is None else [LIVE_SCRIPT]), SCRIPTS[-1]]
    page = page_template("danet.analysis.attention_page")
    return page.render(title=title, data=_for_script(data | {"live": live}), scripts=scripts, live=live)


def _for_script(data: dict[str, Any]) -> str:
    """JSON for a script element: names may hold what would end it."""
    text = json_text(data)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
