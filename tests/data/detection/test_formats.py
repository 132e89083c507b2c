"""Annotations in other forms than COCO's, in files that the tools wrote (`formats/make.py`)."""

import json
import shutil
import warnings
from base64 import b64encode
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transept.data.detection.formats import find_annotations
from transept.data.detection.masks import decode_masks
from transept.data.detection.sets import DetectionSplits, load_detection_splits
from transept.errors import TranseptError, TranseptWarning

FILES = Path(__file__).parent / "formats"
CAT, DOG = [8, 9, 38, 29], [40, 10, 55, 36]
HOUSE = [(40, 10), (55, 10), (55, 30), (48, 36), (40, 30)]


def copied(root: Path, name: str, *pictures: str) -> Path:
    shutil.copytree(FILES / name, root, dirs_exist_ok=True)
    for picture in pictures:
        (root / picture).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40)).save(root / picture)
    return root


def load(root: Path, **options) -> DetectionSplits:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TranseptWarning)
        return load_detection_splits(str(root), **options)


@pytest.mark.parametrize(
    ("name", "pictures"),
    [
        ("yolo", ["images/train/a.jpg", "images/val/b.jpg"]),
        ("cvat", ["a.jpg", "images/b.jpg"]),
        ("voc_detection", ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]),
    ],
)
def test_two_boxes_and_an_empty_picture(tmp_path: Path, name: str, pictures: list[str]):
    splits = load(copied(tmp_path, name, *pictures))
    assert splits.classes == ["cat", "dog"]
    target = splits.train[0][1]
    np.testing.assert_allclose(target["boxes"].numpy(), [CAT, DOG], atol=1e-4)
    assert target["labels"].tolist() == [0, 1]
    assert len(splits.val[0][1]["labels"]) == 0


@pytest.mark.filterwarnings("ignore::transept.errors.TranseptWarning")
@pytest.mark.parametrize(
    ("name", "file", "said", "found"),
    [
        ("yolo", "data.yaml", "val.txt", "images/val/b.jpg"),  # where it lies without being told
        ("yolo", "val.txt", "images/val/b.jpg", "x" * 300),
        ("cvat", "val.xml", "b.jpg", "x" * 300),
    ],
)
def test_a_name_longer_than_names_may_be_is_that_of_a_missing_file(
    tmp_path: Path, name: str, file: str, said: str, found: str
):
    root = copied(tmp_path, name, "images/train/a.jpg", "images/val/b.jpg", "a.jpg")
    text = (root / file).read_text()
    assert said in text
    (root / file).write_text(text.replace(said, "x" * 300))
    sets = find_annotations(root)
    assert sets is not None
    assert [image["file_name"] for image in sets["val"].content["images"]] == [found]


def test_pascal_counts_pixels_from_1(tmp_path: Path):
    root = copied(tmp_path, "voc_writer", "JPEGImages/a.png", "JPEGImages/b.png")
    with pytest.warns(TranseptWarning, match="1 objects marked difficult, neither learnt nor counted"):
        found = find_annotations(root)
    assert found is not None
    cat, dog = found[""].content["annotations"]
    assert (cat["bbox"], cat["iscrowd"], dog["bbox"], dog["iscrowd"]) == ([8, 9, 30, 20], 0, [40, 10, 15, 26], 1)
    assert cat["id"] == "Annotations/a.xml:object 1"
    with pytest.raises(TranseptError, match="has 1 pictures with objects; it needs two"):
        load(root)


def test_outlines_are_masks(tmp_path: Path):
    pytest.importorskip("pycocotools")
    root = copied(tmp_path, "labelme", "train/a.png", "val/b.png")
    with pytest.warns(TranseptWarning, match="1 shapes of the type 'point': left out"):
        splits = load_detection_splits(str(root))
    target = splits.train[0][1]
    assert target["boxes"].tolist()[:2] == [CAT, DOG]
    # A circle, a group of two polygons, a mask.
    assert target["boxes"].tolist()[2:] == [[15, 15, 25, 25], [0, 0, 14, 4], [50, 2, 53, 4]]
    with pytest.raises(TranseptError, match="annotation train/a.json:shape 1 has no segmentation, which masks need"):
        load(root, masks=True)
    masks = load(root, masks=True, skip_bad_annotations=True).train[0][1]["masks"].numpy()
    assert masks[0].sum() == pytest.approx(15 * 20 + 15 * 6 / 2, rel=0.1)
    assert masks[1].sum() == pytest.approx(np.pi * 25, rel=0.1)
    assert np.argwhere(masks[3]).tolist() == [[2, 51], [3, 50], [3, 51], [3, 52]]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "label_studio",
            {"original_width": None},
            "task 1:.* is no shape of Label Studio",
        ),
        ("labelme", {"points": 7}, "a.json:shape 1 is no shape of LabelMe"),
        ("labelme", {"points": [[1e999, 1]], "shape_type": "mask"}, "a.json:shape 1 is no shape of LabelMe"),
    ],
)
def test_pages_that_are_built_in_another_way(tmp_path: Path, name: str, change: dict, message: str):
    root = copied(tmp_path, name)
    file = next(file for file in sorted(root.rglob("*.json")))
    page = json.loads(file.read_text())
    first = page["shapes"][0] if name == "labelme" else page[0]["annotations"][0]["result"][0]
    first.update(change)
    file.write_text(json.dumps(page))
    with pytest.raises(TranseptError, match=message):
        find_annotations(root)
    if name == "label_studio":
        del first["original_width"]
        file.write_text(json.dumps(page))
        with pytest.raises(TranseptError, match=r"task \d+ is none of Label Studio \(KeyError\('original_width'"):
            find_annotations(root)


def test_masks_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A small limit stands for the one of 89 megapixels."""
    root = copied(tmp_path, "labelme", "train/a.png", "val/b.png")
    page = json.loads((root / "train" / "a.json").read_text())
    painted = next(each for each in page["shapes"] if each["shape_type"] == "mask")
    page["shapes"] = [painted]

    def refused(message: str, **changes: object) -> None:
        (root / "train" / "a.json").write_text(json.dumps(page | changes))
        with pytest.raises(TranseptError, match=message):
            load(root, masks=True)

    refused("a.json:shape 1: its picture is said to have 1000000 x 1000000 pixels, more than 89 megapixels",
            imageHeight=10**6, imageWidth=10**6)  # fmt: skip
    with BytesIO() as file:
        Image.new("L", (300, 200)).save(file, "PNG")
        painted["mask"] = b64encode(file.getvalue()).decode()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 60)
    refused("a.json:shape 1: its mask declares more than 0 megapixels; scale it down first")
    painted["mask"] = "AAAA"
    refused("a.json:shape 1: its mask is no picture of a known format")

    root = tmp_path / "cvat"
    (root / "images").mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(root / "images" / "a.png")
    mask = '<mask label="dog" left="3" top="4" width="3" height="2" rle="{runs}"/>'
    image = '<annotations><image name="a.png" width="{width}" height="40">' + mask + "</image></annotations>"
    for width, runs, message in (
        (61, "1, 3, 2", "a.png:mask 1: its picture is said to have 61 x 40 pixels"),
        (60, "1, 3, 20000000000000", "a.png:mask 1 has run lengths that do not fill its 3 x 2 pixels"),
        ("inf", "1, 3, 2", "image 'a.png' has the width 'inf' in a 'image'; give a number"),
    ):
        (root / "annotations.xml").write_text(image.format(width=width, runs=runs))
        with pytest.raises(TranseptError, match=message):
            load(root, masks=True)


def test_label_studio(tmp_path: Path):
    root = copied(tmp_path, "label_studio", "images/0f1e2d3c-a.png", "images/b.png")
    with pytest.warns(TranseptWarning, match="1 tasks without annotations: left out"):
        found = find_annotations(root)
    assert found is not None
    content = found[""].content
    boxes = [each["bbox"] for each in content["annotations"]]
    np.testing.assert_allclose(boxes, [[8, 9, 30, 20], [40, 10, 15, 26], [0, 0, 60, 40]], atol=1e-9)
    painted = decode_masks([content["annotations"][2]["segmentation"]], (40, 60))[0]
    expected = np.zeros((40, 60), np.uint8)
    expected[10:30, 20:45] = expected[0, 0] = expected[39, 59] = 1
    np.testing.assert_array_equal(painted, expected)
    minimal = find_annotations(copied(tmp_path / "min", "label_studio_min"))
    assert minimal is not None
    columns = ("image_id", "category_id", "bbox", "segmentation")
    assert [[each.get(key) for key in columns] for each in minimal[""].content["annotations"]] == [
        [each.get(key) for key in columns] for each in content["annotations"]
    ]
    assert len(minimal[""].content["images"]) == len(content["images"])
    assert [each["file_name"] for each in content["images"]] == ["/data/upload/1/0f1e2d3c-a.png", "/set/b.png"]
    tasks = json.loads((root / "project-1.json").read_text())
    result = tasks[0]["annotations"][0]["result"][0]
    result["value"]["rotation"] = 90  # about its upper left corner
    (root / "project-1.json").write_text(json.dumps(tasks))
    with pytest.warns(TranseptWarning, match="1 rotated boxes, framed by upright ones: taken"):
        found = find_annotations(root)
    assert found is not None
    np.testing.assert_allclose(found[""].content["annotations"][0]["bbox"], [-12, 9, 20, 30], atol=1e-9)
    tasks[0]["annotations"] *= 2
    (root / "project-1.json").write_text(json.dumps(tasks))
    with pytest.raises(TranseptError, match="task 1 has 2 annotations; keep one, or mark one as ground truth"):
        find_annotations(root)


@pytest.mark.parametrize(("name", "pictures"), [("label_studio_voc", 1), ("label_studio_yolo", 3)])
def test_what_label_studio_converts_to(tmp_path: Path, name: str, pictures: int):
    """Its Pascal VOC counts pixels from 0, and has files of pictures with objects alone."""
    root = copied(tmp_path, name, *(f"images/{stem}.png" for stem in ("0f1e2d3c-a", "b", "c")))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", TranseptWarning)
        found = find_annotations(root)
    assert found is not None
    content = found[""].content
    np.testing.assert_allclose(
        [each["bbox"] for each in content["annotations"]], [[8, 9, 30, 20], [40, 10, 15, 26]], atol=1e-9
    )
    assert [each["name"] for each in content["categories"]][:2] == ["cat", "dog"]
    assert len(content["images"]) == pictures
    as_written = "2 boxes counted from 0, as Label Studio writes them"
    assert any(as_written in str(each.message) for each in said) == (name == "label_studio_voc")


def test_shapes_of_cvat(tmp_path: Path):
    pytest.importorskip("pycocotools")
    root = copied(tmp_path, "cvat", "a.jpg", "b.jpg")
    text = (root / "train.xml").read_text()
    begin, end = text.index("    <box"), text.index("  </image>")
    shapes = (
        '<box label="cat" xtl="20" ytl="10" xbr="40" ybr="20" rotation="90.0"/>'
        '<ellipse label="cat" cx="20" cy="20" rx="10" ry="5"/><points label="dog" points="1,1"/>'
        '<mask label="dog" left="3" top="4" width="3" height="2" rle="1, 3, 2"/>'
    )
    (root / "train.xml").write_text(text[:begin] + shapes + text[end:])
    with pytest.warns(TranseptWarning) as caught:
        target = load_detection_splits(str(root), masks=True).train[0][1]
    said = "\n".join(str(each.message) for each in caught)
    assert "1 rotated boxes, framed by upright ones: taken" in said
    assert "1 points shapes: left out" in said
    np.testing.assert_allclose(target["boxes"].numpy(), [[25, 5, 35, 25], [10, 15, 30, 25], [3, 4, 6, 6]], atol=1e-4)
    assert np.argwhere(target["masks"][2].numpy()).tolist() == [[4, 4], [4, 5], [5, 3]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2", "labels/train/a.txt:1 has 4 numbers; a line is 'class x y width height'"),
        ("0 0.5 0.5 0.2 0.2 0.9", "labels/train/a.txt:1 has 6 numbers"),  # a prediction with its score
        ("cat 0.5 0.5 0.2 0.2", "labels/train/a.txt:1 holds 'cat 0.5 0.5 0.2 0.2'; a line has numbers alone"),
        ("2 0.5 0.5 0.2 0.2", "annotation labels/train/a.txt:1 has the category 2, which is not in 'categories'"),
        (
            "0 200 150 40 40",
            "annotation labels/train/a.txt:1 has the bbox .*, which lies outside its picture of 60 x 40",
        ),
    ],
)
def test_bad_lines_of_yolo(tmp_path: Path, line: str, message: str):
    root = copied(tmp_path, "yolo", "images/train/a.jpg", "images/val/b.jpg")
    (root / "labels" / "train" / "a.txt").write_text(line)
    with pytest.raises(TranseptError, match=message):
        load(root)


def test_yolo_as_roboflow_lays_it_out(tmp_path: Path):
    """A path of another machine, `train/labels`, an outline, names in a list, a picture turned by its EXIF tag."""
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: /content/set/valid/images\nnames: [cat, dog]\n")
    exif = Image.Exif()
    exif[0x0112] = 6
    for half in ("train", "valid"):
        for folder in ("images", "labels"):
            (tmp_path / half / folder).mkdir(parents=True)
        Image.new("RGB", (40, 60)).save(tmp_path / half / "images" / "x.jpg", exif=exif)
    outline = " ".join(f"{x / 60} {y / 40}" for x, y in HOUSE)
    (tmp_path / "train" / "labels" / "x.txt").write_text(f"1 {outline}\n")
    with pytest.warns(TranseptWarning, match="1 label files that are missing, of pictures taken to have no objects"):
        splits = load_detection_splits(str(tmp_path))
    picture, target = splits.train[0]
    assert picture.shape[1:] == (40, 60)
    np.testing.assert_allclose(target["boxes"].numpy(), [DOG], atol=1e-3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "val: images/valdiation",
            "data.yaml' has the line 'val: images/valdiation', and nothing is there in .*put the",
        ),
        ("val: [sheets/train, images/more]", "has the line 'val: images/more', and nothing is there"),
        ("train: images/trian", "has the line 'train: images/trian', and nothing is there"),
        ("val: images/none", "images/none' of .*data.yaml' has no pictures; put them there, or take its line out"),
    ],
)
def test_a_line_of_yolo_that_leads_nowhere(tmp_path: Path, line: str, message: str):
    """Rather than to divide the training pictures: ultralytics refuses it, too."""
    root = copied(tmp_path, "yolo", "sheets/train/a.jpg")
    (root / "images" / "none").mkdir(parents=True)
    lines = {"train": "train: sheets/train"} | {line.partition(":")[0]: line}
    (root / "data.yaml").write_text("\n".join([*lines.values(), "names: [cat, dog]"]))
    with pytest.raises(TranseptError, match=message):
        load(root)


def test_what_yolo_may_say_of_its_places(tmp_path: Path):
    """Several folders, from `path`; a test split that an export names and does not bring."""
    root = copied(tmp_path, "yolo", "set/images/train/a.jpg", "set/images/more/a.jpg", "set/images/val/b.jpg")
    (root / "data.yaml").write_text(
        "path: ../set\ntrain: [images/train, images/more]\nval: images/val\ntest: ../test/images\nnames: [cat, dog]"
    )
    with pytest.warns(TranseptWarning, match="the line 'test: ../test/images', and nothing is there .*passed over"):
        sets = find_annotations(root)
    assert sets is not None
    names = {split: [image["file_name"] for image in each.content["images"]] for split, each in sets.items()}
    assert names == {"train": ["set/images/train/a.jpg", "set/images/more/a.jpg"], "val": ["set/images/val/b.jpg"]}


def test_the_usual_place_instead_of_that_of_yolo(tmp_path: Path):
    root = copied(tmp_path, "yolo", "images/train/a.jpg", "images/val/b.jpg")
    (root / "data.yaml").write_text("train: images/train\nval: images/valdiation\nnames: [cat, dog]")
    with pytest.warns(TranseptWarning, match="'val: images/valdiation', which leads nowhere; .*images/val' is taken"):
        assert len(load_detection_splits(str(root)).val) == 1


def test_a_list_of_voc_without_a_name(tmp_path: Path):
    root = copied(tmp_path, "voc_detection", "JPEGImages/a.jpg", "JPEGImages/b.jpg")
    (root / "ImageSets" / "Main" / "val.txt").write_text("\n")
    with pytest.raises(TranseptError, match="val.txt' lists no pictures; write their names in it, or take it away"):
        load(root)


def test_xml_that_could_grow_is_not_parsed(tmp_path: Path):
    (tmp_path / "annotations.xml").write_text(
        '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "cccc"><!ENTITY d "&b;&b;">]><annotations>&d;</annotations>'
    )
    with pytest.raises(TranseptError, match="annotations.xml' declares a document type or entities"):
        load(tmp_path)
    (tmp_path / "annotations.xml").write_text("<annotations><image>")
    with pytest.raises(TranseptError, match="annotations.xml' is not XML"):
        load(tmp_path)


def test_one_format_at_a_time(tmp_path: Path):
    copied(copied(tmp_path, "cvat", "a.jpg"), "yolo", "images/train/a.jpg", "images/val/b.jpg")
    with pytest.raises(TranseptError, match="holds annotations of YOLO and CVAT; keep those of one of them"):
        load(tmp_path)
