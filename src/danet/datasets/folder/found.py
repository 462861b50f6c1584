"""What lies in a folder that could not be read as it is, for errors that say what to write."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from danet.datasets.files import IMAGE_SUFFIXES
from danet.datasets.folder.listing import IMAGE_FOLDERS, LABEL_FOLDERS, Found, walk
from danet.datasets.labels import stored_values

LOOKED_AT = 16  # masks
SHOWN = 24  # values


def classes_to_name(labels: Sequence[str]) -> str:
    """What masks hold, and the option that names it.

    Args:
        labels: paths of masks.

    Raises:
        ValueError: a mask cannot be read.
    """
    chosen = labels[:: -(-len(labels) // LOOKED_AT)]
    counts: Counter[int] = Counter()
    modes = set()
    for path in chosen:
        mode, values, pixels = stored_values(path)
        modes.add(mode)
        counts.update(dict(zip(values.tolist(), pixels.tolist(), strict=True)))
    if len(modes) > 1:
        return "no classes are given, and some masks hold values, others colors; save all of them in one way"
    total, (mode,) = sum(counts.values()), modes
    names = {code: str(code) if mode == "index" else f"{code >> 16} {code >> 8 & 255} {code & 255}" for code in counts}
    shown = ", ".join(f"{names[code]} ({pixels / total:.2%})" for code, pixels in sorted(counts.most_common(SHOWN)))
    more = f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
    what = "values" if mode == "index" else "colors"
    text = f"no classes are given. {len(chosen)} of {len(labels)} masks were looked at: {what} {shown}{more}"
    if len(counts) == 1:
        return f"{text}: one class is always right; masks need a background and something before it"
    if len(counts) > SHOWN:
        return (
            f"{text}: are these masks? Values between classes come from JPEG or from resizing; save them without loss"
        )
    return f"{text}. If that is right, name them: {_remedy(sorted(counts), names, mode)}"


def _remedy(codes: list[int], names: dict[int, str], mode: str) -> str:
    classes = [code for code in codes if not (mode == "index" and code == 255 and len(codes) > 2)]
    if mode == "index" and classes == list(range(len(classes))):
        called = ",".join(["background", *(f"NAME{code}" for code in classes[1:])])
        ignored = " (255 is ignored)" if len(classes) < len(codes) else ""
        return f"dataset.classes=[{called}]{ignored}, or a file classes.txt in dataset.root, a name a line"
    pairs = ", ".join(
        f"{names[code]}: {'background' if not place else f'NAME{place}'}" for place, code in enumerate(classes)
    )
    return f'"dataset.values={{{pairs}}}" (null ignores a value)'


def nothing_found(
    root: Path, images: list[Found], labels: list[Found], *, images_at: str | None, labels_at: str | None
) -> str:
    """Why no pairs of images and labels were found.

    Args:
        root: the folder.
        images: found.
        labels: found.
        images_at: template that was looked with, or None.
        labels_at: likewise.
    """
    if not root.is_dir():
        return f"there is no folder {root}; set dataset.root"
    folders = Counter(path.parent.relative_to(root).as_posix() for path in walk(root, IMAGE_SUFFIXES))
    if not folders:
        return f"{root}: has no images (png, jpg, bmp, tif or webp) in it or its folders; set dataset.root"
    lines = [f"{folder} ({count})" for folder, count in folders.most_common(8)]
    there = f"Its folders with images: {', '.join(lines)}{', ...' if len(folders) > 8 else ''}"
    for name, found, at in (("images", images, images_at), ("labels", labels, labels_at)):
        if at and not found:
            return f"dataset.{name} = {at!r}: no file below {root} is called so. {there}"
    if not labels:
        usual = f"folders such as {', '.join(LABEL_FOLDERS[:5])}, or names such as x_mask.png beside x.jpg"
        where = "dataset.labels='FOLDER/{name}.png'"
        return f"{root}: has {len(images)} images and no masks ({usual}). {there}. Say where in {where}"
    usual, where = f"folders such as {', '.join(IMAGE_FOLDERS[:5])}", "dataset.images='FOLDER/{name}.jpg'"
    return f"{root}: has {len(labels)} masks and no images ({usual}). {there}. Say where in {where}"
