"""JPEGs decoded no larger than the crop needs: the same crop, nearly the same picture, and errors as they were."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageFilter

from transept.data.classification import image_set
from transept.data.classification.image_set import ImageSet, Paths
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
from transept.data.reading import Reading
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

    def read(reduce: Callable[[int, int], float], window: object) -> Image.Image:
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


def deep(path: Path, kind: str) -> Reading:
    """A picture of 16 bits, and how it is read."""
    values = np.random.default_rng(0).integers(0, 4096, (4, 90, 120), dtype=np.uint16)
    every, pair = (0, 1, 2, 3), ((0.0, 4095.0),)
    match kind:
        case "grey png":
            Image.fromarray(values[0]).save(path.with_suffix(".png"))
            return Reading(pixel_range=pair)
        case "grey tif":
            tifffile.imwrite(path, values[0], compression="zlib", rowsperstrip=8)
            return Reading(bands=(0,), pixel_range=pair)
        case "pages":
            tifffile.imwrite(path, values, photometric="minisblack", rowsperstrip=8)
            return Reading(bands=(3, 1), pixel_range=pair)
        case "tiles":
            tifffile.imwrite(path, values.transpose(1, 2, 0), planarconfig="contig", tile=(32, 32), photometric="rgb")
            return Reading(bands=every, pixel_range=pair * 4)
        case "turned":
            tags = [(274, "H", 1, 6, True)]
            tifffile.imwrite(path, values, planarconfig="separate", photometric="minisblack", extratags=tags)
            return Reading(bands=every, pixel_range=pair)
        case _:
            tifffile.imwrite(path, (values >> 4).astype(np.uint8), planarconfig="separate", photometric="minisblack")
            return Reading(bands=every)


@pytest.mark.parametrize("kind", ["grey png", "grey tif", "pages", "tiles", "turned", "bytes"])
def test_crops_of_deep_files_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    monkeypatch.setattr(image_set, "_SMALL_BYTES", 0)
    reading = deep(tmp_path / "a.tif", kind)
    images = ImageSet(Paths(tmp_path, [next(tmp_path.iterdir()).name]), [0], sizes=np.array([1]))
    images.reading = reading
    channels = reading.channels
    preprocessing = Preprocessing(img_size=(24, 24), mean=(0.5,) * channels, std=(0.2,) * channels)
    transform = train_transform(preprocessing, Augmentation(color_jitter=0.0))
    fast, plain = TransformedSet(images, transform, fast_decode=True), TransformedSet(images, transform)
    for seed in range(4):
        ours, whole = fast[Draw(0, seed)][0], plain[Draw(0, seed)][0]
        assert ours.shape == (channels, 24, 24)
        assert torch.equal(ours, whole)


def test_windows(tmp_path: Path):
    path = tmp_path / "a.tif"
    reading = deep(path, "turned")
    whole, told = read_image(path, reading=reading), []
    part = read_image(path, reading=reading, window=lambda *size: (told.append(size), (5, 20, 30, 40))[1])
    assert told == [(90, 120)]
    assert torch.equal(part, whole[:, 20:60, 5:35])
