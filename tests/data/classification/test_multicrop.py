"""Crops: how many, how large, and the same for the same seed."""

import numpy as np
import pytest
import torch
from PIL import Image

from transept.data.classification.image_set import ArraySet
from transept.data.classification.multicrop import MultiCrop, multicrop_transform
from transept.data.classification.transforms import Preprocessing
from transept.data.loading import Draw, TransformedSet
from transept.errors import UsageError

SIZE = Preprocessing(img_size=(32, 40))


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))


def test_sizes_and_number(picture: Image.Image):
    views = multicrop_transform(SIZE, MultiCrop(local_crops=3, local_size=12))(picture)
    assert [tuple(view.shape) for view in views] == [(3, 32, 40)] * 2 + [(3, 12, 12)] * 3
    assert len({float(view.mean()) for view in views}) == 5
    assert len(multicrop_transform(SIZE, MultiCrop(local_crops=0))(picture)) == 2


def test_a_seed_fixes_everything_random(picture: Image.Image):
    crops = MultiCrop(local_crops=2, local_size=12, rotation=20)
    pictures = TransformedSet(ArraySet(np.asarray(picture)[None], [0], ["a"]), multicrop_transform(SIZE, crops))  # pyright: ignore
    first, again, other = (pictures[Draw(0, seed)][0] for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (dict(blur=(1.0, 0.0, 0.0)), {0}),
        (dict(blur=(0.0, 1.0, 0.0)), {1}),
        (dict(blur=(0.0, 0.0, 1.0)), {2, 3}),
        (dict(solarize=1.0), {1}),
        (dict(color_jitter=(0.9, 0.0, 0.0, 0.0)), {0, 1, 2, 3}),
        (dict(flip=1.0), {0, 1, 2, 3}),
        (dict(global_scale=(0.9, 1.0)), {0, 1}),
        (dict(local_scale=(0.9, 1.0)), {2, 3}),
    ],
)
def test_each_option_changes_its_crops(picture: Image.Image, change: dict, where: set[int]):
    """Of ten seeds, as an option that is drawn may happen to do nothing; crops before the changed one are the same."""
    plain = dict(flip=0.0, color_jitter=(0.0,) * 4, blur=(0.0,) * 3, solarize=0.0, local_crops=2, local_size=12)
    changed = set()
    for seed in range(10):
        views = []
        for options in (plain, plain | change):
            torch.manual_seed(seed)
            views.append(multicrop_transform(SIZE, MultiCrop(**options))(picture))
        changed |= {i for i, (a, b) in enumerate(zip(*views, strict=True)) if not torch.equal(a, b)}
    # A draw more or less shifts what later crops see, so only the first changed one tells.
    assert min(changed) == min(where)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(local_size=0), "local_size=0 must be greater than 0"),
        (dict(global_scale=(0.5, 0.2)), r"global_scale=\[0.5, 0.2\] falls; give \[low, high\]"),
        (dict(blur=(0.0, 2.0, 0.0)), r"blur=\[0, 2, 0\] is not in \[0, 1\]"),
    ],
)
def test_wrong_options(options: dict, message: str):
    with pytest.raises(UsageError, match=message):
        MultiCrop(**options)
