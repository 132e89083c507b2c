"""Files that grow."""

import json
from pathlib import Path

import pytest

from transept.errors import TranseptError
from transept.files import GrowingList


@pytest.mark.parametrize(("head", "tail"), [("[", "]"), ('{"naïve": 1, "items": [', "]}")])
def test_a_list_is_whole_after_every_step(tmp_path: Path, head: str, tail: str):
    path = tmp_path / "new" / "list.json"
    growing = GrowingList(path, head=head, tail=tail)
    assert not path.exists()
    path.parent.mkdir()
    path.write_text("what was there before, and was longer " * 9)
    seen = []
    for items in ([], [{"a": "ü"}], [], [2, 3], [[4]]):
        growing.extend(items)
        seen += items
        content = json.loads(path.read_text(encoding="utf-8"))
        assert (content if head == "[" else content["items"]) == seen


def test_a_list_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TranseptError, match="cannot write .*list.json"):
        GrowingList(tmp_path / "file" / "list.json").extend([1])
