"""Listings that are kept stay right when the folder changes."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from transept.data import index
from transept.data.classification.sets import load_splits
from transept.data.index import File, list_files


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's cache in a folder of its own, and indexes kept of small folders, too."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(index, "WORTH_KEEPING", 3)
    return tmp_path / "home" / "hub" / "transept"


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7)).save(root / name)
    return root


def settle(root: Path) -> None:
    """As if nothing had been changed for a minute."""
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        then = folder.stat().st_mtime - 60
        os.utime(folder, (then, then))


def names(root: Path) -> dict[str, list[str]]:
    return {label: [file.name for file in files] for label, files in list_files(root).items()}


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders that were really listed."""
    listed: list[str] = []
    scan = index._scan
    monkeypatch.setattr(index, "_scan", lambda folder: (listed.append(folder.name), scan(folder))[1])
    return listed


def test_only_changed_folders_are_listed_again(tmp_path: Path, cache: Path, scans: list[str]):
    root = fill(tmp_path / "set", "cat/a.png", "cat/deep/b.png", "dog/c.png")
    settle(root)
    found = names(root)
    assert found == {"cat": ["cat/a.png", "cat/deep/b.png"], "dog": ["dog/c.png"]}
    assert sorted(scans) == ["cat", "deep", "dog", "set"]
    assert len(list(cache.glob("index-*.json"))) == 1
    scans.clear()
    assert names(root) == found
    assert scans == []
    fill(root, "cat/deep/new.png")
    assert names(root)["cat"] == ["cat/a.png", "cat/deep/b.png", "cat/deep/new.png"]
    assert scans == ["deep"]
    (root / "dog" / "c.png").rename(root / "dog" / "d.png")
    assert names(root)["dog"] == ["dog/d.png"]
    (root / "cat" / "a.png").unlink()
    assert names(root)["cat"] == ["cat/deep/b.png", "cat/deep/new.png"]
    (root / "dog").rename(root / "cow")
    assert list(names(root)) == ["cat", "cow"]
    shutil.rmtree(root / "cow")
    assert names(root) == {"cat": ["cat/deep/b.png", "cat/deep/new.png"]}


def test_what_is_changing_is_listed_until_it_rests(tmp_path: Path, cache: Path, scans: list[str]):
    """Two changes within a tick of the file system's clock leave the same time behind."""
    root = fill(tmp_path / "set", "cat/a.png", "cat/b.png", "dog/c.png")
    names(root)
    before = (root / "cat").stat()
    (root / "cat" / "d.png").touch()
    os.utime(root / "cat", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "cat/d.png" in names(root)["cat"]
    settle(root)
    names(root)
    scans.clear()
    names(root)
    assert scans == []


def test_a_damaged_or_unwritable_cache_is_done_without(tmp_path: Path, cache: Path, scans: list[str]):
    root = fill(tmp_path / "set", "cat/a.png", "cat/b.png", "dog/c.png")
    settle(root)
    found = list_files(root)
    size = (root / "cat" / "a.png").stat().st_size
    assert found["cat"] == [File("cat/a.png", size), File("cat/b.png", size)]
    (file,) = cache.glob("index-*.json")
    for text in ("", "{}", file.read_text()[:-20], '{"key": 3}'):
        file.write_text(text)
        scans.clear()
        assert list_files(root) == found
        assert len(scans) == 3
    shutil.rmtree(cache)
    cache.touch()  # a file where the folder should be
    assert list_files(root) == found


def test_links_hidden_files_and_odd_names(tmp_path: Path, cache: Path):
    root = fill(tmp_path / "set", "öl/ä b.png", "öl/x.png", "öl/.hidden.png", ".git/a.png")
    odd = os.fsencode(root / "öl") + b"/\xff.png"
    shutil.copy(root / "öl" / "x.png", odd)
    fill(tmp_path / "elsewhere", "y.png", "z.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "öl" / "loop").symlink_to(root)
    (root / "öl" / "broken.png").symlink_to(root / "nothing.png")
    settle(root)
    for _ in range(2):  # listed, then remembered
        splits = load_splits(str(root))
        assert splits.classes == ["linked", "öl"]
        found = {os.fsencode(path.name) for half in (splits.train, splits.val) for path in half.paths}
        assert found == {b"y.png", b"z.png", "ä b.png".encode(), b"x.png", b"\xff.png"}
        assert all(half[i][0].size == (9, 7) for half in (splits.train, splits.val) for i in range(len(half)))
