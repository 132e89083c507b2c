"""Which splits data has, under the names that people give them, and which of them are read."""

import json
import os
import re
import shlex
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from transept.data.classification.sets import load_splits
from transept.data.detection.sets import load_detection_splits
from transept.data.images import find_images
from transept.data.segmentation.sets import load_segmentation_splits
from transept.data.splits import Choice, Parts, kind_of, take
from transept.errors import TranseptError, TranseptWarning, UsageError
from transept.files import files_below

EVAL = Choice(held_out=False)


def fill(root: Path, **classes: int) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(root / name / f"{name}-{i}.png")
    return root


def coco(
    file: Path,
    folder: Path,
    *,
    before: str = "",
    count: int = 5,
    names: Sequence[tuple[int, str]] = ((1, "cell"),),
    objects: Sequence[int] = (1,),
    parent: str = "",
    outlines: bool = False,
) -> Path:
    """`count` pictures, with an object of each category of `objects`."""
    for each in (folder, file.parent):
        each.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (48, 48), (i, 0, 0)).save(folder / f"{i}.png")
    images = [{"id": i, "file_name": f"{before}{i}.png", "width": 48, "height": 48} for i in range(count)]
    boxes = [{"image_id": i, "category_id": n, "bbox": [4, 4, 20, 20]} for i in range(count) for n in objects]
    if outlines:
        boxes = [box | {"segmentation": [[4, 4, 24, 4, 24, 24, 4, 24]]} for box in boxes]
    categories = [{"id": number, "name": name, "supercategory": parent} for number, name in names]
    annotations = [box | {"id": i} for i, box in enumerate(boxes)]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def messages(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    return [str(each.message) for each in caught if issubclass(each.category, TranseptWarning)]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("train", "train Training TRAIN trainval seg_train train2017 training_set trainset"),
        ("val", "val Valid validation Validation dev eval val2017 seg_val"),
        ("test", "test Testing TEST test2017 seg_test test_set"),
        (None, "trains cat devil valve contest instances 2017 seg_pred fold1 testament"),
    ],
)
def test_names(kind: str | None, names: str):
    assert [kind_of(name) for name in names.split()] == [kind] * len(names.split())


def test_what_is_taken():
    def parts(names: str, choice: Choice, learns: bool = True) -> tuple[str, str, bool]:
        taken = take(names.split(), "SET", choice, learns=learns)
        return taken.train, taken.val, taken.held_out

    both = Choice()
    assert parts("train val test", both) == ("train", "val", False)
    assert parts("train test", both) == ("train", "train", True)  # test is left alone
    assert parts("train test", Choice(val_split="test")) == ("train", "test", False)
    assert parts("", both) == ("", "", True)
    assert parts("", Choice(split="none"), False) == ("", "", False)
    assert parts("", EVAL, False) == ("", "", False)
    assert parts("train valid test", EVAL, False)[1:] == ("valid", False)
    assert parts("Train Test", EVAL, False)[1:] == ("Test", False)
    assert parts("train", EVAL, False)[1:] == ("train", False)
    assert parts("train val test2017", Choice(split="test"), False)[1:] == ("test2017", False)
    assert parts("train val fold7", Choice(split="fold7"), False)[1:] == ("fold7", False)
    assert parts("train trainval val", both) == ("train", "val", False)
    assert parts("train val valid", Choice(val_split="valid")) == ("train", "valid", False)
    taken = take(("train", "test"), "SET", both, learns=True)
    assert (taken.test, taken.split) == ("test", None)


@pytest.mark.parametrize(
    ("names", "choice", "message"),
    [
        ("train val valid", Choice(), "'SET' has 'val', 'valid', which are all val; say --val_split NAME"),
        ("Train train val", Choice(), "'SET' has 'Train', 'train', which are all train; say --train_split NAME"),
        ("val test", Choice(), "'SET' has no training pictures, only 'test', 'val'"),
        ("train val", Choice(split="test"), "'SET' has no split 'test'; it has 'train', 'val'"),
        ("", Choice(split="test"), "'SET' has no splits, so there is no 'test'; leave out --split"),
        ("a b", Choice(), r"'SET' has the splits \['a', 'b'\]; it needs 'train' and 'validation'"),
    ],
)
def test_what_could_mean_several_things_is_refused(names: str, choice: Choice, message: str):
    with pytest.raises(TranseptError, match=message):
        take(names.split(), "SET", choice, learns=True)


def test_sentences(tmp_path: Path):
    folder = str(tmp_path)
    assert Parts("", "", False).measured(100, 2, folder) == "100 pictures in 2 classes; the folder has no split"
    said = Parts("", "val", False, ("test",)).measured(1, 1, folder)
    assert said == "1 picture in 1 class, the split 'val'; there is also 'test': --split test measures that"
    said = Parts("", "", True).measured(20, 2, "hf:a")
    assert said == "20 pictures in 2 classes, held out of the data as in training; --split none measures all of it"


@pytest.mark.parametrize(
    ("train", "val"), [("Train", "Val"), ("training", "validation"), ("TRAIN", "dev"), ("seg_train", "seg_val")]
)
def test_class_folders(tmp_path: Path, train: str, val: str):
    fill(tmp_path / train, cat=3, dog=2)
    fill(tmp_path / val, cat=1, dog=1)
    splits = load_splits(str(tmp_path))
    assert (splits.classes, len(splits.train), len(splits.val)) == (["cat", "dog"], 5, 2)
    assert splits.counts == {"cat": 3, "dog": 2}


def test_a_test_split_is_not_learnt_from_nor_validated_on(tmp_path: Path):
    fill(tmp_path / "seg_train" / "seg_train", cat=5, dog=5)  # as archives have it
    fill(tmp_path / "seg_test" / "seg_test", cat=4, dog=4)
    splits = load_splits(str(tmp_path))
    assert (splits.classes, len(splits.train), len(splits.val)) == (["cat", "dog"], 8, 2)
    assert splits.parts.test == "seg_test"
    found = splits.parts.found(splits, 0.2)
    assert "8 pictures to train on and 2 to validate, held out of 'seg_train'" in found
    assert "cat 4, dog 4" in found
    assert len(load_splits(str(tmp_path), halves="val", choice=Choice(split="test")).val) == 8


def test_a_folder_that_may_be_a_class(tmp_path: Path):
    fill(tmp_path, train=4, cat=4)
    with pytest.raises(UsageError, match="'train' in .* may be a split or, as 'cat' beside it, a class; say"):
        load_splits(str(tmp_path))
    assert load_splits(str(tmp_path), choice=Choice(train_split="none")).classes == ["cat", "train"]
    fill(tmp_path / "half" / "train", cat=2, dog=2)
    fill(tmp_path / "half" / "val", cat=2, dog=2)
    fill(tmp_path / "half", more=2)
    with pytest.warns(TranseptWarning, match="has the splits 'train', 'val'; 'more' is not read"):
        assert load_splits(str(tmp_path / "half")).classes == ["cat", "dog"]


def test_a_class_that_one_split_lacks(tmp_path: Path):
    fill(tmp_path / "train", cat=2, dust=2, owl=2)
    fill(tmp_path / "val", cat=2, owl=1)
    with pytest.warns(TranseptWarning, match="1 class has nothing to be measured on in .*, and no score: 'dust'"):
        splits = load_splits(str(tmp_path))
    assert (splits.classes, splits.val.labels) == (["cat", "dust", "owl"], [0, 0, 2])
    with pytest.warns(TranseptWarning, match="1 class .* 'dust'"):  # numbered as the model does it
        measured = load_splits(str(tmp_path), halves="val", known=["owl", "dust", "cat"])
    assert (measured.classes, measured.val.labels) == (["owl", "dust", "cat"], [2, 2, 0])
    with pytest.raises(TranseptError, match="are not the model's 2: 'owl' is only in the data"):
        load_splits(str(tmp_path), halves="val", known=["cat", "dust"])


LAYOUTS = {
    "one task of CVAT": {"annotations/instances_default.json": ("images/default", "")},
    "Label Studio": {"result.json": ("images", "images/")},
    "LabelMe": {"annotations.json": ("JPEGImages", "JPEGImages/")},
    "Roboflow, train alone": {"train/_annotations.coco.json": ("train", "")},
    "Roboflow, a split itself": {"_annotations.coco.json": (".", "")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_coco_file_is_divided_as_class_folders_are(tmp_path: Path, layout: str):
    for file, (folder, before) in LAYOUTS[layout].items():
        coco(tmp_path / file, tmp_path / folder, before=before)
        given = load_detection_splits(str(tmp_path / file))  # the file itself
    splits = load_detection_splits(str(tmp_path))
    assert (len(splits.train), len(splits.val), splits.parts.held_out) == (4, 1, True)
    assert splits.counts == {"cell": 4}
    assert splits.val.paths == given.val.paths
    assert not set(splits.train.paths) & set(splits.val.paths)
    assert len(load_detection_splits(str(tmp_path), halves="val", choice=EVAL).val) == 5


def test_subsets_with_capitals_and_a_test_split(tmp_path: Path):
    for name, count in (("Train", 4), ("Validation", 3), ("Test", 2)):
        coco(tmp_path / f"annotations/instances_{name}.json", tmp_path / "images" / name, count=count)
    splits = load_detection_splits(str(tmp_path))
    assert (len(splits.train), len(splits.val), splits.parts.test) == (4, 3, "Test")
    assert len(load_detection_splits(str(tmp_path), halves="val", choice=Choice(split="test")).val) == 2


def test_test_pictures_without_annotations_are_said(tmp_path: Path):
    for name in ("train2017", "val2017"):
        coco(tmp_path / f"annotations/instances_{name}.json", tmp_path / name)
    (tmp_path / "test2017").mkdir()
    splits = load_detection_splits(str(tmp_path))
    assert splits.parts.test is None
    assert "the pictures of 'test2017' have no annotations and are not measured" in splits.parts.found(splits, 0.2)


def test_validation_pictures_without_annotations_are_said(tmp_path: Path):
    coco(tmp_path / "annotations/instances_train2017.json", tmp_path / "train2017")
    for name in ("val2017", "test2017"):
        (tmp_path / name).mkdir()
    splits = load_detection_splits(str(tmp_path))
    assert splits.parts.held_out
    assert "the pictures of 'val2017' have no annotations and are not measured" in splits.parts.found(splits, 0.2)


def test_several_coco_files_without_splits(tmp_path: Path):
    coco(tmp_path / "a.json", tmp_path / "images")
    (tmp_path / "settings.json").write_text("{}")
    assert len(load_detection_splits(str(tmp_path)).train) == 4  # the other is none
    coco(tmp_path / "b.json", tmp_path / "images")
    with pytest.raises(UsageError, match=r"several annotation files, 'a.json', 'b.json'; give .* --data .*a.json"):
        load_detection_splits(str(tmp_path))


def test_categories_are_united(tmp_path: Path):
    both = [(0, "cell"), (1, "dust")]
    coco(tmp_path / "train.json", tmp_path / "images", names=both, objects=[0, 1])
    coco(tmp_path / "val.json", tmp_path / "images", names=both[:1], objects=[0])
    with pytest.warns(TranseptWarning, match="1 class has nothing to be measured on in .*, and no score: 'dust'"):
        splits = load_detection_splits(str(tmp_path))
    assert splits.classes == splits.val.classes == ["cell", "dust"]
    coco(tmp_path / "val.json", tmp_path / "images", names=[*both, (2, "owl")], objects=[0, 1, 2])
    with pytest.raises(TranseptError, match=r"the category 2 \('owl'\) is in .*val.json' only, so nothing is learnt"):
        load_detection_splits(str(tmp_path))
    coco(tmp_path / "val.json", tmp_path / "images", names=[(5, "dust")], objects=[5])
    with pytest.raises(TranseptError, match=r"'dust' is category 1 in .*train.json' and 5 in .*val.json'; both must"):
        load_detection_splits(str(tmp_path))


@pytest.mark.parametrize("first", ["cells", "cell"])
def test_the_category_that_groups_the_others_is_no_class(tmp_path: Path, first: str):
    names = [(0, first), (1, "cell"), (2, "dust")]
    for half in ("train", "valid"):
        coco(tmp_path / half / "_annotations.coco.json", tmp_path / half, names=names, parent=first)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        splits = load_detection_splits(str(tmp_path))
    assert splits.classes == ["cell", "dust"]  # which has no objects either, and is one
    (said,) = messages(caught)
    assert f"the category 0, '{first}', has no objects and only groups the others" in said
    coco(tmp_path / "valid/_annotations.coco.json", tmp_path / "valid", names=names, objects=[0, 1], parent=first)
    if first == "cell":
        with pytest.raises(TranseptError, match="gives the name 'cell' to the categories 0 and 1; merge them"):
            load_detection_splits(str(tmp_path))
    else:
        assert load_detection_splits(str(tmp_path)).classes == [first, "cell", "dust"]


def test_a_detector_of_more_classes_measures_those_that_there_are(tmp_path: Path):
    coco(tmp_path / "val.json", tmp_path / "images", names=[(3, "cell"), (7, "unused")], objects=[3])
    with pytest.warns(TranseptWarning, match="1 class has nothing to be measured on in .*: 'dog'"):
        splits = load_detection_splits(str(tmp_path), halves="val", known=["dog", "cell"])
    assert (splits.classes, splits.category_ids[1]) == (["dog", "cell"], 3)
    truth: Any = splits.val.ground_truth()
    names = {each["id"]: each["name"] for each in truth["categories"]}
    assert [names[number] for number in splits.category_ids] == ["dog", "cell"]
    with pytest.raises(TranseptError, match="are not the model's 1: 'cell' is only in the data"):
        load_detection_splits(str(tmp_path), halves="val", known=["dog"])


def test_masks(tmp_path: Path):
    for split, count in (("Train", 5), ("TEST", 2)):
        for kind in ("images", "masks"):
            (tmp_path / kind / split).mkdir(parents=True)
            for i in range(count):
                Image.new("L" if kind == "masks" else "RGB", (8, 8), i % 2).save(tmp_path / kind / split / f"{i}.png")
    (tmp_path / "classes.txt").write_text("0 ground\n1 cell\n")
    splits = load_segmentation_splits(str(tmp_path))
    assert (len(splits.train), len(splits.val), splits.parts.test) == (4, 1, "TEST")
    measured = load_segmentation_splits(str(tmp_path), halves="val", choice=Choice(split="test"))
    assert (len(measured.val), measured.parts.split) == (2, "TEST")


def test_a_split_of_masks_itself(tmp_path: Path):
    """The class list lies beside the splits."""
    for kind in ("images", "masks"):
        (tmp_path / "test" / kind).mkdir(parents=True)
        for i in range(3):
            Image.new("L" if kind == "masks" else "RGB", (8, 8), 1).save(tmp_path / "test" / kind / f"{i}.png")
    (tmp_path / "classes.txt").write_text("0 ground\n1 cell\n")
    measured = load_segmentation_splits(str(tmp_path / "test"), halves="val", choice=EVAL)
    assert (len(measured.val), measured.parts.split) == (3, None)


def test_linked_folders_are_followed_and_circles_are_not(tmp_path: Path):
    real = fill(tmp_path / "real", day=2)
    root = fill(tmp_path / "set", cat=1, dog=2)
    (root / "cat" / "more").symlink_to(real / "day")
    (root / "cat" / "round").symlink_to(root)
    names = sorted(os.path.relpath(file, root) for file in files_below(root))
    assert names == ["cat/cat-0.png", "cat/more/day-0.png", "cat/more/day-1.png", "dog/dog-0.png", "dog/dog-1.png"]
    assert len(find_images([root])) == 5
    splits = load_splits(str(root))
    assert (len(splits.train) + len(splits.val), splits.classes) == (5, ["cat", "dog"])


DOCS = Path(__file__).parents[2] / "docs"


def masks(root: Path, **splits: int) -> None:
    for split, count in splits.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
            for i in range(count):
                Image.new("L" if kind == "masks" else "RGB", (8, 8), i % 2).save(root / kind / split / f"{i}.png")
    (root / "classes.txt").write_text("0 ground\n1 cell\n")


def class_splits(root: Path, **splits: int) -> None:
    for split, count in splits.items():
        fill(root / split, cat=count, dog=count)


def coco_files(root: Path, *, outlines: bool = False, **files: str) -> None:
    """Names of annotation files to folders of pictures, with what file names begin with behind a colon."""
    for file, place in files.items():
        folder, _, before = place.partition(":")
        coco(root / file, root / folder, before=before, outlines=outlines)


def table(root: Path, name: str) -> None:
    """Ten pictures of two classes; as Parquet, six of them to train on."""
    fill(root / "pictures", cat=5, dog=5)
    names = [f"pictures/{label}/{label}-{i}.png" for i in range(5) for label in ("cat", "dog")]
    labels = [path.split("/")[1] for path in names]
    if name.endswith(".csv"):
        rows = [f"{path},{label}" for path, label in zip(names, labels, strict=True)]
        (root / name).write_text("\n".join(["path,label", *rows]) + "\n")
        return
    splits = ["train"] * 6 + ["valid"] * 2 + ["test"] * 2
    pyarrow.parquet.write_table(pyarrow.table({"file": names, "class": labels, "split": splits}), root / name)


def several_labels(root: Path, *, columns: bool) -> None:
    """Ten pictures of a cat, a dog, both or none."""
    fill(root / "pictures", any=10)
    rows = [f"pictures/any/any-{i}.png,{i % 2},{i // 2 % 2}" for i in range(10)]
    names = {"1,1": "cat;dog", "1,0": "cat", "0,1": "dog", "0,0": ""}
    if not columns:
        rows = [f"{path},{names[cells]}" for path, _, cells in (row.partition(",") for row in rows)]
    header = "path,cat,dog" if columns else "path,labels"
    (root / "table.csv").write_text("\n".join([header, *rows]) + "\n")


def tool_files(root: Path, name: str, *pictures: str) -> None:
    """What `detection/formats/make.py` had the tool write, and pictures of the size that it was told."""
    shutil.copytree(Path(__file__).parent / "detection" / "formats" / name, root)
    for picture in pictures:
        (root / picture).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40)).save(root / picture)


# What the page says that one has: how it is made, and how many pictures are trained, measured and left for the end.
HAVE: dict[str, tuple[Callable[[Path], Any], tuple[int, int, str | None]]] = {
    "one folder for each class": (lambda root: fill(root, cat=5, dog=5), (8, 2, None)),
    "class folders in `Train/` and `Val/`": (lambda root: class_splits(root, Train=3, Val=2), (6, 4, None)),
    "class folders in `seg_train/` and `seg_test/`": (
        lambda root: class_splits(root, seg_train=5, seg_test=2),
        (8, 2, "seg_test"),
    ),
    "class folders, one of them called `train`": (lambda root: fill(root, train=5, ship=5), (8, 2, None)),
    "class folders in `train/`, `val/` and `valid/`": (
        lambda root: class_splits(root, train=3, val=1, valid=2),
        (6, 4, None),
    ),
    "a table, `table.csv`, with columns `path` and `label`": (lambda root: table(root, "table.csv"), (8, 2, None)),
    "several labels of a picture: `table.csv` with columns `path` and `labels` (`cat;dog`)": (
        lambda root: several_labels(root, columns=False),
        (8, 2, None),
    ),
    "the same with a column of 0 and 1 for each class": (
        lambda root: several_labels(root, columns=True),
        (8, 2, None),
    ),
    "a Parquet table with a column `split`": (lambda root: table(root, "table.parquet"), (6, 2, "test")),
    "a folder of test pictures in class folders": (lambda root: fill(root, cat=5, dog=5), (0, 10, None)),
    "`train/`, `val/` and `test/`, to be measured on `test/`": (
        lambda root: class_splits(root, train=3, val=1, test=2),
        (0, 4, None),
    ),
    "COCO: `annotations/instances_train2017.json`, `train2017/`, and for `val`": (
        lambda root: coco_files(
            root,
            **{f"annotations/instances_{name}2017.json": f"{name}2017" for name in ("train", "val")},
        ),
        (5, 5, None),
    ),
    "one task of CVAT: `annotations/instances_default.json`, `images/default/`": (
        lambda root: coco_files(root, **{"annotations/instances_default.json": "images/default"}),
        (4, 1, None),
    ),
    "subsets of CVAT: `annotations/instances_Train.json`, `instances_Validation.json`": (
        lambda root: coco_files(
            root,
            **{f"annotations/instances_{name}.json": f"images/{name}" for name in ("Train", "Validation")},
        ),
        (5, 5, None),
    ),
    "Label Studio's COCO export: `result.json`, `images/`": (
        lambda root: coco_files(root, **{"result.json": "images:images/"}),
        (4, 1, None),
    ),
    "LabelMe's COCO export: `annotations.json`, `JPEGImages/`": (
        lambda root: coco_files(root, **{"annotations.json": "JPEGImages:JPEGImages/"}),
        (4, 1, None),
    ),
    "Roboflow's COCO export: `train/_annotations.coco.json`, and for `valid` and `test`": (
        lambda root: coco_files(
            root, **{f"{name}/_annotations.coco.json": name for name in ("train", "valid", "test")}
        ),
        (5, 5, "test"),
    ),
    "several COCO files in one folder, of which one is meant": (
        lambda root: coco_files(root, **{"FILE.json": "images", "other.json": "images"}),
        (4, 1, None),
    ),
    "YOLO: `data.yaml`, `images/train/`, `labels/train/`, and for `val`": (
        lambda root: tool_files(root, "yolo", "images/train/a.jpg", "images/val/b.jpg"),
        (1, 1, None),
    ),
    "Pascal VOC: `Annotations/`, `JPEGImages/`, `ImageSets/Main/train.txt` and `val.txt`": (
        lambda root: tool_files(root, "voc_detection", "JPEGImages/a.jpg", "JPEGImages/b.jpg"),
        (1, 1, None),
    ),
    "CVAT's own XML: `train.xml`, `val.xml`, `images/`": (
        lambda root: tool_files(root, "cvat", "images/a.jpg", "images/b.jpg"),
        (1, 1, None),
    ),
    "LabelMe: a JSON file beside each picture, in `train/` and `val/`": (
        lambda root: tool_files(root, "labelme", "train/a.png", "val/b.png"),
        (1, 1, None),
    ),
    "`images/train/`, `masks/train/`, the same of `test`, and `classes.txt`": (
        lambda root: masks(root, train=5, test=2),
        (4, 1, "test"),
    ),
    "Pascal VOC's masks: `JPEGImages/`, `SegmentationClass/`, `ImageSets/Segmentation/train.txt` and `val.txt`": (
        lambda root: tool_files(root, "voc_segmentation", "JPEGImages/a.jpg", "JPEGImages/b.jpg"),
        (1, 1, None),
    ),
    "LabelMe's masks (`labelme2voc.py`): `JPEGImages/`, `SegmentationClass/`, `class_names.txt`": (
        lambda root: tool_files(root, "labelme_masks", "JPEGImages/a.jpg", "JPEGImages/b.jpg"),
        (1, 1, None),
    ),
    "outlines in COCO's `annotations/instances_train.json`, `train/`, and for `val`, for a segmenter": (
        lambda root: coco_files(
            root, outlines=True, **{f"annotations/instances_{name}.json": name for name in ("train", "val")}
        ),
        (5, 5, None),
    ),
}
LOADERS: dict[str, Callable[..., Any]] = {
    "quick": load_splits,
    "quick-det": load_detection_splits,
    "quick-seg": load_segmentation_splits,
    "RUN": load_splits,
}


def test_each_row_of_the_page(tmp_path: Path):
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (.+?) \| `transept ([^`]*FOLDER[^`]*)` \|$", text, flags=re.MULTILINE))
    assert rows.keys() == HAVE.keys()
    for number, (have, (make, expected)) in enumerate(HAVE.items()):
        root = tmp_path / str(number)
        make(root)
        verb, what, _, data, *options = shlex.split(rows[have].replace("FOLDER", str(root)))
        names = {option.removeprefix("--"): value for option, value in zip(options[::2], options[1::2], strict=True)}
        halves = "val" if verb == "eval" else "both"
        several = {"multi_label": True} if names.pop("classify.multi_label", None) else {}
        splits = LOADERS[what](data, halves=halves, choice=Choice(**names, held_out=verb == "train"), **several)
        test = splits.parts.test if verb == "train" else None
        assert (len(splits.train), len(splits.val), test) == expected, have
