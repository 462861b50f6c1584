"""The scores of single images: their table, the worst and the best.

Shapes: K classes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from danet import metrics
from danet.evaluation.evaluate import ScoredPicture
from danet.interfaces import SegmentationDataset
from danet.services import console, distributed, figures, tables


@dataclass(frozen=True)
class ImageScore:
    """What is kept of an image."""

    name: str
    pixel_accuracy: float  # NaN where no pixel is labeled
    miou: float  # over the classes that the truth contains; likewise
    boundary: np.ndarray  # (3, K) int64, see metrics.boundary_counts


class ImageScores:
    """Takes the images of a split one by one; of several processes, each takes its share.

    Args:
        dataset: the split.
        samples: number of worst images, and of best ones, whose pictures are kept.
        predictions: folder for every image's prediction as PNG, in the form that the data set's server takes; None:
            they are not written.
    """

    def __init__(self, dataset: SegmentationDataset, samples: int, predictions: Path | None) -> None:
        self._dataset, self._samples, self._predictions = dataset, samples, predictions
        self._scores: dict[int, ImageScore] = {}
        self._ranked: list[tuple[float, int, ScoredPicture]] = []  # by score, of this process; the middle is left out

    def add(self, index: int, picture: ScoredPicture) -> None:
        """Score the image at `index` of the split."""
        accuracy, miou = metrics.image_scores(picture.matrix, len(self._dataset.class_names))
        boundary = metrics.boundary_counts(picture.prediction, picture.label, len(self._dataset.class_names))
        self._scores[index] = ImageScore(picture.name, accuracy, miou, boundary)
        if self._predictions is not None:
            name, pixels = f"{picture.name}.png", picture.prediction
            if as_server_takes_it := getattr(self._dataset, "server_file", None):
                name, pixels = as_server_takes_it(index, pixels)
            self._predictions.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(self._predictions / name)
        if not np.isnan(miou):
            self._ranked.append((miou, index, picture))
            self._ranked.sort(key=lambda entry: entry[:2])
            if len(self._ranked) > 2 * self._samples:
                del self._ranked[self._samples]

    def share(self) -> None:
        """Give every process the scores of all; the pictures stay where they are."""
        everyones = [entry for part in distributed.gather(self._scores) for entry in part.items()]
        self._scores = dict(sorted(everyones, key=lambda entry: entry[0]))

    @property
    def boundary_iou(self) -> np.ndarray:
        """Boundary IoU of each class over all images, (K,); NaN where it is in neither truth nor prediction."""
        return metrics.boundary_iou(np.stack([score.boundary for score in self._scores.values()]).sum(axis=0))

    def write(self, folder: Path) -> None:
        """Write per_image.csv, in the order of the split."""
        lines = [(score.name, score.pixel_accuracy, score.miou) for score in self._scores.values()]
        tables.write_csv(folder / "per_image.csv", ("name", "pixel_accuracy", "miou"), lines)

    def draw(self, folder: Path, *, show_progress: bool = True) -> None:
        """Draw worst/01_NAME.png ... and best/01_NAME.png ..., as far as this process has the images."""
        defined = [(score.miou, index) for index, score in self._scores.items() if not np.isnan(score.miou)]
        order = [index for _, index in sorted(defined)]
        worst = order[: min(self._samples, (len(order) + 1) // 2)]  # no image is in both
        best = order[len(worst) :][::-1][: self._samples]
        places = {
            index: f"{kind}/{rank:02}"
            for kind, indices in (("worst", worst), ("best", best))
            for rank, index in enumerate(indices, start=1)
        }
        names, palette = self._dataset.class_names, self._dataset.palette
        mine = [(index, picture) for _, index, picture in self._ranked if index in places]
        for index, shown in console.track(mine, len(mine), "drawing", enabled=show_progress):
            path, score = folder / f"{places[index]}_{shown.name}.png", self._scores[index]
            path.parent.mkdir(exist_ok=True)
            title = f"{shown.name}: mIoU {score.miou:.1%}, pixel accuracy {score.pixel_accuracy:.1%}"
            picture = shown.image, shown.label, shown.prediction
            figures.plot_sample(*picture, names, palette, path, title, error=True)
