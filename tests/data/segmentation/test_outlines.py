"""Outlines of objects as masks: what covers what, what is background, and the formats that have outlines."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transept.cli.main import main
from transept.data.images import BadImageError
from transept.data.segmentation.sets import SegmentationSplits, load_segmentation_splits
from transept.data.splits import Choice
from transept.errors import TranseptError, TranseptWarning

pytest.importorskip("pycocotools")

FORMATS = Path(__file__).parents[1] / "detection" / "formats"
WHOLE = Choice(held_out=False)
HOUSE = [4, 4, 44, 4, 44, 34, 4, 34]
DOOR = [10, 10, 20, 10, 20, 34, 10, 34]


def coco(root: Path, split: str, names: tuple[str, ...] = ("house", "door"), objects: int = 2) -> None:
    """Three pictures, 48 x 40: a house with a door in it, which is annotated first; of the last one nothing."""
    (root / split).mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (48, 40), (60 * i, 9, 9)).save(root / split / f"{i}.png")
    shapes = [(2, DOOR), (1, HOUSE)][:objects]
    annotations = [
        {"image_id": i, "category_id": number, "bbox": [4, 4, 40, 30], "segmentation": [shape]}
        for i in range(2)
        for number, shape in shapes
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 48, "height": 40} for i in range(3)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
        "annotations": [{"id": i} | each for i, each in enumerate(annotations, 1)],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def load(root: Path, **options) -> SegmentationSplits:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TranseptWarning)
        return load_segmentation_splits(str(root), **options)


def test_the_smaller_covers_the_larger(tmp_path: Path):
    coco(tmp_path, "train")
    coco(tmp_path, "val")
    splits = load_segmentation_splits(str(tmp_path))
    assert splits.classes == ["background", "house", "door"]
    expected = np.zeros((40, 48), int)
    expected[4:34, 4:44] = 1
    expected[10:34, 10:20] = 2
    picture, mask = splits.train[1]
    assert mask.tolist() == expected.tolist()
    assert picture[:, 0, 0].tolist() == [60, 9, 9]
    assert not splits.val[2][1].any()
    only = load_segmentation_splits(str(tmp_path / "annotations" / "instances_val.json"), halves="val")
    assert (len(only.train), only.val[0][1].tolist()) == (0, expected.tolist())


def test_a_class_of_the_objects_may_be_the_background(tmp_path: Path):
    coco(tmp_path, "train", ("house", "Background"))
    coco(tmp_path, "val", ("house", "Background"))
    splits = load(tmp_path)
    assert splits.classes == ["house", "Background"]
    mask = splits.val[0][1]
    assert (mask[0, 0], mask[5, 5], mask[20, 15]) == (1, 0, 1)


def test_known_classes_give_the_numbers(tmp_path: Path):
    coco(tmp_path, "val")
    whole = {"halves": "val", "known": ["door", "wall", "background", "house"]}
    splits = load(tmp_path, **whole)
    assert splits.classes == whole["known"]
    assert np.unique(splits.val[0][1]).tolist() == [0, 2, 3]
    without = load(tmp_path, halves="val", known=["house", "door"])  # learnt from masks of all pixels
    assert np.unique(without.val[0][1]).tolist() == [0, 1, 255]
    with pytest.raises(TranseptError, match="not the model's 2: 'house' is only in the data"):
        load(tmp_path, halves="val", known=["background", "door"])


def test_without_splits_and_without_outlines(tmp_path: Path):
    coco(tmp_path, "all")
    splits = load(tmp_path, val_fraction=0.4)
    assert (len(splits.train), len(splits.val)) == (2, 1)
    assert {path.name for path in [*splits.train.paths, *splits.val.paths]} == {"0.png", "1.png", "2.png"}
    file = tmp_path / "annotations" / "instances_all.json"
    page = json.loads(file.read_text())
    del page["annotations"][0]["segmentation"]
    file.write_text(json.dumps(page))
    with pytest.raises(TranseptError, match="annotation 1 has no segmentation, which masks need"):
        load(tmp_path)
    with pytest.warns(TranseptWarning, match="1 unusable masks; e.g. annotation 1 has no segmentation"):
        load_segmentation_splits(str(tmp_path), skip_bad_annotations=True)
    Image.new("RGB", (47, 40)).save(tmp_path / "all" / "0.png")
    page["annotations"][0]["segmentation"] = [DOOR]
    file.write_text(json.dumps(page))
    with pytest.raises((TranseptError, BadImageError), match=r"0\.png.*47 x 40"):
        load(tmp_path)


def test_a_folder_of_neither(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(TranseptError, match="has neither masks nor outlines of objects; put pictures and masks into"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "pictures", "classes"),
    [
        ("label_studio", ["0f1e2d3c-a.png", "set/b.png"], ["background", "cat", "dog", "fur"]),
        ("label_studio_min", ["0f1e2d3c-a.png", "set/b.png"], ["background", "cat", "dog", "fur"]),
    ],
)
def test_formats(tmp_path: Path, name: str, pictures: list[str], classes: list[str]):
    root = tmp_path / name
    shutil.copytree(FORMATS / name, root)
    for picture in pictures:
        (root / picture).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40)).save(root / picture)
    with pytest.raises(TranseptError, match="has no segmentation, which masks need"):  # there are boxes, too
        load(root, halves="val", choice=WHOLE)
    splits = load(root, halves="val", choice=WHOLE, skip_bad_annotations=True)
    assert splits.classes == classes


def test_yolo_outlines(tmp_path: Path):
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (tmp_path / folder / split).mkdir(parents=True)
        Image.new("RGB", (40, 20)).save(tmp_path / "images" / split / "a.png")
        (tmp_path / "labels" / split / "a.txt").write_text("1 0.25 0.5 0.75 0.5 0.75 1 0.25 1\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    splits = load(tmp_path)
    assert splits.classes == ["background", "cat", "dog"]
    mask = splits.train[0][1]
    assert (mask[:10].any(), mask[10:, 10:30].unique().tolist(), int((mask == 2).sum())) == (False, [2], 200)


def test_trained_and_measured(tmp_path: Path, capsys):
    coco(tmp_path / "set", "train")
    coco(tmp_path / "set", "val")
    run = tmp_path / "run"
    small = "--batch_size 2 --workers 0 --schedule.epochs 1 --schedule.warmup_epochs 0".split()
    small += ["--segment.preprocessing.scale", "[64, 48]", "--segment.augmentation.crop", "[32, 32]"]
    assert main(["train", "quick-seg", "--data", str(tmp_path / "set"), "--out", str(run), "--json", *small]) == 0
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["per_class"]) == ["background", "house", "door"]
    assert sum(row["pixels"] for row in result["per_class"].values()) == 3 * 48 * 40
