"""What a run's weights start from: kept by a resume, and part of what makes it this run and no other."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import TINY, load, run_folders
from danet import config
from danet.config import ConfigError
from danet.services import checkpoint
from danet.services.metrics_file import MetricsFile
from danet.training import description, run, run_folder
from test_resume import go_on, stopped_before

pytestmark = pytest.mark.usefixtures("without_pictures")

RUN = [*TINY, "train.steps=6", "train.log_every=1", "train.eval_every=6", "train.save_every=3", "head.dropout=0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files of weights of the same shapes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "OUTPUTS", tmp_path_factory.mktemp("trained"))
        starts = (run.start(load([*RUN, f"seed={seed}", "train.steps=1"])) for seed in (7, 8))
        return [start.folder / "checkpoints" / "best.pt" for start in starts]


def losses(folder: Path) -> list[float]:
    return [row["train/loss"] for row in MetricsFile(folder / "metrics.jsonl").rows() if "train/loss" in row]


def killed_at_save(overrides: list[str], outputs: Path, times: int) -> Path:
    before = set(run_folders(outputs))
    with pytest.MonkeyPatch.context() as patch:
        stopped_before("save", patch, times)
        with pytest.raises(KeyboardInterrupt):
            run.start(load(overrides))
    (folder,) = set(run_folders(outputs)) - before
    return folder


@pytest.mark.parametrize("key", [pytest.param("init_from", marks=pytest.mark.slow), "backbone.pretrained"])
def test_a_resume_before_the_first_checkpoint_starts_from_the_same_weights(outputs, trained, key) -> None:
    overrides = [*RUN, f"{key}={trained[0]}"]
    whole, random = run.start(load(overrides)).folder, run.start(load(RUN)).folder
    folder = killed_at_save(overrides, outputs, 1)
    assert checkpoint.load_newest(folder / "checkpoints") is None
    go_on(folder)
    assert losses(folder) == losses(whole)
    assert losses(folder) != losses(random)


@pytest.mark.slow
def test_weights_may_be_gone_or_other_only_after_the_first_checkpoint(outputs, trained, tmp_path) -> None:
    file = tmp_path / "start.pt"
    shutil.copy(trained[0], file)
    early, late = (killed_at_save([*RUN, f"init_from={file}"], outputs, times) for times in (1, 2))
    shutil.copy(trained[1], file)
    with pytest.raises(ConfigError, match=r"init_from: other weights \(sha256:.*\) than the run in .* started from"):
        go_on(early)
    file.unlink()
    with pytest.raises(ConfigError, match="must be an existing file"):
        go_on(early)
    assert not losses(early)[3:]  # nothing was trained
    assert go_on(late).finished
    saved = checkpoint.load_newest(late / "checkpoints")
    assert saved is not None
    assert f"init_from: {file}" in saved["config"]  # where its weights come from is not forgotten


def test_a_sweep_or_a_resume_with_other_weights_is_another(outputs, trained, tmp_path) -> None:
    folder = killed_at_save([*RUN, f"init_from={trained[0]}"], outputs, 2)
    copied = Path(shutil.copy(trained[0], tmp_path / "copy.pt"))
    same, other, without = (load([*RUN, *more]) for more in ([f"init_from={copied}"], [f"init_from={trained[1]}"], []))
    assert description.resume_conflicts(folder, same) == []
    for another in (other, without):
        (conflict,) = description.resume_conflicts(folder, another)
        assert "other weights" in conflict
        assert run_folder.newest_run(another) is None
    assert run_folder.newest_run(same) == folder
    for given in (f"init_from={trained[1]}", "init_from=null"):
        with pytest.raises(ConfigError, match="init_from: other weights"):
            go_on(folder, given)


def test_pretrained_files_count_by_content_wherever_a_component_takes_them(trained, tmp_path) -> None:
    copied = Path(shutil.copy(trained[0], tmp_path / "copy.pt"))
    resnet = [*RUN[1:], "backbone=resnet18"]
    plain, one, moved, other = (
        load([*resnet, f"backbone.pretrained={value}"]).identity()
        for value in ("false", trained[0], copied, trained[1])
    )
    assert one == moved
    assert len({plain, one, other, load([*resnet, "backbone.pretrained=imagenet"]).identity()}) == 4


def test_a_run_from_before_weights_were_recorded_is_compared_by_its_files(outputs, trained) -> None:
    folder = killed_at_save([*RUN, f"init_from={trained[0]}"], outputs, 2)
    file = folder / "environment.json"
    record = json.loads(file.read_text())
    del record["initial_values"]
    file.write_text(json.dumps(record))
    assert description.resume_conflicts(folder, load([*RUN, f"init_from={trained[0]}"])) == []
    assert description.resume_conflicts(folder, load([*RUN, f"init_from={trained[1]}"])) != []


def small_camvid(root: Path) -> Path:
    """Three images a split of 64 x 48, in SegNet's layout."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder, shape, high in ((split, (48, 64, 3), 256), (f"{split}annot", (48, 64), 11)):
            (root / folder).mkdir(parents=True)
            for index in range(3):
                pixels = rng.integers(high, size=shape, dtype=np.uint8)
                Image.fromarray(pixels).save(root / folder / f"{split}{index}.png")
    return root


@pytest.mark.slow
def test_data_at_another_place_are_the_same_data(outputs, tmp_path) -> None:
    """As on the scratch disk of another job."""
    first = small_camvid(tmp_path / "job1")
    camvid = [*RUN[5:], "dataset=camvid", "backbone.widths=[8,8,16,32]", "train.batch_size=2"]
    folder = killed_at_save([*camvid, f"dataset.root={first}"], outputs, 2)
    second = first.rename(tmp_path / "job2")
    with pytest.raises(ValueError, match="was not found in"):
        go_on(folder)
    moved = load([*camvid, f"dataset.root={second}"])
    assert run_folder.newest_run(moved) == folder
    assert description.resume_conflicts(folder, moved) == []
    (tmp_path / "link").symlink_to(second)
    arguments = config.with_changes_of_resume([f"resume={folder}", f"dataset.root={tmp_path / 'link'}"])
    assert run.start(load(arguments), arguments).finished

    other = tmp_path / "other"
    shutil.copytree(second, other)
    Image.new("L", (64, 48), 3).save(other / "trainannot" / "train1.png")
    (folder / "result.json").unlink()
    assert run_folder.newest_run(load([*camvid, f"dataset.root={other}"])) is None
    with pytest.raises(ValueError, match="the data has changed since this run began"):
        go_on(folder, f"++dataset.root={other}")
