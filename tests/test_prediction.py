"""src/predict.py: every input gives its pictures, what fails is listed, nothing is overwritten."""

import errno
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

import danet
import danet.config
from conftest import environment
from danet.config import REPOSITORY
from danet.config.sections import DeviceConfig, InferenceConfig
from danet.inference import views
from danet.inference.images import read_image
from danet.schema import ConfigError, check_dataclass
from danet.services import weights
from danet.services.nonfinite import NonFiniteError
from danet.tools.predict import prediction
from danet.tools.predict.prediction import PredictConfig
from test_predictor import CLASSES, PALETTE, TURNED, picture, write_weights


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with two images, one to be turned, and one that is cut short."""
    folder = tmp_path / "my, images=1"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(picture(40, 56)).save(folder / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(30, 50, seed=1)).save(folder / "sub" / "b.png", exif=exif)
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:60])
    return folder


def predict(weights_file: Path, source: object, output: Path, **options: Any) -> list[str]:
    runtime = DeviceConfig(device="cpu")
    given = {"checkpoint": str(weights_file), "input": str(source), "output": str(output), "precision": "fp32"}
    return prediction.run(PredictConfig(**{**given, "runtime": runtime, **options}))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_folder_gives_labels_colors_and_overlays(weights_file: Path, images: Path, tmp_path: Path) -> None:
    failed = predict(weights_file, images, tmp_path / "out")
    assert len(failed) == 1
    assert failed[0].startswith(f"{images}/broken.png: cannot be read (")
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    names = {f"{name}{end}" for name in ("a", "sub/b") for end in ("_labels.png", "_color.png", "_overlay.jpg")}
    assert written == names | {"classes.json"}
    model = danet.load(weights_file, device="cpu", precision="fp32")
    upright = TURNED[6](picture(30, 50, seed=1))
    for name, image in (("a", picture(40, 56)), ("sub/b", upright)):
        labels = pixels(tmp_path / "out" / f"{name}_labels.png")
        assert (labels.shape, labels.dtype) == (image.shape[:2], np.uint8)
        np.testing.assert_array_equal(labels, model.predict(image))
        color = pixels(tmp_path / "out" / f"{name}_color.png")
        for index, expected in enumerate(PALETTE):
            assert (color[labels == index] == expected).all()
        overlay = pixels(tmp_path / "out" / f"{name}_overlay.jpg")
        mixed = (image.astype(float) + color) / 2
        mixed[~color.any(axis=2)] = image[~color.any(axis=2)]
        assert np.abs(overlay - mixed).mean() < 6, "half image, half color, but for JPEG"
    assert len(np.unique(labels)) > 1


def test_classes_json_tells_what_the_numbers_mean(weights_file: Path, images: Path, tmp_path: Path) -> None:
    predict(weights_file, images / "a.png", tmp_path / "out", write=["labels"], inference=InferenceConfig(flip=True))
    told = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert [(c["id"], c["name"], tuple(c["color"])) for c in told["classes"]] == [
        (index, *pair) for index, pair in enumerate(zip(CLASSES, PALETTE, strict=True))
    ]
    assert told["checkpoint"] == str(weights_file)
    assert told["step"] == 5
    assert told["inference"]["flip"] is True
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_labels.png", "classes.json"]


@pytest.mark.parametrize("opacity", [0, 1, 0.25])
def test_opacity(opacity: float) -> None:
    image, colors = picture(9, 9), picture(9, 9, seed=1)
    expected = [
        [round(float(i + (c - i) * opacity)) for i, c in zip(*pair, strict=True)]
        for pair in zip(image.reshape(-1, 3).astype(int), colors.reshape(-1, 3).astype(int), strict=True)
    ]
    found = prediction.overlay(image, colors, opacity)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found.reshape(-1, 3).astype(int), expected, atol=1)


def test_black_leaves_the_image_as_it_is() -> None:
    image, colors = picture(9, 9), np.zeros((9, 9, 3), np.uint8)
    colors[:4] = (0, 0, 200)
    found = prediction.overlay(image, colors, 0.5)
    np.testing.assert_array_equal(found[4:], image[4:])
    assert (found[:4] != image[:4]).any()


def test_a_second_run_replaces_the_first(weights_file: Path, images: Path, tmp_path: Path) -> None:
    out = images / "predictions"  # below the input, where the second run must not take it as input
    for _ in range(2):
        (out / "a_labels.png").unlink(missing_ok=True)
        assert len(predict(weights_file, images, out, write=["labels"])) == 1
        (out / "sub" / "b_labels.png").write_text("from a run before")
    assert predict(weights_file, images / "sub", out / "sub", write=["labels"]) == []
    assert pixels(out / "sub" / "b_labels.png").shape == (50, 30)
    assert sorted(path.name for path in out.rglob("*_labels*")) == ["a_labels.png", "b_labels.png"]


def test_inputs_are_never_overwritten(weights_file: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(images)
    original = picture(8, 8)
    Image.fromarray(original).save(images / "a_labels.png")
    for output in (images, tmp_path / "link"):
        with pytest.raises(ConfigError, match=r"would overwrite the input a_labels\.png"):
            predict(weights_file, images / "*.png", output, write=["labels"])
    np.testing.assert_array_equal(pixels(images / "a_labels.png"), original)
    assert predict(weights_file, images / "a.png", images, write=["color"]) == []


@pytest.mark.parametrize("output", ["taken", "taken/below", "/proc/none"])
def test_an_output_that_cannot_be_written_is_refused_first(
    images: Path, tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").touch()
    monkeypatch.setattr("danet.inference.predictor.load", None)  # not reached
    with pytest.raises(ConfigError, match=r"output = '.*': cannot be written to \(.+\)"):
        predict(Path("unused.pt"), images, tmp_path / output)


def test_weights_that_cannot_be_loaded_leave_no_folder(images: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"damaged\.safetensors: cannot be read"):
        predict(tmp_path / "damaged.safetensors", images, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_too_large_an_image_is_listed(
    weights_file: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr("danet.inference.views.predict_labels", full)
    (failed,) = predict(weights_file, images / "a.png", tmp_path / "out")
    assert failed == f"{images}/a.png: 40x56 is too large for the device; try inference.mode=slide"


FAILURES: dict[str, tuple[Exception, str]] = {
    "CUDA": (torch.OutOfMemoryError("CUDA out of memory"), "is too large for the device; try inference.mode=slide"),
    "CPU": (
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        "is too large for the device; try inference.mode=slide",
    ),
    "NumPy": (MemoryError("Unable to allocate 9 GiB"), "is too large for the device; try inference.mode=slide"),
    "OpenCV": (
        cv2.error("OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 9 bytes"),
        "is too large for the device; try inference.mode=slide",
    ),
    "not finite": (NonFiniteError("the model's scores are NaN"), "the model's scores are NaN"),
    "anything": (RuntimeError("cuDNN error\nmore"), "RuntimeError: cuDNN error"),
    "a key": (KeyError("main"), "KeyError: 'main'"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_an_image_that_fails_does_not_end_the_others(
    weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    error, words = FAILURES[failure]
    for index, height in enumerate((16, 24, 32)):
        Image.fromarray(picture(height, 20)).save(tmp_path / f"{index}.png")
    works = views.predict_labels

    def fails(model: Any, image: torch.Tensor, *rest: Any) -> torch.Tensor:
        if image.shape[-2] == 24:
            raise error
        return works(model, image, *rest)

    monkeypatch.setattr("danet.inference.views.predict_labels", fails)
    (line,) = predict(weights_file, tmp_path, tmp_path / "out", write=["labels"])
    assert line.startswith(f"{tmp_path / '1.png'}: ")
    assert line.endswith(words)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["0_labels.png", "2_labels.png"]


def test_by_windows_the_remedy_is_a_smaller_window(
    weights_file: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("danet.inference.views.predict_labels", full)
    slide = InferenceConfig(mode="slide", crop_size=(32, 32))
    (line,) = predict(weights_file, images / "a.png", tmp_path / "out", inference=slide)
    assert line == f"{images}/a.png: 40x56 is too large for the device; try a smaller inference.crop_size"


def test_an_image_that_memory_cannot_hold_is_listed(
    weights_file: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda _: (_ for _ in ()).throw(MemoryError()))
    (line,) = predict(weights_file, images / "a.png", tmp_path / "out")
    assert line == f"{images}/a.png: needs more memory than there is (MemoryError)"


def test_scores_that_are_not_finite_give_no_pictures(tmp_path: Path, images: Path) -> None:
    """Finite weights, but too large for float32's range."""
    file = write_weights(tmp_path)
    found = weights.read(file)
    found.tensors["head.classifier.1.weight"].fill_(3e38)
    found.tensors["head.branches.pam.conv_out.1.bias"].fill_(1e3)
    weights.write(file, found)
    lines = predict(file, images, tmp_path / "out", write=["labels"])
    told = [line for line in lines if ": the model's scores are NaN or infinite. Its weights" in line]
    assert (len(lines), len(told)) == (3, 2)
    assert [path.name for path in (tmp_path / "out").rglob("*.*")] == ["classes.json"]


def test_an_overlay_that_no_jpeg_can_hold_does_not_end_the_others(weights_file: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(1, 65501)).save(tmp_path / "a.png")
    Image.fromarray(picture(30, 40)).save(tmp_path / "b.png")
    slide = InferenceConfig(mode="slide", crop_size=(8, 4096), stride=(8, 4096))
    (line,) = predict(weights_file, tmp_path, tmp_path / "out", inference=slide)
    assert line == (
        f"{tmp_path}/a.png: a_overlay.jpg: 1x65501 is too large for a JPEG (65500 a side); set write=[labels,color]"
    )
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["a_color.png", "a_labels.png", "b_color.png", "b_labels.png", "b_overlay.jpg", "classes.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_where_nothing_more_can_be_written_the_work_ends(
    weights_file: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    save, saved = Image.Image.save, []

    def full(image: Image.Image, path: Path, *rest: Any, **options: Any) -> None:
        saved.append(path)
        if len(saved) > 1:
            path.write_bytes(b"half")
            raise OSError(number, os.strerror(number))
        save(image, path, *rest, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        predict(weights_file, images, tmp_path / "out", write=["labels"])
    assert caught.value.filename == str(tmp_path / "out" / "sub" / "b_labels.png")
    assert len(saved) == 2
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == ["a_labels.png", "classes.json"]


def test_a_file_that_is_no_image_is_told_by_its_name_alone(weights_file: Path, tmp_path: Path) -> None:
    """Neither by the address of an object nor by its path again."""
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    lines = predict(weights_file, tmp_path, tmp_path / "out", write=["labels"])
    assert lines == [
        f"{tmp_path}/empty.png: cannot be read (the file is empty)",
        f"{tmp_path}/gone.png: cannot be read (No such file or directory)",
        f"{tmp_path}/text.png: cannot be read (not an image in a known format)",
    ]
    with pytest.raises(ValueError, match=rf"^{tmp_path}: cannot be read \(Is a directory\)$"):
        read_image(tmp_path)


def test_another_error_in_writing_is_the_images_own(weights_file: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").touch()  # where a folder is needed
    lines = predict(weights_file, images, tmp_path / "out", write=["labels"])
    assert len(lines) == 2
    assert lines[1].startswith(f"{images}/sub/b.png: FileExistsError: {tmp_path}/out/sub")
    assert (tmp_path / "out" / "a_labels.png").is_file()


def test_images_may_have_any_number_of_pixels(
    weights_file: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow refuses what has more than twice its limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        pixels(images / "a.png")
    assert predict(weights_file, images / "a.png", tmp_path / "out", write=["labels"]) == []
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.skipif(os.name != "posix", reason="names of files are Unicode elsewhere")
def test_names_that_are_not_utf8(weights_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode("照片".encode("gbk"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("the file system takes no such names")
    Image.fromarray(picture(20, 30)).save(folder / f"{folder.name}.png")
    os.link(weights_file, folder / f"{folder.name}.safetensors")
    given = {"checkpoint": str(folder / f"{folder.name}.safetensors"), "input": str(folder), "write": ["labels"]}
    problems: list[str] = []
    defaults = asdict(PredictConfig(**given, output=""))
    config = check_dataclass(PredictConfig, {**defaults, "output": str(folder / "out")}, problems)
    assert config is not None, problems
    assert prediction.run(config) == []
    assert (folder / "out" / f"{folder.name}_labels.png").is_file()


def test_an_empty_input_is_not_the_current_folder(weights_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"input = '': name an image, a video, a folder, a glob, or -"):
        composed(f"checkpoint={weights_file}", "input=''", f"output={tmp_path}")


# ---- videos ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Seven frames of 47 x 64 pixels, cut to an even size by the coding."""
    av = pytest.importorskip("av")
    with av.open(tmp_path / "clip.mp4", "w") as container:
        stream = container.add_stream("h264", rate=12, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for seed in range(7):
            frame = av.VideoFrame.from_ndarray(picture(48, 64, seed=seed), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return tmp_path / "clip.mp4"


def test_a_video_gives_an_overlay_video_and_labels(weights_file: Path, clip: Path, tmp_path: Path) -> None:
    import av

    assert predict(weights_file, clip, tmp_path / "out", video_labels=True) == []
    with av.open(clip) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(tmp_path / "out" / "clip_overlay.mp4") as container:
        assert container.streams.video[0].average_rate == 12
        overlays = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    labels = [pixels(path) for path in sorted((tmp_path / "out" / "clip_labels").iterdir())]
    assert len(frames) == len(overlays) == len(labels) == 7
    model = danet.load(weights_file, device="cpu", precision="fp32")
    for frame, overlay, label in zip(frames, overlays, labels, strict=True):
        np.testing.assert_array_equal(label, model.predict(frame))
        colors = np.array(PALETTE)[label]
        expected = np.where(colors.any(axis=2, keepdims=True), (frame.astype(float) + colors) / 2, frame)
        assert np.abs(overlay - expected).mean() < 12, "chroma has half the resolution"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "classes.json",
        "clip_labels",
        "clip_overlay.mp4",
    ]


def test_a_damaged_video_is_listed_and_leaves_no_file(weights_file: Path, clip: Path, tmp_path: Path) -> None:
    clip.write_bytes(clip.read_bytes()[:200])
    (failed,) = predict(weights_file, clip, tmp_path / "out")
    assert failed.startswith(f"{clip}: not a readable video")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["classes.json"]


def short(clip: Path, folder: Path, count: int) -> Path:
    """The first frames of a clip, of the same name."""
    av = pytest.importorskip("av")
    folder.mkdir()
    with av.open(clip) as source, av.open(folder / clip.name, "w") as container:
        stream = container.add_stream("h264", rate=12)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in itertools.islice(source.decode(video=0), count):
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode())
    return folder / clip.name


def test_frames_of_a_longer_video_of_a_run_before_do_not_stay(weights_file: Path, clip: Path, tmp_path: Path) -> None:
    labels = tmp_path / "out" / "clip_labels"
    assert predict(weights_file, clip, tmp_path / "out", write=["labels"], video_labels=True) == []
    assert len(list(labels.iterdir())) == 7
    (labels / "000001_labels.png").touch()  # a prediction of an image in a subfolder of that name
    (labels / "000000.png").write_bytes(b"old")
    assert predict(weights_file, short(clip, tmp_path / "b", 3), tmp_path / "out", video_labels=True) == []
    names = ["000000.png", "000001.png", "000001_labels.png", "000002.png"]
    assert sorted(path.name for path in labels.iterdir()) == names
    assert pixels(labels / "000000.png").shape == (48, 64)
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_a_failure_within_a_video_leaves_what_a_run_before_has_made(
    weights_file: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = prediction.VideoReader.__iter__

    def fails(reader: prediction.VideoReader) -> Iterator[np.ndarray]:
        yield from itertools.islice(frames(reader), 4)
        raise ValueError(f"{clip}: decoding failed before the end (Invalid data)")

    with monkeypatch.context() as patch:
        patch.setattr(prediction.VideoReader, "__iter__", fails)
        (line,) = predict(weights_file, clip, tmp_path / "out", video_labels=True)
        assert line == f"{clip}: decoding failed before the end (Invalid data)"
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["classes.json"]
    first = short(clip, tmp_path / "b", 2)
    assert predict(weights_file, first, tmp_path / "out", video_labels=True) == []
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*") if path.stem != "classes"}
    monkeypatch.setattr(prediction.VideoReader, "__iter__", fails)
    assert len(predict(weights_file, clip, tmp_path / "out", video_labels=True)) == 1
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*") if path.stem != "classes"} == before
    assert len(before) == 3


def test_of_a_video_that_is_cut_short_the_rest_is_listed_and_the_beginning_kept(
    weights_file: Path, tmp_path: Path
) -> None:
    av = pytest.importorskip("av")
    whole = tmp_path / "in" / "cut.mkv"
    whole.parent.mkdir()
    with av.open(whole, "w") as container:
        stream = container.add_stream("mpeg4", rate=12, options={"g": "1"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for seed in range(21):
            frame = av.VideoFrame.from_ndarray(picture(48, 64, seed=seed), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (line,) = predict(weights_file, whole, tmp_path / "out", video_labels=True)
    found = re.fullmatch(
        re.escape(f"{whole}: cut short: ") + r"(\d+) of about 21 frames could be read \(0\.\d of 1\.8 s\); "
        r"these are in cut_overlay\.mp4 and cut_labels",
        line,
    )
    assert found, line
    with av.open(tmp_path / "out" / "cut_overlay.mp4") as container:
        overlays = len(list(container.decode(video=0)))
    assert 0 < int(found[1]) == overlays == len(list((tmp_path / "out" / "cut_labels").iterdir())) < 15


def test_a_video_with_nothing_to_write_is_refused(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"write: a video needs overlay, or video_labels=true; add one of them"):
        predict(Path("unused.pt"), clip, tmp_path / "out", write=["labels"])


def test_without_pyav_a_video_is_refused_with_the_remedy(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"clip\.mp4 is a video, which needs PyAV: pip install 'danet\[video\]'"):
        predict(Path("unused.pt"), clip, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- the command line ------------------------------------------------------------------------------------------------


def composed(*overrides: str) -> PredictConfig:
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return danet.config.load_as(PredictConfig, compose("predict", overrides=list(overrides)))


def test_the_yaml_has_the_defaults_of_the_dataclasses(weights_file: Path, tmp_path: Path) -> None:
    given = {"checkpoint": str(weights_file), "input": "x.png", "output": str(tmp_path)}
    found, expected = composed(*(f"{key}={value}" for key, value in given.items())), PredictConfig(**given)
    assert json.dumps(asdict(found)) == json.dumps(asdict(expected))
    raw = OmegaConf.load(REPOSITORY / "conf" / "predict.yaml")
    groups = {"backbone", "head", "inference"}
    assert raw.keys() - {"defaults", "hydra"} == {f.name for f in fields(PredictConfig)} - groups


def test_all_problems_are_listed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        composed("input=x", f"run={tmp_path}/none", "opacity=2", "write=[label]", "inference.mode=slid", "precision=no")
    text = str(caught.value)
    for key in ("run", "opacity = 2", "write", "inference.mode = 'slid'", "precision = 'no'", "output: is required"):
        assert f"\n  {key}" in text
    with pytest.raises(ConfigError, match="run, checkpoint: give one of them"):
        composed("input=x", "output=y")


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("inputs=x", "inputs: unknown key; did you mean 'input'?"),
        ("inference.flips=true", "inference.flips: unknown key; did you mean 'inference.flip'?"),
        ("inferenc.flip=true", "inferenc.flip: unknown key; did you mean 'inference.flip'?"),
        ("head.reductoin=8", "head.reductoin: unknown key; did you mean 'head.reduction'?"),
        (
            "backbone=resnet1001",
            "backbone=resnet1001: unknown option; did you mean 'resnet101'?",
        ),
    ],
)
def test_unknown_keys_are_refused_with_a_suggestion(argument: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        danet.config.check_arguments([argument], "predict")
    assert caught.value.problems == [hint]
    known = ["input=a=b", "inference.flip=true", "head=danet", "head.reduction=8", "hydra.verbose=true", "--help"]
    danet.config.check_arguments(known, "predict")


def script(*arguments: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "src" / "predict.py"), *arguments],
        cwd=cwd,
        env=environment(cwd / "outputs"),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_the_script(weights_file: Path, images: Path) -> None:
    """Relative paths, a list on standard input, one image that is missing."""
    os.link(weights_file, images / "w, 1.safetensors")
    done = script(
        "checkpoint=w, 1.safetensors",
        "input=-",
        "output=../the output",
        "inference.scales=[0.5,1]",
        "runtime.device=cpu",
        cwd=images,
        stdin="a.png\nmissing.png\nsub/b.png\n",
    )
    assert done.returncode == 1, done.stderr
    assert "images 3/3" in done.stdout
    assert "2 of 3 done" in done.stdout
    assert f"{images}/missing.png: cannot be read" in done.stdout
    assert (images.parent / "the output" / "sub" / "b_overlay.jpg").is_file()
    assert not (images / "outputs").exists(), "Hydra makes no folders"


def test_the_script_refuses_bad_configurations_with_one_text(images: Path) -> None:
    done = script("input=*.png", "output=x", "opacity=half", "run=none", cwd=images)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "2 problems in the configuration:" in done.stderr
    assert not (images / "x").exists()


def test_help_does_not_wait_for_heavy_imports() -> None:
    code = f"""
import runpy, sys
sys.argv = ["predict.py", "--help"]
try:
    runpy.run_path({str(REPOSITORY / "src" / "predict.py")!r}, run_name="__main__")
finally:
    print("LOADED", [name for name in ("torch", "torchvision", "matplotlib", "av", "rich") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout
    assert "python src/predict.py run=" in done.stdout
