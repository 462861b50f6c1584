"""Reading images and labels: exact values, and a reason for every refusal."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from danet.data.files import fingerprint, label_file, list_folder, pair_up, read_image, read_label
from danet.interfaces import FilePair

IDENTITY = {value: value for value in range(200)} | {255: 255}


def grey_png(path, bits, data, width, height):
    """A grey PNG written by hand, since Pillow writes no 2- and 4-bit ones."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def test_image_is_rgb_in_that_order(tmp_path):
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_image_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=rf"a\.{suffix}: cannot be decoded"):
        read_image(path)


def test_16_bit_and_turned_images_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png: image has mode I;16"):
        read_image(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 8)).save(tmp_path / "turned.jpg", exif=exif)
    with pytest.raises(ValueError, match=r"turned\.jpg: EXIF orientation is 6"):
        read_image(tmp_path / "turned.jpg")


def chunk(kind, body):
    """A chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def picture(height=37, width=51):
    """Smooth colours with noise: every filter of PNG has its use."""
    ramp = np.add.outer(np.arange(height), np.arange(width))[..., None] * np.array([1, 2, 3])
    return (ramp + np.random.default_rng(0).integers(0, 9, ramp.shape)).astype(np.uint8)


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"suffix": "png"},
        {"suffix": "png", "mode": "L"},
        {"suffix": "png", "mode": "P"},
        {"suffix": "png", "mode": "RGBA"},
        {"suffix": "png", "transparency": (1, 2, 3)},
        {"suffix": "jpg", "quality": 92, "subsampling": 0},
        {"suffix": "jpg", "quality": 60, "subsampling": 2},
        {"suffix": "jpg", "progressive": True, "restart_marker_rows": 1},
        {"suffix": "jpg", "comment": b"words", "dpi": (72, 72)},
        {"suffix": "jpg", "mode": "L"},
        {"suffix": "jpg", "mode": "CMYK"},
        {"suffix": "bmp"},
        {"suffix": "tif"},
    ],
    ids=str,
)
def test_pixels_are_pillows_whoever_decodes(tmp_path, options, threads):
    options = dict(options)
    path = tmp_path / f"a.{options.pop('suffix')}"
    Image.fromarray(picture()).convert(options.pop("mode", "RGB")).save(path, **options)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_image(path, threads=threads), np.asarray(image.convert("RGB")))


def test_damage_inside_a_png_is_found(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for read in (read_image, lambda path: read_label(path, "rgb", {})):
        with pytest.raises(ValueError, match=r"a\.png: cannot be decoded"):
            read(path)


def test_an_orientation_behind_the_pixels_counts(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path)
    exif = Image.Exif()
    exif[0x0112] = 6
    content, end = path.read_bytes(), chunk(b"IEND", b"")
    path.write_bytes(content.removesuffix(end) + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + end)
    with pytest.raises(ValueError, match=r"a\.png: EXIF orientation is 6"):
        read_image(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.png: cannot be decoded .*No such file"):
        read_image(tmp_path / "none.png")


def test_palette_label_gives_indices_not_colours(tmp_path):
    indices = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200] + [7] * 759)
    image.save(tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").mode == "P"
    np.testing.assert_array_equal(read_label(tmp_path / "p.png", "index", IDENTITY), indices)


def test_16_bit_label_is_read_exactly_or_refused(tmp_path):
    values = np.array([[0, 7], [255, 3]], np.uint16)
    Image.fromarray(values).save(tmp_path / "good.png")
    np.testing.assert_array_equal(read_label(tmp_path / "good.png", "index", IDENTITY), values)
    values[0, 0] = 300  # 44 when cast to 8 bits
    Image.fromarray(values).save(tmp_path / "bad.png")
    with pytest.raises(ValueError, match=r"bad\.png: label values go from 3 to 300"):
        read_label(tmp_path / "bad.png", "index", IDENTITY)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_label_with_few_bits_is_refused_rather_than_stretched(tmp_path, bits):
    path = grey_png(tmp_path / "few.png", bits, bytes([0, 0b00010001]), width=8 // bits, height=1)
    with pytest.raises(ValueError, match=r"few\.png: label .* save .* 8-bit grey PNG"):
        read_label(path, "index", IDENTITY)


def test_lossy_label_is_refused(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "l.jpg")
    with pytest.raises(ValueError, match=r"l\.jpg: label is a JPEG"):
        read_label(tmp_path / "l.jpg", "index", IDENTITY)


def test_declared_mode_must_be_the_files(tmp_path):
    Image.new("RGB", (4, 4), (64, 0, 128)).save(tmp_path / "rgb.png")
    Image.new("L", (4, 4)).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match=r"rgb\.png: label holds RGB colours, but class numbers"):
        read_label(tmp_path / "rgb.png", "index", IDENTITY)
    with pytest.raises(ValueError, match=r"grey\.png: label has mode L, but RGB colours are declared"):
        read_label(tmp_path / "grey.png", "rgb", {(0, 0, 0): 0})


def test_colours_are_mapped_exactly(tmp_path):
    # Colours that differ in one channel by one, and pairs that swap channels.
    colours = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (255, 255, 254), (254, 255, 255), (64, 0, 128), (128, 0, 64)]
    expected = np.random.default_rng(0).integers(0, len(colours), (31, 17))
    pixels = np.array([[colours[i] for i in row] for row in expected], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "c.png")
    train_ids = {colour: i for i, colour in enumerate(colours)}
    label = read_label(tmp_path / "c.png", "rgb", train_ids)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize("suffix", ["png", "bmp"])
@pytest.mark.parametrize(
    "train_ids",
    [
        {0: 0, 1: 1, 2: 2, 255: 255},  # as they are
        {0: 0, 1: 1, 2: 2},
        {0: 255, 1: 0, 2: 1, 255: 255},
        {0: 0, 1: 2, 2: 1, 255: 255},
        {0: 0, 1: 1, 2: 2, 255: 0},
        {0: 0, 2: 2, 255: 255},  # 1 is not listed
        {255: 255},
    ],
)
@pytest.mark.parametrize("values", [[0, 1, 2, 255], [0, 1, 2], [0, 2, 255], [255], [0, 1, 3], [0, 254]])
def test_class_numbers_are_mapped_as_listed_or_refused(tmp_path, values, train_ids, suffix):
    codes = np.array([values * 2], np.uint8)
    Image.fromarray(codes).save(tmp_path / f"a.{suffix}")
    if set(values) <= set(train_ids):
        label = read_label(tmp_path / f"a.{suffix}", "index", train_ids)
        assert label.tolist() == [[train_ids[value] for value in values] * 2]
        assert label.flags.writeable
    else:
        with pytest.raises(ValueError, match="which no class has"):
            read_label(tmp_path / f"a.{suffix}", "index", train_ids)


def test_unlisted_colours_and_values_are_named_and_counted(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0, :3] = (0, 0, 1)
    Image.fromarray(pixels).save(tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"c\.png: label has colour \(0, 0, 1\) \(3 pixels\)"):
        read_label(tmp_path / "c.png", "rgb", {(0, 0, 0): 0})
    Image.fromarray(pixels[..., 2] * 12).save(tmp_path / "i.png")
    with pytest.raises(ValueError, match=r"i\.png: label has value 12 \(3 pixels\)"):
        read_label(tmp_path / "i.png", "index", {0: 0, 11: 255})


def test_folder_is_listed_by_name_whatever_the_suffix(tmp_path):
    for name in ("b_L.png", "a_L.BMP", "a.jpg", "notes.txt", ".hidden_L.png"):
        (tmp_path / name).touch()
    assert list(list_folder(tmp_path, "_L")) == ["a", "b"]
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"a\.jpg and a\.png have the same name"):
        list_folder(tmp_path)


def test_pairs_keep_a_place_for_what_is_missing(tmp_path):
    images, labels = {"a": tmp_path / "a.jpg"}, {"b": tmp_path / "b.png"}
    first, second = pair_up({"b", "a"}, images, labels, tmp_path)
    assert first == FilePair(str(tmp_path / "a.jpg"), None, "a")
    assert second == FilePair(str(tmp_path / "b.*"), str(tmp_path / "b.png"), "b")
    with pytest.raises(ValueError, match=r"a\.jpg: has no label"):
        label_file(first)


def test_fingerprint_is_of_names_sizes_and_options_alone(tmp_path):
    def make(folder, size=3):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "a.png"
        path.write_bytes(b"x" * size)
        return fingerprint(tmp_path / folder, [FilePair(str(path), None, "a")], {"classes": "x"})

    first = make("here")
    assert make("there") == first
    assert make("longer", size=4) != first
    files = [FilePair(str(tmp_path / "here" / "a.png"), None, "a")]
    assert fingerprint(tmp_path / "here", files, {"classes": "y"}) != first
