"""Numbers and lists in words."""

import json
import math

from transept.words import fitted, listed, percent, plain_number


def test_lists_end_with_how_many_more():
    assert listed([]) == ""
    assert listed(["a"]) == "a"
    assert listed("abc") == "a, b, c"
    assert listed("abcd") == "a, b, c, and 1 more"
    assert listed((name for name in "abcdefg"), most=2) == "a, b, and 5 more"
    assert listed("abcd", separator="; ") == "a; b; c; and 1 more"


def test_shares():
    assert percent(0.12345) == "12.35%"
    assert percent(0.0) == "0.00%"
    assert percent(1) == "100.00%"
    assert percent(None) == percent(math.nan) == "-"


def test_json_has_no_nan():
    assert json.dumps([plain_number(value) for value in (0.5, 0.0, math.nan)]) == "[0.5, 0.0, null]"


def test_listed_within_room():
    assert listed(["a" * 30, "b" * 30, "c"], room=40) == f"{'a' * 30}, and 2 more"
    assert listed(["a" * 90, "b"], room=40) == f"{'a' * 90}, and 1 more"


def test_fitted():
    assert fitted("short enough") == "short enough"
    long = fitted(f"the file {'x' * 400!r} is no picture; give another")
    assert len(long) == 300
    assert long.startswith("the file 'xxx")
    assert long.endswith("xxx' is no picture; give another")
    assert len(fitted("word " * 200)) == 300
