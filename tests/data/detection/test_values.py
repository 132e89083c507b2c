"""Values of COCO files as tools write them: plain ones are taken and counted in one line, others refused."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transept.data.detection.annotations import Annotations
from transept.data.detection.coco_file import read_coco
from transept.data.detection.coco_set import CocoSet
from transept.errors import TranseptError, TranseptWarning
from transept.metrics.detection import detection_scores

mask_api = pytest.importorskip("pycocotools.mask")

CONTENT: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 9, 30, 20], "area": 600, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [2, 3, 10, 10], "area": 100, "iscrowd": 1},
    ],
    "categories": [{"id": 1, "name": "cell"}],
}


def changed(where: str, **values: Any) -> dict[str, Any]:
    content = copy.deepcopy(CONTENT)
    content[where][0] |= values
    return content


def load(root: Path, content: Any, **options: Any) -> CocoSet:
    folder = root / "images"
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40)).save(folder / "a.png")
    (root / "x.json").write_text(json.dumps(content))
    return CocoSet(root / "x.json", folder, **options)


@pytest.mark.parametrize(
    ("where", "values", "said"),
    [
        ("images", dict(width="60", height="40"), "2 numbers written as text"),
        ("images", dict(width=60.0, height=40.0), "2 whole floats in place of integers"),
        ("images", dict(width=-1, height=-1), "1 sizes of 0 or -1, read from the picture"),
        ("images", dict(width=0, height=0), "1 sizes of 0 or -1, read from the picture"),
        ("images", dict(id=1.0), "1 whole floats in place of integers"),
        ("images", dict(id="1"), "2 numbers written as text"),
        ("annotations", dict(id=1.0), "1 whole floats in place of integers"),
        ("annotations", dict(image_id="1"), "1 numbers written as text"),
        ("annotations", dict(image_id=1.0, category_id=1.0), "2 whole floats in place of integers"),
        ("annotations", dict(category_id="1"), "1 numbers written as text"),
        ("annotations", dict(bbox=["8", "9.0", "30", 20]), "3 numbers written as text"),
        ("annotations", dict(bbox="[8, 9, 30, 20]"), "1 numbers written as text"),
        ("annotations", dict(area="600"), "1 numbers written as text"),
        ("annotations", dict(iscrowd="0"), "1 other forms of iscrowd than 0 and 1"),
        ("annotations", dict(iscrowd=False), "1 other forms of iscrowd than 0 and 1"),
        ("annotations", dict(iscrowd=0.0), "1 other forms of iscrowd than 0 and 1"),
        ("annotations", dict(iscrowd="False"), "1 other forms of iscrowd than 0 and 1"),
        ("annotations", dict(iscrowd=None), "1 other forms of iscrowd than 0 and 1"),
        ("categories", dict(id="1"), "1 numbers written as text"),
        ("categories", dict(id=1.0), "1 whole floats in place of integers"),
        ("categories", dict(name=7), "1 names that are numbers"),
    ],
)
def test_plain_values_are_taken_and_counted(tmp_path: Path, where: str, values: dict[str, Any], said: str):
    with pytest.warns(TranseptWarning, match=f"^'.*x.json': {said}: taken for what they mean$") as caught:
        found = load(tmp_path, changed(where, **values))
    assert len(caught) == 1
    target = found[0][1]
    assert target["boxes"].tolist() == [[8, 9, 38, 29], [2, 3, 12, 13]]
    assert target["iscrowd"].tolist() == [False, True]
    assert target["area"].tolist() == [600, 100]
    assert (found.sizes, found.category_ids) == ([(40, 60)], [1])
    assert found.classes == [str(values.get("name", "cell"))]
    truth = found.ground_truth()
    best = [each | {"score": 0.9} for each in truth["annotations"][:1]]
    assert detection_scores(truth, best).map == 1


def test_kinds_are_counted_in_one_line(tmp_path: Path):
    content = changed("annotations", bbox=["8", "9", "30", "20"], iscrowd="0", id=1.0)
    said = "4 numbers written as text, 1 other forms of iscrowd than 0 and 1"
    with pytest.warns(TranseptWarning, match=f"1 whole floats in place of integers, {said}: taken"):
        load(tmp_path, content)


@pytest.mark.parametrize(
    ("where", "values", "message"),
    [
        ("images", dict(id=True), r"images\[0\] has the id True; ids are numbers"),
        ("images", dict(id=1.5), r"images\[0\] has the id 1.5; ids are numbers"),
        ("images", dict(width="wide"), r"image 1 \('a.png'\) has the size wide x 40"),
        ("images", dict(width=60.5), r"image 1 \('a.png'\) has the size 60.5 x 40"),
        ("images", dict(width=-1), r"image 1 \('a.png'\) has the size -1 x 40"),
        ("annotations", dict(id=True), r"annotations\[0\] has the id True; ids are numbers"),
        ("annotations", dict(image_id=True), r"annotations\[0\] has the image_id True; ids are numbers"),
        ("annotations", dict(category_id=1.5), r"annotations\[0\] has the category_id 1.5; ids are numbers"),
        ("annotations", dict(category_id="cell"), "annotation 1 has the category 'cell', which is not in"),
        ("annotations", dict(category_id="01"), "annotation 1 has the category '01', which is not in"),
        ("annotations", dict(iscrowd="maybe"), "annotation 1 has the iscrowd 'maybe'; give 0 or 1"),
        ("annotations", dict(iscrowd=2), "annotation 1 has the iscrowd 2; give 0 or 1"),
        ("annotations", dict(bbox=["x", 9, 30, 20]), r"annotation 1 has the bbox \['x', 9, 30, 20\]; give \[x, y"),
        ("annotations", dict(bbox=[True, 9, 30, 20]), r"annotation 1 has the bbox \[True, 9, 30, 20\]; give"),
        ("annotations", dict(bbox=["nan", 9, 30, 20]), r"annotation 1 has the bbox \['nan', 9, 30, 20\]; give"),
        ("annotations", dict(bbox=[10**400, 9, 30, 20]), "annotation 1 has the bbox .*; give"),
        ("annotations", dict(area="large"), "annotation 1 has the area 'large'; give pixels, or none for that of"),
        ("annotations", dict(area=float("nan")), "annotation 1 has the area nan; give pixels"),
        ("categories", dict(id=True), r"categories\[0\] has no number 'id' or no 'name'"),
        ("categories", dict(name=True), r"categories\[0\] has no number 'id' or no 'name'"),
    ],
)
def test_other_values_are_refused(tmp_path: Path, where: str, values: dict[str, Any], message: str):
    with pytest.raises(TranseptError, match=message) as caught:
        load(tmp_path, changed(where, **values))
    assert "\n" not in str(caught.value)


def test_masks_as_tools_write_them(tmp_path: Path):
    whole = np.zeros((40, 60), np.uint8, order="F")
    whole[9:29, 8:38] = 1
    counts = mask_api.encode(whole)["counts"].decode()
    content = changed("annotations", segmentation={"size": [40.0, 60.0], "counts": counts})
    content["annotations"][1]["segmentation"] = [["2", "3", "12", "3", 12, 13.0, 2, 13]]
    with pytest.warns(TranseptWarning, match="2 whole floats in place of integers, 4 numbers written as text: taken"):
        found = load(tmp_path, content, masks=True)
    masks = found[0][1]["masks"].numpy()
    assert (masks[0] == whole).all()
    assert (masks[1].sum(), masks[1, 3:13, 2:12].sum()) == (100, 100)
    truth = json.loads(json.dumps(found.ground_truth()))
    assert truth["annotations"][0]["segmentation"]["size"] == [40, 60]
    assert detection_scores(truth, [truth["annotations"][0] | {"score": 0.9}], "segm").map == 1


def test_validation_has_the_boxes_that_are_learnt(tmp_path: Path):
    """The area stays as annotated: COCO's evaluation sorts objects by it."""
    found = load(tmp_path, changed("annotations", bbox=[-30, 10, 70, 50], area=3500))
    x1, y1, x2, y2 = found[0][1]["boxes"][0].tolist()
    truth = found.ground_truth()
    result = {"image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 0.9}
    assert detection_scores(truth, [result]).map == 1
    assert (truth["annotations"][0]["bbox"], truth["annotations"][0]["area"]) == ([0, 10, 40, 30], 3500)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sub/a.png", None),
        ("../images/a.png", None),
        ("sub\\a.png", "paths with Windows separators"),
        ("..\\images\\a.png", "paths with Windows separators"),
        ("/home/me/sub/a.png", "paths of another place, found by their end"),
        ("C:\\Users\\me\\sub\\a.png", "paths of another place, found by their end"),
        ("C:/Users/me/only.png", "paths of another place, found by their end"),
        ("images/a.png", "paths of another place, found by their end"),
        ("../../images/a.png", "paths of another place, found by their end"),
    ],
)
def test_names_from_other_machines(tmp_path: Path, name: str, said: str | None):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    Image.new("RGB", (60, 40), "red").save(tmp_path / "images" / "sub" / "a.png")
    Image.new("RGB", (60, 40), "red").save(tmp_path / "images" / "sub" / "only.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load(tmp_path, changed("images", file_name=name))
    assert [str(each.message).partition(": ")[2] for each in caught] == (
        [f"1 {said}: taken for what they mean"] if said else []
    )
    red = "sub" in name or "only" in name
    assert found[0][0][:, 0, 0].tolist() == [255 if red else 0, 0, 0]


def test_nothing_outside_of_the_data_is_opened(tmp_path: Path):
    outside = tmp_path / "other" / "b.png"
    outside.parent.mkdir()
    Image.new("RGB", (60, 40)).save(outside)
    for name in (str(outside), "../../other/b.png"):
        with pytest.raises(TranseptError, match="image 1 .*b.png'. is outside of the data folder, which has no such"):
            load(tmp_path / "set", changed("images", file_name=name))
    for folder in ("1", "2"):
        (tmp_path / "set" / "images" / folder).mkdir()
        Image.new("RGB", (60, 40)).save(tmp_path / "set" / "images" / folder / "b.png")
    with pytest.raises(TranseptError, match="is outside of the data folder"):  # it could be either
        load(tmp_path / "set", changed("images", file_name="/home/me/b.png"))
    (tmp_path / "set" / "images" / "link").symlink_to(outside.parent)  # a link is meant
    assert len(load(tmp_path / "set", changed("images", file_name="link/b.png"))) == 1


def test_one_file_does_not_stand_for_two(tmp_path: Path):
    content = changed("images", file_name="/home/me/1/a.png")
    content["images"].append(content["images"][0] | {"id": 2, "file_name": "/home/me/2/a.png"})
    with pytest.raises(TranseptError, match="2 entries .*image 1, .*a.png', would stand for several images"):
        load(tmp_path, content)


def test_annotations_are_objects_again(tmp_path: Path):
    """Columns hold what the file has; objects within annotations are not taken for some."""
    content = changed("annotations", attributes={"image_id": 7}, segmentation=[[1.5, 2, 3, 4, 5, 6]])
    del content["annotations"][1]["image_id"]
    (tmp_path / "x.json").write_text(json.dumps(content))
    found = read_coco(tmp_path / "x.json")["annotations"]
    assert isinstance(found, Annotations)
    del content["annotations"][0]["attributes"]
    assert list(found) == content["annotations"]
    assert (found[-1], found[:1]) == (content["annotations"][1], content["annotations"][:1])
    assert list(Annotations(found)) == content["annotations"]
