"""The cache of decoded images: the data set's own pixels, within its bound, whatever happens to its folder."""

import multiprocessing
import os
import pickle
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY, load
from danet.data import cache as cache_module
from danet.data.augment import Augmentation
from danet.data.cache import DecodedCache, cached
from danet.data.loader import evaluation_loader, training_loader
from danet.data.sampler import StepSampler
from danet.datasets.files import fingerprint
from danet.datasets.images import read_image
from danet.datasets.labels import read_label
from danet.datasets.shapes import Shapes
from danet.interfaces import FilePair, Sample
from danet.training import run

CPU = torch.device("cpu")
ENTRY = 64 + 4 * 20 * 30 + 1  # header, pixels, a name of one letter
AMPLE = 100 * ENTRY


class Folder:
    """Six images of 20x30 that count how often they are decoded."""

    class_names, palette, description = ("a", "b"), ((0, 0, 0), (9, 9, 9)), "folder"

    def __init__(self, root, offset=0):
        self.root, self.offset, self.decoded = root, offset, 0
        self.files = [FilePair(str(root / f"{n}.jpg"), str(root / f"{n}.png"), n) for n in "abcdef"]

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        self.decoded += 1
        pair = self.files[index]
        return Sample(read_image(pair.image), self.read_label(index), pair.name)

    def read_label(self, index):
        return read_label(self.files[index].label, "index", {0: self.offset, 1: 1 + self.offset})

    def fingerprint(self):
        return fingerprint(self.root, self.files, {"offset": self.offset})


def write_pair(root, name, seed):
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(root / f"{name}.jpg")
    Image.fromarray(rng.integers(0, 2, (20, 30), np.uint8)).save(root / f"{name}.png")


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    for seed, name in enumerate("abcdef"):
        write_pair(root, name, seed)
    return Folder(root)


def same(first, second):
    return all(
        np.array_equal(a.image, b.image) and np.array_equal(a.label, b.label) and a.name == b.name
        for a, b in zip(first, second, strict=True)
    )


def samples(dataset):
    return [dataset[index] for index in range(len(dataset))]


def entries(folder):
    return sorted(folder.glob("*.sample"))


def size(folder):
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != "bytes")


def test_samples_are_decoded_once_and_are_the_data_sets_own(data, tmp_path):
    expected = samples(Folder(data.root))
    for _ in range(2):  # the second time as another process would, from the folder alone
        kept = DecodedCache(data, tmp_path / "cache", AMPLE)
        for _ in range(2):
            assert same(samples(kept), expected)
    assert data.decoded == 6
    assert len(entries(tmp_path / "cache")) == 6
    image, label, _ = kept[0]
    assert image.dtype == label.dtype == np.uint8
    assert not image.flags.writeable


def test_everything_else_is_the_data_sets(data, tmp_path):
    kept = DecodedCache(data, tmp_path / "cache", AMPLE)
    assert (len(kept), kept.class_names, kept.description, kept.files) == (6, ("a", "b"), "folder", data.files)
    assert kept.fingerprint() == data.fingerprint()
    np.testing.assert_array_equal(kept.read_label(2), data.read_label(2))
    with pytest.raises(AttributeError):
        kept.prepare  # noqa: B018
    assert same(samples(pickle.loads(pickle.dumps(kept))), samples(data))


def test_a_changed_file_is_decoded_again_and_takes_its_old_place(data, tmp_path):
    folder = tmp_path / "cache"
    samples(DecodedCache(data, folder, AMPLE))
    before = (data.root / "c.png").stat()
    write_pair(data.root, "c", seed=99)
    kept = DecodedCache(data, folder, AMPLE)
    assert same(samples(kept), samples(Folder(data.root)))
    assert same(samples(kept), samples(Folder(data.root)))
    assert len(entries(folder)) == 6

    # Of the same size, and while the run goes on: only the time tells.
    flipped = 1 - np.asarray(Image.open(data.root / "d.png"))
    Image.fromarray(flipped).save(data.root / "d.png")
    os.utime(data.root / "d.png", ns=(0, before.st_mtime_ns + 1))
    np.testing.assert_array_equal(kept[3].label, flipped)
    np.testing.assert_array_equal(kept[3].label, flipped)


def test_other_labels_of_the_same_files_are_another_entry(data, tmp_path):
    folder = tmp_path / "cache"
    samples(DecodedCache(data, folder, AMPLE))
    other = Folder(data.root, offset=5)
    assert same(samples(DecodedCache(other, folder, AMPLE)), samples(other))
    assert same(samples(DecodedCache(data, folder, AMPLE)), samples(data))


@pytest.mark.parametrize("file", ["labels.py", "numbered.py", "folder/labels.py", "folder/polygons/new.py"])
def test_labels_are_read_again_once_any_code_that_reads_them_has_changed(data, tmp_path, monkeypatch, file):
    source = shutil.copytree(cache_module.READING, tmp_path / "datasets")
    monkeypatch.setattr(cache_module, "READING", source)
    for _ in range(2):
        samples(DecodedCache(data, tmp_path / "cache", AMPLE))
    assert data.decoded == 6
    with (source / file).open("a") as opened:
        opened.write("x = 1\n")
    samples(DecodedCache(data, tmp_path / "cache", AMPLE))
    assert data.decoded == 12
    assert len(entries(tmp_path / "cache")) == 6


@pytest.mark.parametrize("room", [0, 1, 4])
def test_it_never_exceeds_its_bound(data, tmp_path, room):
    folder = tmp_path / "cache"
    bound = room * ENTRY + ENTRY - 1
    for _ in range(2):
        kept = DecodedCache(data, folder, bound)
        for _ in range(2):
            assert same(samples(kept), samples(Folder(data.root)))
        assert len(entries(folder)) == room
        assert size(folder) <= bound
    assert data.decoded == 6 + 3 * (6 - room)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


def change_the_size(path):
    content = bytearray(path.read_bytes())
    content[32:40] = content[36:40] + content[32:36]  # 30x20 instead of 20x30
    path.write_bytes(content)


def change_the_channels(path):
    content = bytearray(path.read_bytes())
    content[40] ^= 2  # 1 instead of 3
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_a_bit,
        change_the_size,
        change_the_channels,
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(bytes(5000)),
    ],
)
def test_a_damaged_entry_is_found_and_written_again(data, tmp_path, damage):
    folder, expected = tmp_path / "cache", samples(data)
    samples(DecodedCache(data, folder, AMPLE))
    for path in entries(folder):
        damage(path)
    data.decoded = 0
    for _ in range(2):
        assert same(samples(DecodedCache(data, folder, AMPLE)), expected)
    assert data.decoded == 6
    assert not list(folder.glob("*.part"))


def test_a_killed_writer_leaves_nothing_behind(data, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "half.part").write_bytes(bytes(5 * ENTRY))
    (folder / "bytes").write_text("12 ")  # and a wrong count
    kept = DecodedCache(data, folder, 2 * ENTRY)
    samples(kept)
    assert len(entries(folder)) == 2
    assert not (folder / "half.part").exists()


def test_a_folder_that_disappears_stops_no_run(data, tmp_path):
    kept = DecodedCache(data, tmp_path / "cache", AMPLE)
    samples(kept)
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    (tmp_path / "cache").rmdir()
    assert same(samples(kept), samples(data))


def test_a_folder_that_cannot_be_made_is_named_with_its_key(data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"runtime\.cache: .*file cannot be written"):
        cached(data, str(tmp_path / "file"), 1.0, auto=tmp_path)
    assert cached(data, None, 1.0, auto=tmp_path) is data
    cached(data, "auto", 1.0, auto=tmp_path / "usual")
    assert (tmp_path / "usual").is_dir()


def read_in_another_process(barrier, root, folder, bound, seed):
    """Read everything twice, in an order of its own; the names of samples that differ from the files'."""
    replace = os.replace

    def hesitate(*paths):  # between counting and writing, where another process must not come in
        time.sleep(0.005)
        replace(*paths)

    cache_module.os = SimpleNamespace(**{**vars(os), "replace": hesitate})
    data = Folder(root)
    kept, wrong = DecodedCache(data, folder, bound), []
    barrier.wait(60)
    for index in np.random.default_rng(seed).permutation([*range(6)] * 2).tolist():
        if not same([kept[index]], [data[index]]):
            wrong.append(data.files[index].name)
    return wrong


def test_processes_that_write_at_once_keep_pixels_and_bound(data, tmp_path):
    folder, bound = tmp_path / "cache", 4 * ENTRY
    forks = multiprocessing.get_context("fork")
    with forks.Manager() as manager, ProcessPoolExecutor(4, forks) as pool:
        read = partial(read_in_another_process, manager.Barrier(4), data.root, folder, bound)
        assert list(pool.map(read, range(4))) == [[]] * 4
    assert len(entries(folder)) == 4
    assert size(folder) == bound


def test_loader_processes_share_it_and_give_the_same_batches(data, tmp_path):
    augment = Augmentation(load(["augment=standard", "augment.crop_size=[16,24]"]).augment)

    def batches(dataset, num_workers):
        sampler = StepSampler(6, batch_size=3, parts=1, rank=0, world_size=1, seed=1, first_step=0, total_steps=6)
        return list(training_loader(dataset, augment, sampler, seed=1, num_workers=num_workers, device=CPU))

    expected = batches(data, 0)
    kept = DecodedCache(data, tmp_path / "cache", AMPLE)
    for num_workers in (2, 0, 1):
        for one, other in zip(expected, batches(kept, num_workers), strict=True):
            assert one.names == other.names
            assert torch.equal(one.image, other.image)
            assert torch.equal(one.label, other.label)
    assert kept._verified.count_nonzero() == 6  # also what the loader's processes have verified
    [batch] = evaluation_loader(kept, range(6), batch_size=6, num_workers=0, device=CPU)
    assert torch.equal(batch.label, torch.from_numpy(np.stack([s.label for s in samples(data)])))


def test_generated_data_are_kept_too(tmp_path):
    kept = DecodedCache(Shapes("train", size=64, train_images=3), tmp_path, 2**20)
    for _ in range(2):
        assert same(samples(kept), samples(Shapes("train", size=64, train_images=3)))
    val = Shapes("val", size=64, val_images=3)
    assert same(samples(DecodedCache(val, tmp_path, 2**20)), samples(val))
    assert len(entries(tmp_path)) == 6


@pytest.mark.slow
def test_a_run_is_the_same_with_it(outputs):
    short = [*TINY, "train.steps=3", "train.log_every=1", "train.eval_every=3"]
    plain = run.start(load(short))
    kept = run.start(load([*short, "runtime.cache=auto"]))
    assert kept.result["iou"] == plain.result["iou"]
    assert len(entries(outputs / "cache")) == 12 + 6  # images that three steps train on, and those that are scored


@pytest.mark.parametrize("name", ["照片1", "\udcd5\udcd5Ƭ1"])
def test_any_name_comes_back(tmp_path, data, name):
    """A data set of the user's own may have names with bytes that are not UTF-8."""
    data.files[0] = data.files[0]._replace(name=name)
    kept = DecodedCache(data, tmp_path / "cache", AMPLE)
    assert kept[0].name == name
    assert kept[0].name == name
    assert data.decoded == 1
