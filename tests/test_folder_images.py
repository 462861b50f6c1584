"""dataset=folder: images of other kinds than 8-bit RGB, and models that read them as they were trained."""

import struct
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from danet.data.check import DataError, check
from danet.datasets.folder import ImageFolder
from danet.datasets.images import read_bands, read_image
from danet.inference.images import read_image as read_any_image
from danet.schema import check_component

DEEP = (np.arange(6 * 8 * 5).reshape(6, 8, 5) * 17).astype(np.uint16)  # 0 to 4063


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """In whole numbers, so that nothing is shared with the reader: (v - low) * 255 / (high - low), rounded."""
    exact = [255 * (int(value) - int(low)) / (int(high) - int(low)) for value in values.ravel()]
    return np.array([min(255, max(0, round(value))) for value in exact], np.uint8).reshape(values.shape)


def folder(root: Path, write, suffix: str) -> Path:
    for number in (1, 2):
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        write(root / "images" / f"{number}.{suffix}")
        Image.fromarray(np.eye(6, 8, dtype=np.uint8)).save(root / "masks" / f"{number}.png")
    return root


def image(root: Path, **options) -> np.ndarray:
    return ImageFolder("train", root=str(root), classes=["a", "b"], **options)[0].image


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_and_rgb_need_a_range(tmp_path, suffix):
    gray = folder(tmp_path / "gray", lambda path: cv2.imwrite(str(path), DEEP[..., 0]), suffix)
    expected = scaled(DEEP[..., 0], 0, 4095)
    assert np.array_equal(image(gray, range=[0, 4095]), np.stack([expected] * 3, axis=2))
    rgb = folder(tmp_path / "rgb", lambda path: cv2.imwrite(str(path), DEEP[..., 2::-1]), suffix)  # OpenCV takes BGR
    assert np.array_equal(image(rgb, range=[1000, 3000]), scaled(DEEP[..., :3], 1000, 3000))
    assert np.array_equal(image(rgb, range=[0, 4095], bands=[1]), np.stack([scaled(DEEP[..., 1], 0, 4095)] * 3, axis=2))
    with pytest.raises(DataError, match=r"1\.png: image has mode I;16|uint16 values from 0 to 3995; .*dataset\.range="):
        check(ImageFolder("train", root=str(gray), classes=["a", "b"]), cache_dir=tmp_path / "cache", workers=1)


def test_grey_palette_and_rgba_images_become_rgb(tmp_path):
    gray = (DEEP[..., 0] % 256).astype(np.uint8)
    three = np.stack([gray] * 3, axis=2)
    assert np.array_equal(image(folder(tmp_path / "l", Image.fromarray(gray).save, "png")), three)
    color = (DEEP[..., :3] % 256).astype(np.uint8)
    half = np.dstack([color, np.full((6, 8), 128, np.uint8)])
    rgba = folder(tmp_path / "rgba", Image.fromarray(half).save, "png")
    assert np.array_equal(image(rgba), color)
    assert np.array_equal(image(rgba, bands=[2, 1, 3]), half[..., [2, 1, 3]])


def test_16_bit_colors_are_never_cut_to_their_high_byte(tmp_path):
    """Pillow would, for training and for predict.py."""
    rgb = folder(tmp_path / "rgb", lambda path: cv2.imwrite(str(path), DEEP[..., :3]), "png")
    with pytest.raises(ValueError, match=r"1\.png: image has 16-bit colors; .*dataset\.range"):
        image(rgb)
    with pytest.raises(ValueError, match=r"1\.png: cannot be read \(more than 8 bits of a color"):
        read_any_image(rgb / "images" / "1.png")


def test_bmps_of_16_bits_a_pixel_have_8_bit_colors(tmp_path):
    """Five or six bits a color: nothing is cut."""
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    pixels = np.array([[(r >> 3) << 11 | (g >> 2) << 5 | b >> 3 for r, g, b in colors]] * 2, "<u2")
    masks = np.array([0xF800, 0x07E0, 0x001F], "<u4").tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, 4, -2, 1, 16, 3, pixels.nbytes, 0, 0, 0, 0) + masks
    file = struct.pack("<2sIHHI", b"BM", 14 + len(header) + pixels.nbytes, 0, 0, 14 + len(header))
    (tmp_path / "a.bmp").write_bytes(file + header + pixels.tobytes())
    for read in (read_image, read_any_image):
        assert read(tmp_path / "a.bmp")[0].tolist() == [list(color) for color in colors]


def test_a_tiff_that_does_not_say_what_its_values_are_is_read_as_it_is(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    gray = (DEEP[..., 0] % 256).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", gray, photometric="minisblack")
    data = (tmp_path / "a.tif").read_bytes()
    tag = data.index(struct.pack("<HH", 262, 3))  # PhotometricInterpretation, a short
    (tmp_path / "a.tif").write_bytes(data[:tag] + struct.pack("<H", 65000) + data[tag + 2 :])
    assert np.array_equal(read_bands(tmp_path / "a.tif", [0], None)[..., 0], gray)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_photos_are_turned_where_there_is_no_label(tmp_path, orientation, suffix):
    """Of models with bands as of others: as Pillow turns them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.kron((DEEP[..., :3] % 256).astype(np.uint8), np.ones((8, 8, 1), np.uint8))
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif, **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {}))
    found = read_bands(path, [0, 1, 2], None, turned=True)
    expected = read_any_image(path)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (3 if suffix == "jpg" else 0)


@pytest.mark.parametrize("kind", ["palette", "cmyk", "miniswhite"])
def test_a_tiffs_values_are_colors_in_training_as_in_predict(tmp_path, kind):
    tifffile = pytest.importorskip("tifffile")
    gray = (DEEP[..., 0] % 256).astype(np.uint8)

    def write(path: Path) -> None:
        if kind == "miniswhite":
            tifffile.imwrite(path, gray, photometric="miniswhite")
        elif kind == "palette":
            palette = Image.fromarray(gray).convert("P")
            palette.putpalette([value for number in range(256) for value in (255 - number, number // 2, 7)])
            palette.save(path)
        else:
            Image.fromarray((DEEP[..., :3] % 256).astype(np.uint8)).convert("CMYK").save(path)

    root = folder(tmp_path / kind, write, "tif")
    found = image(root)
    assert np.array_equal(found, read_any_image(root / "images" / "1.tif"))
    if kind == "miniswhite":
        assert np.array_equal(found, np.stack([255 - gray] * 3, axis=2))
    if kind == "palette":
        assert np.array_equal(found, np.stack([255 - gray, gray // 2, np.full_like(gray, 7)], axis=2))
    with pytest.raises(ValueError, match=r"1\.tif: holds .*, which are no bands; save it as RGB, or as gray"):
        image(root, bands=[0])


@pytest.mark.parametrize("suffix", ["tif", "png", "jpg"])
def test_an_image_that_is_to_be_turned_is_refused_with_bands_too(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down: the size stays
    picture = Image.fromarray((DEEP[..., :3] % 256).astype(np.uint8))
    root = folder(tmp_path, lambda path: picture.save(path, exif=exif), suffix)
    for options in ({}, {"bands": [0, 1, 2]}, {"range": [0, 200]}):
        with pytest.raises(ValueError, match=rf"1\.{suffix}: EXIF orientation is 3; turn the pixels"):
            image(root, **options)


def test_a_damaged_tiff_is_named_without_tifffile(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    root = folder(tmp_path / "data", lambda path: path.write_bytes(b"II*\0" + bytes(50)), "tif")
    with pytest.raises(DataError, match=r"1\.tif: cannot be decoded"):
        check(ImageFolder("train", root=str(root), classes=["a", "b"]), cache_dir=tmp_path / "cache", workers=1)


def test_tiff_files_with_several_bands(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    for number, options in enumerate(({"planarconfig": "contig"}, {"planarconfig": "separate"})):
        stored = DEEP if number == 0 else np.moveaxis(DEEP, 2, 0)

        def write(path: Path, stored=stored, options=options) -> None:
            tifffile.imwrite(path, stored, photometric="minisblack", **options)

        root = folder(tmp_path / str(number), write, "tif")
        found = image(root, bands=[4, 2, 0], range=[0, 4095])
        assert np.array_equal(found, scaled(DEEP[..., [4, 2, 0]], 0, 4095))
        with pytest.raises(ValueError, match=r"has 5 bands; choose some in dataset\.bands"):
            image(root, range=[0, 4095])
        with pytest.raises(ValueError, match=r"has 5 bands, but dataset\.bands = \[5, 1, 0\] counts from 0 to 5"):
            image(root, bands=[5, 1, 0], range=[0, 4095])
        with pytest.raises(ValueError, match=r"has uint16 values from 0 to 4063; say which .*dataset\.range="):
            image(root, bands=[4, 2, 0])
    values = np.array([[-1.0, 0.0, 0.5, np.nan]], np.float32)
    tifffile.imwrite(tmp_path / "float.tif", values)
    assert read_bands(tmp_path / "float.tif", None, [0, 1])[0, :, 0].tolist() == [0, 0, 128, 0]
    (tmp_path / "float.tif").write_bytes((tmp_path / "float.tif").read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"float\.tif: cannot be decoded"):
        read_bands(tmp_path / "float.tif", None, [0, 1])


def test_bands_and_range_belong_to_the_fingerprint_and_are_checked(tmp_path):
    root = folder(tmp_path, lambda path: cv2.imwrite(str(path), DEEP[..., :3]), "png")
    options = ({"range": [0, 4095]}, {"range": [0, 4000]}, {"range": [0, 4095], "bands": [2, 1, 0]})
    prints = {ImageFolder("train", root=str(root), classes=["a", "b"], **o).fingerprint() for o in options}
    assert len(prints) == 3
    problems: list[str] = []
    check_component("dataset", {"name": "folder", "root": "x", "bands": [], "range": [5.0, 5.0]}, problems)
    assert [line.partition(" = ")[0] for line in problems] == ["dataset.bands"]
    problems.clear()
    check_component("dataset", {"name": "folder", "root": "x", "range": [5.0, 5.0]}, problems)
    assert problems == ["dataset.range = [5.0, 5.0]: must be the lower and then the higher value"]
