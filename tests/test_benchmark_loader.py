"""The benchmark of the loader: that each pipeline does the work it is timed for. How fast is not tested."""

import numpy as np
import pytest
import torch
from PIL import Image

from danet_benchmark import loader
from danet_benchmark.loader import Case, loader_rows

SMALL = Case(size=(96, 64), crop_size=(48, 80), suffix="png", files=2, images=4)
PIPELINES = ("_ours", "_mmsegmentation", "_torchvision")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(loader, "CASES", [SMALL, SMALL._replace(suffix="jpg")])


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_ends_with_tensors_of_images_and_labels_that_belong_together(name, tmp_path):
    if name == "_mmsegmentation":
        pytest.importorskip("mmcv")
        pytest.importorskip("mmengine")
    dataset = loader._Files(tmp_path / "data", SMALL)
    for pair in dataset.files:  # four stripes, which the image shows in steps of 40
        label = (np.arange(96, dtype=np.uint8) // 24)[None].repeat(64, 0)
        Image.fromarray(label).save(pair.label)
        Image.fromarray((40 * label)[..., None].repeat(3, 2)).save(pair.image)
    load, sizes = getattr(loader, name)(dataset, SMALL), set()
    for index in [0, 1] * 8:
        found = load(index)
        if name == "_mmsegmentation":
            image, label = found["inputs"], found["data_samples"].gt_sem_seg.data[0]
        else:
            image, label = found
        assert isinstance(image, torch.Tensor)
        assert image.dtype == torch.uint8
        assert image.shape[1:] == label.shape
        sizes.add(tuple(label.shape))
        inside = label != 255
        agree = (image[0][inside].int() - 40 * label[inside].int()).abs() <= 5
        assert agree.float().mean() > 0.85  # but for edges, which the image's interpolation blurs
    if name != "_mmsegmentation":  # which pads in its model
        assert sizes == {SMALL.crop_size}


@pytest.mark.slow
def test_rows_have_a_figure_or_the_reason_why_there_is_none(monkeypatch):
    def missing(name):
        raise ImportError("No module named 'mmseg'")

    monkeypatch.setattr(loader, "mmseg_module", missing)
    rows = loader_rows(0)
    assert [row["format"] for row in rows] == ["png"] * 4 + ["jpg"] * 4
    assert [row["pipeline"] for row in rows[:4]] == ["ours", "ours, from the cache", "mmsegmentation", "torchvision v2"]
    for row in rows:
        assert {"what", "size", "format", "pipeline", "images_per_second", "low", "high", "error"} <= set(row)
        assert row["size"] == "96x64"
        if row["pipeline"] == "mmsegmentation":
            assert row["error"] == "ImportError: No module named 'mmseg'"
            assert (row["images_per_second"], row["low"], row["high"]) == (None, None, None)
        else:
            assert row["error"] is None
            assert 0 < row["low"] <= row["images_per_second"] <= row["high"]
