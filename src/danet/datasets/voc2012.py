"""PASCAL VOC 2012 with its 21 classes (Everingham et al., IJCV 2015), with or without SBD's additional labels.

SBD (Hariharan et al., ICCV 2011) labels more images of VOC. The 10,582 training images that papers call trainaug are
VOC's 1464 with VOC's own labels, and those of SBD's train and val lists that are not in VOC's val, with SBD's.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np

from danet.arguments import Folder
from danet.datasets.download import install
from danet.datasets.files import list_folder, locate, write_list, write_pair
from danet.datasets.numbered import MATLAB, NumberedDataset, known_split
from danet.interfaces import IGNORE
from danet.registry import DATASETS
from danet.services.palettes import voc_palette
from danet.services.places import command

CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()

# Addresses and MD5 as in torchvision.datasets (voc.py, sbd.py).
VOC = "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
VOC_MD5 = "6cd6e144f989b92b3379bac3b3de84fd"
SBD = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz"
SBD_MD5 = "82b4d87ceb2ed10f6038a1cba92111cb"

VOC_PLACES = ("", "VOC2012", "VOCdevkit/VOC2012")
SBD_PLACES = ("benchmark_RELEASE/dataset", "VOCdevkit/VOCaug/dataset", "VOCaug/dataset", "sbd", "SBD/dataset")


@DATASETS.register("voc2012")
class VOC2012(NumberedDataset):
    """PASCAL VOC 2012, 20 classes and background; the border around objects (255) is ignored.

    Args:
        split: "train" (1464 images, or 10,582) or "val" (1449); the labels of "test" are not public.
        root: a folder that holds VOC2012 (or VOCdevkit/VOC2012, or is it).
        train_set: "train" is VOC's own list. "trainaug" adds SBD's labels, read from VOC2012/SegmentationClassAug
            (PNG, with ImageSets/Segmentation/trainaug.txt or aug.txt) or from SBD itself (dataset/cls/*.mat).

    Raises:
        ValueError: files are not there, or the split is "test".
    """

    class_names = tuple(CLASSES)
    palette = voc_palette(len(CLASSES))
    how_to_get = (
        f"`{command('prepare')} dataset=voc2012` downloads VOC (2 GB) and SBD (1.4 GB); by hand: unpack "
        f"{VOC} in {{root}}, so that {{root}}/VOCdevkit/VOC2012/JPEGImages exists; for train_set=trainaug also "
        f"{SBD}, so that {{root}}/benchmark_RELEASE/dataset/cls exists"
    )
    _mat_field = "GTcls.Segmentation"
    _train_ids = {number: number for number in range(len(CLASSES))} | {IGNORE: IGNORE}

    def __init__(self, split: str, /, *, root: Folder, train_set: Literal["train", "trainaug"] = "train") -> None:
        known_split(split, "voc2012")
        self.root = Path(root).expanduser()
        folder = locate(self.root, VOC_PLACES, "JPEGImages")
        lists = folder / "ImageSets" / "Segmentation"
        names, labels_at = self._names(lists / f"{split}.txt"), folder / "SegmentationClass"
        labels = {name: path for name, path in list_folder(labels_at).items() if name in names}
        if train_set == "trainaug" and split == "train":
            more, more_names = self._additional(folder, lists)
            labels, names = more | labels, names | more_names
        self._pair(folder / "JPEGImages", labels, labels_at, names)
        self.description = "voc2012, 21 classes, border ignored"
        if split == "train":
            self.description += ", trainaug (VOC and SBD)" if train_set == "trainaug" else ", train (VOC alone)"

    def _additional(self, folder: Path, lists: Path) -> tuple[dict[str, Path], set[str]]:
        """SBD's labels, and the names of the images that training takes from it."""
        converted = folder / "SegmentationClassAug"
        if converted.exists():
            listed = next((path for path in (lists / "trainaug.txt", lists / "aug.txt") if path.exists()), None)
            if not listed:
                raise ValueError(f"{converted}: its list is missing; write {lists}/trainaug.txt, one name per line")
            return list_folder(converted), self._names(listed)
        sbd = locate(self.root, SBD_PLACES, "cls")
        names = self._names(sbd / "train.txt") | self._names(sbd / "val.txt")
        return list_folder(sbd / "cls", suffixes=[MATLAB]), names - self._names(lists / "val.txt")

    @staticmethod
    def tiny(folder: Path) -> dict[str, Any]:
        """Write two images a split with all classes and a border; see interfaces.SegmentationDataset."""
        voc = folder / "VOCdevkit" / "VOC2012"
        for split in ("train", "val"):
            names = [f"2007_00000{number}" for number in ((1, 2) if split == "train" else (3, 4))]
            for name in names:
                codes = np.arange(48 * 64).reshape(48, 64) // 140 % (len(CLASSES) + 1)
                codes[codes == len(CLASSES)] = IGNORE
                write_pair(voc / "JPEGImages" / f"{name}.jpg", voc / "SegmentationClass" / f"{name}.png", codes)
            write_list(voc / "ImageSets" / "Segmentation" / f"{split}.txt", names)
        return {"root": str(folder)}

    @staticmethod
    def prepare(root: str) -> None:
        """Download VOC (2 GB) and SBD (1.4 GB) into `root`, unless they are there.

        Raises:
            ValueError: a download failed, and the text says how to do it by hand.
        """
        folder = Path(root).expanduser()
        voc = locate(folder, VOC_PLACES, "JPEGImages")
        if not (voc / "JPEGImages").exists():
            install(VOC, folder, "VOCdevkit/VOC2012", md5=VOC_MD5)
        if not (voc / "SegmentationClassAug").exists() and not (locate(folder, SBD_PLACES, "cls") / "cls").exists():
            install(SBD, folder, "benchmark_RELEASE", md5=SBD_MD5)
