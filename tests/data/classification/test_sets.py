"""Folders of pictures as they are found in the wild."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transept.data.classification.sets import load_splits
from transept.errors import TranseptError


def fill(root: Path, classes: dict[str, int], offset: int = 0) -> Path:
    for label, count in classes.items():
        (root / label).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (9, 7), (10 * i % 256, offset, 50)).save(root / label / f"{label}-{i}.png")
    return root


def test_digits():
    splits = load_splits("digits")
    assert (len(splits.train), len(splits.val)) == (1437, 360)
    assert splits.classes == list("0123456789")
    picture, label = splits.val[0]
    assert (picture.size, picture.mode, label) == ((8, 8), "RGB", 2)
    assert np.asarray(picture).max() == 255


def test_train_and_val_folders(tmp_path: Path):
    fill(tmp_path / "train", {"Äpfel und Birnen": 3, "öl": 2})
    fill(tmp_path / "val", {"Äpfel und Birnen": 1, "öl": 2})
    (tmp_path / "train" / ".DS_Store").touch()
    (tmp_path / "train" / "öl" / "Thumbs.db").touch()
    splits = load_splits(str(tmp_path))
    assert splits.classes == ["Äpfel und Birnen", "öl"]
    assert (len(splits.train), len(splits.val)) == (5, 3)
    assert splits.train.labels == [0, 0, 0, 1, 1]


def test_one_folder_is_split_the_same_way_everywhere(tmp_path: Path):
    here = load_splits(str(fill(tmp_path / "here", {"cat": 20, "dog": 10})), val_fraction=0.2)
    there = load_splits(str(fill(tmp_path / "there", {"cat": 20, "dog": 10})), val_fraction=0.2)
    names = [path.name for path in here.val.paths]
    assert names == [path.name for path in there.val.paths]
    assert (here.val.labels.count(0), here.val.labels.count(1)) == (4, 2)
    assert not {path.name for path in here.train.paths} & set(names)
    assert len(here.train) == 24
    Image.new("RGB", (9, 7)).save(tmp_path / "here" / "cat" / "new.png")
    later = {path.name for path in load_splits(str(tmp_path / "here")).val.paths}
    assert len(later ^ set(names)) <= 2


def test_wrong_folders(tmp_path: Path):
    def refused(path: Path | str, message: str) -> None:
        with pytest.raises(TranseptError, match=message) as caught:
            load_splits(str(path))
        assert "\n" not in str(caught.value)

    refused("digit", "there is no data 'digit'; give 'digits', a folder")
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (5, 5)).save(tmp_path / "flat" / "a.png")
    refused(tmp_path / "flat", "has no subfolders")
    refused(fill(tmp_path / "single", {"cat": 3}), "has one class only, 'cat'")
    fill(tmp_path / "hollow", {"cat": 3, "dog": 0})
    refused(tmp_path / "hollow", "hollow/dog' is empty")
    refused(fill(tmp_path / "thin", {"cat": 3, "dog": 1}), "'dog' has one picture")
    fill(tmp_path / "half" / "train", {"cat": 2, "dog": 2})
    fill(tmp_path / "half" / "val", {"cat": 2, "cow": 2})
    refused(tmp_path / "half", "'cow' is in val/ only, so nothing is learnt of it; add")


def test_bad_pictures_are_named_counted_and_left_out_on_request(tmp_path: Path):
    root = fill(tmp_path / "set", {"cat": 10, "dog": 10})
    (root / "cat" / "cat-1.png").write_bytes(b"")
    (root / "dog" / "dog-2.png").write_text("hello")
    (root / "dog" / "readme.txt").write_text("hello")
    with pytest.raises(
        TranseptError, match="3 files are not readable as pictures: .*cat-1.png' is empty; .*dog-2.png'"
    ):
        load_splits(str(root))
    splits = load_splits(str(root), skip_bad_images=True)
    assert {skip.path.name for skip in splits.skipped} == {"cat-1.png", "dog-2.png", "readme.txt"}
    assert len(splits.train) + len(splits.val) == 18
    for image_set in (splits.train, splits.val):
        for i in range(len(image_set)):
            assert image_set[i][0].size == (9, 7)
    for path in (root / "cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(TranseptError, match="no picture of the class 'cat' in .* is readable"):
        load_splits(str(root), skip_bad_images=True)
