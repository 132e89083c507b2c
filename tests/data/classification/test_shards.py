"""Shards in WebDataset's form, written by its own writer."""

import json
import os
import tarfile
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from transept.data.classification import shards
from transept.data.classification.sets import load_splits
from transept.data.classification.transforms import Augmentation, Preprocessing, train_transform
from transept.data.loading import EpochSampler, TransformedSet, make_loader
from transept.errors import TranseptError, TranseptWarning

webdataset = pytest.importorskip("webdataset")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))


def picture(number: int, form: str = "JPEG") -> bytes:
    file = BytesIO()
    Image.new("RGB", (20 + number, 16), (number, 0, 0)).save(file, form, quality=95)
    return file.getvalue()


def write(path: Path, samples: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with webdataset.TarWriter(str(path)) as sink:
        for sample in samples:
            sink.write(sample)
    return path


def sample(number: int, **parts: Any) -> dict[str, Any]:
    return {"__key__": f"a/s{number:04d}", "jpg": picture(number), **(parts or {"cls": number % 3})}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "shards"
    for shard in range(3):
        write(root / f"train-{shard:03d}.tar", [sample(10 * shard + i) for i in range(10)])
    write(root / "val-000.tar", [sample(100 + i) for i in range(5)])
    write(root / "val-001.tar", [sample(105 + i) for i in range(2)])
    return root


def test_forms_of_the_pattern(folder: Path):
    for data in (
        f"wds:{folder}",
        f"wds:{folder}/train-{{000..002}}.tar,{folder}/val-{{000..001}}.tar",
        f"wds:{folder}/train-{{000,001,002}}.tar,{folder}/val*.tar",
    ):
        splits = load_splits(data)
        assert splits.classes == ["0", "1", "2"]
        assert (len(splits.train), len(splits.val)) == (30, 7)
        for half, first in ((splits.train, 0), (splits.val, 100)):
            for i in range(len(half)):
                image, label = half[i]
                assert (image.size, label) == ((20 + first + i, 16), (first + i) % 3)
    assert splits.train.paths[10] == folder / "train-001.tar" / "a" / "s0010.jpg"
    split = load_splits(f"wds:{folder}/train*.tar")
    assert len(split.train) + len(split.val) == 30
    assert len(split.val) == 6
    (folder / "classes.txt").write_text("cat\ndog\ncow\nowl\n")
    assert load_splits(f"wds:{folder}").classes == ["cat", "dog", "cow", "owl"]


def test_the_same_samples_as_the_library_decodes(folder: Path):
    stream = webdataset.WebDataset(str(folder / "train-{000..002}.tar"), shardshuffle=False).decode("pil")
    train = load_splits(f"wds:{folder}").train
    for theirs, (image, label) in zip(stream.to_tuple("jpg", "cls"), train, strict=True):
        assert np.array_equal(np.asarray(theirs[0]), np.asarray(image))
        assert theirs[1] == label


def test_other_endings_and_json(tmp_path: Path):
    page = json.dumps({"label": 1, "width": 3}).encode()
    samples = [
        {"__key__": "x.y/0", "png": picture(0, "PNG"), "json": page},
        {"__key__": "1", "input.JPEG": picture(1), "cls": b"0\n", "txt": b"a cat"},
        {"__key__": "2", "json": {"label": 7}, "webp": picture(2, "WEBP"), "cls": 0},
        {"__key__": "3", "__comment__": "no sample", "txt": b"of the shard"},
        {"__key__": "4", "jpg": picture(4), "json": page},
    ]
    write(tmp_path / "s" / "a.tar", samples[:-2])
    with tarfile.open(tmp_path / "s" / "a.tar", "a") as tar:  # what no key belongs to
        tar.addfile(tarfile.TarInfo("README"), BytesIO())
    write(tmp_path / "s" / "b.tar", samples[-2:])
    splits = load_splits(f"wds:{tmp_path}/s/a.tar,{tmp_path}/s/b.tar")
    assert splits.train.labels == [1, 0, 0]
    assert [image.width for image, _ in splits.train] == [20, 21, 22]
    assert splits.val.labels == [1]


def test_a_shard_is_scanned_once_until_it_changes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    scanned: list[str] = []
    scan = shards._scan
    monkeypatch.setattr(shards, "_scan", lambda shard, **how: (scanned.append(shard.name), scan(shard, **how))[1])
    for shard in folder.iterdir():
        os.utime(shard, (10**9, 10**9))
    first = load_splits(f"wds:{folder}")
    assert len(scanned) == 5
    again = load_splits(f"wds:{folder}")
    assert len(scanned) == 5
    assert list(again.train.paths) == list(first.train.paths)
    assert again.train[17][0].size == first.train[17][0].size
    write(folder / "train-001.tar", [sample(i) for i in range(4)])
    assert len(load_splits(f"wds:{folder}").train) == 24
    assert scanned[5:] == ["train-001.tar"]


def test_the_rest_of_an_epoch_is_exactly_the_same(folder: Path):
    """Across shards, for any number of workers, and shared between two processes."""
    train = load_splits(f"wds:{folder}").train
    transform = train_transform(Preprocessing(img_size=(8, 8)), Augmentation(color_jitter=0.4))

    def batches(start: int, workers: int = 0, size: int = 4, **share: int) -> list[torch.Tensor]:
        sampler = EpochSampler(len(train), seed=1, batch_size=size, start_epoch=2, start_batch=start, **share)
        loader = make_loader(TransformedSet(train, transform), size, sampler=sampler, workers=workers)
        return [images for images, _ in loader]

    whole, rest = batches(0), batches(3, workers=2)
    assert (len(whole), len(rest)) == (7, 4)
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], rest, strict=True))
    ranks = [batches(3, size=2, rank=rank, world_size=2) for rank in range(2)]
    assert all(torch.equal(a, torch.stack([b, c], 1).flatten(0, 1)) for a, b, c in zip(rest, *ranks, strict=True))


def test_wrong_shards(folder: Path, tmp_path: Path):
    def refused(pattern: str, message: str) -> None:
        with pytest.raises(TranseptError, match=message) as caught:
            load_splits(f"wds:{pattern}")
        assert "\n" not in str(caught.value)

    bad = tmp_path / "bad"
    refused(f"{folder}/test-*.tar", "no shard matches '.*test-.*'; give paths like 'wds:train-{000..146}.tar'")
    refused(f"{folder}/train-{{000..003}}.tar", "no shard matches '.*train-003.tar'")
    refused("https://host/train-{0..3}.tar", "is no local file; copy the shards to a local disk")
    refused("a.tar,b.tar,c.tar,d.tar", "has 4 patterns; give those of training, validation and test")
    refused(str(write(bad / "a.tar", [sample(0, txt="x")])), "'a/s0000' of .*a.tar' has no class")
    refused(str(write(bad / "b.tar", [{"__key__": "7", "cls": 1}])), "sample '7' of .*b.tar' has no picture")
    refused(str(write(bad / "c.tar", [sample(0, cls="cat")])), "cls' of .*c.tar' holds 'cat'; a class is a number")
    refused(str(write(bad / "d.tar", [sample(0, cls=0, png=picture(1, "PNG"))])), "'a/s0000' .* has two pictures")
    refused(str(write(bad / "e.tar", [sample(0, cls=0), sample(1, cls=0)])), "one class only")
    (bad / "f.tar").write_bytes((folder / "train-000.tar").read_bytes()[:3000])
    refused(str(bad / "f.tar"), "f.tar' is .*(cut off|damaged)")
    (bad / "g.tar").write_bytes(b"hello")
    refused(str(bad / "g.tar"), "g.tar' is no uncompressed tar file, or is damaged")
    (folder / "classes.txt").write_text("cat\ndog\n")
    refused(str(folder), "names 2 classes in 2 lines, but the shards have the class number 2")
    (folder / "classes.txt").unlink()
    write(folder / "train-000.tar", [sample(0), {"__key__": "broken", "jpg": b"junk", "cls": 1}])
    refused(str(folder), "1 file is not readable as pictures: '.*train-000.tar/broken.jpg' is no picture")
    assert len(load_splits(f"wds:{folder}", skip_bad_images=True).train) == 21


@pytest.mark.parametrize("member", ["cls", "json", "names", "named numbers"])
def test_several_labels(tmp_path: Path, member: str):
    """Lists of numbers in .cls, of numbers or names in .json."""
    lists = [[0, 2], [], [1], [2], [0, 1, 2], [1]]
    names = ["cat", "dog", "eel"]

    def parts(labels: list[int]) -> dict[str, Any]:
        match member:
            case "cls":
                return {"cls": json.dumps(labels).encode()}
            case "names":
                return {"json": {"labels": [names[label] for label in labels]}}
            case _:
                return {"json": {"label": labels}}

    for half in ("train", "val"):
        write(tmp_path / "set" / f"{half}-0.tar", [sample(i, **parts(labels)) for i, labels in enumerate(lists)])
    if member == "named numbers":
        (tmp_path / "set" / "classes.txt").write_text("\n".join([*names, "fox"]))
    for _ in range(2):  # noted, and from the note
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TranseptWarning)  # of foxes there are none
            splits = load_splits(f"wds:{tmp_path / 'set'}", multi_label=True)
        assert splits.classes == {"names": names, "named numbers": [*names, "fox"]}.get(member, ["0", "1", "2"])
        assert [np.flatnonzero(splits.train.label(i)).tolist() for i in range(6)] == lists
        assert splits.train.take([4, 2]).label(1).tolist()[:3] == [0, 1, 0]
        assert splits.val[0][0].width == 20


def test_wrong_lists_of_labels(tmp_path: Path):
    file = write(tmp_path / "a.tar", [sample(0, json={"labels": ["a", 1]})])
    with pytest.raises(TranseptError, match="labels are a list of numbers from 0 to 999999, or of names"):
        load_splits(f"wds:{file}", multi_label=True)
    file = write(tmp_path / "b.tar", [sample(0, json={"labels": ["a"]}), sample(1, json={"labels": [1]})])
    with pytest.raises(TranseptError, match="have numbers and names as labels"):
        load_splits(f"wds:{file}", multi_label=True)
    file = write(tmp_path / "c.tar", [sample(0, cls=b"[1, 2]")])
    with pytest.raises(TranseptError, match="a class is a number from 0 to 999999; for lists give multi_label"):
        load_splits(f"wds:{file}")
