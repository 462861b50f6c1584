"""dataset=folder: what stands in masks, and what the classes are called."""

from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from conftest import load
from danet.config.command_line import with_dataset_of_run
from danet.data.check import DataError, check
from danet.datasets.folder import ImageFolder
from danet.services.palettes import voc_color

VALUES = np.array([[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 2, 2]], np.uint8)
COLORS = {"background": [0, 0, 0], "road": [128, 64, 128], "sky": [70, 130, 180]}


def folder(root: Path, *masks: Image.Image, suffix: str = "png") -> Path:
    """Images 0, 1, ... with masks; the first two are train and val."""
    for number, mask in enumerate(masks or (gray(VALUES), gray(VALUES))):
        split = ("train", "val")[number % 2]
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", mask.size).save(root / "images" / split / f"{number}.png")
        mask.save(root / "masks" / split / f"{number}.{suffix}")
    return root


def gray(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values)


def palette(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values).convert("P")
    image.putpalette([value for color in COLORS.values() for value in color])
    return image


def colored(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.array(list(COLORS.values()), np.uint8)[values])


def opened(root: Path, **options) -> ImageFolder:
    return ImageFolder("train", root=str(root), **options)


def label(root: Path, **options) -> list[list[int]]:
    return opened(root, **options).read_label(0).tolist()


NAMES = {"classes": list(COLORS)}


@pytest.mark.parametrize(
    ("mask", "options"),
    [
        (gray(VALUES), NAMES),
        (palette(VALUES), NAMES),
        (gray(VALUES.astype(np.uint16)), NAMES),
        (Image.merge("RGB", [gray(VALUES)] * 3), NAMES),
        (Image.merge("RGBA", [*[gray(VALUES)] * 3, Image.new("L", (6, 2), 255)]), NAMES),
        (colored(VALUES), {"classes": COLORS}),
        (colored(VALUES).convert("RGBA"), {"classes": COLORS}),
        (palette(VALUES), {"classes": COLORS}),
        (gray(VALUES), {"classes": COLORS}),
        (palette(VALUES), {"classes": {**COLORS, "road": [1, 2, 3]}, "masks": "index"}),
        (colored(VALUES), {"values": {"0,0,0": "background", "128,64,128": "road", "70 130 180": "sky"}}),
        (gray(VALUES * 50), {"values": {0: "background", 50: "road", 100: "sky"}}),
        (gray(VALUES.astype(np.uint16) * 1000), {"values": {0: "background", 1000: "road", 2000: "sky"}}),
        (gray(2 - VALUES), {"values": {0: "sky", 1: "road", 2: "background"}, "classes": list(COLORS)}),
    ],
)
def test_masks_of_all_kinds_give_the_same_labels(tmp_path, mask, options):
    dataset = opened(folder(tmp_path, mask, mask), **options)
    assert dataset.class_names == ("background", "road", "sky")
    assert dataset.read_label(0).tolist() == VALUES.tolist()


def test_binary_masks_of_one_bit_or_0_and_255(tmp_path):
    values, binary = {0: "background", 255: "crack"}, (VALUES > 1).astype(np.uint8)
    one_bit = Image.fromarray(binary * 255).convert("1")
    for number, mask in enumerate((one_bit, gray(binary * 255))):
        root = folder(tmp_path / str(number), mask, mask)
        assert label(root, values=values) == binary.tolist()
        with pytest.raises(
            ValueError, match=r"values 0 \(66\.67%\), 255 \(33\.33%\)\. .*=\{0: background, 255: NAME1\}"
        ):
            opened(root)
    assert label(folder(tmp_path / "2", one_bit, one_bit), classes=["background", "crack"]) == binary.tolist()


def test_palette_and_series_color_classes_for_display(tmp_path):
    folder(tmp_path)
    # PASCAL VOC's published series begins with these.
    assert [voc_color(n) for n in (0, 1, 2, 3, 20)] == [
        *((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 64, 128))
    ]
    assert opened(tmp_path, classes=COLORS).palette == ((0, 0, 0), (128, 64, 128), (70, 130, 180))
    assert opened(tmp_path, **NAMES).palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0))


FILES = {
    "classes.txt": "background\nroad\nsky\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\nsky:70,130,180::\n",
    "class_dict.csv": "name,r,g,b\nbackground,0,0,0\nroad,128,64,128\nsky,70,130,180\n",
    "label_colors.txt": "0 0 0\tbackground\n128 64 128\troad\n70 130 180\tsky\n",
    "data.yaml": "train: images/train\nnc: 3\nnames: {0: background, 1: road, 2: sky}\n",
    "classes.yaml": "background: [0, 0, 0]\nroad: [128, 64, 128]\nsky: [70, 130, 180]\n",
}


@pytest.mark.parametrize("name", FILES)
def test_classes_of_tools_files(tmp_path, name):
    colors = "70" in FILES[name]
    mask = colored(VALUES) if colors else gray(VALUES)
    (folder(tmp_path, mask, mask) / name).write_text(FILES[name])
    dataset = opened(tmp_path)
    assert dataset.class_names == ("background", "road", "sky")
    assert dataset.read_label(0).tolist() == VALUES.tolist()
    (tmp_path / name).rename(tmp_path / f"own_{name}")
    assert opened(tmp_path, classes=f"own_{name}").class_names == dataset.class_names
    (tmp_path / f"own_{name}").write_text("")
    with pytest.raises(ValueError, match=f"own_{name}: (has no classes|cannot be read as classes)"):
        opened(tmp_path, classes=f"own_{name}")


def test_classes_are_found_and_shown_but_never_guessed(tmp_path):
    for number, (mask, text) in enumerate(
        [
            (gray(VALUES), r"2 of 2 masks .*values 0 \(41\.67%\), 1 .*dataset\.classes=\[background,NAME1,NAME2\]"),
            (
                gray(np.where(VALUES == 2, 255, VALUES).astype(np.uint8)),
                r"classes=\[background,NAME1\] \(255 is ignored\)",
            ),
            (colored(VALUES), r"colors 0 0 0 \(41\.67%\), 70 130 180 .*, 70 130 180: NAME1"),
            (gray(VALUES * 0), r"values 0 \(100\.00%\): one class is always right"),
            (gray(np.arange(60, dtype=np.uint8).reshape(6, 10)), r"and 36 more: are these masks\?"),
        ]
    ):
        with pytest.raises(ValueError, match=text):
            opened(folder(tmp_path / str(number), mask, mask))


def test_jpeg_masks_are_refused_with_the_reason(tmp_path):
    folder(tmp_path, gray(VALUES), gray(VALUES), suffix="jpg")
    with pytest.raises(ValueError, match=r"0\.jpg: label is a JPEG, whose values are not exact; take the original PNG"):
        label(tmp_path, **NAMES)
    with pytest.raises(ValueError, match="label is a JPEG"):
        opened(tmp_path)


def test_ignored_and_merged_classes(tmp_path):
    folder(tmp_path)
    dataset = opened(tmp_path, **NAMES, ignore=["background"])
    assert dataset.class_names == ("road", "sky")
    assert dataset.read_label(0).tolist() == np.array([255, 0, 1])[VALUES].tolist()
    dataset = opened(tmp_path, classes=COLORS, masks="index", merge={"thing": ["background", "sky"]})
    assert (dataset.class_names, dataset.palette) == (("thing", "road"), ((0, 0, 0), (128, 64, 128)))
    assert dataset.read_label(0).tolist() == np.array([0, 1, 0])[VALUES].tolist()
    assert label(tmp_path, values={0: "background", 1: None, 2: "sky"}) == np.array([0, 255, 1])[VALUES].tolist()
    prints = {
        opened(tmp_path, **options).fingerprint()
        for options in (NAMES, {**NAMES, "ignore": ["sky"]}, {**NAMES, "stray": 0.1}, {"classes": ["a", "b", "c"]})
    }
    assert len(prints) == 4


TWO_WAYS = [("NFC", "NFD"), ("NFD", "NFC")]  # to write ü, in files and in options


@pytest.mark.parametrize(("stored", "asked"), TWO_WAYS)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "Straße\nMüll\nGrün"),
        ("data.yaml", "names: {0: Straße, 1: Müll, 2: Grün}"),
        ("classes.yaml", "[Straße, Müll, Grün]"),
        ("class_dict.csv", "name,r,g,b\nStraße,0,0,0\nMüll,128,64,128\nGrün,70,130,180"),
    ],
)
def test_names_of_classes_are_compared_however_their_letters_are_composed(tmp_path, stored, asked, name, text):
    root = folder(tmp_path, *[(colored if "dict" in name else gray)(VALUES)] * 2)
    (root / name).write_text(normalize(stored, text), encoding="utf-8")
    garbage, green = normalize(asked, "Müll"), normalize(asked, "Grün")
    dataset = opened(root, ignore=[garbage], merge={normalize(asked, "Fläche"): ["Straße", green]})
    assert dataset.class_names == (normalize("NFC", "Fläche"),)
    assert dataset.read_label(0).tolist() == np.where(VALUES == 1, 255, 0).tolist()


@pytest.mark.parametrize(("stored", "asked"), TWO_WAYS)
def test_names_in_options_are_compared_however_their_letters_are_composed(tmp_path, stored, asked):
    names = [normalize(stored, name) for name in ("Straße", "Müll", "Grün")]
    others = {number: normalize(asked, name) for number, name in enumerate(names)}
    root = folder(tmp_path)
    assert opened(root, classes=names, values=others).class_names == tuple(normalize("NFC", name) for name in names)
    colors = {name: list(color) for name, color in zip(names, COLORS.values(), strict=True)}
    assert opened(root, classes=colors, masks="index", ignore=[others[1]]).class_names == ("Straße", "Grün")


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (
            {"merge": {"x": ["rod", "sky"]}, "ignore": ["skyy"]},
            ["no class 'rod'; did you mean 'road'", "no class 'skyy'"],
        ),
        ({"merge": {"x": ["road"], "y": ["road"]}}, ["'road' is in two classes"]),
        ({"merge": {"sky": ["road", "background"]}}, ["'sky' is a class already, and not among"]),
        ({"classes": ["a", "a", "b"]}, ["class 'a' is there twice"]),
        ({"classes": {"a": [0, 0, 0], "b": [0, 0, 0]}, "masks": "rgb"}, [r"\(0, 0, 0\) stands for two classes"]),
        ({"classes": {"a": [0, 0, 300]}}, [r"dataset\.classes\.a = \[0, 0, 300\]: must be a color"]),
        ({"values": {"red": "a"}}, [r"dataset\.values: 'red' is neither a value .* nor a color"]),
        ({"values": {0: "road", "1,1,1": "sky"}}, ["some classes have values, others colors"]),
        ({"values": {0: "a", 1: "road"}}, ["a is not among dataset.classes"]),
        ({"classes": "gone.txt"}, [r"gone\.txt is no file of classes"]),
        ({"masks": "rgb"}, ["the classes have no colors"]),
    ],
)
def test_wrong_classes_are_named(tmp_path, options, lines):
    with pytest.raises(ValueError, match="(?s)" + ".*".join(lines)):
        opened(folder(tmp_path), **{**NAMES, **options})


def test_stray_colors_are_counted_and_tolerated_up_to_a_share(tmp_path, caplog):
    spoiled = np.array(colored(VALUES))
    spoiled[0, 0] = (1, 1, 1)
    root = folder(tmp_path, Image.fromarray(spoiled), colored(VALUES), colored(VALUES), colored(VALUES))
    with pytest.raises(DataError) as error:
        check(opened(root, classes=COLORS), cache_dir=tmp_path / "cache", workers=2)
    assert "1 pixels have no class, in 1 of 2 masks: color (1, 1, 1) (1 pixels). Name them" in str(error.value)
    assert "dataset.stray=0.084, the share in" in str(error.value)  # 1 of 12, rounded up
    assert "0.png: label has color (1, 1, 1) (1 pixels), which no class has (8.33%)" in str(error.value)
    dataset = opened(root, classes=COLORS, stray=0.084)
    for _ in range(2):  # the second answer comes from the cache
        caplog.clear()
        report = check(opened(root, classes=COLORS, stray=0.084), cache_dir=tmp_path / "cache", workers=1)
        assert report is not None
        assert report.ignored_pixels == 1
        assert "1 pixels have no class, in 1 of 2 masks: color (1, 1, 1) (1 pixels). They are ignored" in caplog.text
    expected = VALUES.copy()
    expected[0, 0] = 255
    assert dataset.read_label(0).tolist() == expected.tolist()


def test_stray_values_above_8_bits_are_tolerated_as_others_are(tmp_path):
    """65535 is what some tools write for "no label" in masks of 16 bits."""
    deep = VALUES.astype(np.uint16)
    deep[0, 0] = 65535
    root = folder(tmp_path, Image.fromarray(deep), Image.fromarray(VALUES.astype(np.uint16)))
    names = ["background", "road", "sky"]
    read = opened(root, classes=names, stray=0.1).read_label(0)
    assert read[0, 0] == 255
    assert np.array_equal(read.ravel()[1:], VALUES.ravel()[1:])
    with pytest.raises(ValueError, match=r"label has value 65535 \(1 pixels\), which no class has"):
        opened(root, classes=names).read_label(0)


def test_masks_of_0_and_255_with_two_classes_are_recognized(tmp_path, caplog):
    binary = ((VALUES > 1) * 255).astype(np.uint8)
    check(
        opened(folder(tmp_path, gray(binary), gray(binary)), classes=["background", "crack"]),
        cache_dir=tmp_path / "cache",
        workers=1,
    )
    assert "only one class is left (background): are these masks 0/255?" in caplog.text
    assert '"dataset.values={0: background, 255: NAME}"' in caplog.text


def test_problems_of_files_and_of_classes_are_told_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)has no test split.*no class 'skyy'"):
        ImageFolder("test", root=str(folder(tmp_path)), **NAMES, ignore=["skyy"])


def test_values_and_merged_classes_survive_the_command_line_and_the_run_folder(tmp_path):
    values = "dataset.values={0 0 0: background, 128 64 128: big road, 70 130 180: null}"
    given = ["recipe=none", "dataset=folder", f"dataset.root={tmp_path}", values, "dataset.merge={not sky: [big road]}"]
    first = load(given)
    assert first.dataset["values"] == {"0 0 0": "background", "128 64 128": "big road", "70 130 180": None}
    assert first.dataset["merge"] == {"not sky": ["big road"]}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(first.yaml().replace("0 0 0", '"0,0,0"'))
    again = with_dataset_of_run([f"run={tmp_path / 'run'}"])
    second = load(["recipe=none", *(argument for argument in again if argument.startswith("dataset"))])
    assert second.dataset == {
        **first.dataset,
        "values": {"0,0,0": "background", **{k: v for k, v in first.dataset["values"].items() if k != "0 0 0"}},
    }
    assert load(["recipe=none", "dataset=folder", "dataset.root=x", "dataset.values={0: a, 255: b}"]).dataset[
        "values"
    ] == {0: "a", 255: "b"}
