"""Reading images and labels: exact values, and a reason for every refusal."""

import errno
import io
import os
import struct
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from danet.datasets import reading
from danet.datasets.files import fingerprint, label_file, list_folder, pair_up, sample_name
from danet.datasets.images import read_image
from danet.datasets.labels import read_label
from danet.interfaces import FilePair

IDENTITY = {value: value for value in range(200)} | {255: 255}


def grey_png(path, bits, data, width, height):
    """A gray PNG written by hand, since Pillow writes no 2- and 4-bit ones."""
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
    """Smooth colors with noise: every filter of PNG has its use."""
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


def test_palette_label_gives_indices_not_colors(tmp_path):
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
    with pytest.raises(ValueError, match=r"bad\.png: label has value 300 \(1 pixels\), which no class has"):
        read_label(tmp_path / "bad.png", "index", IDENTITY)


@pytest.mark.parametrize("bits", [2, 4])
def test_label_with_few_bits_is_refused_rather_than_stretched(tmp_path, bits):
    path = grey_png(tmp_path / "few.png", bits, bytes([0, 0b00010001]), width=8 // bits, height=1)
    with pytest.raises(ValueError, match=r"few\.png: label .* save .* 8-bit gray PNG"):
        read_label(path, "index", IDENTITY)


def test_lossy_label_is_refused(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "l.jpg")
    with pytest.raises(ValueError, match=r"l\.jpg: label is a JPEG"):
        read_label(tmp_path / "l.jpg", "index", IDENTITY)


def test_declared_mode_must_be_the_files(tmp_path):
    Image.new("RGB", (4, 4), (64, 0, 128)).save(tmp_path / "rgb.png")
    Image.new("L", (4, 4)).save(tmp_path / "gray.png")
    with pytest.raises(ValueError, match=r"rgb\.png: label holds RGB colors, but class numbers"):
        read_label(tmp_path / "rgb.png", "index", IDENTITY)
    with pytest.raises(ValueError, match=r"gray\.png: label has mode L, but RGB colors are declared"):
        read_label(tmp_path / "gray.png", "rgb", {(0, 0, 0): 0})


def test_colors_are_mapped_exactly(tmp_path):
    # Colors that differ in one channel by one, and pairs that swap channels.
    colors = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (255, 255, 254), (254, 255, 255), (64, 0, 128), (128, 0, 64)]
    expected = np.random.default_rng(0).integers(0, len(colors), (31, 17))
    pixels = np.array([[colors[i] for i in row] for row in expected], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "c.png")
    train_ids = {color: i for i, color in enumerate(colors)}
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


def test_unlisted_colors_and_values_are_named_and_counted(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0, :3] = (0, 0, 1)
    Image.fromarray(pixels).save(tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"c\.png: label has color \(0, 0, 1\) \(3 pixels\)"):
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


# ---- orientation -----------------------------------------------------------------------------------------------------


def read_colors(path):
    """A label whose colors are the picture's own."""
    return read_label(path, "rgb", dict.fromkeys(map(tuple, picture().reshape(-1, 3).tolist()), 0))


@pytest.mark.parametrize("suffix", ["tif", "png", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(10))
def test_images_and_labels_to_be_turned_are_refused_in_every_format(tmp_path, suffix, orientation):
    """Pillow turns a TIFF by itself, and forgets its orientation."""
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture()).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    readers = [read_image] if suffix == "jpg" else [read_image, read_colors]
    for read in readers:
        if orientation in (0, 1):
            shape = read(path).shape
            assert shape[:2] == (37, 51)
        else:
            with pytest.raises(ValueError, match=rf"a\.{suffix}: EXIF orientation is {orientation}; turn the pixels"):
                read(path)
    if suffix != "jpg" and orientation < 2:
        np.testing.assert_array_equal(read_image(path), picture())


# ---- damage ----------------------------------------------------------------------------------------------------------


def png_bytes(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


READERS = {
    "image": read_image,
    "checked image": lambda path: read_image(path, threads=True),
    "label": lambda path: read_label(path, "index", IDENTITY),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_flipped_bit_of_a_png_header_is_named(tmp_path, reader):
    """kornia_rs makes room for what the header claims, at which it panics: that is not an Exception."""
    good, path = png_bytes(np.zeros((6, 8), np.uint8)), tmp_path / "a.png"
    for bit in range(8 * 8, 8 * 33):  # length, name, content and checksum of IHDR
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.png: cannot be decoded"):
            READERS[reader](path)


@pytest.mark.parametrize(
    "size", [(2**31 - 1, 1), (1, 2**31 - 1), (60_000, 60_000), (2**31 - 1, 2**31 - 1), (64, 100_000)]
)
@pytest.mark.parametrize("reader", READERS)
def test_a_header_that_claims_more_than_the_file_can_hold_is_refused(tmp_path, reader, size):
    width, height = size
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    with pytest.raises(ValueError, match=r"a\.png: cannot be decoded"):
        READERS[reader](tmp_path / "a.png")


def test_a_panic_of_the_decoder_is_no_end(tmp_path, monkeypatch):
    """The file is then read by Pillow; another error that is no Exception, such as Ctrl-C, passes."""
    import kornia_rs

    path, pixels = tmp_path / "a.png", np.arange(48, dtype=np.uint8).reshape(6, 8)
    path.write_bytes(png_bytes(pixels))

    def panic(kind):
        def decode(*_):
            raise kind("PyObject pointer is null")

        return decode

    monkeypatch.setattr(kornia_rs.io, "decode_image_png_u8", panic(type("PanicException", (BaseException,), {})))
    np.testing.assert_array_equal(read_label(path, "index", IDENTITY), pixels)
    monkeypatch.setattr(kornia_rs.io, "decode_image_png_u8", panic(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        read_label(path, "index", IDENTITY)


def test_an_image_may_have_more_pixels_than_pillow_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    pixels = np.random.default_rng(0).integers(0, 11, (30, 40), np.uint8)
    palette = Image.fromarray(pixels)
    palette.putpalette([value for value in range(256) for _ in range(3)])
    palette.save(tmp_path / "p.png")
    Image.fromarray(pixels).save(tmp_path / "t.tif")
    for name in ("p.png", "t.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name), pixels[..., None].repeat(3, 2))
        np.testing.assert_array_equal(read_label(tmp_path / name, "index", IDENTITY), pixels)
    assert Image.MAX_IMAGE_PIXELS == 100  # others' images have the limit that they had


def test_only_sizes_that_are_not_to_be_believed_are_refused():
    assert reading.size_problem(13_500, 13_500, 28_000_000) == ""
    assert "cannot hold" in reading.size_problem(13_500, 13_500, 1000)
    assert reading.size_problem(4000, 3000, 10) == ""  # Pillow says what is wrong with it
    assert "cut it into tiles" in reading.size_problem(40_000, 40_000, 10**9)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}, {"exif": True}], ids=str
)
def test_a_jpeg_that_lacks_pixels_is_refused_by_the_check(tmp_path, options):
    """Pillow and OpenCV fill the rest with gray. A single flipped bit cannot be told from another picture."""
    options, path, content = dict(options), tmp_path / "a.jpg", io.BytesIO()
    if options.pop("exif", False):
        options["exif"] = Image.Exif()
        options["exif"][0x0131] = "software"
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    Image.fromarray(noise).convert(options.pop("mode", "RGB")).save(content, "JPEG", **options)
    data = content.getvalue()
    for share in (0.5, 0.7, 0.9):
        path.write_bytes(data[: int(share * len(data))] + b"\xff\xd9")
        with pytest.raises(ValueError, match=r"a\.jpg: cannot be decoded \(.*premature end"):
            read_image(path, threads=True)
    for harmless in (data, data + bytes(3), data[:-2] + bytes(3) + b"\xff\xd9"):
        path.write_bytes(harmless)
        with Image.open(io.BytesIO(data)) as image:
            expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(read_image(path, threads=True), expected)


def test_a_file_without_content_or_of_another_kind_is_called_so(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"empty\.png: cannot be decoded \(the file is empty\)"):
        read_image(tmp_path / "empty.png")
    (tmp_path / "text.jpg").write_text("words")
    with pytest.raises(ValueError, match=r"text\.jpg: cannot be decoded \(not an image in a known format\)"):
        read_image(tmp_path / "text.jpg")


def test_a_broken_link_is_called_so(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    for read in READERS.values():
        with pytest.raises(ValueError, match=r"a\.png: is a broken link, to .*gone\.png; add that file or remove"):
            read(tmp_path / "a.png")


def test_a_disk_that_fails_for_a_moment_is_asked_again(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path)
    monkeypatch.setattr(reading, "READING_WAITS", (0, 0))
    asked, real = [], open

    def failing(times, number):
        def opening(name, *arguments, **options):
            asked.append(name)
            if len(asked) <= times:
                raise OSError(number, os.strerror(number), str(name))
            return real(name, *arguments, **options)

        asked.clear()
        monkeypatch.setattr("builtins.open", opening)

    failing(2, errno.EIO)
    np.testing.assert_array_equal(read_image(path), picture())
    failing(3, errno.EIO)
    with pytest.raises(ValueError, match=r"a\.png: cannot be decoded \(Input/output error"):
        read_image(path)
    failing(1, errno.EACCES)  # asking again would not help
    with pytest.raises(ValueError, match=r"a\.png: cannot be decoded \(Permission denied"):
        read_image(path)
    assert len(asked) == 1


# ---- labels in colors that are none ---------------------------------------------------------------------------------


def in_mode(indices, mode):
    """Class numbers in every channel; alpha opaque."""
    gray = Image.fromarray(indices)
    if mode == "palette":
        gray.putpalette([7, 9, 11] * 256)
        return gray
    return gray.convert(mode)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_equal_channels_are_one_class_number(tmp_path, suffix, mode):
    if (suffix, mode) in (("bmp", "LA"), ("webp", "LA")):
        pytest.skip("Pillow does not write it")
    indices = np.random.default_rng(0).integers(0, 11, (9, 13), np.uint8)
    path = tmp_path / f"a.{suffix}"
    in_mode(indices, mode).save(path, **({"lossless": True} if suffix == "webp" else {}))
    label = read_label(path, "index", IDENTITY)
    np.testing.assert_array_equal(label, indices)
    assert label.dtype == np.uint8


def test_opaque_colors_are_colors(tmp_path):
    Image.new("RGBA", (4, 3), (64, 0, 128, 255)).save(tmp_path / "a.png")
    assert (read_label(tmp_path / "a.png", "rgb", {(64, 0, 128): 8}) == 8).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_refused(tmp_path, mode):
    image = Image.new(mode, (4, 3), 0)
    image.putalpha(255)
    pixel = image.getpixel((1, 1))
    image.putpixel((1, 1), (*pixel[:-1], 254))
    image.save(tmp_path / "a.png")
    for kind in ("index", "rgb"):
        with pytest.raises(ValueError, match=r"a\.png: label has transparent pixels"):
            read_label(tmp_path / "a.png", kind, {0: 0} if kind == "index" else {(0, 0, 0): 0})


def test_16_bit_colors_are_refused(tmp_path):
    """Pillow keeps their upper halves: class 3 would become class 0."""
    rows = b"".join(b"\0" + struct.pack(">6H", 3, 3, 3, 3, 3, 3) for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    with pytest.raises(ValueError, match=r"a\.png: label is RGB stored as RGB;16B; save it as an 8-bit"):
        read_label(tmp_path / "a.png", "index", IDENTITY)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {"format": "JPEG"}),
        ("a.webp", {"quality": 100}),
        ("a.webp", {"quality": 90, "exif": True}),  # its chunks are in another order
        ("a.tif", {"compression": "jpeg"}),
        ("a.png", {"format": "MPO"}),
    ],
    ids=str,
)
def test_lossy_labels_are_refused_in_every_format(tmp_path, name, options):
    """Saved as gray, they often come back with equal channels, but not with the values that were saved."""
    options = dict(options)
    if options.pop("exif", False):
        options["exif"] = Image.Exif()
        options["exif"][0x0131] = "software"
    image = in_mode(np.random.default_rng(0).integers(0, 11, (32, 32), np.uint8), "RGB")
    image.save(tmp_path / name, **options)
    with pytest.raises(ValueError, match="whose values are not exact"):
        read_label(tmp_path / name, "index", IDENTITY)


# ---- names -----------------------------------------------------------------------------------------------------------


def test_names_are_compared_in_one_unicode_form(tmp_path):
    composed = unicodedata.normalize("NFC", "Straßenfoto_ä1")
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed
    for folder, name in (("images", decomposed), ("labels", composed)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.png").touch()
    images, labels = (list_folder(tmp_path / folder) for folder in ("images", "labels"))
    [pair] = pair_up(images.keys() | labels.keys(), images, labels, tmp_path / "images")
    assert pair.name == composed
    assert Path(pair.image).stem == decomposed
    assert label_file(pair).endswith(f"{composed}.png")
    (tmp_path / "images" / f"{composed}.png").touch()
    with pytest.raises(ValueError, match="have the same name"):
        list_folder(tmp_path / "images")


def test_names_that_are_not_utf8_can_be_written(tmp_path):
    name = os.fsdecode("照片1".encode("gbk"))
    assert sample_name(name) == "%D5%D5Ƭ1"  # C6 AC is UTF-8 by chance
    (tmp_path / f"{name}.png").touch()
    [(found, path)] = list_folder(tmp_path).items()
    assert found.encode() == b"%D5%D5\xc6\xac1"
    assert path.exists()
    assert sample_name("照片 (1)") == "照片 (1)"
