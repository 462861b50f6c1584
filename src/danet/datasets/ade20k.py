"""ADE20K with the 150 classes of the scene parsing challenge (Zhou et al., CVPR 2017)."""

from pathlib import Path
from typing import Any

import numpy as np

from danet.arguments import Folder
from danet.datasets.download import install
from danet.datasets.files import list_folder, locate, write_pair
from danet.datasets.numbered import NumberedDataset, known_split
from danet.interfaces import IGNORE
from danet.registry import DATASETS
from danet.services.places import command

# The first of the benchmark's names for each class. Class 0 here is number 1 in the files, where 0 is everything else.
CLASSES = (
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, "
    "table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, "
    "armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, "
    "chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, "
    "case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, "
    "book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, "
    "hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, "
    "dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, "
    "fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, "
    "minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, "
    "screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, "
    "monitor, bulletin board, shower, radiator, glass, clock, flag"
).split(", ")

# The benchmark's colors (color150), as hexadecimal digits. Road and skyscraper have the same one.
COLORS = (
    "787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33 "
    "ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff "
    "08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff "
    "eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff "
    "0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad "
    "0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 "
    "00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa "
    "8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3 "
    "ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff "
    "00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff"
)

# The MD5 is not the benchmark's own; several libraries publish it with this address.
ARCHIVE = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
ARCHIVE_MD5 = "7328b3957e407ddae1d3cbf487f149ef"

PLACES = ("", "ADEChallengeData2016", "ade/ADEChallengeData2016")
FOLDERS = {"train": "training", "val": "validation"}


@DATASETS.register("ade20k")
class ADE20K(NumberedDataset):
    """ADE20K, 150 classes; everything else is ignored.

    Args:
        split: "train" (20,210 images) or "val" (2000); the labels of "test" are not public.
        root: a folder that holds ADEChallengeData2016, or is it.

    Raises:
        ValueError: files are not there, or the split is "test".
    """

    class_names = tuple(CLASSES)
    palette = tuple((r, g, b) for r, g, b in map(bytes.fromhex, COLORS.split()))
    how_to_get = (
        f"`{command('prepare')} dataset=ade20k` downloads it (0.9 GB); by hand: unpack {ARCHIVE} in {{root}}, so that "
        "{root}/ADEChallengeData2016/images/training exists"
    )
    description = "ade20k, 150 classes, everything else ignored"
    _train_ids = {0: IGNORE} | {number + 1: number for number in range(len(CLASSES))}

    def __init__(self, split: str, /, *, root: Folder) -> None:
        known_split(split, "ade20k")
        self.root = Path(root).expanduser()
        folder = locate(self.root, PLACES, "images")
        labels_at = folder / "annotations" / FOLDERS[split]
        self._pair(folder / "images" / FOLDERS[split], list_folder(labels_at), labels_at)

    @staticmethod
    def tiny(folder: Path) -> dict[str, Any]:
        """Write two images a split with all numbers; see interfaces.SegmentationDataset."""
        for split, word in FOLDERS.items():
            for number in (1, 2):
                name = f"ADE_{split}_0000000{number}"
                codes = np.arange(48 * 64).reshape(48, 64) // (10 * number) % (len(CLASSES) + 1)
                image, label = (
                    folder / "ADEChallengeData2016" / kind / word / f"{name}.{suffix}"
                    for kind, suffix in (("images", "jpg"), ("annotations", "png"))
                )
                write_pair(image, label, codes)
        return {"root": str(folder)}

    @staticmethod
    def prepare(root: str) -> None:
        """Download the archive (0.9 GB) into `root`, unless the files are there.

        Raises:
            ValueError: the download failed, and the text says how to do it by hand.
        """
        folder = Path(root).expanduser()
        if not (locate(folder, PLACES, "images") / "images").exists():
            install(ARCHIVE, folder, "ADEChallengeData2016", md5=ARCHIVE_MD5)
