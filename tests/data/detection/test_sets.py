"""COCO files as they are found: what is read is exact, what cannot be used is named; transforms move all together."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from transept.data.detection.coco_set import CocoSet
from transept.data.detection.masks import _fills
from transept.data.detection.sets import load_detection_splits
from transept.data.detection.transforms import (
    DetectionAugmentation,
    DetectionPreprocessing,
    collate_detections,
    detection_eval_transform,
    detection_train_transform,
)
from transept.data.loading import AspectRatioBatchSampler, Draw, JointlyTransformedSet, make_loader
from transept.errors import TranseptError

mask_api = pytest.importorskip("pycocotools.mask")

SQUARE = [[2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]]  # columns 2..11, rows 3..8
BLOB = np.zeros((20, 30), np.uint8)
BLOB[5:11, 20:28] = 1
BLOB[7, 22] = 0


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """COCO's run lengths: columns first, zeros first."""
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": counts if flat[0] == 0 else [0, *counts]}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_api.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


CONTENT: dict[str, Any] = {
    "images": [
        {"id": 70, "file_name": "a.png", "width": 30, "height": 20},
        {"id": 9, "file_name": "b.png", "width": 24, "height": 32},
        {"id": 11, "file_name": "c.png"},  # some files leave the size out
    ],
    "categories": [{"id": 90, "name": "zebra"}, {"id": 3, "name": "ant"}, {"id": 17, "name": "cat"}],
    "annotations": [
        {"id": 5, "image_id": 70, "category_id": 90, "bbox": [2, 3, 10, 6], "area": 60, "segmentation": SQUARE},
        {
            "id": 8,
            "image_id": 70,
            "category_id": 3,
            "bbox": [20, 5, 8, 6],
            "area": 47,
            "iscrowd": 1,
            "segmentation": uncompressed(BLOB),
        },
        {"id": 6, "image_id": 9, "category_id": 17, "bbox": [-4, 20, 10, 40], "segmentation": [[0, 20, 6, 20, 6, 32]]},
        {"id": 7, "image_id": 70, "category_id": 3, "bbox": [20, 5, 8, 6], "segmentation": compressed(BLOB)},
    ],
}


def write(root: Path, content: Any = CONTENT) -> tuple[Path, Path]:
    folder = root / "val2017"
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in {"a.png": (30, 20), "b.png": (24, 32), "c.png": (40, 50)}.items():
        Image.new("RGB", size, (10, 20, 30)).save(folder / name)
    file = root / "instances.json"
    file.write_text(json.dumps(content))
    return file, folder


def changed(**annotation: Any) -> dict[str, Any]:
    content = copy.deepcopy(CONTENT)
    content["annotations"][0] |= annotation
    return content


def refused(root: Path, content: Any, message: str, *, masks: bool = False) -> None:
    with pytest.raises(TranseptError, match=message) as caught:
        CocoSet(*write(root, content), masks=masks)
    assert "\n" not in str(caught.value)


def test_a_file_as_found(tmp_path: Path):
    found = CocoSet(*write(tmp_path), masks=True)
    assert found.classes == ["ant", "cat", "zebra"]
    assert found.category_ids == [3, 17, 90]
    assert found.image_ids == [70, 9, 11]
    assert found.sizes == [(20, 30), (32, 24), (50, 40)]
    picture, target = found[0]
    assert isinstance(picture, tv_tensors.Image)
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
    assert target["boxes"].canvas_size == (20, 30)
    assert target["boxes"].tolist() == [[2, 3, 12, 9], [20, 5, 28, 11], [20, 5, 28, 11]]
    assert target["labels"].tolist() == [2, 0, 0]
    assert target["iscrowd"].tolist() == [False, True, False]
    assert target["area"].tolist() == [60, 47, 48]
    assert (target["image_id"], target["original_size"].tolist()) == (70, [20, 30])
    square = np.zeros((20, 30), np.uint8)
    square[3:9, 2:12] = 1
    for mask, expected in zip(target["masks"].numpy(), [square, BLOB, BLOB], strict=True):
        assert (mask == expected).all()
    clipped = found[1][1]
    assert clipped["boxes"].tolist() == [[0, 20, 6, 32]]
    assert found.left_out == {"boxes clipped at the border": 1}
    empty = found[2][1]
    assert (empty["boxes"].shape, empty["masks"].shape, empty["labels"].dtype) == ((0, 4), (0, 50, 40), torch.int64)
    assert "masks" not in CocoSet(*write(tmp_path))[0][1]


def test_training_leaves_out_what_it_cannot_learn_from(tmp_path: Path):
    content = copy.deepcopy(CONTENT)
    content["annotations"] += [
        {"id": 30, "image_id": 11, "category_id": 3, "bbox": [1, 1, 0.5, 9]},
        {"id": 31, "image_id": 9, "category_id": 3, "bbox": [1, 1, 5, 1.5]},
    ]
    content["images"][1] |= {"height": 32, "width": 24}
    found = CocoSet(*write(tmp_path, content), drop_empty=True)
    assert found.image_ids == []  # 20 and 24 pixels are too little, and the third has a sliver only
    assert found.left_out == {
        "boxes clipped at the border": 1,
        "boxes under 1 px": 1,
        "pictures under 32 px": 2,
        "pictures without objects": 1,
    }
    kept = CocoSet(*write(tmp_path, content), min_size=2)
    assert [len(target["labels"]) for _, target in kept] == [3, 1, 0]
    assert len(kept.ground_truth()["annotations"]) == 6  # what is too small to learn is still evaluated


def test_crowds_alone_are_no_objects(tmp_path: Path):
    content = copy.deepcopy(CONTENT)
    content["annotations"] = [content["annotations"][1] | {"image_id": 11}]
    assert CocoSet(*write(tmp_path, content), drop_empty=True).left_out["pictures without objects"] == 3


def test_ground_truth_is_what_coco_tools_read(tmp_path: Path):
    coco = pytest.importorskip("faster_coco_eval").COCO
    truth = CocoSet(*write(tmp_path), masks=True).ground_truth()
    read = coco(copy.deepcopy(truth))
    assert sorted(read.cats) == [3, 17, 90]
    assert [annotation["id"] for annotation in truth["annotations"]] == [1, 2, 3, 4]
    assert [annotation["area"] for annotation in truth["annotations"]] == [60, 47, 48, 72]
    assert truth["annotations"][3]["bbox"] == [0, 20, 6, 12]  # as the target is
    assert (read.annToMask(read.anns[3]) == BLOB).all()


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (dict(bbox=[1, 2, 0, 5]), r"1 entry of '.*instances.json' cannot be used: annotation 5 .*no area"),
        (dict(bbox=[1, 2, -3, 5]), r"annotation 5 has the bbox \[1, 2, -3, 5\], which has no area"),
        (dict(bbox=[1, 2, float("nan"), 5]), r"annotation 5 has the bbox \[1, 2, nan, 5\], which is not finite"),
        (dict(bbox=[31, 2, 4, 5]), r"annotation 5 has the bbox .* outside its picture of 30 x 20"),
        (dict(bbox=[1, 2, 3]), r"annotation 5 has the bbox \[1, 2, 3\]; give \[x, y, width, height\]"),
        (dict(bbox=None), "annotation 5 has no bbox; give"),
        (dict(category_id=4), "annotation 5 has the category 4, which is not in 'categories'"),
        (dict(image_id=71), "annotation 5 is of image 71, which is not in 'images'"),
        (dict(id=8), "annotation 8 has an id that another annotation has"),
        (dict(image_id=[70]), r"annotations\[0\] has the image_id \[70\]"),
    ],
)
def test_bad_annotations_are_named(tmp_path: Path, annotation: dict[str, Any], message: str):
    refused(tmp_path, changed(**annotation), message)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "annotation 5 has no segmentation, which masks need"),
        ([[1, 2, 3, 4]], "annotation 5 has a polygon of 4 numbers; it needs pairs, three or more"),
        ([[1, 2, 3, 4, 5, 6, 7]], "has a polygon of 7 numbers"),
        ([1, 2, 3, 4, 5, 6], "is no list of polygons"),
        ([[1, 2, 3, 4, 5, float("inf")]], "has a polygon that is not finite"),
        (uncompressed(BLOB.T), r"has run lengths of the size \[30, 20\], but its picture is \[20, 30\]"),
        ({"size": [20, 30], "counts": [5, 6]}, "has run lengths that do not add up to 600 pixels"),
        ({"size": [20, 30], "counts": "zzzz"}, "has compressed run lengths that do not decode to 600 pixels"),
        ({"size": [20, 30]}, "has a segmentation that is neither polygons nor run lengths"),
    ],
)
def test_bad_masks_are_named(tmp_path: Path, segmentation: Any, message: str):
    content = changed(segmentation=segmentation)
    refused(tmp_path, content, message, masks=True)
    assert len(CocoSet(*write(tmp_path, content))[0][1]["labels"]) == 3  # boxes do not need them


def test_run_lengths_are_checked_as_pycocotools_decodes_them():
    rng = np.random.default_rng(0)
    for density in (0.01, 0.3, 0.9, 0, 1):
        mask = (rng.random((37, 53)) < density).astype(np.uint8)
        counts = compressed(mask)["counts"]
        assert _fills(counts, (37, 53))
        assert not _fills(counts, (37, 54))
        assert not _fills(counts[:-1] + chr(ord(counts[-1]) ^ 1), (37, 53))


def test_bad_images_are_named(tmp_path: Path):
    def with_image(position: int, **changes: Any) -> dict[str, Any]:
        content = copy.deepcopy(CONTENT)
        content["images"][position] |= changes
        return content

    refused(tmp_path, with_image(0, file_name="no.png"), "image 70, '.*val2017/no.png', does not exist")
    refused(tmp_path, with_image(0, width=31), "image 70, '.*a.png', is 30 x 20, not 31 x 20")
    refused(tmp_path, with_image(0, width=-1), r"image 70 \('a.png'\) has the size -1 x 20")
    refused(tmp_path, with_image(2, id=9), r"image 9 \('c.png'\) has an id that another image has")
    refused(tmp_path, with_image(1, file_name=None), r"images\[1\] has no 'id' or no 'file_name'")
    file, folder = write(tmp_path)
    (folder / "b.png").write_text("hello")
    with pytest.raises(TranseptError, match="image 9, '.*b.png', is no picture of a known format"):
        CocoSet(file, folder)


def test_pictures_of_which_none_is_there(tmp_path: Path):
    """All of them at once are no bad annotations: the folder is another one."""
    file, _ = write(tmp_path)
    file.rename(tmp_path / "cats.json")
    (tmp_path / "val2017").rename(tmp_path / "pics")
    for folder in ("images", "images/cats"):
        (tmp_path / folder).mkdir()
    with pytest.raises(TranseptError, match="none of the pictures .1. that '.*cats.json' names is there") as caught:
        load_detection_splits(str(tmp_path / "cats.json"), skip_bad_annotations=True)
    said = str(caught.value)
    assert all(repr(str(tmp_path / each)) in said for each in ("images/cats", "images", "."))
    assert "skip" not in said
    for picture in (tmp_path / "pics").iterdir():
        picture.rename(tmp_path / "images" / "cats" / picture.name)
    assert len(load_detection_splits(str(tmp_path / "cats.json"), keep_empty=True).train) == 2


def test_files_that_are_no_coco(tmp_path: Path):
    refused(tmp_path, [], "instances.json' is no COCO file: it holds a list, not an object with 'images'")
    refused(tmp_path, {"images": []}, "is no COCO file: it has no 'annotations'")
    refused(tmp_path, {**CONTENT, "categories": {}}, "is no COCO file: its 'categories' is no list")
    refused(tmp_path, {**CONTENT, "categories": []}, "has no categories")
    refused(tmp_path, {**CONTENT, "categories": [{"id": 1}]}, r"categories\[0\] has no number 'id' or no 'name'")
    twice = [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]
    refused(tmp_path, {**CONTENT, "categories": twice}, "gives the category id 1 to 'a' and 'b'")
    refused(tmp_path, {**CONTENT, "annotations": [7]}, r"annotations\[0\] is no object")
    file, folder = write(tmp_path)
    file.write_text(json.dumps(CONTENT)[:-9])
    with pytest.raises(TranseptError, match="instances.json' is not JSON .*line 1 column"):
        CocoSet(file, folder)
    with pytest.raises(TranseptError, match="cannot read '.*no.json' .No such file"):
        CocoSet(tmp_path / "no.json", folder)


def test_all_are_counted_and_left_out_on_request(tmp_path: Path):
    content = changed(bbox=[1, 2, 0, 5])
    content["annotations"][1]["category_id"] = 4
    content["annotations"][2]["image_id"] = 1
    content["images"][2]["file_name"] = "no.png"
    refused(tmp_path, content, "4 entries of .*: image 11, .*; annotation 5 .*; annotation 8 .*; and 1 more; leave")
    found = CocoSet(*write(tmp_path, content), skip_bad_annotations=True)
    assert len(found.skipped) == 4
    assert found.image_ids == [70, 9]
    assert [len(target["labels"]) for _, target in found] == [1, 0]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_boxes_lie_where_the_annotator_drew_them(tmp_path: Path, orientation: int):
    """The size that the file gives says whether it describes the picture upright or as stored."""
    stored = np.zeros((20, 30, 3), np.uint8)
    stored[3:9, 2:12] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    file, folder = write(tmp_path, {**CONTENT, "annotations": CONTENT["annotations"][:1]})
    Image.fromarray(stored).save(folder / "a.png", exif=exif)
    picture, target = CocoSet(file, folder)[0]
    if orientation in (1, 6, 8):
        x1, y1, x2, y2 = target["boxes"][0].int().tolist()
        assert picture[:, y1:y2, x1:x2].min() == 255
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    upright = np.rot90(stored, turns)
    content = {**CONTENT, "annotations": []}
    content["images"] = [{"id": 70, "file_name": "a.png", "width": upright.shape[1], "height": upright.shape[0]}]
    file.write_text(json.dumps(content))
    assert (CocoSet(file, folder)[0][0].permute(1, 2, 0).numpy() == upright).all()


def make_set(root: Path, layout: str) -> Path:
    for half in ("train", "val"):
        file, folder = (root / name.replace("HALF", half) for name in layout.split())
        folder.mkdir(parents=True, exist_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40)).save(folder / f"{half}.png")
        content = {
            "images": [{"id": 1, "file_name": f"{half}.png", "width": 60, "height": 40}],
            "categories": CONTENT["categories"],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 9, 9]}],
        }
        file.write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    "layout",
    [
        "annotations/instances_HALF2017.json HALF2017",
        "annotations/HALF.json images/HALF",
        "HALF/_annotations.coco.json HALF",
        "HALF.json images",
    ],
)
def test_layouts(tmp_path: Path, layout: str):
    splits = load_detection_splits(str(make_set(tmp_path, layout)))
    assert splits.train.paths[0].name == "train.png"
    assert splits.val.paths[0].name == "val.png"
    assert (len(splits.train), len(splits.val), splits.category_ids) == (1, 1, [3, 17, 90])


def test_wrong_folders(tmp_path: Path):
    def refuses(data: Path | str, message: str) -> None:
        with pytest.raises(TranseptError, match=message):
            load_detection_splits(str(data))

    refuses("digit-scenes", "there is no data 'digit-scenes'; give 'digits-scenes' or a folder with COCO")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", "has no annotations; COCO's are 'annotations/instances_val2017.json'")
    root = make_set(tmp_path / "set", "HALF.json images")
    content = json.loads((root / "val.json").read_text())
    content["categories"][2]["name"] = "dog"
    (root / "val.json").write_text(json.dumps(content))
    refuses(root, "category 17 is 'cat' in '.*train.json' and 'dog' in '.*val.json'; both must have the same")
    content = json.loads((root / "train.json").read_text())
    (root / "val.json").write_text(json.dumps(content | {"images": [], "annotations": []}))
    refuses(root, "val.json' has no pictures that can be used")
    (root / "val.json").write_text(json.dumps(content))
    (root / "train.json").write_text(json.dumps(content | {"annotations": []}))
    refuses(root, "train.json' has no pictures that can be used; 1 pictures without objects")
    assert len(load_detection_splits(str(root), keep_empty=True).train) == 1


def test_digits_scenes(tmp_path: Path):
    splits = load_detection_splits("digits-scenes", masks=True, scenes=(5, 4))
    assert (len(splits.train), len(splits.val), splits.classes[3]) == (5, 4, "3")
    truth = splits.val.ground_truth()
    assert len(truth["annotations"]) == sum(len(target["labels"]) for _, target in splits.val)
    for number, (picture, target) in enumerate(splits.val):
        assert tuple(picture.shape[1:]) == splits.val.sizes[number]
        assert torch.equal(masks_to_boxes(target["masks"]) + torch.tensor([0, 0, 1, 1]), target["boxes"])
        mine = [each for each in truth["annotations"] if each["image_id"] == target["image_id"]]
        assert [each["category_id"] - 1 for each in mine] == target["labels"].tolist()
        decoded = np.stack([mask_api.decode(each["segmentation"]) for each in mine])
        assert (decoded == target["masks"].numpy()).all()


@pytest.mark.parametrize(
    ("name", "pictures", "boxes", "last_id"),
    [("coco_mini", 48, 359, 90), ("bccd", 205, 2804, 3), ("nuclei", 104, 2174, 1)],
)
def test_real_sets(shared_data: Path, name: str, pictures: int, boxes: int, last_id: int):
    masks = name != "bccd"
    splits = load_detection_splits(str(shared_data / name), masks=masks, skip_bad_annotations=False)
    assert (len(splits.train), splits.category_ids[-1], splits.skipped) == (pictures, last_id, [])
    assert len(splits.train.ground_truth()["annotations"]) == boxes
    crowds = 0
    for index in range(0, pictures, 4):
        picture, target = splits.train[index]
        assert tuple(picture.shape[1:]) == splits.train.sizes[index]
        crowds += int(target["iscrowd"].sum())
        if masks:
            assert torch.equal(masks_to_boxes(target["masks"]) + torch.tensor([0, 0, 1, 1]), target["boxes"])
            assert (target["masks"].sum((1, 2)) == target["area"]).all()


# Transforms

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))


def painted(height: int = 400, width: int = 600, crowd: int | None = None) -> tuple[tv_tensors.Image, dict[str, Any]]:
    """Four rectangles of pure colours on black; the label is the colour's number."""
    boxes = torch.tensor([[50, 40, 150, 100], [200, 220, 260, 380], [400, 60, 590, 200], [330, 300, 420, 390]])
    picture = torch.zeros(3, height, width, dtype=torch.uint8)
    masks = torch.zeros(4, height, width, dtype=torch.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        picture[:, y1:y2, x1:x2] = torch.tensor(COLORS[number], dtype=torch.uint8)[:, None, None]
        masks[number, y1:y2, x1:x2] = 1
    target = {
        "boxes": tv_tensors.BoundingBoxes(boxes.float(), format="XYXY", canvas_size=(height, width)),
        "labels": torch.arange(4),
        "masks": tv_tensors.Mask(masks),
        "iscrowd": torch.arange(4) == (-1 if crowd is None else crowd),
        "area": masks.sum((1, 2)).float(),
        "image_id": 1,
        "original_size": torch.tensor([height, width]),
    }
    return tv_tensors.Image(picture), target


PLAIN = DetectionPreprocessing(scale=(667, 400), mean=(0, 0, 0), std=(1, 1, 1))
PUBLISHED = DetectionAugmentation(
    short_sides=(240, 272, 304), crop_resize=0.5, crop_short_sides=(200, 250, 300), crop_sides=(150, 250)
)


def check_in_step(image: torch.Tensor, target: dict[str, Any]) -> None:
    """Each box frames its colour to within the pixel that the bilinear resize blurs, and its mask lies in it."""
    for label, box, mask in zip(target["labels"], target["boxes"], target["masks"], strict=True):
        like = (image - torch.tensor(COLORS[label])[:, None, None] / 255).abs().amax(0) < 0.49
        found = masks_to_boxes(like[None])[0] + torch.tensor([0, 0, 1, 1])
        assert (found - box).abs().max() <= 1.5, (label, found, box)
        assert (mask.bool() != like).float().mean() < 0.03
        if mask.any():
            framed = masks_to_boxes(mask[None])[0] + torch.tensor([0, 0, 1, 1])
            assert (framed - box).abs().max() <= 2.5  # two resizes to the nearest pixel, up to one off each


def test_picture_boxes_and_masks_stay_in_step():
    transform = detection_train_transform(PLAIN, PUBLISHED)
    left, sizes, counts = 0, set(), []
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = transform(*painted())
        assert type(image) is type(target["boxes"]) is type(target["masks"]) is torch.Tensor
        assert set(target) == {"boxes", "labels", "masks", "image_id", "original_size"}
        check_in_step(image, target)
        sizes.add(min(image.shape[1:]))
        counts.append(len(target["labels"]))
        if counts[-1] == 4:
            left += int(target["boxes"][0, 0] < target["boxes"][2, 0])
    assert {240, 272, 304} <= sizes
    assert min(counts) < 4 == max(counts)  # crops lose objects, half of the time
    assert 15 < counts.count(4) < 40
    assert 5 < left < counts.count(4) - 5  # flips


def test_plain_schedule_and_its_options():
    def run(**options: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        torch.manual_seed(0)
        return detection_train_transform(PLAIN, DetectionAugmentation(**{"flip": 0.0, **options}))(*painted())

    image, target = run()
    assert image.shape == (3, 400, 600)
    assert torch.equal(target["boxes"], painted()[1]["boxes"].as_subclass(torch.Tensor))
    flipped = run(flip=1.0)
    assert torch.equal(flipped[0], image.flip(-1))
    assert flipped[1]["boxes"][0].tolist() == [450, 40, 550, 100]
    turned = run(flip_vertical=1.0)
    assert torch.equal(turned[0], image.flip(-2))
    assert turned[1]["boxes"][0].tolist() == [50, 300, 150, 360]
    jittered = run(color_jitter=0.5)
    assert not torch.equal(jittered[0], image)
    assert torch.equal(jittered[1]["boxes"], target["boxes"])
    assert run(short_sides=(200,))[0].shape == (3, 200, 300)
    check_in_step(*run(crop_resize=1.0, crop_short_sides=(300,), crop_sides=(160, 180)))


def test_crowds_are_not_learnt():
    _, target = detection_train_transform(PLAIN, DetectionAugmentation())(*painted(crowd=1))
    assert target["labels"].tolist() == [0, 2, 3]
    assert len(target["masks"]) == 3


def test_pictures_without_objects_pass():
    picture, target = painted()
    for name in ("boxes", "masks", "labels", "iscrowd", "area"):
        value = target[name]
        kept = value[:0]
        target[name] = tv_tensors.wrap(kept, like=value) if isinstance(value, tv_tensors.TVTensor) else kept
    torch.manual_seed(2)
    transform = detection_train_transform(PLAIN, DetectionAugmentation(short_sides=(200,), crop_resize=1.0))
    image, out = transform(picture, target)
    assert out["boxes"].shape == (0, 4)
    assert out["masks"].shape == (0, *image.shape[1:])


def test_evaluation_keeps_every_object():
    image, target = detection_eval_transform(DetectionPreprocessing(scale=(300, 150)))(*painted(crowd=1))
    assert image.shape == (3, 150, 225)
    assert target["boxes"][0].tolist() == [18.75, 15, 56.25, 37.5]
    assert target["iscrowd"].tolist() == [False, True, False, False]
    assert detection_eval_transform(PLAIN, scale=(600, 200))(*painted())[0].shape == (3, 200, 300)


def test_blue_first():
    bgr = DetectionPreprocessing(scale=(600, 400), mean=(0.1, 0.2, 0.3), std=(1 / 255,) * 3, bgr=True)
    image, target = detection_eval_transform(bgr)(*painted())
    x1, y1, _, _ = target["boxes"][2].int().tolist()  # blue
    assert image[:, y1 + 3, x1 + 3].tolist() == pytest.approx([0.9 * 255, -0.2 * 255, -0.3 * 255], rel=1e-5)


def test_normalised_by_the_picture_itself():
    """A picture taken in a third of the light comes out the same, up to the rounding of its 8 bits."""
    own = detection_eval_transform(DetectionPreprocessing(scale=(600, 400), per_picture=True))
    picture, target = painted()
    bright, dark = own(picture, target)[0], own(tv_tensors.Image(picture // 3), target)[0]
    assert float(bright.mean()) == pytest.approx(0, abs=1e-5)
    assert float(bright.std()) == pytest.approx(1, rel=1e-5)
    assert float((bright - dark).abs().max()) < 0.05
    one_colour = own(tv_tensors.Image(torch.full_like(picture, 7)), target)[0]
    assert float(one_colour.abs().max()) < 1e-3


def test_batches_are_padded():
    samples = [(torch.ones(3, 40, 70), {"image_id": 1}), (torch.ones(3, 65, 30), {"image_id": 2})]
    batch = collate_detections(samples)
    assert batch.images.shape == (2, 3, 96, 96)
    assert batch.sizes.tolist() == [[40, 70], [65, 30]]
    assert batch.images.sum((1, 2, 3)).tolist() == [3 * 40 * 70, 3 * 65 * 30]
    assert batch.images[1, :, :65, :30].min() == 1
    assert [target["image_id"] for target in batch.targets] == [1, 2]
    assert collate_detections(samples, multiple_of=8).images.shape == (2, 3, 72, 72)


SIZES = [(40, 60) if i % 3 else (60, 40) for i in range(50)]


def epoch(batches: AspectRatioBatchSampler) -> list[list[Draw]]:
    drawn = list(batches)
    assert len(drawn) == len(batches) or batches.epoch == batches.start_epoch
    return drawn


def test_batches_have_one_shape():
    sampler = AspectRatioBatchSampler(SIZES, seed=1, batch_size=4)
    drawn = epoch(sampler)
    assert [len(batch) for batch in drawn] == [4] * 12
    mixed = [batch for batch in drawn if len({SIZES[draw.sample] for draw in batch}) > 1]
    assert mixed in ([], [drawn[-1]])
    seen = [draw.sample for batch in drawn for draw in batch]
    assert len(set(seen)) == len(seen) == 48
    assert len({draw.seed for batch in drawn for draw in batch}) == 48
    sampler.set_epoch(1)
    assert epoch(sampler) != drawn
    assert epoch(AspectRatioBatchSampler(SIZES, seed=2, batch_size=4)) != drawn
    resumed = AspectRatioBatchSampler(SIZES, seed=1, batch_size=4, start_batch=5)
    assert list(resumed) == drawn[5:]
    resumed.set_epoch(1)
    sampler.set_epoch(1)
    assert list(resumed) == list(sampler)
    few = AspectRatioBatchSampler(SIZES[:3], seed=1, batch_size=4)
    assert [len(batch) for batch in few] == [3]
    assert len(few) == 1


def batch_sums(workers: int = 0, start: int = 0) -> list[float]:
    scenes = load_detection_splits("digits-scenes", masks=True, scenes=(12, 1)).train
    dataset = JointlyTransformedSet(
        scenes, detection_train_transform(PLAIN, DetectionAugmentation(short_sides=(96, 128)))
    )
    sampler = AspectRatioBatchSampler(scenes.sizes, seed=3, batch_size=4, start_batch=start)
    loader = make_loader(dataset, 4, sampler=sampler, workers=workers, collate=collate_detections)
    return [
        float(batch.images.double().sum() + sum(t["boxes"].double().sum() + t["masks"].sum() for t in batch.targets))
        for batch in loader
    ]


def test_batches_depend_on_seed_and_epoch_alone():
    plain = batch_sums()
    assert len(plain) == 3
    assert batch_sums(start=1) == plain[1:]
    assert batch_sums(workers=1) == plain  # in another process


def test_impossible_options_are_refused():
    for wrong, message in [
        (dict(flip=1.2), "^flip=1.2 is not in"),
        (dict(color_jitter=-1), "^color_jitter=-1 must not be negative"),
        (dict(crop_sides=(9, 4)), r"^crop_sides=\[9, 4\]"),
        (dict(short_sides=(0,)), r"^short_sides=\[0\]"),
        (dict(crop_short_sides=()), r"^crop_short_sides=\[\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            DetectionAugmentation(**wrong)
    with pytest.raises(ValueError, match="multiple_of=0"):
        DetectionPreprocessing(multiple_of=0)


def test_each_annotation_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = make_set(tmp_path, "HALF.json images")
    parsed: list[int] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text, **hook: parsed.append(len(text)) or loads(text, **hook))
    load_detection_splits(str(data))
    assert len(parsed) == 2  # the training and the validation half
