"""JPEGs decoded no larger than the crop needs: the same crop, nearly the same picture, and errors as they were."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from transept.data.classification import image_set
from transept.data.classification.sets import load_splits
from transept.data.classification.transforms import (
    Augmentation,
    Preprocessing,
    RandomResizedCrop,
    Undecoded,
    train_transform,
)
from transept.data.images import BadImageError, read_image
from transept.data.loading import Draw, EpochSampler, TransformedSet, make_loader
from transept.errors import TranseptWarning


def photo(width: int, height: int) -> Image.Image:
    """Smooth, with edges that tell left from right and top from bottom."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([across, down, 255 * ((across // 32 + down // 48) % 2)], 2).astype(np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(2))


def save(path: Path, picture: Image.Image, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, quality=95, exif=exif)
    return path


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that counts as too large to be decoded beforehand."""
    monkeypatch.setattr(image_set, "_SMALL_BYTES", 1000)
    for half in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / "set" / half / label).mkdir(parents=True)
            for i in range(3):
                save(tmp_path / "set" / half / label / f"{i}.jpg", photo(300 + i, 220))
    return tmp_path / "set"


def test_sizes_that_are_decoded(tmp_path: Path):
    path = save(tmp_path / "a.jpg", photo(301, 203))
    told: list[tuple[int, int]] = []

    def size(factor: float, path: Path = path) -> tuple[int, int]:
        return read_image(path, reduce=lambda width, height: (told.append((width, height)), factor)[1]).size

    assert [size(factor) for factor in (0.3, 1, 1.99)] == [(301, 203)] * 3
    assert [size(factor) for factor in (2, 3.9, 4, 8, 50)] == [(151, 102)] * 2 + [(76, 51)] + [(38, 26)] * 2
    turned = save(tmp_path / "b.jpg", photo(301, 203), orientation=6)
    assert size(2, turned) == (102, 151)
    assert set(told[:-1]) == {(301, 203)}
    assert told[-1] == (203, 301)
    photo(301, 203).save(tmp_path / "c.png")
    assert size(8, tmp_path / "c.png") == (301, 203)


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_same_crop_without_scaling_up(tmp_path: Path, orientation: int):
    path = save(tmp_path / "a.jpg", photo(640, 400), orientation)
    crop = RandomResizedCrop([80, 50], (0.08, 1.0), antialias=True)
    sizes, apart = set(), []
    decoded: list[Image.Image] = []

    def read(reduce: Callable[[int, int], float]) -> Image.Image:
        decoded[:] = [read_image(path, reduce=reduce)]
        return decoded[0]

    for seed in range(40):
        torch.manual_seed(seed)
        whole = crop(read_image(path))
        torch.manual_seed(seed)
        fast = crop(Undecoded(read))
        torch.manual_seed(seed)
        full = (400, 640) if orientation == 6 else (640, 400)
        box = crop.make_params([torch.empty(3, full[1], full[0])])
        scale = round(full[0] / decoded[0].width)
        sizes.add(scale)
        assert scale in (1, 2, 4, 8)
        assert scale <= max(min(box["height"] / 80, box["width"] / 50), 1) < 2 * scale or scale == 8
        assert fast.size == whole.size == (50, 80)
        apart.append(np.abs(np.asarray(fast, float) - np.asarray(whole, float)).mean())
        if scale == 1:
            assert apart[-1] == 0
    assert len(sizes) >= 3, "crops of several sizes were to be drawn"
    assert max(apart) < 2.5
    assert 0 < np.mean(apart) < 1


def test_only_training_on_large_sets_decodes_small(large: Path, monkeypatch: pytest.MonkeyPatch):
    transform = train_transform(Preprocessing(img_size=(24, 24)), Augmentation(crop_scale=(0.5, 1)))
    train = load_splits(str(large)).train
    fast, plain = TransformedSet(train, transform, fast_decode=True), TransformedSet(train, transform)
    draw = Draw(1, 5)
    assert (fast[draw][0] - plain[draw][0]).abs().mean() < 0.1
    assert not torch.equal(fast[draw][0], plain[draw][0])
    assert torch.equal(fast[draw][0], fast[draw][0])
    assert not train._kept
    turned = train_transform(Preprocessing(img_size=(24, 24)), Augmentation(rotation=10))  # crops what it has turned
    for setting, other in ((train, turned), (train, lambda picture: picture)):
        assert not TransformedSet(setting, other, fast_decode=True).fast_decode
    monkeypatch.undo()
    small = load_splits(str(large)).train
    assert torch.equal(TransformedSet(small, transform, fast_decode=True)[draw][0], plain[draw][0])
    assert len(small._kept) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_what_turns_out_to_be_unreadable_in_a_large_set(large: Path, workers: int):
    bad = large / "train" / "dog" / "0.jpg"
    bad.write_bytes(bad.read_bytes()[:700])
    transform = train_transform(Preprocessing(img_size=(24, 24)), Augmentation())
    sampler = EpochSampler(6, seed=0, batch_size=2)

    def labels(skip: bool) -> list[int]:
        train = load_splits(str(large), skip_bad_images=skip).train
        loader = make_loader(TransformedSet(train, transform), 2, sampler=sampler, workers=workers)
        return [label for _, batch in loader for label in batch.tolist()]

    with pytest.raises(BadImageError, match=r"dog/0.jpg' is damaged or truncated") as caught:
        labels(skip=False)
    assert "\n" not in str(caught.value)
    if workers == 0:
        with pytest.warns(TranseptWarning, match="dog/0.jpg' is damaged .* the next picture is taken instead"):
            assert sorted(labels(skip=True)) == [0, 0, 0, 1, 1, 1]
    bad.write_bytes(b"")
    splits = load_splits(str(large), skip_bad_images=True)
    assert [(skip.path, skip.reason) for skip in splits.skipped] == [(bad, "is empty")]
    assert len(splits.train) == 5


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(BadImageError(Path("a.jpg"), "is empty")))
    assert (error.path, error.reason, str(error)) == (Path("a.jpg"), "is empty", "'a.jpg' is empty")
