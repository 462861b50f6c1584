"""The whole of it on real images: the check, an epoch, a resume. Needs CamVid beside the repository."""

import json
from pathlib import Path

import torch

from conftest import CAMVID, load, needs_camvid
from danet.training import run

OVERRIDES = [
    "dataset=camvid",
    f"dataset.root={CAMVID}",
    "loss.class_weights=none",
    "augment=standard",
    "augment.crop_size=[64,96]",
    "backbone.widths=[8,8,16,32]",
    "train.steps=null",
    "train.epochs=1",
    "train.eval_every=1 epochs",
    "train.save_every=20",
    "train.batch_size=8",
    "train.precision=fp32",
    "evaluate.max_images=12",
    "evaluate.samples=2",
    "runtime.num_workers=1",
    "runtime.device=cpu",
    "tracking=disabled",
]


@needs_camvid
def test_an_epoch_on_camvid_and_the_same_after_a_resume(outputs: Path) -> None:
    torch.set_num_threads(1)
    first = run.start(load(OVERRIDES), OVERRIDES)
    result = json.loads((first.folder / "result.json").read_text())
    assert result["step"] == 46  # 367 images, 8 at a time, the last batch going on into the next epoch
    assert result["num_images"] == 12
    assert 0.05 < result["miou"] < 1
    assert "SegNet" in result["dataset"]
    environment = json.loads((first.folder / "environment.json").read_text())
    assert [split["images"] for split in environment["data"].values()] == [367, 101]
    assert list((outputs / ".cache").glob("*.json"))
    assert (first.folder / "samples").is_dir()

    # As a run that was killed after step 40 would be found.
    (first.folder / "result.json").unlink()
    last = first.folder / "checkpoints" / "step_00000046.pt"
    final = torch.load(last, weights_only=True)["model"]
    last.unlink()
    last.with_suffix(".json").unlink()
    second = run.start(load([f"resume={first.folder}", "runtime.num_workers=0"]))
    assert second.folder == first.folder
    again_result = json.loads((first.folder / "result.json").read_text())
    assert all(
        again_result[key] == result[key] for key in ("miou", "iou", "pixels", "step", "num_images", "parameters")
    )
    again = torch.load(last, weights_only=True)["model"]
    assert all(torch.equal(again[name], value) for name, value in final.items())
