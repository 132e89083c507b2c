"""Masks of 0 and 255 mean what people mean by them, and a set of a single class is refused."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transept.data.segmentation import sets
from transept.data.segmentation.sets import SegmentationSplits, load_segmentation_splits
from transept.errors import TranseptError, TranseptWarning

BLACK_WHITE = "0 0 0 background\n255 255 255 lesion\n"
LABELMAP = "# label:color_rgb:parts:actions\nlesion:255,255,255::\nbackground:0,0,0::\n"


def save(root: Path, values: np.ndarray, file: str = "classes.txt", text: str = "background\nlesion\n") -> Path:
    for half in ("training", "validation"):
        for folder in ("images", "annotations"):
            (root / folder / half).mkdir(parents=True, exist_ok=True)
        mask = Image.fromarray(values.astype(np.uint8))
        mask.convert("RGB").save(root / "images" / half / "a.png")
        mask.save(root / "annotations" / half / "a.png")
    (root / file).write_text(text)
    return root


def binary(value: int = 255) -> np.ndarray:
    values = np.zeros((6, 8))
    values[1:4, 2:5] = value
    return values


def load(root: Path, **options) -> tuple[SegmentationSplits, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        splits = load_segmentation_splits(str(root), **options)
    return splits, [str(each.message) for each in caught]


@pytest.mark.parametrize("halves", ["both", "val"])
@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classes.txt", "background\nlesion\n"),
        ("classes.txt", "0 background\n1 lesion\n"),
        ("palette.txt", BLACK_WHITE),
        ("palette.txt", BLACK_WHITE + "255 0 0 vessel\n"),
        ("labelmap.txt", LABELMAP),
    ],
)
def test_255_is_white(tmp_path: Path, file: str, text: str, halves: str):
    splits, said = load(save(tmp_path, binary(), file, text), halves=halves)
    assert said[0] == f"the masks of {str(tmp_path)!r} hold 0 and 255 alone: 255 is 'lesion'"
    assert len(said) == 1 + len(splits.absent)
    lesion = splits.classes.index("lesion")
    found = splits.val[0][1].numpy()
    assert ((found == lesion) == (binary() == 255)).all()
    assert (found[binary() == 0] == splits.classes.index("background")).all()


def test_large_sets_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sets, "_CHECK_FILES", 0)
    splits, said = load(save(tmp_path, binary()))
    assert "255 is 'lesion'" in said[0]
    assert splits.train[0][1].sum() == 9


def test_255_is_ignored_where_other_values_are(tmp_path: Path):
    values = binary()
    values[5, 5] = 1
    splits, said = load(save(tmp_path, values))
    assert said == []
    assert splits.train[0][1].unique().tolist() == [0, 1, 255]


def test_much_that_is_ignored_is_said(tmp_path: Path):
    values = np.full((6, 8), 255)
    values[0, :2] = 0, 1
    _, said = load(save(tmp_path, values))
    assert said[0].startswith("95.83% of the pixels of the training masks of")
    assert "are ignored: the value 255, and what the class list leaves unlabelled" in said[0]


@pytest.mark.parametrize(
    ("values", "text", "message"),
    [
        (
            binary(),
            "lesion\n",
            "has the one class 'lesion', so that nothing can be learnt; name what is around it, too",
        ),
        (binary(1), "0 unlabeled\n1 lesion\n", "has the one class 'lesion', .* two lines 'background' and 'lesion'"),
        (binary(), "a\nb\nc\n", "every labelled pixel of the training masks of .* is 'a', .*255 is ignored"),
        (np.zeros((6, 8)), "background\nlesion\n", "every labelled pixel of the training masks of .* is 'background'"),
    ],
)
def test_a_single_class_is_refused(tmp_path: Path, values: np.ndarray, text: str, message: str):
    root = save(tmp_path, values, text=text)
    with pytest.raises(TranseptError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_black_that_is_unlabelled_leaves_one_class(tmp_path: Path):
    root = save(tmp_path, binary(), "palette.txt", "0 0 0 unlabeled\n255 255 255 lesion\n")
    with (
        pytest.warns(TranseptWarning, match="255 is 'lesion'"),
        pytest.raises(TranseptError, match="has the one class 'lesion', so that nothing can be learnt"),
    ):
        load_segmentation_splits(str(root))
