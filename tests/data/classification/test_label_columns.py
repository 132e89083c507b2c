"""Tables with several labels of each picture: what is taken, in which words, and what is refused with its row."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from transept.data.classification.image_set import label_words
from transept.data.classification.label_columns import joined
from transept.data.classification.sets import load_splits
from transept.data.splits import Choice
from transept.errors import TranseptError

WANTED = ["cat, dog", "dog", "none", "cat"]
WHOLE = Choice(split="none", held_out=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for i in range(4):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(root / f"{i}.png")
    return root


def write(root: Path, header: str, *cells: str) -> str:
    file = root / "table.csv"
    file.write_text("\n".join([header, *(f"{i}.png,{cell}" for i, cell in enumerate(cells))]) + "\n")
    return str(file)


def read(data: str, **options: str) -> tuple[list[str], list[str], str]:
    splits = load_splits(data, halves="val", choice=WHOLE, known=None, multi_label=True, **options)
    return splits.classes, [label_words(splits.val.label(i), splits.classes) for i in range(4)], splits.understood


@pytest.mark.parametrize(
    ("header", "cells", "understood"),
    [
        ("path,labels", ["cat;dog", "dog", "", "cat"], "'labels', separated by ';'"),
        ("file,Tags", ["cat|dog", "dog", "", "cat"], "'Tags', separated by '|'"),
        ("path,label", ['"dog, cat"', "dog", "", '"cat,"'], "'label', separated by ','"),
        ("path,labels", ['"[""cat"", ""dog""]"', '"[""dog""]"', "[]", '"[""cat""]"'], "the JSON lists in 'labels'"),
        ("path,labels", ["\"['cat', 'dog']\"", "['dog']", "", "['cat']"], "the JSON lists in 'labels'"),
        ("path,cat,dog", ["1,1", "0,1", "0,0", "1,0"], "2 columns of 0 and 1, 'cat', 'dog'"),
        ("path,cat,dog", ["1,1", "-1,1", "-1,-1", "1,-1"], "2 columns of 0 and 1, 'cat', 'dog'"),
        (
            "path,cat,dog,age",
            ["1.0,True,7", "0.0,true,8", "0.0,False,9", "1.0,false,3"],
            "2 columns of 0 and 1, 'cat', 'dog' ('age' not read)",
        ),
    ],
)
def test_what_is_taken(pictures: Path, header: str, cells: list[str], understood: str):
    assert read(write(pictures, header, *cells)) == (["cat", "dog"], WANTED, understood)


def test_parquet_lists(pictures: Path):
    names = [f"{i}.png" for i in range(4)]
    table = pyarrow.table({"path": names, "labels": [["cat", "dog"], ["dog"], [], ["cat"]]})
    pyarrow.parquet.write_table(table, pictures / "table.parquet")
    assert read(str(pictures / "table.parquet")) == (["cat", "dog"], WANTED, "the lists in 'labels'")


def test_a_separator_that_is_said(pictures: Path):
    data = write(pictures, "path,labels", "cat dog", "dog", "", "cat")
    classes, _, understood = read(data)
    assert classes == ["cat", "cat dog", "dog"]
    assert understood.endswith("where spaces are between labels, give --label_separator ' '")
    assert read(data, label_separator=" ")[:2] == (["cat", "dog"], WANTED)


def test_answers_are_cells_to_train_on():
    assert joined(["cat", "dog"]) == "cat;dog"
    assert json.loads(joined(["cat; small", "dog"])) == ["cat; small", "dog"]


@pytest.mark.parametrize(
    ("header", "cells", "sentence"),
    [
        (
            "path,size",
            ["7", "8", "9", "7"],
            r"has the columns 'path', 'size'; several labels of each picture are a column",
        ),
        (
            "path,labels",
            ["a;b", "a|b", "", "b"],
            r"may be separated by ';' or '\|'; say by which with --label_separator",
        ),
        ("path,cat,dog", ["1,0", "0,1", "0,", "1,0"], r"row 4, has '' in the column 'dog' of 0 and 1; write 0 or 1"),
        ("path,cat,dog", ["1,0", "0,-1", "0,1", "1,0"], r"row 3, has '-1' in the column 'dog' of 0 and 1"),
        ("path,labels", ["[1]", "[2}]", "", "[1]"], r"row 3, has '\[2}\]' in 'labels'; give a list of labels"),
    ],
)
def test_what_is_refused(pictures: Path, header: str, cells: list[str], sentence: str):
    with pytest.raises(TranseptError, match=sentence):
        read(write(pictures, header, *cells))


def test_only_tables_say_several_labels(pictures: Path):
    with pytest.raises(TranseptError, match="with multi_label: folders say one class of each picture; give a table"):
        read(str(pictures))
    with pytest.raises(TranseptError, match="there is no table 'nowhere.csv'"):
        read("nowhere.csv")


def test_a_model_with_more_classes(pictures: Path):
    data = write(pictures, "path,labels", "cat;dog", "dog", "", "cat")
    with pytest.warns(UserWarning, match="1 class has nothing to be measured on"):
        splits = load_splits(data, halves="val", choice=WHOLE, known=["dog", "ant", "cat"], multi_label=True)
    assert splits.val.labels.tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert splits.val.rarities(3).tolist() == [0.5, 0.5, 1, 0.5]
