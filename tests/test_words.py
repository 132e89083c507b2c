"""Numbers and lists in words."""

import json
import math

from transept.words import fitted, listed, percent, plain_number, visible


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


def test_what_acts_and_does_not_show_is_escaped():
    assert visible("\x1b[2J\r\a\x9b1m\n\t") == r"\u001b[2J\r\u0007\u009b1m\n\t"
    assert visible("photo\u202egnp.exe \u2066\udcff\x7f") == r"photo\u202egnp.exe \u2066\udcff\u007f"
    shown = "crème brûlée 日本\u3000語 \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 👩\u200d🚀 C:\\new"
    assert visible(shown) == shown
    assert visible(visible("\x1b")) == visible("\x1b")
    assert json.loads(visible(json.dumps(["\x9b\U000e0001"], ensure_ascii=False))) == ["\x9b\U000e0001"]
    assert listed(["a\nb", "\x1b"]) == r"a\nb, \u001b"


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
