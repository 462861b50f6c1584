"""The data set `folder`: a user's images and masks, with classes from options or a tool's file. docs/own_data.md."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from danet.arguments import Folder, Fraction, NonNegativeInt, Probability, Text
from danet.datasets.files import FileDataset, write_pair
from danet.datasets.folder import given, polygons
from danet.datasets.folder.classes import arrange
from danet.datasets.folder.found import nothing_found
from danet.datasets.folder.given import ClassNames, MaskKind, Values
from danet.datasets.folder.labels import Labels
from danet.datasets.folder.listing import images_and_labels
from danet.datasets.folder.matching import Entry, match
from danet.datasets.folder.options import fold_of, option_problems
from danet.datasets.folder.polygons import PolygonFormat
from danet.datasets.folder.polygons.drawing import MaskStore, Source
from danet.datasets.folder.splits import Draw, split
from danet.datasets.images import read_bands, read_image
from danet.registry import DATASETS
from danet.services.places import command
from danet.services.text import composed

TIFF_SUFFIXES = (".tif", ".tiff")


@DATASETS.register("folder")
class ImageFolder(FileDataset):
    """Images and masks below one folder, in any of the usual layouts.

    Args:
        split: "train", "val" or "test".
        root: the folder.
        images: where images are, by a template such as "{split}/img/{name}.jpg"; None looks for the usual layouts.
        labels: likewise of masks.
        format: of the labels; "auto" takes masks where there are some, else polygons.
        classes: names by value, colors by name, or a file that has them; None looks for classes.txt, labelmap.txt,
            class_dict.csv and the like.
        values: the class of each value or color in the masks, None for what is ignored.
        masks: whether masks hold class numbers or colors; "auto" takes colors where classes have some and the first
            mask is not gray.
        stray: up to which share of a mask's pixels those that no class has are ignored; more is an error.
        ignore: classes that neither train nor score.
        merge: classes that become one, by its name.
        val_fraction: share of the images for validation where none are given.
        test_fraction: likewise for the test.
        split_seed: of the draw.
        group: "folder" or a regular expression: images in one folder, or with one such text in their name, stay in one
            split.
        fold: "k/n" takes the k-th (from 0) of n parts for validation, the others for training.
        bands: the places of bands in the images' files, from 0. Three are red, green and blue, one is gray; for any
            other number the backbone's first convolution is changed (ops/input_channels.py).
        range: the values that become 0 and 255 in images of more than 8 bits.
        background: the class of pixels that no polygon covers; None ignores them.
        drawn_masks: a folder for masks that are drawn from polygons; None takes one of the system's temporary folders.

    Raises:
        ValueError: files are not found, or classes are not named; a line for each problem.
    """

    _source: Source | None

    def __init__(
        self,
        split: str,
        /,
        *,
        root: Folder,
        images: Text | None = None,
        labels: Text | None = None,
        format: Literal["auto", "masks"] | PolygonFormat = "auto",
        classes: ClassNames | None = None,
        values: Values | None = None,
        masks: MaskKind = "auto",
        stray: Fraction = 0.0,
        ignore: list[Text] | None = None,
        merge: dict[Text, list[Text]] | None = None,
        val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2,
        test_fraction: Probability = 0.0,
        split_seed: NonNegativeInt = 0,
        group: Text | None = None,
        fold: Text | None = None,
        bands: Annotated[list[NonNegativeInt], Field(min_length=1)] | None = None,
        range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None,
        background: Text | None = "background",
        drawn_masks: Folder | None = None,
    ) -> None:
        self.root, self._source, self._left_out = Path(root).expanduser(), None, 0
        self._split_notes: list[str] = []
        background = None if background is None else composed(background)
        draw = Draw(val_fraction, test_fraction, split_seed, group, fold_of(fold))
        entries = self._find(images, labels, format)
        store, problems = None, []
        try:
            self.files, self._drawn = self._choose(split, entries, draw)
        except ValueError as error:
            problems.append(str(error))
        try:
            if self._source:
                found, numbered = given.of_polygons(self.root, self._source, classes, values, background)
                self._source.number(numbered)
                store = MaskStore(drawn_masks, [str(entry.name) for entry in found], background)
            else:
                paths = [entry.pair.label for entry in entries if entry.pair.label]
                found = given.of_masks(self.root, paths, classes, values, masks)
            self._classes = arrange(found, merge or {}, ignore or [])
        except ValueError as error:
            problems.append(str(error))
        if problems:
            raise ValueError("\n  ".join(problems))
        self._labels = Labels(self._classes, stray, source=self._source, store=store)
        self._bands, self._range = bands, range
        self._decides = {
            "bands": bands,
            "range": range,
            "stray": stray,
            "background": background if self._source else None,
        }
        self.class_names, self.palette = self._classes.names, self._classes.palette
        names = ", ".join(self.class_names[:6]) + (", ..." if len(self.class_names) > 6 else "")
        words = ["folder", f"{len(self.class_names)} classes ({names})", self._drawn]
        self.description = ", ".join(filter(None, words))

    @staticmethod
    def problems(options: Mapping[str, Any]) -> list[str]:
        """What is wrong with options before any file is looked for, a line each."""
        return option_problems(options)

    @staticmethod
    def tiny(folder: Path) -> dict[str, Any]:
        """Write two images a split with masks of three classes; see interfaces.SegmentationDataset."""
        for split_name in ("train", "val"):
            for number in (1, 2):
                codes = np.arange(48 * 64).reshape(48, 64) // (29 * number) % 3
                name = f"{split_name}/{split_name}{number}.png"
                write_pair(folder / "images" / name, folder / "masks" / name, codes)
        (folder / "classes.txt").write_text("background\nroad\nsky\n")
        return {"root": str(folder)}

    def _find(self, images: str | None, labels: str | None, form: str) -> list[Entry]:
        """All images and labels of the folder."""
        found_images, found_labels = images_and_labels(self.root, images, labels)
        if form not in ("auto", "masks") or (form == "auto" and not found_labels and found_images):
            self._source = polygons.find(form, self.root, found_images)
            if self._source:
                self._left_out = len(found_images) - len(self._source.entries)
                return self._source.entries
            if form != "auto":
                raise ValueError(
                    f"dataset.format = {form!r}: no such annotations below {self.root}; take auto, or another"
                )
        if not found_images or not found_labels:
            raise ValueError(nothing_found(self.root, found_images, found_labels, images_at=images, labels_at=labels))
        return match(found_images, found_labels)

    def _choose(self, wanted: str, entries: list[Entry], draw: Draw) -> tuple[list[Any], str]:
        """The files of a split, and how it came about."""
        labeled = [entry for entry in entries if not (entry.split == "test" and entry.pair.label is None)]
        splits = split(self.root, labeled, draw)
        chosen = [entry.pair for entry in splits.by_name.get(wanted, [])]
        if chosen:
            self._split_notes = splits.notes if wanted == "train" else []  # told once
            return chosen, splits.description
        if alone := [entry for entry in entries if entry.split == wanted]:
            folder = Path(alone[0].pair.image).parent
            raise ValueError(
                f"{folder} has {len(alone)} images and no labels: {command('predict')} input={folder} predicts them"
            )
        found = ", ".join(f"{name} {len(chosen)}" for name, chosen in splits.by_name.items())
        raise ValueError(
            f"{self.root}: has no {wanted} split (it has {found}); make one by a folder or {wanted}.txt, or set "
            f"dataset.{'test' if wanted == 'test' else 'val'}_fraction"
        )

    def read_image(self, index: int, *, threads: bool = False) -> np.ndarray:
        """The image of the sample at `index` alone, (H, W, C) uint8: RGB, or the chosen bands."""
        path = self.files[index].image
        if self._bands or self._range or path.lower().endswith(TIFF_SUFFIXES):
            return read_bands(path, self._bands, self._range)
        return read_image(path, threads=threads)

    def read_label(self, index: int) -> np.ndarray:
        """The label of the sample at `index` alone, (H, W) uint8 train ids. Errors: see Labels.read."""
        return self._labels.read(self.files[index])

    def notes(self) -> list[str]:
        """What the labels that have been read showed, as a whole."""
        left_out = f"{self._left_out} images of the folder have no annotations and are left out"
        return [*([left_out] if self._left_out else []), *self._split_notes, *self._labels.notes(len(self))]

    @property
    def drawn(self) -> bool:
        """Whether the split was drawn, not given."""
        return bool(self._drawn)

    def deciding(self) -> dict[str, object]:
        """What else changes labels."""
        values = sorted(self._classes.train_ids.items())
        polygons = (type(self._source).__name__, self._source.deciding()) if self._source else None
        return {"classes": self.class_names, "values": values, "polygons": polygons, **self._decides}
