"""dataset=folder with polygons: files as the tools write them, and masks compared with other ways of drawing."""

import base64
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from PIL import Image

from danet.data.check import DataError, check
from danet.datasets.folder import ImageFolder
from danet.datasets.folder.polygons.drawing import Drawing, MaskStore

WIDTH, HEIGHT = 60, 40
LARGE = [(5.0, 4.0), (50.0, 8.0), (45.5, 35.0), (10.0, 30.0)]
SMALL = [(20.0, 12.0), (30.0, 12.0), (26.0, 24.0)]
NAMES = ["background", "field", "house"]


def images(root: Path, *names: str) -> None:
    for name in names or ("images/a.jpg", "images/b.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / name)


def inside(polygon: list[tuple[float, float]], shrunk: float = 0.0) -> np.ndarray:
    """(H, W) bool: pixel centers within a polygon, by matplotlib; `shrunk` leaves out those so near to its edge."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    centers = np.stack([x.ravel() + 0.5, y.ravel() + 0.5], axis=1)
    found = Outline(polygon).contains_points(centers, radius=0).reshape(HEIGHT, WIDTH)
    if shrunk:
        edge = np.inf * np.ones((HEIGHT, WIDTH))
        for start, end in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            a, b = np.array(start), np.array(end)
            t = np.clip(((centers - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
            distance = np.linalg.norm(centers - (a + t[:, None] * (b - a)), axis=1).reshape(HEIGHT, WIDTH)
            edge = np.minimum(edge, distance)
        return np.where(edge < shrunk, False, found), edge < shrunk  # type: ignore[return-value]
    return found


def assert_drawn(label: np.ndarray, *, house_on_top: bool = True) -> None:
    """The label shows a field and a house, apart from a pixel around their edges, where tools differ."""
    field, field_edge = inside(LARGE, 1.2)
    house, house_edge = inside(SMALL, 1.2)
    expected = np.zeros((HEIGHT, WIDTH), int)
    for value, shape in [(1, field), (2, house)] if house_on_top else [(2, house), (1, field)]:
        expected[shape] = value
    sure = ~(field_edge | house_edge)
    assert sure.mean() > 0.75
    assert np.array_equal(label[sure], expected[sure])


def opened(root: Path, split: str = "train", **options: Any) -> ImageFolder:
    return ImageFolder(split, root=str(root), drawn_masks=str(root.parent / "drawn"), val_fraction=0.5, **options)


def label_of(root: Path, name: str = "a", **options: Any) -> np.ndarray:
    """The label of an image, in whichever split it is."""
    for split in ("train", "val"):
        dataset = opened(root, split, **options)
        for index, pair in enumerate(dataset.files):
            if pair.name == name:
                assert dataset[index].image.shape == (HEIGHT, WIDTH, 3)
                return dataset.read_label(index)
    raise AssertionError(name)


# ---- COCO ------------------------------------------------------------------------------------------------------------


def coco_json(*annotations: dict[str, Any], names: tuple[str, ...] = ("a.jpg", "b.jpg")) -> str:
    return json.dumps(
        {
            "info": {},
            "images": [
                {"id": 7 + n, "file_name": name, "width": WIDTH, "height": HEIGHT} for n, name in enumerate(names)
            ],
            "annotations": [{"id": n, "image_id": 7, "iscrowd": 0, **a} for n, a in enumerate(annotations)],
            "categories": [{"id": 3, "name": "house"}, {"id": 1, "name": "field"}],
        }
    )


def flat(polygon: list[tuple[float, float]]) -> list[float]:
    return [value for point in polygon for value in point]


def test_coco_polygons_smaller_ones_on_top(tmp_path):
    pytest.importorskip("pycocotools")
    root = tmp_path / "data"
    images(root)
    house, field = {"category_id": 3, "segmentation": [flat(SMALL)]}, {"category_id": 1, "segmentation": [flat(LARGE)]}
    (root / "annotations").mkdir()
    for order in ((house, field), (field, house)):
        (root / "annotations" / "instances_default.json").write_text(coco_json(*order))
        assert_drawn(label_of(root))
    assert opened(root).class_names == tuple(NAMES)
    assert not label_of(root, "b").any()  # an image of the list without an annotation is background


def test_coco_masks_equal_those_of_pycocotools_own_reader(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools import mask as rle

    root = tmp_path / "data"
    images(root)
    compressed = rle.encode(np.asfortranarray(inside(SMALL).astype(np.uint8)))
    uncompressed = {"size": [HEIGHT, WIDTH], "counts": [100, 60, HEIGHT * WIDTH - 160]}
    file = root / "all.json"
    file.write_text(
        coco_json(
            {"category_id": 3, "segmentation": {"size": [HEIGHT, WIDTH], "counts": compressed["counts"].decode()}},
            {"category_id": 1, "segmentation": uncompressed, "iscrowd": 1},
            {"category_id": 1, "segmentation": [flat(LARGE), flat([(1, 1), (4, 1), (4, 3)])]},
        )
    )
    own = coco.COCO(str(file))
    masks = [
        (annotation["category_id"], own.annToMask(annotation).astype(bool)) for annotation in own.loadAnns([0, 1, 2])
    ]
    expected = np.zeros((HEIGHT, WIDTH), int)
    for category, mask in sorted(masks, key=lambda pair: -pair[1].sum()):
        expected[mask] = {1: 1, 3: 2}[category]
    assert np.array_equal(label_of(root), expected)


@pytest.mark.parametrize(
    ("segmentation", "told"),
    [
        ([[5, 5, 20, 5, 20, 20, 9]], "has a number without its pair"),
        ([[5, 5, float("nan"), 5, 20, 20]], "has a corner that is not a number"),
        ([[5, 5, 1e12, 5, 20, 20]], "more than 100000 pixels away"),
        ({"size": [HEIGHT, WIDTH], "counts": [100, 60]}, "its run lengths end before the image does"),
        ({"size": [HEIGHT, WIDTH], "counts": [100, 60, HEIGHT * WIDTH]}, "Invalid RLE"),
        ({"size": [WIDTH, HEIGHT], "counts": [100, 60, HEIGHT * WIDTH - 160]}, "its mask is 40x60, the image 60x40"),
    ],
)
def test_coco_shapes_that_cannot_be_meant_are_named(tmp_path, segmentation, told):
    pytest.importorskip("pycocotools")
    root = tmp_path / "data"
    images(root)
    (root / "all.json").write_text(coco_json({"category_id": 3, "segmentation": segmentation}))
    with pytest.raises(ValueError, match=rf"all\.json: annotation 0 cannot be drawn .*{told}.*; correct it"):
        label_of(root)


OUTSIDE = [  # of a polygon, partly or as a whole
    [(-20.0, 10.0), (30.0, 5.0), (30.0, 30.0)],
    [(40.0, 20.0), (90.0, 25.0), (80.0, 70.0)],
    [(-20.0, -20.0), (100.0, -10.0), (90.0, 80.0), (-5.0, 70.0)],
    [(-30.0, -30.0), (-10.0, -30.0), (-10.0, -10.0)],
]


@pytest.mark.parametrize("polygon", OUTSIDE)
@pytest.mark.parametrize("form", ["coco", "cvat"])
def test_polygons_are_cut_at_the_image(tmp_path, form, polygon):
    root = tmp_path / "data"
    images(root)
    if form == "coco":
        pytest.importorskip("pycocotools")
        (root / "all.json").write_text(coco_json({"category_id": 3, "segmentation": [flat(polygon)]}))
    else:
        cvat(root, f'<polygon label="house" points="{points(polygon)}" z_order="0"></polygon>')
    expected, edge = inside(polygon, 1.2)
    assert np.array_equal(label_of(root)[~edge], 2 * expected[~edge])


def test_objects_of_several_coco_files_are_drawn_together(tmp_path):
    pytest.importorskip("pycocotools")
    root = tmp_path / "data"
    images(root)
    (root / "annotations").mkdir()
    parts = {"houses": (3, SMALL), "fields": (1, LARGE)}
    for name, (number, polygon) in parts.items():
        annotation = {"category_id": number, "segmentation": [flat(polygon)]}
        (root / "annotations" / f"{name}.json").write_text(coco_json(annotation))
    assert_drawn(label_of(root))
    assert sorted(pair.name for split in ("train", "val") for pair in opened(root, split).files) == ["a", "b"]
    other = coco_json().replace(f'"width": {WIDTH}', '"width": 99')
    (root / "annotations" / "more.json").write_text(other)
    with pytest.raises(ValueError, match=r"has the size \(60, 40\) in .*fields.json and \(99, 40\) in .*more.json"):
        opened(root)
    (root / "annotations" / "more.json").unlink()
    (root / "annotations" / "val.json").write_text(coco_json())
    with pytest.raises(ValueError, match=r"is in no split by .*fields.json, in val by .*val.json; leave it in one"):
        opened(root)


def test_coco_splits_by_the_names_of_the_files(tmp_path):
    pytest.importorskip("pycocotools")
    root = tmp_path / "data"
    images(root, "train2017/1.jpg", "val2017/1.jpg")  # one name twice
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}2017.json").write_text(coco_json(names=("1.jpg",)))
    for split in ("train", "val"):
        [pair] = opened(root, split).files
        assert pair.image == str(root / f"{split}2017" / "1.jpg")
    (root / "annotations" / "instances_val2017.json").write_text(coco_json(names=("1.jpg", "2.jpg")))
    with pytest.raises(
        ValueError, match=r"instances_val2017\.json: 1 of its 2 images are not below dataset\.root: 2\.jpg"
    ):
        opened(root)


def test_coco_in_roboflows_folders_with_boxes(tmp_path, caplog):
    pytest.importorskip("pycocotools")
    root = tmp_path / "data"
    for split in ("train", "valid"):
        images(root, f"{split}/{split}.jpg")
        box = {"category_id": 3, "segmentation": [], "bbox": [10, 5, 20, 10]}
        (root / split / "_annotations.coco.json").write_text(coco_json(box, names=(f"{split}.jpg",)))
    dataset = opened(root, "val")
    assert [pair.name for pair in dataset.files] == ["valid"]
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[5:15, 10:30] = 2
    assert np.array_equal(dataset.read_label(0), expected)
    check(opened(root, "val"), cache_dir=tmp_path / "cache", workers=1)
    assert "1 boxes were drawn as filled rectangles" in caplog.text


# ---- LabelMe ---------------------------------------------------------------------------------------------------------


def labelme(root: Path, name: str, *shapes: dict[str, Any]) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(picture, "JPEG")
    content = {
        "version": "5.4.1",
        "flags": {},
        "shapes": [{"group_id": None, "shape_type": "polygon", "flags": {}, **shape} for shape in shapes],
        "imagePath": f"{name}.jpg",
        "imageData": base64.b64encode(picture.getvalue()).decode(),
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    (root / f"{name}.json").write_text(json.dumps(content))


FIELD, HOUSE = {"label": "field", "points": LARGE}, {"label": "house", "points": SMALL}


def test_labelme_in_the_order_of_the_file(tmp_path):
    root = tmp_path / "data"
    images(root, "a.jpg", "b.jpg", "c.jpg")
    labelme(root, "a", FIELD, HOUSE)
    labelme(root, "b", HOUSE, FIELD, {"label": "__ignore__", "shape_type": "rectangle", "points": [[0, 0], [3, 3]]})
    with pytest.raises(ValueError, match=r"no classes are given .*: field, house\. .*dataset\.classes=\[field,house\]"):
        opened(root)
    options = {"classes": ["field", "house"]}
    assert_drawn(label_of(root, "a", **options))
    other = label_of(root, "b", **options)
    assert (other[:4, :4] == 255).all()
    other[:4, :4] = 0
    assert_drawn(other, house_on_top=False)
    assert opened(root, **options).notes() == ["1 images of the folder have no annotations and are left out"]
    assert label_of(root, "a", background=None, **options)[0, 0] == 255
    assert label_of(root, "a", ignore=["field"], **options)[20, 12] == 255


@pytest.mark.parametrize(("stored", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("form", ["labelme", "cvat", "coco"])
def test_names_of_classes_are_compared_however_their_letters_are_composed(tmp_path, form, stored, asked):
    root = tmp_path / "data"
    images(root, "a.jpg", "b.jpg")
    garbage, rest = normalize(stored, "Müll"), normalize(asked, "Übriges")
    if form == "labelme":
        for name in ("a", "b"):
            labelme(root, name, {"label": garbage, "points": LARGE})
    elif form == "cvat":
        cvat(root, f'<polygon label="field" points="{points(LARGE)}" z_order="0"></polygon>')
        file = root / "annotations.xml"
        file.write_text(file.read_text().replace("field", garbage).replace("house", normalize(stored, "Übriges")))
    else:
        pytest.importorskip("pycocotools")
        text = coco_json({"category_id": 1, "segmentation": [flat(LARGE)]})
        (root / "all.json").write_text(text.replace("field", garbage).replace("house", normalize(stored, "Übriges")))
    names = [normalize(asked, name) for name in ("Übriges", "Müll")]
    label = label_of(root, classes=names, background=rest)
    assert (label[inside(LARGE, 1.2)[0]] == 1).all()
    assert label[0, 0] == 0
    if form != "labelme":  # which has no list of classes
        assert set(opened(root, background=rest).class_names) == {normalize("NFC", name) for name in names}


def test_labelme_circles_rectangles_and_what_has_no_area(tmp_path):
    root = tmp_path / "data"
    images(root, "a.jpg", "b.jpg")
    labelme(root, "a", {"label": "field", "shape_type": "circle", "points": [[30, 20], [30, 30]]})
    labelme(root, "b", {"label": "field", "shape_type": "linestrip", "points": [[1, 1], [2, 2]]})
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    radius = np.hypot(x + 0.5 - 30, y + 0.5 - 20)
    label = label_of(root, "a", classes=["field"])
    assert (label[radius < 9] == 1).all()
    assert (label[radius > 11] == 0).all()
    with pytest.raises(ValueError, match=r"b\.json: a shape of 'field' is a linestrip, which has no area"):
        label_of(root, "b", classes=["field"])
    labelme(root, "b", HOUSE)
    with pytest.raises(ValueError, match=r"b\.json: has a shape of class 'house', which is not among the classes"):
        label_of(root, "b", classes=["field"])


def png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_labelme_masks_lie_where_their_box_does(tmp_path):
    root = tmp_path / "data"
    images(root, "a.jpg", "b.jpg")
    patch = np.array([[0, 1, 1], [1, 1, 0]], np.uint8)  # as LabelMe stores what an AI model has found
    shapes = [
        {"label": "field", "shape_type": "mask", "points": [[10, 5], [12, 6]], "mask": png(patch)},
        {"label": "house", "shape_type": "mask", "points": [[58.6, 38.0], [60.6, 39.0]], "mask": png(255 * patch)},
    ]
    labelme(root, "a", *shapes)
    labelme(root, "b", {**shapes[0], "mask": shapes[0]["mask"][:40]})
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[5:7, 10:13] = patch
    expected[39, 59] = 2  # the rest of it lies outside
    options = {"classes": ["background", "field", "house"]}
    assert np.array_equal(label_of(root, "a", **options), expected)
    with pytest.raises(ValueError, match=r"b\.json: the mask of a shape of 'field' is no picture .*; draw it again"):
        label_of(root, "b", **options)
    labelme(root, "b", {**shapes[0], "mask": png(np.zeros((2, 3, 3), np.uint8))})
    with pytest.raises(ValueError, match=r"b\.json: the mask of a shape of 'field' has colors; draw it again"):
        label_of(root, "b", **options)


def test_labelmes_oriented_rectangles(tmp_path):
    root = tmp_path / "data"
    images(root, "a.jpg", "b.jpg")
    labelme(root, "a", {**FIELD, "shape_type": "oriented_rectangle"}, HOUSE)
    labelme(root, "b", {**FIELD, "shape_type": "rotation"}, HOUSE)
    for name in ("a", "b"):
        assert_drawn(label_of(root, name, classes=["field", "house"]))


# ---- CVAT ------------------------------------------------------------------------------------------------------------


def points(polygon: list[tuple[float, float]]) -> str:
    return ";".join(f"{x:.2f},{y:.2f}" for x, y in polygon)


def cvat(root: Path, shapes: str) -> None:
    size = f'width="{WIDTH}" height="{HEIGHT}"'
    (root / "annotations.xml").write_text(
        f"""<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><job><labels>
    <label><name>field</name><color>#66ff66</color><type>any</type><attributes></attributes></label>
    <label><name>house</name><color>#b83df5</color><type>any</type><attributes></attributes></label>
  </labels></job></meta>
  <image id="0" name="a.jpg" {size}>{shapes}</image>
  <image id="1" name="b.jpg" {size}></image>
</annotations>"""
    )


def test_cvat_by_z_order(tmp_path):
    root = tmp_path / "data"
    images(root)
    field, house = (
        f'<polygon label="{name}" source="manual" occluded="0" points="{points(shape)}" z_order="Z"></polygon>'
        for name, shape in (("field", LARGE), ("house", SMALL))
    )
    cvat(root, house.replace("Z", "1") + field.replace("Z", "0"))
    assert_drawn(label_of(root))
    assert opened(root).class_names == tuple(NAMES)
    first = opened(root).fingerprint()
    cvat(root, house.replace("Z", "0") + field.replace("Z", "0"))  # then in the file's order
    assert_drawn(label_of(root), house_on_top=False)
    assert opened(root).fingerprint() != first  # though the file is as long as before
    assert not label_of(root, "b").any()


def test_objects_of_several_cvat_files_are_drawn_together(tmp_path):
    root = tmp_path / "data"
    images(root)
    polygon = '<polygon label="{}" points="{}" z_order="{}"></polygon>'
    cvat(root, polygon.format("house", points(SMALL), 1))
    (root / "annotations.xml").rename(root / "houses.xml")
    cvat(root, polygon.format("field", points(LARGE), 0))
    assert_drawn(label_of(root))
    assert sum(len(opened(root, split)) for split in ("train", "val")) == 2


def test_cvat_masks_boxes_and_tracks(tmp_path):
    root = tmp_path / "data"
    images(root)
    # Rows of 4: the first two pixels, then all of the second row but the last.
    mask = '<mask label="field" rle="0, 2, 2, 3, 1" left="10" top="5" width="4" height="2" z_order="0"></mask>'
    box = '<box label="house" xtl="30.00" ytl="20.00" xbr="39.00" ybr="29.00" z_order="0"></box>'
    cvat(root, mask + box)
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[5, 10:12] = expected[6, 10:13] = 1
    expected[20:30, 30:40] = 2
    assert np.array_equal(label_of(root), expected)
    cvat(root, '<polyline label="field" points="1,1;2,2" z_order="0"></polyline>')
    with pytest.raises(ValueError, match=r"annotations\.xml: image 'a\.jpg': a shape of 'field' is a polyline"):
        label_of(root)
    for far in ("nan,1", "1,inf", "1e12,5"):
        cvat(root, f'<polygon label="field" points="1,1;9,1;{far}" z_order="0"></polygon>')
        with pytest.raises(ValueError, match=r"\.xml: a polygon of 'field' has a corner that is not a number"):
            label_of(root)
    (root / "annotations.xml").write_text("<annotations><track id='0'></track></annotations>")
    with pytest.raises(ValueError, match="tracks of a video; export it as 'CVAT for images 1.1'"):
        opened(root)


@pytest.mark.parametrize("degrees", [0, 30, 90, 155.5, 330])
@pytest.mark.parametrize("kind", ["box", "ellipse"])
def test_cvat_turns_boxes_and_ellipses_clockwise_about_their_center(tmp_path, kind, degrees):
    root = tmp_path / "data"
    images(root)
    turned = f'rotation="{degrees:.2f}"' if degrees else ""
    shape = {
        "box": f'<box label="house" xtl="15.00" ytl="16.00" xbr="45.00" ybr="26.00" {turned} z_order="0"></box>',
        "ellipse": f'<ellipse label="house" cx="30" cy="21" rx="15" ry="5" {turned} z_order="0"></ellipse>',
    }[kind]
    cvat(root, shape)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    # Pixels in the frame of the shape: its axis to the right points down after a turn by up to 180 degrees.
    axis = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    along, across = (x - 30) * axis[0] + (y - 21) * axis[1], (y - 21) * axis[0] - (x - 30) * axis[1]

    def within(grown: float) -> np.ndarray:
        a, b = 15 + grown, 5 + grown
        return np.hypot(along / a, across / b) <= 1 if kind == "ellipse" else (abs(along) <= a) & (abs(across) <= b)

    label = label_of(root)
    assert (label[within(-1.2)] == 2).all()
    assert not label[~within(1.2)].any()


def test_cvat_tags_are_of_whole_images_and_draw_nothing(tmp_path):
    root = tmp_path / "data"
    images(root)
    polygons = "".join(
        f'<polygon label="{name}" points="{points(shape)}" z_order="0"></polygon>'
        for name, shape in (("field", LARGE), ("house", SMALL))
    )
    cvat(root, f'<tag label="field" source="manual"></tag>{polygons}')
    assert_drawn(label_of(root))


# ---- YOLO ------------------------------------------------------------------------------------------------------------


def yolo_line(number: int, polygon: list[tuple[float, float]]) -> str:
    return " ".join([str(number), *(f"{value:.6f}" for x, y in polygon for value in (x / WIDTH, y / HEIGHT))])


def test_yolo_smaller_ones_on_top(tmp_path):
    root = tmp_path / "data"
    for split, name in (("train", "a"), ("val", "b"), ("train", "c")):
        images(root, f"images/{split}/{name}.jpg")
        (root / "labels" / split).mkdir(parents=True, exist_ok=True)
    (root / "labels" / "train" / "a.txt").write_text(f"{yolo_line(1, SMALL)}\n{yolo_line(0, LARGE)}\n")
    (root / "labels" / "val" / "b.txt").write_text("1 0.5 0.5 0.2 0.5\n")
    (root / "data.yaml").write_text(
        "path: ../data\ntrain: images/train\nval: images/val\nnames:\n  0: field\n  1: house\n"
    )
    assert opened(root).class_names == tuple(NAMES)
    assert_drawn(label_of(root, "a"))
    assert not label_of(root, "c").any()  # an image without a file
    box = label_of(root, "b")
    assert set(np.unique(box)) == {0, 2}
    assert (box[12:28, 26:34] == 2).all()
    (root / "labels" / "train" / "a.txt").write_text(yolo_line(2, SMALL))
    with pytest.raises(ValueError, match=r"a\.txt: line 1: has class 2, but there are 2 classes"):
        label_of(root, "a")
    (root / "labels" / "train" / "a.txt").write_text("1 10 20 30 40 50 60")
    with pytest.raises(ValueError, match=r"a\.txt: line 1: must be x y pairs in 0\.\.1"):
        label_of(root, "a")


def test_a_number_that_yolos_file_leaves_out_is_told(tmp_path):
    root = tmp_path / "data"
    images(root, "images/train/a.jpg", "images/val/b.jpg")
    for split in ("train", "val"):
        (root / "labels" / split).mkdir(parents=True)
    (root / "labels" / "val" / "b.txt").write_text(yolo_line(2, SMALL))
    (root / "labels" / "train" / "a.txt").write_text(f"{yolo_line(1, LARGE)}\n{yolo_line(0, SMALL)}\n")
    (root / "data.yaml").write_text("names: {1: field, 2: house}\n")
    with pytest.raises(ValueError, match=r"a\.txt: line 2: has class 0, which data.yaml does not name"):
        label_of(root, "a")


def yolo(root: Path, **texts: str) -> None:
    """A folder with an image and a text for each name."""
    images(root, *(f"images/{name}.jpg" for name in texts))
    (root / "labels").mkdir(exist_ok=True)
    for name, text in texts.items():
        (root / "labels" / f"{name}.txt").write_text(text, encoding="utf-8")
    (root / "data.yaml").write_text("names: [field, house]\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\0\0garbage\n", r"line 1: '\\x00\\x00garbage': must be a class number and then x y x y"),
        (f"0.0{yolo_line(0, LARGE)[1:]}", r"line 1: '0\.0 0\.083.*': must be a class number"),
        (f"0 0.1\n{yolo_line(0, LARGE)}", r"line 1: must be x y pairs in 0\.\.1"),
        (f"{yolo_line(0, LARGE)}\n0 0.1", r"line 2: must be x y pairs in 0\.\.1"),
    ],
)
def test_every_text_of_yolos_folders_is_read_whatever_its_first_line_is(tmp_path, text, told):
    root = tmp_path / "data"
    good = yolo_line(1, SMALL)
    yolo(root, a=text, b=good, c=text, d=good)
    (root / "labels" / "classes.txt").write_text("field\nhouse\n")  # as labelImg writes it; of no image
    found = []
    for split in ("train", "val"):
        dataset = opened(root, split)
        found += [pair.name for pair in dataset.files]
        bad = [pair.label for pair in dataset.files if pair.name in ("a", "c")]
        if bad:
            with pytest.raises(DataError) as error:
                check(dataset, cache_dir=tmp_path / "cache", workers=1)
            assert all(re.search(f"{re.escape(str(path))}: {told}", str(error.value)) for path in bad)
    assert sorted(found) == ["a", "b", "c", "d"]


def test_yolos_texts_may_begin_with_a_mark_of_their_encoding(tmp_path):
    root = tmp_path / "data"
    line = f"\ufeff{yolo_line(1, SMALL)}\n{yolo_line(0, LARGE)}\n"
    yolo(root, a=line, b=line)
    assert_drawn(label_of(root))


def test_yolos_key_points_are_no_corners(tmp_path):
    root = tmp_path / "data"
    box_and_points = "1 0.5 0.5 0.2 0.5 0.45 0.4 0.55 0.6"
    yolo(root, a=box_and_points, b=box_and_points)
    with (root / "data.yaml").open("a") as file:
        file.write("kpt_shape: [2, 2]\n")
    with pytest.raises(ValueError, match=r"data\.yaml: kpt_shape: .* key points; export them as segmentation"):
        opened(root)


# ---- the store -------------------------------------------------------------------------------------------------------


def test_masks_are_drawn_once_and_again_when_annotations_change(tmp_path):
    root = tmp_path / "data"
    images(root)
    field = f'<polygon label="field" points="{points(LARGE)}" z_order="0"></polygon>'
    cvat(root, field)
    first = label_of(root)
    [drawn] = (tmp_path / "drawn").glob("*.png")
    Image.new("L", (WIDTH, HEIGHT), 1).save(drawn)  # what is read is this file
    assert (label_of(root) == 1).all()
    cvat(root, field.replace("field", "house"))
    changed = label_of(root)
    assert np.array_equal(changed == 2, first == 1)
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 2
    assert label_of(root, ignore=["field"]).max() == 1  # other classes take the drawn mask that is there
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 2


def test_threads_may_draw_the_same_mask_at_once(tmp_path):
    """Images without objects have one mask; its file is never seen half-written."""
    drawing = Drawing((2000, 1500), [])

    def drawn(store: MaskStore) -> int:
        return np.asarray(Image.open(store.path(drawing, "a.txt"))).size

    for number in range(10):
        store = MaskStore(str(tmp_path / str(number)), ["field"], "field")
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(drawn, [store] * 16)) == {3_000_000}


def test_masks_are_preferred_and_a_format_can_be_asked_for(tmp_path):
    root = tmp_path / "data"
    images(root, "images/a.jpg", "images/b.jpg")
    images(root, "masks/a.png", "masks/b.png")
    cvat(root, "")
    assert opened(root, classes=["x", "y"]).class_names == ("x", "y")
    assert opened(root, format="cvat").class_names == tuple(NAMES)
    with pytest.raises(ValueError, match="dataset.format = 'labelme': no such annotations"):
        opened(root, format="labelme")
    with pytest.raises(ValueError, match="dataset.values: is for masks"):
        opened(root, format="cvat", values={0: "a"})
