"""What the formats' readers share: reading JSON, and finding the image that an annotation names."""

import json
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from danet.datasets.files import sample_name
from danet.datasets.folder.listing import Found
from danet.datasets.folder.matching import Entry
from danet.interfaces import FilePair

MAX_LINES = 5


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: is no JSON ({error}); export it again") from error


class Images:
    """The images of a folder by the names that annotations may give them."""

    def __init__(self, images: list[Found]) -> None:
        self._by_name: dict[str, list[Found]] = defaultdict(list)
        for image in images:
            self._by_name[sample_name(image.path.name)].append(image)

    def find(self, name: str, split: str) -> Found | None:
        """The image called `name`, a path or its end; of several, the one in the split or below the path.

        Raises:
            ValueError: several are left.
        """
        wanted = PurePosixPath(sample_name(name.replace("\\", "/")))
        found = self._by_name.get(wanted.name, [])
        for narrower in (
            [image for image in found if image.path.as_posix().endswith(f"/{wanted.as_posix()}")],
            [image for image in found if split and image.split == split],
        ):
            found = narrower if len(found) > 1 and narrower else found
        if len(found) > 1:
            raise ValueError(f"{name!r} may be {found[0].path} or {found[1].path}; give the annotations paths")
        return found[0] if found else None


def entry(image: Found, annotations: Path, split: str) -> Entry:
    """An image with its annotations' file in the place of a mask."""
    name = sample_name(image.key.replace("/", "_"))
    return Entry(FilePair(str(image.path), str(annotations), name), image.key, split or image.split)


def add(entries: dict[str, Entry], image: Found, annotations: Path, split: str) -> str:
    """Add an image to entries by its path, once however many files annotate it; gives the path.

    Raises:
        ValueError: two files put it into different splits.
    """
    new = entry(image, annotations, split)
    before = entries.setdefault(new.pair.image, new)
    if before.split != new.split:
        words = (f"{each.split or 'no split'} by {each.pair.label}" for each in (before, new))
        raise ValueError(f"{image.path}: is in {', in '.join(words)}; leave it in one")
    return new.pair.image


def raise_missing(file: Path, names: list[str], count: int) -> None:
    """Complain of images that annotations name and that are not there.

    Raises:
        ValueError: there are such.
    """
    if names:
        shown = ", ".join(names[:MAX_LINES]) + (", ..." if len(names) > MAX_LINES else "")
        raise ValueError(f"{file}: {len(names)} of its {count} images are not below dataset.root: {shown}; add them")
