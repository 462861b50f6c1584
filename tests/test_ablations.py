"""The ablations that ship: every one composes, at full and at small scale, and every cell of the small form trains."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from conftest import load
from danet.config import REPOSITORY
from danet.sweeps.sweep import Sweep, plan
from danet.training import run

FILES = sorted(file.stem for file in (REPOSITORY / "experiments" / "ablation").glob("*.yaml"))
ABLATIONS = [name for name in FILES if not name.endswith("_small")]
ON_CAMVID = ["camvid_options"]  # they have no small form
# The small form of an ablation: a file of its own, or scale=small.
SMALL = {
    name: [f"ablation={name}_small"] if f"{name}_small" in FILES else [f"ablation={name}", "scale=small"]
    for name in ABLATIONS
    if name not in ON_CAMVID
}
FULL = {name: [f"ablation={name}", "recipe=camvid_danet", "dataset.root=."] for name in ABLATIONS}
FULL |= {name: [f"ablation={name}", "scale=camvid", "dataset.root=."] for name in ON_CAMVID}
SHORT = ["train.steps=1", "train.batch_size=2", "dataset.train_images=4", "dataset.val_images=1", "evaluate.samples=0"]
ALONE = ["train.precision=fp32", "runtime.num_workers=0", "runtime.device=cpu", "tracking=disabled"]


def planned(*overrides: str) -> Sweep:
    """The sweep of a command line."""
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        composed = compose("train", overrides=list(overrides))
    section: Any = OmegaConf.to_container(composed.sweep, resolve=True)
    return plan(section, dict([override.split("=", 1)[0], [override.split("=", 1)[1]]] for override in overrides))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in place of ImageNet's weights, which are a download."""
    from torchvision.models import resnet18

    file = tmp_path_factory.mktemp("weights") / "resnet18.pt"
    torch.save(resnet18(weights=None).state_dict(), file)
    return file


SCALES = sorted(file.stem for file in (REPOSITORY / "experiments" / "scale").glob("*.yaml"))


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_a_valid_configuration(scale: str) -> None:
    data = [] if scale == "small" else ["dataset.root=."]
    cells = planned("ablation=attention", f"scale={scale}", *data).cells()
    assert {load(cell.overrides).head["name"] for cell in cells} == {"fcn", "danet"}


@pytest.mark.slow
@pytest.mark.parametrize("form", [*SMALL.values(), *FULL.values()], ids=" ".join)
def test_every_cell_is_a_configuration_of_its_own(form: list[str]) -> None:
    cells = planned(*form).cells()
    configs = [load(cell.overrides) for cell in cells]
    assert len({(c.identity(), str(c.backbone.get("pretrained"))) for c in configs}) == len(cells) > 1


@pytest.mark.slow
@pytest.mark.parametrize("ablation", SMALL)
def test_every_cell_of_the_small_form_does_a_step(ablation: str, weights: Path, outputs: Path) -> None:
    for cell in planned(*SMALL[ablation]).cells():
        overrides = [override.replace("=imagenet", f"={weights}") for override in cell.overrides]
        config = load([*overrides, *SHORT, *ALONE], probe=True)
        folder = outputs / cell.subfolder
        outcome = run.start(config, sweep_folder=str(folder))
        assert outcome.finished
        assert (folder / "result.json").is_file(), cell.subfolder
