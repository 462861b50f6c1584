"""Attention maps against loops, libraries and the dense map.

Shapes: h x w feature map, N = h * w positions, P points, C channels of a branch, K classes.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import environment, load
from danet.analysis.attention_maps import attention_maps, position_maps
from danet.analysis.attention_points import at_cells, cell_of, class_points
from danet.analysis.attention_sheet import plot_attention
from danet.config import REPOSITORY
from danet.config.sections import InferenceConfig
from danet.heads.danet import PositionAttention
from danet.inference.predictor import Predictor
from danet.model import build_model
from danet.schema import ConfigError
from danet.services.nonfinite import NonFiniteError

K = 4
NAMES, PALETTE = ("sky", "road", "car", "tree"), ((0, 0, 255), (90, 90, 90), (255, 0, 0), (0, 200, 0))
POINTS = [[3, 5], [40, 70], [63, 0]]


def checkered() -> np.ndarray:
    """64 x 72 pixels, for which the feature map is 8 x 9."""
    return np.random.default_rng(0).integers(0, 255, (8, 9, 3), np.uint8).repeat(8, 0).repeat(8, 1)


def make(head: str = "danet", **options) -> Predictor:
    """A random model with 8 channels in its branches: attentions count and are not uniform, several classes occur."""
    backbone = {"name": "resnet_tiny", "widths": [8, 8, 16, 32]}
    model = build_model(backbone, {"name": head, **options}, K, seed=1).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.6)
            if name.endswith(("query.weight", "key.weight")):
                parameter.mul_(40)
    nothing, cpu = {"sections": {}, "facts": {}}, torch.device("cpu")
    predictor = Predictor(model, NAMES, PALETTE, **nothing, options=InferenceConfig(), device=cpu, dtype=torch.float32)
    with torch.no_grad():
        logits = model(predictor.tensor(checkered()))["main"]
        if (last := list(model.head.classifier)[-1]).bias is not None:
            last.bias -= logits.mean(dim=(0, 2, 3))
    return predictor


@pytest.fixture
def image() -> np.ndarray:
    return checkered()


def branch_input(predictor: Predictor, image: np.ndarray, branch: str) -> torch.Tensor:
    """What reaches a branch's attention, by calling the parts one by one."""
    model = predictor.model
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        return model.head.branches[branch].conv_in(model.backbone((pixels - mean) / std)[-1])


def test_maps_are_rows_of_the_dense_map(image):
    predictor = make()
    module = predictor.model.head.branches["pam"].attention
    maps = position_maps(predictor, image, POINTS)
    with torch.no_grad():
        dense = module.attention(branch_input(predictor, image, "pam"))[0].numpy()  # (N, N)
    cells = [(0, 1), (4, 8), (7, 0)]  # 3 * 7 / 63 = 0.3, 5 * 8 / 71 = 0.56, 40 * 7 / 63 = 4.4, 70 * 8 / 71 = 7.9
    assert maps.shape == (3, 8, 9)
    for found, (row, column) in zip(maps, cells, strict=True):
        np.testing.assert_allclose(found.ravel(), dense[row * 9 + column], rtol=1e-5, atol=1e-9)
    assert abs(maps[0] - maps[1]).sum() > 0.1  # rows differ: not any one would do
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1, rtol=1e-5)


def test_maps_are_equation_1_in_numpy(image):
    predictor = make()
    module = predictor.model.head.branches["pam"].attention
    x = branch_input(predictor, image, "pam")[0].flatten(1).double().numpy()  # (C, N)
    query, key = (
        conv.weight.detach().double().numpy()[:, :, 0, 0] @ x + conv.bias.detach().double().numpy()[:, None]
        for conv in (module.query, module.key)
    )
    found = attention_maps(predictor, image, POINTS)
    for weights, (row, column) in zip(found.position.weights, found.cells, strict=True):
        energies = [sum(query[:, row * 9 + column] * key[:, i]) for i in range(72)]
        exponentials = np.exp(np.array(energies) - max(energies))
        np.testing.assert_allclose(weights.ravel(), exponentials / exponentials.sum(), rtol=1e-3, atol=1e-7)
    assert found.position.gamma == pytest.approx(0.6)


def test_a_bare_model_gives_the_same_maps(image):
    predictor = make()
    expected = position_maps(predictor, image, POINTS)
    np.testing.assert_array_equal(position_maps(predictor.model.train(), image, POINTS), expected)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "cells"), [((24, 33), (3, 5)), ((65, 40), (9, 5)), ((7, 9), (1, 2))])
def test_a_pixel_belongs_to_the_cell_that_weighs_most_in_it_after_resizing(size, cells, align_corners):
    one_hot = torch.eye(cells[0] * cells[1]).view(1, -1, *cells)
    weights = F.interpolate(one_hot, size, mode="bilinear", align_corners=align_corners)[0]  # (N, H, W)
    for pixel in np.ndindex(*size):
        row, column = cell_of(pixel, size, cells, align_corners)
        at_pixel = weights[:, *pixel]
        assert at_pixel[row * cells[1] + column] >= at_pixel.max() - 1e-6


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_middle_of_a_cell_belongs_to_it(align_corners):
    size, cells = (45, 61), (6, 8)
    rows, columns = (at_cells(index, cells, align_corners) for index in np.indices(size))
    for cell in np.ndindex(*cells):
        assert cell_of((rows[cell], columns[cell]), size, cells, align_corners) == cell


@pytest.mark.parametrize("point", [[64, 0], [0, 72], [-1, 3]])
def test_a_point_outside_the_image_is_refused_with_its_size(image, point):
    with pytest.raises(ValueError, match=r"outside the image with 64 rows and 72 columns"):
        position_maps(make(), image, [[0, 0], point])


def test_class_points_lie_deep_in_the_largest_regions():
    prediction = np.zeros((40, 60), np.uint8)
    prediction[5:16, 10:21] = 2
    prediction[25:28, 10:59] = 2  # larger, but thin
    prediction[25:28, 59] = 3
    prediction[33:40, 50:60] = 3  # in the corner: the image's border counts
    points = class_points(prediction)
    assert [prediction[point] for point in points] == [0, 2, 3]
    assert points[1][0] == 26
    assert points[2][0] == 36
    assert points[2][1] in (53, 54, 55, 56)
    assert [prediction[point] for point in class_points(prediction, max_classes=2)] == [0, 2]


def test_without_points_each_predicted_class_has_one(image):
    predictor = make()
    found = attention_maps(predictor, image)
    classes = np.unique(predictor.predict(image))
    assert len(classes) > 1
    assert [found.prediction[point] for point in found.points] == classes.tolist()
    both = attention_maps(predictor, image, [[3, 5]], every_class=True)
    assert both.points == ((3, 5), *found.points)


def test_class_shares_add_up_the_weights_of_each_class(image):
    predictor = make()
    found = attention_maps(predictor, image, POINTS)
    expected = np.zeros((3, K))
    for p in range(3):
        for row in range(8):
            for column in range(9):
                pixel = (int(row * 63 / 7 + 0.5), int(column * 71 / 8 + 0.5))
                expected[p, found.prediction[pixel]] += found.position.weights[p, row, column]
    np.testing.assert_allclose(found.position.class_shares, expected, rtol=1e-5)
    np.testing.assert_allclose(expected.sum(axis=1), 1, rtol=1e-5)


def test_channels_are_those_of_cams_output_that_follow_a_class(image):
    predictor = make()
    x = branch_input(predictor, image, "cam")[0].flatten(1).double().numpy()  # (C, N)
    energy = x @ x.T
    exponentials = np.exp(-energy + energy.min(axis=1, keepdims=True))
    weights = exponentials / exponentials.sum(axis=1, keepdims=True)  # of max - energy: the constant cancels
    output = 0.6 * weights @ x + x

    found = attention_maps(predictor, image)
    channel = found.channel
    np.testing.assert_allclose(channel.weights, weights, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(channel.weights.sum(axis=1), 1, rtol=1e-5)
    assert channel.beta == pytest.approx(0.6)
    classes = at_cells(found.prediction, (8, 9), True)
    for index, shown in enumerate(channel.channels):
        np.testing.assert_allclose(channel.maps[index].ravel(), output[shown], rtol=1e-3, atol=1e-5)
        for class_id in channel.classes[index]:
            where = (classes == class_id).ravel()
            r = [np.corrcoef(row, where)[0, 1] if row.std() > 0 else -1 for row in output]
            assert shown == np.argmax(r)
            assert channel.correlations[index, class_id] == pytest.approx(max(r), abs=1e-3)
    at_points = {int(found.prediction[point]) for point in found.points}
    assert {i for classes in channel.classes for i in classes} == at_points


def test_channels_can_be_given_and_must_exist(image):
    given = attention_maps(make(), image, POINTS, channels=[5, 0]).channel
    assert given.channels == (5, 0)
    everything = attention_maps(make(), image, POINTS, channels=range(8)).channel.maps
    np.testing.assert_array_equal(given.maps, everything[[5, 0]])
    with pytest.raises(ValueError, match=r"channels: \[8\] .* 8 channels"):
        attention_maps(make(), image, POINTS, channels=[0, 8])


def test_a_model_with_one_attention_shows_that_one(image, tmp_path):
    without_pam = attention_maps(make(pam=False), image, POINTS)
    without_cam = attention_maps(make(cam=False), image, POINTS)
    assert without_pam.position is None
    assert len(without_pam.channel.channels) > 0
    assert without_cam.channel is None
    assert without_cam.position.weights.shape == (3, 8, 9)
    plot_attention(without_pam, NAMES, PALETTE, tmp_path / "sheet.png", "one")
    assert Image.open(tmp_path / "sheet.png").size == (2400, 1350)
    with pytest.raises(ValueError, match="no position attention"):
        position_maps(make(pam=False), image, POINTS)
    with pytest.raises(ValueError, match=r"channels: .*head.cam=false"):
        attention_maps(make(cam=False), image, POINTS, channels=[0])


def test_a_head_without_attention_is_refused(image):
    with pytest.raises(ValueError, match="FCNHead has no attention"):
        attention_maps(make("fcn"), image)
    with pytest.raises(ConfigError, match="tracking.attention_images = 1: head fcn has no attention"):
        load(["head=fcn", "tracking=disabled", "tracking.attention_images=1"], probe=True)


def test_the_articles_head_has_maps_too(image):
    predictor = make("danet_article")
    found = attention_maps(predictor, image, POINTS)
    model, head = predictor.model, predictor.model.head
    with torch.no_grad():
        features = model.backbone((predictor.tensor(image) - model.mean) / model.std)[-1]
        x = head.pam[0](features)
        query, key = (project(x).flatten(2)[0].numpy() for project in (head.pam[1].query, head.pam[1].key))
    for weights, (row, column) in zip(found.position.weights, found.cells, strict=True):
        energies = query[:, row * 9 + column] @ key
        exponentials = np.exp(energies - energies.max())
        np.testing.assert_allclose(weights.ravel(), exponentials / exponentials.sum(), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.channel.weights.sum(axis=1), 1, rtol=1e-5)


# ---- memory ----------------------------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that any tensor made under it has."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


@torch.no_grad()
def test_rows_are_computed_without_the_dense_map():
    """Of a 1024x2048 image: N is 32768, so that the dense map has a billion elements."""
    module, x = PositionAttention(32), torch.randn(1, 32, 128, 256)
    with LargestTensor() as made:
        rows = module.attention(x, [0, 5000, 32767])
    assert rows.shape == (1, 3, 128 * 256)
    assert made.elements == 4 * 128 * 256  # a query or key; 4 channels


@pytest.mark.slow
def test_a_large_image_needs_less_memory_than_its_dense_map():
    """DANet-R50 at 1024x2048, 3 points: the dense map alone would be 4 GiB."""
    code = """
import resource, numpy as np
from danet.analysis.attention_maps import attention_maps
from danet.model import build_model
model = build_model({"name": "resnet50", "pretrained": False, "output_stride": 8}, {"name": "danet"}, 19)
image = np.random.default_rng(0).integers(0, 255, (1024, 2048, 3), np.uint8)
maps = attention_maps(model, image, [[100, 200], [500, 1000], [1000, 2000]])
assert maps.position.weights.shape == (3, 128, 256)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
    environ = {**environment(Path("unused")), "PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 4, done.stdout


def test_scores_that_are_not_finite_are_not_drawn(image):
    predictor = make()
    predictor.model.head.classifier[1].bias.data[0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"scores are NaN .*Of its weights, 1 of .*head\.classifier\.1\.bias"):
        attention_maps(predictor, image, POINTS)
