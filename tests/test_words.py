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


def test_fitted():
    assert fitted("short enough") == "short enough"
    long = fitted(f"the file {'x' * 400!r} is no picture; give another")
    assert len(long) == 300
    assert long.startswith("the file 'xxx")
    assert long.endswith("xxx' is no picture; give another")
    assert len(fitted("word " * 200)) == 300
    examples = [f"the file '{letter * 60}' is empty" for letter in "abcd"]
    several = fitted(f"4 files: {'; '.join(examples)}; remove them")
    assert several == f"4 files: {examples[0]}; {examples[1]}; {examples[2]}; ...; remove them"
