"""YAML is read within bounds: what a few lines can stand for, and how it is written."""

from pathlib import Path

import pytest

from transept.errors import TranseptError
from transept.files import parse_yaml, read_yaml


def test_plain_pages_are_as_yaml_has_them():
    assert parse_yaml("a: &x [1, 2.5, null, true]\nb: {c: *x}\n") == {
        "a": [1, 2.5, None, True],
        "b": {"c": [1, 2.5, None, True]},
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1", "line 2: did not find expected"),
        ("[" * 200 + "]" * 200, "nested more than 100 levels deep"),
        ("a: &a [*a]", "line 1: '[*]a' stands inside itself"),
        ("? [1, 2]\n: 3\n", "line 1: found unhashable key"),
        (f"a: {'9' * 5000}", "a number has thousands of digits"),
        ("a: 2020-13-45", "month must be in 1..12"),
        ("a: !!bool perhaps", "perhaps"),
    ],
    ids=["cut off", "deep", "recursive", "key", "digits", "date", "flag"],
)
def test_what_is_refused(tmp_path: Path, text: str, sentence: str):
    file = tmp_path / "page.yaml"
    file.write_text(text)
    with pytest.raises(TranseptError, match=f"page.yaml' is not YAML that can be read .*{sentence}") as error:
        read_yaml(file)
    assert "\n" not in str(error.value)


def test_aliases_are_counted_without_being_written_out():
    lines = ["a0: &a0 [1, 1]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    with pytest.raises(ValueError, match="line [0-9]+: it stands for more than 100,000 entries"):
        parse_yaml("\n".join(lines))
    assert len(parse_yaml("\n".join(lines[:10]))) == 10


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_other_encodings_are_named(tmp_path: Path, encoding: str):
    file = tmp_path / "page.yaml"
    file.write_text("a: ü\n", encoding=encoding)
    with pytest.raises(TranseptError, match=r"page.yaml' as UTF-8 text .*at byte \d\); save it as UTF-8"):
        read_yaml(file)
    file.write_text("a: ü\n", encoding="utf-8-sig")
    assert read_yaml(file) == {"a": "ü"}
