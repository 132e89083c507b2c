"""Lists of pictures, standard input, and addresses."""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from transept.data.images import BadImageError, read_image
from transept.data.inputs import Input, find_input, find_inputs, read_input
from transept.errors import TranseptError, TranseptWarning, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two folders with pictures of one name, of their own greys."""
    for name, grey in (("here", 10), ("there", 200)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 6), (grey,) * 3).save(tmp_path / name / "ä b.png")
    return tmp_path


def sends(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def paths(*words: str | Path) -> list[Path]:
    return [each.path for each in find_inputs(words)]


def test_lists(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Of pictures beside the list and in the current folder those beside it are meant."""
    there = folder / "there" / "ä b.png"
    monkeypatch.chdir(folder / "here")
    (folder / "there/list.txt").write_text(
        "ä b.png\r\n\n  \n# no comment\nä b.png\n" + str(there), encoding="utf-8-sig"
    )
    assert paths(f"@{folder / 'there/list.txt'}") == [there, Path("# no comment")]
    (folder / "list.txt").write_text("ä b.png")
    assert paths("@../list.txt") == [Path("ä b.png")]  # no such file beside the list
    sends(monkeypatch, "ä b.png\nabsent.png".encode())
    assert paths("@-", there) == [Path("ä b.png"), Path("absent.png"), there]
    (folder / "here/@a.png").write_bytes(there.read_bytes())
    assert paths("./@a.png", Path("@a.png")) == [Path("@a.png")]  # files of such names


def test_pictures_named_again_are_counted(folder: Path):
    (folder / "list.txt").write_text("here/ä b.png\nthere/ä b.png\nhere/ä b.png\nhere/ä b.png\n")
    with pytest.warns(TranseptWarning, match="2 names of pictures are there a second time; each picture is taken once"):
        assert len(find_inputs([f"@{folder}/list.txt"])) == 2
    with pytest.warns(TranseptWarning, match="1 name of a picture is there a second time"):
        find_inputs([str(folder / "here"), str(folder / "here" / "ä b.png")])


def test_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch):
    sends(monkeypatch, (folder / "here/ä b.png").read_bytes())
    (image,) = find_inputs(["-", "-"])
    assert image.path == Path("stdin")
    assert read_input(image, read_image).getpixel((0, 0)) == (10, 10, 10)
    sends(monkeypatch, b"")
    with pytest.raises(BadImageError, match="'stdin' is empty"):
        read_input(find_input("-"), read_image)
    with pytest.raises(UsageError, match=r"standard input is one thing, a picture \(-\) or a list \(@-\)"):
        find_inputs(["-", "@-"])


def test_what_is_no_list(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    with pytest.raises(TranseptError, match=r"the list 'list.txt' does not exist; give @ and a text file"):
        find_inputs(["@list.txt"])
    Path("list.txt").write_text("\n")
    with pytest.raises(TranseptError, match="names no pictures; write a path in each line"):
        find_inputs(["@list.txt"])
    with pytest.raises(TranseptError, match=r"cannot be read \(it is a folder\)"):
        find_inputs(["@here"])
    with pytest.raises(TranseptError, match="is no text of UTF-8; a picture is given without @"):
        find_inputs(["@here/ä b.png"])
    Path("list.txt").write_text("here/ä b.png\nthere/ä b.png")
    with pytest.raises(BadImageError, match=r"known format; where it lists pictures, give '@list.txt'"):
        read_input(Input(Path("list.txt")), read_image)
    with pytest.raises(UsageError, match="'@list.txt' names 2 pictures; give one"):
        find_input("@list.txt")
    with pytest.raises(
        UsageError, match=r"is an address, and pictures are not fetched.*curl -sSfL 'https://a.org/b.jpg' \|"
    ):
        find_inputs(["https://a.org/b.jpg"])
