"""Sets of the `datasets` library, from disk."""

import sys
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from transept.data.classification.image_set import label_words
from transept.data.classification.sets import load_splits
from transept.errors import TranseptError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def file(width: int, orientation: int = 1) -> dict[str, Any]:
    exif, buffer = Image.Exif(), BytesIO()
    exif[0x0112] = orientation
    Image.new("RGB", (width, 7), (width, 0, 50)).save(buffer, "JPEG", exif=exif)
    return {"bytes": buffer.getvalue(), "path": None}


def table(labels: list[Any], kind: Any = None, column: str = "label", first: int = 10) -> Any:
    kind = kind or datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"image": datasets.Image(), column: kind, "note": datasets.Value("string")})
    rows = {"image": [file(first + i) for i in range(len(labels))], column: labels, "note": ["x"] * len(labels)}
    return datasets.Dataset.from_dict(rows, features)


def save(path: Path, **halves: Any) -> str:
    datasets.DatasetDict(halves).save_to_disk(str(path))
    return str(path)


def test_saved_to_disk_with_and_without_the_prefix(tmp_path: Path):
    name = save(tmp_path / "set", train=table([0, 1, 0, 1]), validation=table([1, 0], first=50))
    for data in (name, f"hf:{name}"):
        splits = load_splits(data)
        assert splits.classes == ["cat", "dog"]
        assert (splits.train.labels, splits.val.labels) == ([0, 1, 0, 1], [1, 0])
        assert [image.width for image, _ in splits.train] == [10, 11, 12, 13]
        assert splits.val.paths[1] == tmp_path / "set" / "validation[1]"


def test_a_folder_that_the_library_reads_and_a_single_split(tmp_path: Path):
    for label, count in {"cat": 10, "dog": 5}.items():
        (tmp_path / "files" / label).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (9 + i, 7)).save(tmp_path / "files" / label / f"{i}.png")
    splits = load_splits(f"hf:{tmp_path / 'files'}", val_fraction=0.2)
    assert splits.classes == ["cat", "dog"]
    assert (len(splits.train), len(splits.val)) == (12, 3)
    assert splits.val.labels == [0, 0, 1]
    assert splits.val[0][0].height == 7


def test_classes_without_class_labels_and_pictures_as_they_are_held(tmp_path: Path):
    rows = table(["öl", "bus", "öl"], datasets.Value("string"), "labels")
    splits = load_splits(save(tmp_path / "a", train=rows, validation=rows))
    assert splits.classes == ["bus", "öl"]
    assert splits.train.labels == [1, 0, 1]
    upright = datasets.Dataset.from_dict(
        {"img": [file(30, orientation=6), file(30)], "label": [5, 9]},
        datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")}),
    )
    splits = load_splits(save(tmp_path / "b", train=upright, val=upright))
    assert splits.classes == ["5", "9"]
    assert [image.size for image, _ in splits.train] == [(7, 30), (30, 7)]


def test_wrong_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(data: str, message: str) -> None:
        with pytest.raises(TranseptError, match=message) as caught:
            load_splits(data)
        assert "\n" not in str(caught.value)

    good = table([0, 1])
    refused(save(tmp_path / "a", more=good, extra=good), r"has the splits \['extra', 'more'\]; it needs")
    none = good.remove_columns("image")
    refused(save(tmp_path / "b", train=none, val=none), "it needs exactly one image column")
    none = good.remove_columns("label")
    refused(save(tmp_path / "c", train=none, val=none), "it needs exactly one column of type ClassLabel")
    refused(save(tmp_path / "d", train=good, val=table([0, None])), "row 1 of the split 'val' of .* has no label")
    refused("hf:no-such/set", "cannot load the set 'no-such/set' with the datasets library")
    good.save_to_disk(str(tmp_path / "e"))
    refused(str(tmp_path / "e"), "has no splits; save a DatasetDict")
    bad = good.cast_column("image", datasets.Image(decode=False))
    rows = [{"bytes": b"junk", "path": None}, None]
    bad = bad.remove_columns("image").add_column("image", rows).cast_column("image", datasets.Image())
    refused(
        save(tmp_path / "f", train=good, val=bad),
        r"2 files are not readable as pictures: .*val\[0\]' is no picture of a known format; .*val\[1\]' is empty",
    )
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("hf:any", r"pip install .*\[data\]'")


LABELS = [["cat", "dog"], [], ["dog"], ["cat"], ["cat", "bird"], ["dog"]]
LISTS = [
    (LABELS, "string", ["bird", "cat", "dog"], "the lists in 'labels'"),
    (LABELS, "names", ["dog", "cat", "bird", "fish"], "the lists in 'labels'"),
    (["|".join(labels) for labels in LABELS], "text", ["bird", "cat", "dog"], "'labels', separated by '|'"),
]


@pytest.mark.parametrize(("labels", "kind", "classes", "understood"), LISTS, ids=["lists", "ClassLabel", "texts"])
def test_several_labels(tmp_path: Path, labels: list[Any], kind: str, classes: list[str], understood: str):
    kinds = {
        "string": datasets.Sequence(datasets.Value("string")),
        "names": datasets.Sequence(datasets.ClassLabel(names=["dog", "cat", "bird", "fish"])),
        "text": datasets.Value("string"),
    }
    train = table(labels, kinds[kind], column="labels")
    name = save(tmp_path / "set", train=train, validation=table(labels[:3], kinds[kind], column="labels", first=40))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing of bird is measured
        splits = load_splits(f"hf:{name}", multi_label=True)
    assert (splits.classes, splits.understood) == (classes, understood)
    assert [set(label_words(splits.train.label(i), classes).split(", ")) for i in range(6)] == [
        set(labels) or {"none"} for labels in LABELS
    ]
    assert [picture.width for picture, _ in splits.val] == [40, 41, 42]
    assert splits.val.label(0).sum() == 2


def test_labels_of_one_split_only(tmp_path: Path):
    kind = datasets.Sequence(datasets.Value("string"))
    halves = {"train": table([["a"], ["b"]], kind, "tags"), "validation": table([["c"]], kind, "tags")}
    name = save(tmp_path / "set", **halves)
    with pytest.raises(TranseptError, match="the label 'c' is in the split 'validation' .* nothing is learnt of it"):
        load_splits(f"hf:{name}", multi_label=True)
