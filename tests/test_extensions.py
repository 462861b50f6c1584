"""A stranger's parts in a folder of their own: a Python file and a YAML file each, nothing else touched."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from conftest import environment, run_folders
from danet.config import REPOSITORY
from danet.services import checkpoint

PARTS = {
    "convnext": '''
"""torchvision's ConvNeXt-T."""

import torch
from torch import nn

from danet.interfaces import IMAGENET_MEAN, IMAGENET_STD
from danet.registry import BACKBONES


@BACKBONES.register("own_convnext")
class ConvNeXtTiny(nn.Module):
    """Four stages at strides 4 to 32."""

    out_channels, strides = (96, 192, 384, 768), (4, 8, 16, 32)
    in_channels, mean, std = 3, IMAGENET_MEAN, IMAGENET_STD

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import convnext_tiny

        self.features = convnext_tiny(weights=None).features

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, H, W) -> four feature maps."""
        stages, x = [], image
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index % 2:
                stages.append(x)
        return stages
''',
    "two_stages": '''
"""A head that reads two stages."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from danet.interfaces import Stage
from danet.arguments import Probability
from danet.registry import HEADS


@HEADS.register("two_stages")
class TwoStages(nn.Module):
    """The last stage, resized to the first one's, beside it."""

    def __init__(self, stages: Sequence[Stage], num_classes: int, /, *, dropout: Probability = 0.1) -> None:
        super().__init__()
        self.num_classes, self.align_corners = num_classes, False
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(stages[0].channels + stages[-1].channels, num_classes, kernel_size=1)

    def init_weights(self) -> None:
        """Begin with a rare foreground, as focal losses do."""
        nn.init.constant_(self.classifier.bias, -4.6)

    def forward(self, features: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Features -> {"main": logits at the first stage's size}."""
        fine, coarse = features[0], features[-1]
        coarse = F.interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=False)
        return {"main": self.classifier(self.dropout(torch.cat([fine, coarse], dim=1)))}
''',
    "ce_dice": '''
"""Cross entropy and Dice."""

import torch
from torch import nn

from danet.interfaces import LossTerm
from danet.arguments import NonNegativeFloat
from danet.registry import LOSSES


@LOSSES.register("ce_dice")
class CrossEntropyAndDice(nn.Module):
    """Their sum, each with its own count."""

    def __init__(self, num_classes, labels, /, *, dice: NonNegativeFloat = 0.5) -> None:
        super().__init__()
        self.cross_entropy = LOSSES["cross_entropy"](num_classes, labels)
        self.dice, self.weight = LOSSES["dice"](num_classes, labels), dice

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> dict[str, LossTerm]:
        """(B, K, H, W), (B, H, W) -> two terms."""
        dice = self.dice(logits, label)._replace(weight=self.weight)
        return {"cross_entropy": self.cross_entropy(logits, label), "dice": dice}
''',
    "rprop": '''
"""An optimizer without weight decay."""

import torch

from danet.arguments import PositiveFloat
from danet.registry import OPTIMIZERS


@OPTIMIZERS.register("rprop")
def rprop(groups, /, *, lr: PositiveFloat = 0.001) -> torch.optim.Optimizer:
    """Resilient backpropagation."""
    return torch.optim.Rprop(groups, lr)
''',
    "listed": '''
"""A folder of pictures whose classes are in classes.txt."""

from pathlib import Path

import numpy as np
from PIL import Image

from danet.interfaces import Sample
from danet.arguments import Folder
from danet.registry import DATASETS


@DATASETS.register("listed")
class Listed:
    """ROOT/classes.txt, ROOT/SPLIT/NAME.png and ROOT/SPLIT_labels/NAME.png."""

    def __init__(self, split: str, /, *, root: Folder) -> None:
        self.class_names = tuple((Path(root) / "classes.txt").read_text().split())
        self.palette = tuple((80 * i, 10, 255 - 80 * i) for i in range(len(self.class_names)))
        self.description = f"listed, {len(self.class_names)} classes"
        self.images = sorted((Path(root) / split).glob("*.png"))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        image = np.asarray(Image.open(self.images[index]).convert("RGB"))
        return Sample(image, self.read_label(index), self.images[index].stem)

    def read_label(self, index: int) -> np.ndarray:
        file = self.images[index]
        return np.array(Image.open(file.parent.with_name(f"{file.parent.name}_labels") / file.name))

    def fingerprint(self) -> str:
        return " ".join((*self.class_names, *(file.name for file in self.images)))
''',
}
OPTIONS = {
    "backbone/own_convnext": {"name": "own_convnext"},
    "head/two_stages": {"name": "two_stages", "dropout": 0.1},
    "loss/ce_dice": {"name": "ce_dice", "dice": 0.5, "weights": {"main": 1.0}},
    "optimizer/rprop": {"name": "rprop", "lr": 0.001, "head_lr_factor": 1.0, "decay_norm_and_bias": True},
    "dataset/listed": {"name": "listed", "root": "???"},
}
COMMAND = [
    "recipe=none",
    *("name=own", "backbone=own_convnext", "head=two_stages", "loss=ce_dice", "optimizer=rprop", "dataset=listed"),
    *("augment=none", "train.steps=2", "train.batch_size=2", "train.log_every=1", "evaluate.samples=1"),
    *("runtime.num_workers=1", "runtime.device=cpu", "tracking=disabled", "train.precision=fp32"),
]


@pytest.fixture
def extensions(tmp_path: Path) -> Path:
    folder = tmp_path / "my parts"
    for name, text in PARTS.items():
        (folder / f"{name}.py").parent.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text)
    for name, options in OPTIONS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(options))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng, root = np.random.default_rng(0), tmp_path / "data"
    for split in ("train", "val"):
        for place, high in ((split, 256), (f"{split}_labels", 3)):
            (root / place).mkdir(parents=True)
            for index in range(3):
                shape = (64, 64, 3) if high == 256 else (64, 64)
                Image.fromarray(rng.integers(high, size=shape, dtype=np.uint8)).save(root / place / f"{index}.png")
    (root / "classes.txt").write_text("road sky tree\n")
    return root


def script(name: str, *arguments: str, outputs: Path, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "src" / f"{name}.py"), *arguments],
        env=environment(outputs),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_five_parts_from_a_folder_outside_of_the_package(extensions: Path, data: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    script("train", f"extensions={extensions}", *COMMAND, f"dataset.root={data}", outputs=outputs)
    (folder,) = run_folders(outputs)
    result = json.loads((folder / "result.json").read_text())
    assert result["dataset"] == "listed, 3 classes"
    assert list(result["iou"]) == ["road", "sky", "tree"]
    (last,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if '"step": 2' in line][
        :1
    ]
    assert {"train/loss/main/cross_entropy", "train/loss/main/dice"} <= last.keys()
    mean = last["train/loss/main/cross_entropy"] + 0.5 * last["train/loss/main/dice"]
    assert last["train/loss"] == pytest.approx(mean)
    state = checkpoint.load(folder / "checkpoints" / "best.pt")
    assert state["class_names"] == ["road", "sky", "tree"]
    # The head's own initial values survived: two small steps from -4.6.
    torch.testing.assert_close(state["model"]["head.classifier.bias"], torch.full((3,), -4.6), rtol=0, atol=0.1)


@pytest.mark.slow
def test_other_scripts_take_them_too_and_a_resume_says_so(extensions: Path, data: Path, tmp_path: Path) -> None:
    outputs, own = tmp_path / "outputs", f"extensions={extensions}"
    script("train", own, *COMMAND, f"dataset.root={data}", outputs=outputs)
    (folder,) = run_folders(outputs)
    text = script("evaluate", f"run={folder}", own, outputs=outputs)
    assert "listed, 3 classes" in text
    script("predict", f"run={folder}", f"input={data}/val", f"output={tmp_path}/predicted", own, outputs=outputs)
    assert len(list((tmp_path / "predicted").glob("*_labels.png"))) == 3
    assert "extensions=FOLDER" in script(
        "evaluate", f"run={folder}", outputs=outputs, code=1
    )  # nothing comes from a run folder
    script("train", "-m", f"+{own}", *COMMAND, f"dataset.root={data}", "seed=0,1", "sweep.name=own", outputs=outputs)
    assert len(list((outputs / "sweeps" / "own").rglob("result.json"))) == 2


def test_names_are_checked_over_the_folders(extensions: Path, tmp_path: Path) -> None:
    text = script("train", f"extensions={extensions}", "head=two_stage", outputs=tmp_path, code=1)
    assert "head=two_stage: unknown option; did you mean 'two_stages'?" in text
    assert "no such folder" in script("train", "extensions=nowhere", outputs=tmp_path, code=1)
