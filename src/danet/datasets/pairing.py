"""Images and labels whose names do not match: one line for what all of them have in common, instead of two a file."""

import os
from collections.abc import Callable

from danet.interfaces import FilePair

SEPARATORS = "_-. "


def unpaired(files: list[FilePair]) -> tuple[list[str], list[int]]:
    """What is wrong with the names of a split's files as a whole, and the places of the pairs that it leaves open."""
    images = {pair.name: place for place, pair in enumerate(files) if pair.label is None and _exists(pair.image)}
    if not images:
        return [], list(range(len(files)))
    if len(images) == len(files) > 1:
        return [f"none of the {len(files)} images has a label, such as {files[0].image}; add the labels"], []
    labels = {pair.name: place for place, pair in enumerate(files) if pair.label and not _exists(pair.image)}
    for difference in (_capitals, _endings, _beginnings):
        if labels and (mismatch := difference(set(images), set(labels))):
            words, pairs = mismatch
            image, label = min(pairs)
            names = os.path.basename(files[images[image]].image), files[labels[label]].label
            explained = {images[a] for a, _ in pairs} | {labels[b] for _, b in pairs}
            line = f"{words}, such as {names[1]} for {names[0]}; give both the same name, but for the suffix"
            return [f"{len(pairs)} {line}"], [place for place in range(len(files)) if place not in explained]
    return [], list(range(len(files)))


def _exists(path: str) -> bool:
    return os.path.lexists(path)


Difference = tuple[str, list[tuple[str, str]]]  # in words, and the names (of an image, of a label) that it explains


def _capitals(images: set[str], labels: set[str]) -> Difference | None:
    """Names that differ in capital letters only."""
    folded = {name.casefold(): name for name in labels}
    pairs = [(name, folded[name.casefold()]) for name in images if name.casefold() in folded]
    return ("labels differ from their images' names in capital letters", pairs) if pairs else None


def _endings(images: set[str], labels: set[str]) -> Difference | None:
    """Names that differ in what they end with, one ending for all images, one for all labels."""
    return _affixes(images, labels, "end", lambda name: name)


def _beginnings(images: set[str], labels: set[str]) -> Difference | None:
    return _affixes(images, labels, "begin", lambda name: name[::-1])


def _affixes(images: set[str], labels: set[str], verb: str, turned: Callable[[str], str]) -> Difference | None:
    """Names that differ in an affix; `turned` makes it the last part of a name."""
    image = min(images)
    first = turned(image)

    def shared(name: str) -> str:
        return os.path.commonprefix([first, turned(name)])

    partner = turned(max(labels, key=lambda name: (len(shared(name)), -len(name), name)))
    stem = os.path.commonprefix([first, partner]).rstrip(SEPARATORS)
    of_image, of_label = first[len(stem) :], partner[len(stem) :]
    stems = {turned(name).removesuffix(of_image): name for name in images if turned(name).endswith(of_image)}
    others = {turned(name).removesuffix(of_label): name for name in labels if turned(name).endswith(of_label)}
    pairs = [(stems[stem], others[stem]) for stem in stems.keys() & others.keys() if stem]
    # Two affixes that are found on one pair alone may just be two names.
    if 2 * len(pairs) < min(len(images), len(labels)) or len(pairs) < (2 if of_image and of_label else 1):
        return None
    ends = f"their images with {turned(of_image)!r}" if of_image else "their images do not"
    words = (
        f"labels {verb} with {turned(of_label)!r}, {ends}"
        if of_label
        else (f"labels do not {verb} with {turned(of_image)!r}, as their images do")
    )
    return words, pairs
