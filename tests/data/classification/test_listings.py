"""Tables of paths and labels: what is taken, and what is refused with its row."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import transept
from transept.data.classification.sets import load_splits
from transept.data.classification.transforms import Preprocessing
from transept.errors import TranseptError, TranseptWarning

NAMES = [f"{label}{i}.png" for label in ("cat", "dog") for i in range(3)]


def write(root: Path, text: str, name: str = "table.csv") -> str:
    for picture in NAMES:
        Image.new("RGB", (8, 8), (9, 9, 9)).save(root / picture)
    (root / name).write_text(text, encoding="utf-8")
    return str(root / name)


def rows(separator: str = ",", before: str = "", label: str = "{}") -> str:
    lines = [f"{before}{name}{separator}{label.format(name[:3])}" for name in NAMES]
    return "\n".join([f"Image{separator}Class", *lines]) + "\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [(rows(), "t.csv"), (rows(";"), "t.csv"), ("\ufeff" + rows("\t"), "t.tsv"), (rows(label='"{}"'), "t.csv")],
)
def test_separators_and_quotes(text: str, name: str, tmp_path: Path):
    splits = load_splits(write(tmp_path, text, name))
    assert splits.classes == ["cat", "dog"]
    assert (len(splits.train), len(splits.val)) == (4, 2)
    assert splits.train.labels == [0, 0, 1, 1]


@pytest.mark.parametrize("before", ["C:\\\\data\\\\", "/home/somebody/set/"])
def test_paths_of_another_machine(before: str, tmp_path: Path):
    data = write(tmp_path, rows(before=before))
    with pytest.warns(TranseptWarning, match="6 paths of another place, found by their end: taken for what they mean"):
        splits = load_splits(data)
    assert sorted(path.name for half in (splits.train, splits.val) for path in half.paths) == NAMES


def test_numbers_are_sorted_as_such(tmp_path: Path):
    text = "path,label\n" + "".join(
        f"{name},{number}\n" for name, number in zip(NAMES, [10, 10, 9, 9, 2, 2], strict=True)
    )
    assert load_splits(write(tmp_path, text)).classes == ["2", "9", "10"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name,kind\ncat0.png,cat\n", r"has the columns 'name', 'kind'; it needs one of paths, called 'path', 'file'"),
        ("path,cat,dog\ncat0.png,1,0\n", r"one of labels, called 'label', .*, or --classify.multi_label true"),
        ("path,label\ncat0.png,\n", r"row 2, has no 'label'; fill it in or remove the row"),
        ("path,label\ncat0.png,cat\ndog0.png,dog,brown\n", r"row 3, has 3 fields and the header 2; quote fields"),
        ("path,label\ncat0.png,cat\ncat1.png,cat\n", r"has the labels \['cat'\]; a classifier needs two or more"),
        ("path,label\n", r"has no rows under its header"),
        (
            "path,label\ncat0.png,cat\n../dog.png,dog\n",
            r"row 3, names '../dog.png', which is outside of the data",
        ),
        ("path,label\ncat0.png,cat\ncat1.png,cat\nno.png,dog\ndog1.png,dog\n", r"no.png' does not exist; remove"),
        (
            "path,label,split\ncat0.png,cat,train\ndog0.png,dog,train\ncat1.png,bird,val\n",
            r"the label 'bird' is in the split 'val' of .* only, so nothing is learnt of it",
        ),
    ],
)
def test_what_is_refused(text: str, sentence: str, tmp_path: Path):
    with pytest.raises(TranseptError, match=sentence):
        load_splits(write(tmp_path, text))


def test_a_rare_class_counts_as_much():
    """The loss of training is that of scikit-learn's balanced weights; evaluation counts every picture alike."""
    model = transept.create_model("cait_xxs24_224", num_classes=2, img_size=32, depth=1, embed_dim=24, num_heads=2)
    task = transept.Classifier(model, ["common", "rare"], Preprocessing(img_size=(32, 32)))
    logits, labels = torch.tensor([[2.0, 0.0]] * 10), torch.tensor([0] * 9 + [1])
    plain = float(task.train().loss(logits, labels))
    task.class_weights = torch.tensor([10 / (2 * 9), 10 / 2])
    common, rare = torch.nn.functional.cross_entropy(logits[[0, 9]], labels[[0, 9]], reduction="none").tolist()
    assert float(task.loss(logits, labels)) == pytest.approx((common + rare) / 2)
    assert float(task.eval().loss(logits, labels)) == pytest.approx(plain)
    assert "class_weights" not in task.state_dict()
