"""Images with other channels than red, green and blue: from the file's bands to the network and back."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from danet import config
from danet.config.sections import InferenceConfig
from danet.data.augment import Augmentation, output_sizes
from danet.data.cache import DecodedCache
from danet.data.loader import collate
from danet.datasets.folder import ImageFolder
from danet.inference.images import read_image
from danet.inference.predictor import Predictor
from danet.inference.views import predict_labels
from danet.model import build_model
from danet.registry import BACKBONES
from danet.schema import ConfigError
from danet.tools.predict import prediction
from danet.tools.predict.prediction import PredictConfig

TINY = {"name": "resnet_tiny", "widths": [4, 4, 8, 16]}
FCN = {"name": "fcn"}


def first(model: nn.Module) -> nn.Conv2d:
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize("backbone", [TINY, {"name": "timm", "model": "tf_efficientnet_lite0"}, {"name": "u2net"}])
@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_kernels_are_those_of_timms_rule(backbone, channels):
    rgb = build_model(backbone, FCN, 2, seed=3)
    other = build_model(backbone, FCN, 2, seed=3, in_channels=channels)
    weight = first(rgb.backbone).weight
    # timm has no rule for two channels.
    expected = timm.models.adapt_input_conv(channels, weight) if channels != 2 else weight[:, :2] * 1.5
    assert torch.allclose(first(other.backbone).weight, expected, atol=1e-6)
    assert other.in_channels == other.mean.numel() == other.std.numel() == channels
    same = [torch.equal(a, b) for a, b in zip(rgb.head.parameters(), other.head.parameters(), strict=True)]
    assert all(same)
    assert other.eval().segment(torch.zeros(1, channels, 40, 48, dtype=torch.uint8)).shape == (1, 40, 48)


def test_an_rgb_image_twice_gives_the_same_answer():
    rgb, six = (build_model(TINY, FCN, 3, in_channels=count).eval() for count in (3, 6))
    image = torch.randint(0, 256, (2, 3, 33, 41), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(six(torch.cat([image, image], 1))["main"], rgb(image)["main"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_any_number_of_channels_is_scored_at_several_scales(channels):
    model = build_model(TINY, FCN, 2, in_channels=channels).eval()
    image = torch.randint(0, 256, (2, channels, 20, 30), dtype=torch.uint8)
    labels = predict_labels(model, image, (20, 30), InferenceConfig(scales=(0.5, 1.0)))
    assert labels.shape == (2, 20, 30)


def test_a_normalization_in_integers_is_computed_in_floats():
    model = build_model(TINY, FCN, 2, normalization={"mean": [0, 0, 0], "std": [255, 255, 255]}).eval()
    image = torch.rand(1, 3, 20, 30)
    assert model.mean.dtype == model.std.dtype == torch.float32
    assert not torch.equal(model(image)["main"], model(image.floor())["main"])


def test_every_backbone_takes_other_channels():
    for name in BACKBONES:
        with torch.device("meta"):
            model = build_model({"name": name}, FCN, 2, in_channels=5)
            model.eval()(torch.empty(1, 5, 64, 64))


@pytest.mark.parametrize("model", ["repvgg_a0", "mobileone_s0", "fastvit_t8"])
def test_a_stem_of_several_branches_takes_other_channels(model):
    """Six channels that repeat an image give what the image gives."""
    pytest.importorskip("timm")
    three, six = (build_model({"name": "timm", "model": model}, FCN, 2, in_channels=count).eval() for count in (3, 6))
    image = 255 * torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(six(image.repeat(1, 2, 1, 1))["main"], three(image)["main"], rtol=1e-3, atol=1e-4)


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    tifffile = pytest.importorskip("tifffile")
    for number in (1, 2):
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
        bands = np.random.default_rng(number).integers(0, 256, (40, 50, 7), np.uint8)
        tifffile.imwrite(tmp_path / "images" / f"{number}.tif", bands, photometric="minisblack", planarconfig="contig")
        Image.fromarray((np.indices((40, 50)).sum(0) // 9 % 2).astype(np.uint8)).save(
            tmp_path / "masks" / f"{number}.png"
        )
    return ImageFolder("train", root=str(tmp_path), classes=["a", "b"], bands=[6, 5, 4, 3, 2, 0])


def test_bands_go_through_augmentation_and_cache(folder, tmp_path):
    sample = folder[0]
    assert sample.image.shape == (40, 50, 6)
    transforms = [
        {"RandomScaleCrop": {"scale": [0.5, 2.0], "height": 64, "width": 64, "flip": 0.5, "fill": [124, 116, 104]}}
    ]
    augment = Augmentation({"name": "own", "crop_size": [64, 64], "transforms": transforms})
    for seed in range(6):
        six, label = augment(sample.image, sample.label, seed=(seed,))
        for part in (slice(0, 3), slice(3, 6)):  # as two images of three channels
            three, same = augment(np.ascontiguousarray(sample.image[..., part]), sample.label, seed=(seed,))
            assert np.array_equal(six[..., part], three)
            assert np.array_equal(label, same)
    cached = DecodedCache(folder, tmp_path / "cache", 10**8)  # type: ignore[arg-type]
    for _ in range(2):
        assert np.array_equal(cached[0].image, sample.image)
        assert np.array_equal(cached[0].label, sample.label)
    assert collate([sample, sample]).image.shape == (2, 6, 40, 50)
    jitter = {"name": "own", "crop_size": None, "transforms": [{"ToGray": {"p": 1.0}}]}
    with pytest.raises(ValueError, match=r"ToGray fails on 50x40 pixels of 6 channels .*take three bands"):
        output_sizes(jitter, (40, 50), 6)


def test_a_trained_model_reads_the_bands_that_it_was_trained_on(folder):
    text = "backbone: {name: resnet_tiny}\nhead: {name: fcn}\ndataset: {bands: [6, 5, 4, 3, 2, 0], range: null}\n"
    sections = config.model_sections(text)
    assert sections["in_channels"] == 6
    assert config.model_sections(config.model_yaml(sections)) == sections
    model = build_model(**sections, num_classes=2).eval()
    predictor = Predictor(
        model,
        folder.class_names,
        folder.palette,
        sections=sections,
        facts={},
        options=InferenceConfig(),
        device=torch.device("cpu"),
        dtype=torch.float32,
        reading=config.image_reading(text),
    )
    assert np.array_equal(predictor.read_image(folder.files[0].image), folder[0].image)
    assert np.array_equal(predictor.predict(folder.files[0].image), predictor.predict(folder[0].image))
    with pytest.raises(ValueError, match="must be 8-bit with 6 channels"):
        predictor.predict(folder[0].image[..., :3])


def test_a_model_of_three_other_bands_takes_no_pillow_image_and_no_video(tmp_path, monkeypatch):
    text = "backbone: {name: resnet_tiny}\nhead: {name: fcn}\ndataset: {bands: [2, 1, 0], range: null}\n"
    reading, sections = config.image_reading(text), config.model_sections(text)
    model = build_model(**sections, num_classes=2).eval()
    options = {"sections": sections, "facts": {}, "options": InferenceConfig(), "device": torch.device("cpu")}
    predictor = Predictor(model, ["a", "b"], [(0, 0, 0)] * 2, dtype=torch.float32, reading=reading, **options)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"or a path; got a \w*Image"):
        predictor.predict(Image.open(tmp_path / "x.png"))
    assert np.array_equal(predictor.read_image(tmp_path / "x.png")[..., ::-1], read_image(tmp_path / "x.png"))

    monkeypatch.setattr("danet.inference.predictor.load", lambda *_, **__: predictor)
    (tmp_path / "x.mp4").write_bytes(b"")
    asked = PredictConfig(checkpoint=str(tmp_path / "x.png"), input=str(tmp_path / "x.mp4"), output=str(tmp_path / "o"))
    with pytest.raises(ConfigError, match="x.mp4 is a video, but the model reads other bands"):
        prediction.run(asked)
