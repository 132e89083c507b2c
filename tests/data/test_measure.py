"""What training pictures say of how they are to be read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from transept.data.classification.sets import load_splits
from transept.data.images import read_image
from transept.data.measure import channel_statistics, complete
from transept.data.reading import PLAIN, Reading, WantedReading
from transept.errors import TranseptError, UsageError

RNG = np.random.default_rng(0)


def deep(folder: Path, *, low: int = 0, high: int = 4096, count: int = 3) -> list[tuple[Any, Path]]:
    """Files of 16 bits, values low to high."""
    paths = [folder / f"{i}.tif" for i in range(count)]
    for path in paths:
        tifffile.imwrite(path, RNG.integers(low, high, (40, 40), dtype=np.uint16), photometric="minisblack")
    return [(path, path) for path in paths]


def test_dark_sets_are_refused_with_the_value_to_give(tmp_path: Path):
    files = deep(tmp_path)
    with pytest.raises(TranseptError, match=r"end at 409\d and .* black; give pixel_range=\[0, 4095\]"):
        complete(WantedReading(), files)
    given = complete(WantedReading(pixel_range=(0.0, 4095.0)), files)
    assert given == Reading(pixel_range=((0, 4095),))
    assert np.asarray(read_image(files[0][0], reading=given)).max() == 255
    assert complete(PLAIN, files) == PLAIN  # a trained task knows


def test_sets_that_are_not_dark(tmp_path: Path):
    files = deep(tmp_path)
    Image.new("L", (9, 9)).save(tmp_path / "bytes.png")
    assert complete(WantedReading(), [*files, (tmp_path / "bytes.png", tmp_path / "bytes.png")]) == PLAIN
    (tmp_path / "one").mkdir()
    assert complete(WantedReading(), files + deep(tmp_path / "one", high=9000, count=1)) == PLAIN
    (tmp_path / "cut.tif").write_bytes(b"II*\0")
    assert complete(WantedReading(), [(tmp_path / "cut.tif", tmp_path / "cut.tif")]) == PLAIN


def test_measured_range(tmp_path: Path):
    files = deep(tmp_path, low=1000, high=3000)
    values = tifffile.imread(files[0][0])
    values[0, 0] = 60_000  # a hot pixel is no white
    tifffile.imwrite(files[0][0], values, photometric="minisblack")
    ((low, high),) = complete(WantedReading(pixel_range="auto"), files).pixel_range
    assert 1000 <= low < 1010
    assert 2990 < high < 3000
    Image.new("L", (9, 9)).save(tmp_path / "bytes.png")
    with pytest.raises(TranseptError, match="none of the pictures has them; leave it out"):
        complete(WantedReading(pixel_range="auto"), [(tmp_path / "bytes.png", tmp_path / "bytes.png")])


def test_each_band_has_its_range(tmp_path: Path):
    for i in range(3):
        values = np.stack([RNG.integers(0, 100, (40, 40)), RNG.integers(5000, 9000, (40, 40))]).astype(np.float32)
        values[1, 0, 0] = np.nan
        tifffile.imwrite(tmp_path / f"{i}.tif", values, photometric="minisblack", planarconfig="separate")
    files = [(path, path) for path in sorted(tmp_path.iterdir())]
    reading = complete(WantedReading(pixel_range="auto", bands="all"), files)
    assert reading.bands == (0, 1)
    assert reading.exact
    (low, high), (second, top) = reading.pixel_range
    assert low < 2 < 97 < high < 100 < 5000 <= second < 5020 < 8980 < top < 9000
    assert Reading.of(reading.as_dict()) == reading


def test_mean_and_deviation():
    pictures = [torch.full((2, 4, 4), value, dtype=torch.uint8) for value in (0, 255)]
    pictures[0][1], pictures[1][1] = 51, 51
    mean, std = channel_statistics(pictures)
    assert mean == pytest.approx((0.5, 0.2))
    assert std == pytest.approx((0.5, 1 / 255))  # never zero


def test_sets_without_files(tmp_path: Path):
    with pytest.raises(UsageError, match="bands says how files are read, and 'digits' has none"):
        load_splits("digits", reading=WantedReading(bands=(0,)))
