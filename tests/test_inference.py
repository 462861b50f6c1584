"""Ways of looking at an image, against the two published procedures and against plain averages."""

import math
import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from danet.config import REPOSITORY
from danet.config.sections import InferenceConfig
from danet.inference.views import _scaled_size, class_scores, predict_labels
from danet.interfaces import IMAGENET_MEAN, IMAGENET_STD
from danet.model import Segmenter
from danet.services.nonfinite import FiniteScores, NonFiniteError
from mmseg_peer import mmseg_models
from test_evaluation import make_model

CLASSES = 4


class Pixels(nn.Module):
    """A head that sees one pixel at a time."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.align_corners = num_classes, True
        self.conv = nn.Conv2d(3, num_classes, kernel_size=1)

    def forward(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"main": self.conv(features[-1])}


class Nothing(nn.Module):
    """A backbone whose features are the image."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x]


def pixel_model(num_classes: int) -> Any:
    torch.manual_seed(0)
    return Segmenter(Nothing(), Pixels(num_classes)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> Any:
    """A network that looks at its surroundings, so that it matters what it is shown."""
    network = make_model(CLASSES).eval()
    for attention in (network.head.branches["pam"].attention, network.head.branches["cam"].attention):
        nn.init.constant_(attention.gamma, 0.5)
    return network


def image_of(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A smooth image (1, 3, H, W) uint8, in which resizing loses little."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    scaled = (smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255
    return torch.from_numpy(scaled.astype(np.uint8)).permute(2, 0, 1)[None]


# ---- the authors' test script: sizes, padding, exp of summed logits, counts, sum over scales -------------------------


def official(
    model: Segmenter, image: torch.Tensor, *, base_size: int, crop: int, stride: int, scales: tuple[float, ...]
) -> torch.Tensor:
    """Scores (K, H, W) of one image."""
    mean, std = torch.tensor(IMAGENET_MEAN) / 255, torch.tensor(IMAGENET_STD) / 255
    normal = (image / 255 - mean[:, None, None]) / std[:, None, None]
    black = -mean / std

    def resize(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return F.interpolate(x, (height, width), mode="bilinear", align_corners=True)

    def filled_up(x: torch.Tensor) -> torch.Tensor:
        canvas = black[None, :, None, None].repeat(1, 1, max(crop, x.shape[2]), max(crop, x.shape[3]))
        canvas[:, :, : x.shape[2], : x.shape[3]] = x
        return canvas

    def look(x: torch.Tensor) -> torch.Tensor:
        def logits(x: torch.Tensor) -> torch.Tensor:
            return resize(model.head(model.backbone(x))["main"], x.shape[2], x.shape[3])

        return (logits(x) + logits(x.flip(3)).flip(3)).double().exp()

    height, width = image.shape[2:]
    total = torch.zeros(1, CLASSES, height, width, dtype=torch.float64)
    for scale in scales:
        long_side = math.ceil(base_size * scale)
        if height > width:
            new_height, new_width = long_side, int(width * long_side / height + 0.5)
        else:
            new_height, new_width = int(height * long_side / width + 0.5), long_side
        small = resize(normal, new_height, new_width)
        if long_side <= crop:
            found = look(filled_up(small))[:, :, :new_height, :new_width]
        else:
            padded = filled_up(small) if min(new_height, new_width) < crop else small
            rows, columns = padded.shape[2:]
            found = torch.zeros(1, CLASSES, rows, columns, dtype=torch.float64)
            count = torch.zeros(rows, columns)
            for i in range(math.ceil((rows - crop) / stride) + 1):
                for j in range(math.ceil((columns - crop) / stride) + 1):
                    bottom, right = min(i * stride + crop, rows), min(j * stride + crop, columns)
                    here = (slice(i * stride, bottom), slice(j * stride, right))
                    window = padded[:, :, here[0], here[1]]
                    scores = look(filled_up(window))[:, :, : window.shape[2], : window.shape[3]]
                    found[:, :, here[0], here[1]] += scores
                    count[here] += 1
            assert count.min() > 0
            found = (found / count)[:, :, :new_height, :new_width]
        total += resize(found, height, width)
    return total[0]


@pytest.mark.parametrize(
    ("size", "base_size", "crop", "stride", "scales"),
    [
        ((33, 47), 47, 24, None, (1.0,)),  # windows that end beyond the image
        ((47, 33), 61, 24, 16, (1.0,)),  # portrait, enlarged
        ((20, 90), 71, 32, 21, (1.0,)),  # the shorter side is padded to a window
        ((31, 25), 30, 40, 20, (1.0,)),  # all of it fits in a window
        ((53, 37), 53, 32, 16, (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.2)),
    ],
)
@torch.no_grad()
def test_official_is_the_authors_procedure(
    model: Any, size: tuple[int, int], base_size: int, crop: int, stride: int | None, scales: tuple[float, ...]
) -> None:
    image = image_of(*size)
    config = InferenceConfig(
        mode="slide",
        crop_size=(crop, crop),
        stride=(stride, stride) if stride else None,
        scales=scales,
        flip=True,
        long_side=base_size,
        combine="official",
    )
    rule = stride or int(crop * (2.0 / 3.0))  # of the script, where a single scale is looked at
    expected = official(model, image, base_size=base_size, crop=crop, stride=rule, scales=scales)
    found = class_scores(model, image, size, config)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    assert len(expected.argmax(0).unique()) > 1
    assert torch.equal(predict_labels(model, image, size, config)[0], expected.argmax(0))


@torch.no_grad()
def test_official_scores_do_not_overflow() -> None:
    """In float32 the sum of two logits of 60 is infinite, and so is that of 50: the classes could not be told apart."""
    flat = pixel_model(3)
    flat.head.conv.weight.zero_()
    flat.head.conv.bias.copy_(torch.tensor([50.0, 60.0, 55.0]))
    config = InferenceConfig(mode="slide", crop_size=(8, 8), flip=True, combine="official")
    scores = class_scores(flat, image_of(8, 8), (8, 8), config)
    assert scores.isfinite().all()
    assert (predict_labels(flat, image_of(8, 8), (8, 8), config) == 1).all()


# ---- mmsegmentation's own code, on our network -----------------------------------------------------------------------


def mmseg(
    model: Segmenter,
    image: torch.Tensor,
    *,
    mode: str,
    crop: int | None,
    stride: int | None,
    resize: list[dict],
    flip: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean probabilities (K, H, W) of one image, and labels: without test-time augmentation its logits decide."""
    models = mmseg_models()
    from mmcv.transforms import Resize
    from mmseg.structures import SegDataSample

    size = tuple(image.shape[2:])
    decoder = SimpleNamespace(
        test_cfg=SimpleNamespace(mode=mode, crop_size=(crop, crop), stride=(stride, stride), get=lambda *_: mode),
        out_channels=CLASSES,
        align_corners=model.align_corners,
        decode_head=None,
        encode_decode=lambda x, _: F.interpolate(
            model(x)["main"], x.shape[2:], mode="bilinear", align_corners=model.align_corners
        ),
    )
    kind = models.EncoderDecoder
    decoder.slide_inference = lambda *given: kind.slide_inference(decoder, *given)
    decoder.whole_inference = lambda *given: kind.whole_inference(decoder, *given)
    views = []
    for arguments in resize:
        array = image[0].permute(1, 2, 0).numpy()[..., ::-1]  # its loader gives BGR
        small = Resize(keep_ratio=True, **arguments)({"img": np.ascontiguousarray(array)})["img"][..., ::-1]
        x = torch.from_numpy(np.ascontiguousarray(small)).permute(2, 0, 1)[None].float()
        for mirrored in (False, True) if flip else (False,):
            meta = {"ori_shape": size, "flip": mirrored, "flip_direction": "horizontal"}
            sample = SegDataSample(metainfo=meta)
            logits = kind.inference(decoder, x.flip(3) if mirrored else x, [dict(meta)])
            views += kind.postprocess_result(decoder, logits, [sample])
    if len(views) == 1:
        return views[0].seg_logits.data.softmax(0), views[0].pred_sem_seg.data[0]
    for view in views:
        view.set_metainfo({"img_path": "image"})
    mean = torch.stack([view.seg_logits.data.softmax(0) for view in views]).mean(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it gives labels without a channel and says that it adds one
        [merged] = models.SegTTAModel.merge_preds(SimpleNamespace(module=decoder), [views])
    return mean, merged.pred_sem_seg.data.reshape(size)


RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("size", "options", "resize"),
    [
        ((33, 47), {"long_side": 60, "short_side": 50}, [{"scale": (60, 50)}]),
        ((33, 47), {"long_side": 90, "short_side": 41}, [{"scale": (90, 41)}]),  # the shorter side decides
        ((33, 47), {"scales": RATIOS, "flip": True}, [{"scale_factor": r} for r in RATIOS]),
        ((41, 29), {"mode": "slide", "crop_size": (24, 24), "stride": (16, 16)}, [{"scale_factor": 1.0}]),
        (
            (33, 47),
            {"mode": "slide", "crop_size": (25, 25), "stride": (17, 17), "long_side": 49, "short_side": 40},
            [{"scale": (49, 40)}],
        ),
        (
            (29, 53),
            {"mode": "slide", "crop_size": (33, 33), "stride": (22, 22), "scales": RATIOS, "flip": True},
            [{"scale_factor": r} for r in RATIOS],
        ),
    ],
)
@torch.no_grad()
def test_mmseg_is_mmsegmentation(
    model: Any, size: tuple[int, int], options: dict[str, Any], resize: list[dict], align_corners: bool
) -> None:
    before, model.align_corners = model.align_corners, align_corners
    config, image = InferenceConfig(combine="mmseg", **options), image_of(*size)
    crop, stride = ((config.crop_size or (None,))[0], (config.stride or (None,))[0])
    try:
        expected, labels = mmseg(
            model, image, mode=config.mode, crop=crop, stride=stride, resize=resize, flip=config.flip
        )
        torch.testing.assert_close(class_scores(model, image, size, config)[0], expected, rtol=0, atol=1e-6)
        assert torch.equal(predict_labels(model, image, size, config)[0], labels)
    finally:
        model.align_corners = before
    assert len(labels.unique()) > 1


# ---- our own way -----------------------------------------------------------------------------------------------------


def test_probabilities_are_averaged_over_scales_and_flips(model: Any) -> None:
    image, size, scales = image_of(37, 52), (37, 52), (0.75, 1.0, 1.6)
    total = np.zeros((CLASSES, *size))
    for scale in scales:
        target = (int(52 * scale + 0.5), int(37 * scale + 0.5))
        small = cv2.resize(image[0].permute(1, 2, 0).numpy(), target, interpolation=cv2.INTER_LINEAR)
        for step in (1, -1):
            x = torch.from_numpy(np.ascontiguousarray(small[:, ::step])).permute(2, 0, 1)[None]
            with torch.no_grad():
                logits = F.interpolate(model(x)["main"], x.shape[2:], mode="bilinear", align_corners=True)
                seen = F.interpolate(logits.softmax(1), size, mode="bilinear", align_corners=True)
            total += seen[0].numpy()[:, :, ::step]
    found = class_scores(model, image, size, InferenceConfig(scales=scales, flip=True))[0].numpy()
    np.testing.assert_allclose(found, total / 6, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("combine", ["probabilities", "mmseg", "official"])
@pytest.mark.parametrize("flip", [False, True])
def test_windows_equal_the_whole_where_a_pixel_is_all_that_counts(combine: Any, flip: bool) -> None:
    """Odd sizes, windows larger than the image on one side or both, strides from 1 to the window's size."""
    network, rng = pixel_model(5), np.random.default_rng(0)
    whole = InferenceConfig(flip=flip, combine=combine)
    for _ in range(25):
        height, width, rows, columns = (int(n) for n in rng.integers(1, 40, size=4))
        stride = (int(rng.integers(max(1, rows // 4), rows + 1)), int(rng.integers(max(1, columns // 4), columns + 1)))
        image = torch.from_numpy(rng.integers(0, 256, (1, 3, height, width), dtype=np.uint8))
        slide = InferenceConfig(mode="slide", crop_size=(rows, columns), stride=stride, flip=flip, combine=combine)
        expected = class_scores(network, image, (height, width), whole)
        found = class_scores(network, image, (height, width), slide)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        alone = network(image)["main"].argmax(1)
        assert torch.equal(predict_labels(network, image, (height, width), slide), alone)


@pytest.mark.parametrize("combine", ["probabilities", "mmseg"])
def test_a_window_that_holds_the_image_is_the_whole_image(model: Any, combine: Any) -> None:
    image, size = image_of(35, 46), (35, 46)
    slide = InferenceConfig(mode="slide", crop_size=(64, 46), combine=combine)
    found = class_scores(model, image, size, slide)
    assert torch.equal(found, class_scores(model, image, size, InferenceConfig(combine=combine)))
    assert torch.equal(predict_labels(model, image, size, slide), model.segment(image))


def test_a_batch_is_looked_at_image_by_image(model: Any) -> None:
    first, second = image_of(33, 41, seed=1), image_of(33, 41, seed=2)
    config = InferenceConfig(mode="slide", crop_size=(20, 20), scales=(0.8, 1.2), flip=True)
    both = class_scores(model, torch.cat([first, second]), (33, 41), config)
    for row, image in enumerate((first, second)):
        torch.testing.assert_close(both[row : row + 1], class_scores(model, image, (33, 41), config), rtol=0, atol=1e-5)


def test_scores_come_at_the_size_that_is_asked_for(model: Any) -> None:
    for config in (InferenceConfig(), InferenceConfig(scales=(0.5,), flip=True)):
        assert class_scores(model, image_of(32, 40), (64, 81), config).shape == (1, CLASSES, 64, 81)
        assert predict_labels(model, image_of(32, 40), (64, 81), config).shape == (1, 64, 81)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "slide"}, "crop_size: mode=slide needs the size"),
        ({"crop_size": (8, 8)}, "whole images are not cut; add mode=slide"),
        ({"stride": (8, 8)}, "whole images have no windows; add mode=slide"),
        ({"mode": "slide", "crop_size": (8, 8), "stride": (9, 8)}, "leaves gaps"),
    ],
)
def test_windows_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    [line] = InferenceConfig(**options).problems()
    assert words in line


def windows_written_out(
    network: Any, image: torch.Tensor, crop: tuple[int, int], stride: tuple[int, int], combine: str
) -> torch.Tensor:
    """The sum over all windows at once, divided by how many see a pixel: (1, K, H, W)."""
    height, width = image.shape[-2:]
    total, count = torch.zeros(1, CLASSES, height, width), torch.zeros(height, width)
    for top in range(0, max(height - crop[0], 0) + stride[0], stride[0]):
        for left in range(0, max(width - crop[1], 0) + stride[1], stride[1]):
            y, x = max(min(top, height - crop[0]), 0), max(min(left, width - crop[1]), 0)
            window = image[:, :, y : y + crop[0], x : x + crop[1]]
            with torch.no_grad():
                logits = F.interpolate(network(window)["main"], window.shape[2:], mode="bilinear", align_corners=True)
            total[:, :, y : y + crop[0], x : x + crop[1]] += logits.softmax(1) if combine == "probabilities" else logits
            count[y : y + crop[0], x : x + crop[1]] += 1
    return total / count


@pytest.mark.parametrize("combine", ["probabilities", "mmseg"])
@pytest.mark.parametrize(
    ("size", "crop", "stride"),
    [
        ((70, 45), (24, 32), (16, 21)),
        ((33, 90), (40, 24), (8, 24)),
        ((24, 24), (24, 24), (24, 24)),
        ((9, 61), (8, 8), (5, 3)),
    ],
)
def test_bands_of_windows_give_what_all_windows_at_once_give(
    model: Any, size: tuple[int, int], crop: tuple[int, int], stride: tuple[int, int], combine: Any
) -> None:
    image, slide = image_of(*size), InferenceConfig(mode="slide", crop_size=crop, stride=stride, combine=combine)
    expected = windows_written_out(model, image, crop, stride, combine)
    assert torch.equal(predict_labels(model, image, size, slide), expected.argmax(dim=1))
    found = class_scores(model, image, size, slide)
    assert torch.equal(found, expected if combine == "probabilities" else expected.softmax(dim=1))


class LargestTensor(TorchDispatchMode):
    """Notes how many values the largest tensor has that anything computes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        found = result if isinstance(result, tuple | list) else [result]
        self.numel = max([self.numel, *(tensor.numel() for tensor in found if torch.is_tensor(tensor))])
        return result


@pytest.mark.parametrize("size", [(400, 32), (32, 400), (1, 3000)])
def test_windows_need_no_scores_of_the_whole_image(size: tuple[int, int]) -> None:
    """So an image that is too large for a look at the whole of it is not for windows."""
    network, image = pixel_model(64), image_of(*size)
    with LargestTensor() as whole:
        expected = predict_labels(network, image, size, InferenceConfig())
    with LargestTensor() as by_windows:
        found = predict_labels(network, image, size, InferenceConfig(mode="slide", crop_size=(32, 32)))
    assert torch.equal(found, expected)
    assert whole.numel == 64 * size[0] * size[1]
    assert by_windows.numel <= 64 * min(size[0], 32) * max(size[1], 32)


# ---- scores that are not finite --------------------------------------------------------------------------------------

LOOKS: dict[str, dict[str, Any]] = {
    "whole": {},
    "flip": {"flip": True},
    "slide": {"mode": "slide", "crop_size": (16, 16)},
    "scales": {"scales": (0.5, 1.0)},
    "mmseg": {"mode": "slide", "crop_size": (16, 16), "combine": "mmseg", "flip": True},
    "official": {"mode": "slide", "crop_size": (16, 16), "combine": "official", "flip": True},
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_seen_image_by_image(look: str, value: float) -> None:
    """A single pixel of the second of three images is at fault."""
    images = torch.full((3, 3, 40, 40), 100, dtype=torch.uint8)
    images[1, :, 33, 5] = 255

    class Spoiled(Pixels):
        def forward(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
            logits = super().forward(features)["main"]
            bright = features[-1].mean(dim=1) > 0
            logits[:, 2] = torch.where(bright, value, logits[:, 2])
            return {"main": logits}

    torch.manual_seed(0)
    network, config = (
        Segmenter(Nothing(), Spoiled(CLASSES)).eval().requires_grad_(False),
        InferenceConfig(**LOOKS[look]),
    )
    for watched in (predict_labels, class_scores):
        finite = FiniteScores()
        watched(network, images, (40, 40), config, watch=finite)
        assert finite.each is not None
        assert finite.each.tolist() == [True, False, True]
        with pytest.raises(NonFiniteError, match=r"^a\.png: .* scores are NaN or infinite\. .* precision=fp32"):
            finite.require(network, "a.png")
        finite = FiniteScores()
        watched(network, images[::2], (40, 40), config, watch=finite)
        finite.require(network)


def test_scores_that_overflow_only_as_exponentials_are_seen() -> None:
    network = pixel_model(CLASSES)
    network.head.conv.bias[2] = 800.0  # exp() of it ends float64
    finite = FiniteScores()
    predict_labels(network, image_of(8, 8), (8, 8), InferenceConfig(combine="official", flip=True), finite)
    with pytest.raises(NonFiniteError):
        finite.require(network)
    finite = FiniteScores()
    predict_labels(network, image_of(8, 8), (8, 8), InferenceConfig(flip=True), finite)
    finite.require(network)


# ---- memory ----------------------------------------------------------------------------------------------------------


MEASURE = """
import resource, torch
from danet.inference.views import predict_labels
from danet.model import build_model
from danet.config.sections import InferenceConfig

model = build_model({"name": "resnet50"}, {"name": "danet"}, 19).eval().requires_grad_(False)
for name, value in model.named_parameters():
    if name.endswith("gamma"):
        value.fill_(0.5)
image = torch.randint(0, 256, (1, 3, 1024, 2048), dtype=torch.uint8)
labels = predict_labels(model.to(memory_format=torch.channels_last), image, (1024, 2048), InferenceConfig())
assert labels.shape == (1, 1024, 2048)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)  # KiB on Linux
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count in other units")
def test_a_whole_cityscapes_image_fits_in_six_gibibytes() -> None:
    """DANet-R50 on the CPU; the position attention's weights alone would take four."""
    path = {"PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", MEASURE], env=path, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 6


@pytest.mark.parametrize("combine", ["probabilities", "mmseg", "official"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 100)])
@pytest.mark.parametrize(
    "options",
    [{"scales": [0.3, 1.0]}, {"scales": [0.01]}, {"long_side": 10}, {"short_side": 1, "scales": [0.3]}],
    ids=str,
)
def test_images_of_few_pixels_are_looked_at_at_small_scales(
    model: Any, size: tuple[int, int], combine: Any, options: dict[str, Any]
) -> None:
    config = InferenceConfig(combine=combine, **options)
    labels = predict_labels(model, torch.zeros(1, 3, *size, dtype=torch.uint8), size, config)
    assert labels.shape == (1, *size)


def test_a_thin_image_keeps_its_length_at_a_small_scale() -> None:
    assert _scaled_size((1, 1000), 0.4, InferenceConfig()) == (1, 400)
    assert _scaled_size((1000, 1), 0.4, InferenceConfig()) == (400, 1)
    assert _scaled_size((3, 1000), 0.1, InferenceConfig()) == (1, 100)


def test_limits_of_both_sides_grow_with_the_scale() -> None:
    config = InferenceConfig(long_side=200, short_side=60)
    assert _scaled_size((40, 80), 1.5, config) == (90, 180)  # by the short side
    assert _scaled_size((40, 160), 1.5, config) == (75, 300)  # by the long one
