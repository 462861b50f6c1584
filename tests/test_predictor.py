"""`danet.load` and what it gives: any image in, labels at its size out, wherever the file lies."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

import danet
from danet.config import REPOSITORY
from danet.inference.predictor import Predictor, read_image
from danet.interfaces import IMAGENET_MEAN, IMAGENET_STD
from danet.model import Segmenter, build_model
from danet.schema import ConfigError
from danet.services import checkpoint, weights

SECTIONS = {"backbone": {"name": "resnet_tiny", "widths": [8, 8, 8, 32]}, "head": {"name": "danet"}}
CLASSES = ("sky", "road", "car", "tree", "wall")
PALETTE = ((0, 0, 0), (10, 20, 30), (255, 0, 0), (0, 200, 0), (90, 90, 255))


def a_model() -> Segmenter:
    """With attention that counts, and batch statistics that are not the initial ones."""
    model = build_model(SECTIONS["backbone"], SECTIONS["head"], len(CLASSES), seed=1)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for module in model.modules():
            if hasattr(module, "gamma"):
                module.gamma.fill_(0.5)
        for _ in range(3):  # in training mode
            model(torch.randint(0, 256, (2, 3, 40, 48), dtype=torch.uint8))
        mean = model.eval()(torch.from_numpy(picture()).permute(2, 0, 1)[None])["main"].mean(dim=(0, 2, 3))
        model.head.classifier[-1].bias -= mean  # type: ignore[operator, index]
    return model


def write_weights(folder: Path, name: str = "model.safetensors") -> Path:
    """Weights with all that belongs to them."""
    found = weights.Weights(
        tensors=a_model().state_dict(),
        config=yaml.safe_dump(SECTIONS),
        class_names=CLASSES,
        palette=PALETTE,
        facts={"step": 5},
    )
    weights.write(folder / name, found)
    return folder / name


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def predictor(file: Path) -> Predictor:
    return danet.load(file, device="cpu", precision="fp32")


def picture(height: int = 37, width: int = 53, seed: int = 0) -> np.ndarray:
    """Colored patches, of which the model makes several classes."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (-(-height // 12), -(-width // 12), 3), dtype=np.uint8)
    return np.kron(patches, np.ones((12, 12, 1), np.uint8))[:height, :width]


@pytest.mark.parametrize(("height", "width"), [(37, 53), (64, 64), (1, 1), (3, 50), (130, 41)])
def test_labels_are_the_largest_logits_resized_to_the_image(predictor: Predictor, height: int, width: int) -> None:
    image = picture(height, width)
    scaled = (image.astype(np.float32) - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
    model = a_model()
    with torch.no_grad():
        features = model.backbone(torch.from_numpy(scaled).permute(2, 0, 1)[None])
        logits = F.interpolate(model.head(features)["main"], (height, width), mode="bilinear", align_corners=True)
    labels = predictor.predict(image)
    assert (labels.shape, labels.dtype) == ((height, width), np.uint8)
    expected = logits[0].numpy()
    np.testing.assert_allclose(np.take_along_axis(expected, labels[None], 0)[0], expected.max(0), atol=1e-4)
    probabilities = predictor.probabilities(image)
    np.testing.assert_allclose(probabilities, logits.softmax(1)[0].numpy(), atol=1e-4)
    if min(height, width) > 30:
        assert len(np.unique(labels)) > 1, "the picture must tell the classes apart"


def test_every_form_of_an_image_gives_the_same_labels(predictor: Predictor, tmp_path: Path) -> None:
    image = picture()
    expected = predictor.predict(image)
    path = tmp_path / "a b.png"
    Image.fromarray(image).save(path)
    reversed_twice = image[::-1, :, ::-1].copy()[::-1, :, ::-1]  # a view with negative strides
    forms = [Image.fromarray(image), path, str(path), torch.from_numpy(image).permute(2, 0, 1), reversed_twice]
    for form in forms:
        np.testing.assert_array_equal(predictor.predict(form), expected)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 8, 3), np.float32),  # its values could mean 0..1 or 0..255
        torch.zeros(3, 8, 8),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        [np.zeros((8, 8, 3), np.uint8)],
        None,
        Image.new("I;16", (4, 4)),
    ],
)
def test_what_is_no_rgb_image_is_refused(predictor: Predictor, image: object) -> None:
    with pytest.raises(ValueError, match="^image: "):
        predictor.predict(image)  # type: ignore[arg-type]


# EXIF 2.3, tag 0x0112: which side of the stored picture is the upper one, and which the left one.
TURNED = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image, 1),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_files_are_turned_as_exif_says(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture(10, 14)
    for name in ("a.png", "a.tif"):  # Pillow turns a TIFF by itself
        Image.fromarray(stored).save(tmp_path / name, exif=exif)
        np.testing.assert_array_equal(read_image(tmp_path / name), TURNED[orientation](stored))


def test_other_kinds_of_pixels_become_rgb(tmp_path: Path) -> None:
    gray = picture(6, 8)[..., 0]
    expected = np.stack([gray] * 3, axis=-1)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png"), expected)
    alpha = np.dstack([picture(6, 8), gray])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), alpha[..., :3])
    indices = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) % 4, "P")
    colors = np.array([[9, 8, 7], [255, 0, 1], [3, 4, 5], [0, 255, 0]], np.uint8)
    indices.putpalette(colors.tobytes())
    for options in ({}, {"transparency": b"\x00\x80\xff\xff"}):
        indices.save(tmp_path / "palette.png", **options)
        np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), colors[np.asarray(indices)])
    Image.fromarray(gray > 100).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bits.png")[..., 1], (gray > 100) * 255)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    Image.fromarray(picture(200, 200)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.full((4, 4), 3000, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "folder.png").mkdir()
    for name in ("cut.jpg", "text.png", "deep.png", "float.tif", "folder.png", "none.png"):
        with pytest.raises(ValueError, match=rf"{name}: cannot be read \(.+\)"):
            read_image(tmp_path / name)


def test_predicting_leaves_the_image_alone(predictor: Predictor) -> None:
    image = picture()
    before = image.copy()
    predictor.predict(image)
    np.testing.assert_array_equal(image, before)


def test_a_run_folder_means_its_best_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"no checkpoints/best\.pt"):
        danet.load(tmp_path)
    state = {"step": 4, "miou": 0.5, "model": a_model().state_dict(), "config": yaml.safe_dump(SECTIONS)}
    checkpoint.save(tmp_path / "checkpoints" / "best.pt", {**state, "num_classes": 5, "class_names": list(CLASSES)})
    loaded = danet.load(str(tmp_path), device="cpu")
    assert loaded.class_names == CLASSES
    best = str(tmp_path / "checkpoints" / "best.pt")
    assert loaded.facts == {"step": 4, "miou": 0.5, "checkpoint": best, "temperature": 1.0}


def test_what_a_loaded_model_knows(predictor: Predictor) -> None:
    assert predictor.class_names == CLASSES
    assert predictor.palette == PALETTE
    assert predictor.sections["head"]["name"] == "danet"
    assert not predictor.model.training
    assert not any(parameter.requires_grad for parameter in predictor.model.parameters())


def test_it_says_what_it_is(predictor: Predictor) -> None:
    shown = repr(predictor)
    for word in ("resnet_tiny + danet", "5 classes: sky, road, car, tree, wall", "model.safetensors"):
        assert word in shown
    predictor.facts["miou"] = 0.934
    assert "mIoU 93.4 % at step 5" in repr(predictor)
    del predictor.facts["miou"]


def test_it_shows_an_image_beside_its_prediction(predictor: Predictor) -> None:
    """Every class that is predicted has its color in the picture, the image and the truth have theirs."""
    image = np.full((40, 60, 3), (12, 200, 130), dtype=np.uint8)
    label = np.full((40, 60), 2, dtype=np.uint8)
    colors = {tuple(color) for color in np.asarray(predictor.show(image).convert("RGB")).reshape(-1, 3).tolist()}
    assert {(12, 200, 130), *(PALETTE[i] for i in np.unique(predictor.predict(image)))} <= colors
    wider = predictor.show(image, label)
    assert PALETTE[2] in {tuple(c) for c in np.asarray(wider.convert("RGB")).reshape(-1, 3).tolist()}
    with pytest.raises(ValueError, match="label: must have the image's size"):
        predictor.show(image, label[:20])


def test_the_way_to_look_is_checked(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        danet.load(file, mod="slide", scales=[-1.0])
    assert "mod: unknown key; did you mean 'mode'?" in str(caught.value)
    assert "scales = [-1.0]: -1.0 in it must be greater than 0" in str(caught.value)
    with pytest.raises(ConfigError, match="crop_size"):
        danet.load(file, mode="slide")


def test_the_way_to_look_is_followed(file: Path, predictor: Predictor) -> None:
    """Of a single window as large as the image, and of its mirror image."""
    image = picture(48, 64)
    both = [predictor.probabilities(image), predictor.probabilities(image[:, ::-1])[..., ::-1]]
    found = danet.load(file, device="cpu", precision="fp32", mode="slide", crop_size=[48, 64], flip=True)
    np.testing.assert_allclose(found.probabilities(image), np.mean(both, axis=0), atol=1e-5)
    np.testing.assert_array_equal(found.predict(image), found.probabilities(image).argmax(0))


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Weights and nothing else, as others publish them."""
    from safetensors.torch import save_file

    save_file(a_model().state_dict(), tmp_path / "bare.safetensors")
    return tmp_path / "bare.safetensors"


def test_weights_without_a_configuration_need_to_be_told_what_they_are(bare: Path, predictor: Predictor) -> None:
    with pytest.raises(ConfigError, match=r"bare\.safetensors: has no configuration; .* backbone=resnet101 head=danet"):
        danet.load(bare)
    with pytest.raises(ConfigError, match="has no configuration"):
        danet.load(bare, head="danet")
    loaded = danet.load(bare, backbone=SECTIONS["backbone"], head="danet", device="cpu", precision="fp32")
    np.testing.assert_array_equal(loaded.predict(picture()), predictor.predict(picture()))
    assert loaded.class_names == ("class 0", "class 1", "class 2", "class 3", "class 4")


def test_a_wrong_backbone_or_head_is_refused(bare: Path, file: Path) -> None:
    with pytest.raises(ConfigError, match=r"head\.name = 'danett': unknown; did you mean 'danet'"):
        danet.load(bare, backbone=SECTIONS["backbone"], head="danett")
    with pytest.raises(ConfigError, match=r"head\.reductions: unknown key; did you mean 'reduction'"):
        danet.load(bare, backbone=SECTIONS["backbone"], head={"name": "danet", "reductions": 8})
    with pytest.raises(ValueError, match=r"bare\.safetensors does not fit the model(.|\n)*unexpected"):
        danet.load(bare, backbone=SECTIONS["backbone"], head="fcn")
    with pytest.raises(ValueError, match=r"does not fit the model"):
        danet.load(file, head="fcn")  # replaces the one that the file names


@pytest.mark.parametrize("config", ["a: [", "- 1", "5", "head: {name: danet}", "backbone: x\nhead: y", "a: ${b}"])
def test_a_damaged_configuration_is_refused(tmp_path: Path, config: str) -> None:
    found = weights.Weights(
        tensors=a_model().state_dict(), config=config, class_names=CLASSES, palette=PALETTE, facts={}
    )
    weights.write(tmp_path / "odd.safetensors", found)
    with pytest.raises(ConfigError, match=r"odd\.safetensors: "):
        danet.load(tmp_path / "odd.safetensors")


def test_pretrained_backbones_are_not_fetched(tmp_path: Path) -> None:
    """Their weights are in the file; torchvision's would be downloaded."""
    sections = {"backbone": {"name": "resnet18", "pretrained": "/nowhere.pth"}, "head": {"name": "fcn"}}
    model = build_model({"name": "resnet18"}, sections["head"], 2)
    found = weights.Weights(
        tensors=model.state_dict(), config=yaml.safe_dump(sections), class_names=("a", "b"), palette=(), facts={}
    )
    weights.write(tmp_path / "a.safetensors", found)
    assert danet.load(tmp_path / "a.safetensors", device="cpu").predict(picture(32, 32)).shape == (32, 32)


def test_one_file_in_an_empty_folder_is_enough(tmp_path: Path, file: Path) -> None:
    """In a process of its own, by README's lines, without what only training needs."""
    state = {"model": a_model().state_dict(), "config": yaml.safe_dump(SECTIONS), "class_names": list(CLASSES)}
    torch.save(state, tmp_path / "copied.pt")
    shutil.copy(file, tmp_path / "model.safetensors")
    Image.fromarray(picture()).save(tmp_path / "image.png")
    code = """
import sys
import danet
print("torch" in sys.modules)
for name in ("copied.pt", "model.safetensors"):
    model = danet.load(name, device="cpu", precision="fp32")
    labels = model.predict("image.png")
    print(labels.shape, labels.dtype, model.class_names[labels.max()])
print([name for name in ("hydra", "wandb", "albumentations", "matplotlib", "cv2", "av") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    labels = danet.load(file, device="cpu", precision="fp32").predict(picture())
    last = f"(37, 53) uint8 {CLASSES[labels.max()]}"
    assert done.stdout.splitlines() == ["False", last, last, "[]"], done.stderr
    assert len(list(tmp_path.iterdir())) == 3


def test_a_precision_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision=bf32: must be auto, fp32"):
        danet.load(write_weights(tmp_path), device="cpu", precision="bf32")


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "warm"])
def test_a_temperature_that_is_none_is_refused(temperature: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a number above 0"):
        danet.load(write_weights(tmp_path), device="cpu", temperature=temperature)
