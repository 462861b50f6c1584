"""Reading a folder's labels, and counting what in them has no class."""

from collections import Counter
from pathlib import Path

import numpy as np

from danet.datasets.files import label_file
from danet.datasets.folder.classes import Classes
from danet.datasets.folder.polygons.drawing import MaskStore, Source
from danet.datasets.labels import LabelMode, Strays, read_loosely
from danet.interfaces import FilePair


class Labels:
    """Masks as they are, or drawn from polygons.

    Args:
        classes: of the folder.
        stray: up to which share of a mask's pixels those that no class has are ignored; more is an error.
        source: of polygons; None for masks.
        store: of the masks that are drawn from them.
    """

    def __init__(
        self, classes: Classes, stray: float, *, source: Source | None = None, store: MaskStore | None = None
    ) -> None:
        self._mode: LabelMode = "rgb" if classes.colored else "index"
        self._classes, self._stray = classes, stray
        self._source, self._store = source, store
        self._strays: dict[str, tuple[Strays, float]] = {}  # by file, with their share
        self._boxes: dict[str, int] = {}

    def read(self, pair: FilePair) -> np.ndarray:
        """The label of a sample, (H, W) uint8 train ids.

        Raises:
            ValueError: it cannot be read, or more than a share `stray` of its pixels have no class.
        """
        path = label_file(pair)
        label, strays = read_loosely(self._drawn(pair) if self._source else path, self._mode, self._classes.train_ids)  # type: ignore[arg-type]
        if strays.pixels:
            share = strays.pixels / label.size
            self._strays[path] = strays, share
            if share > self._stray:
                raise ValueError(f"{path}: label has {strays}, which no class has ({share:.2%}); name or ignore them")
        return label

    def _drawn(self, pair: FilePair) -> Path:
        assert self._source
        assert self._store
        drawing = self._source.drawing(pair)
        self._boxes[pair.image] = sum(shape.box for shape in drawing.shapes)
        return self._store.path(drawing, str(pair.label))

    def notes(self, count: int) -> list[str]:
        """What the labels that have been read showed, as a whole.

        Args:
            count: of the split's labels.
        """
        lines = []
        if boxes := sum(self._boxes.values()):
            lines.append(f"{boxes} boxes were drawn as filled rectangles; are their objects that shape?")
        return [*lines, self._stray_note(count)] if self._strays else lines

    def _stray_note(self, count: int) -> str:
        worst = max(self._strays, key=lambda path: self._strays[path][1])
        found: Counter[str] = Counter()
        for strays, _ in self._strays.values():
            found.update(strays.found)
        together = Strays(sum(strays.pixels for strays, _ in self._strays.values()), dict(found.most_common()))
        text = f"{together.pixels} pixels have no class, in {len(self._strays)} of {count} masks: {together}"
        share = self._strays[worst][1]
        if share <= self._stray:
            return f"{text}. They are ignored (dataset.stray = {self._stray})"
        remedy = f"ignore them by dataset.stray={_rounded_up(share)}, the share in {worst}"
        return f"{text}. Name them in dataset.values or the classes, or {remedy}"


def _rounded_up(share: float) -> str:
    return f"{-(-share * 1000 // 1) / 1000:.3f}"
