"""Numbers, names and lists as people, and JSON, read them."""

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence


def visible(text: object) -> str:
    """Text of a stranger, fit for a terminal, a drawing or a page: characters that act and do not show are escaped.

    Control characters (escape, carriage return, newline, bell), marks that turn the direction of writing, and bytes of
    a file's name that are no text become `\\u001b` and the like, as in JSON. Letters, signs and spaces of all scripts
    stay, and the joiners that some scripts and emoji need.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(letter if _shows(letter) else json.dumps(letter)[1:-1] for letter in text)


def _shows(letter: str) -> bool:
    return letter.isprintable() or letter in "\u200c\u200d" or unicodedata.category(letter) == "Zs"


def listed(names: Iterable[str], most: int = 3, separator: str = ", ") -> str:
    """The first names, and how many more there are: `a, b, c, and 4 more`."""
    names = list(map(visible, names))
    rest = len(names) - most
    return separator.join([*names[:most], *([f"and {rest} more"] if rest > 0 else [])])


def fitted(sentence: str, most: int = 300) -> str:
    """A sentence of no more than so many characters.

    Left out are further examples, between the first and the remedy; then the middles of its longest words, and its own.
    """
    first, *examples, last = sentence.split("; ") if sentence.count("; ") > 1 else (sentence, "")
    while examples and len(sentence) > most:
        examples.pop()
        sentence = "; ".join([first, *examples, "...", last])
    while len(sentence) > most:
        longest = max(sentence.split(), key=len)
        if len(longest) <= _LONG_WORD:
            return _without_middle(sentence, most)
        room = max(_LONG_WORD, len(longest) - (len(sentence) - most))
        sentence = sentence.replace(longest, _without_middle(longest, room))
    return sentence


_LONG_WORD = 60


def _without_middle(text: str, most: int) -> str:
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[: most - 3 - half]}...{text[-half:]}"


def distinct(names: Sequence[str], numbers: Iterable[int] | None = None) -> list[str]:
    """The names, those that several have with their number (default: their place from 0) behind: `crane (134)`."""
    often = Counter(names)
    numbers = range(len(names)) if numbers is None else numbers
    return [f"{name} ({i})" if often[name] > 1 else name for name, i in zip(names, numbers, strict=True)]


def percent(share: float | None) -> str:
    """A share in 0..1 as `12.34%`; `-` where there is none."""
    return "-" if share is None or math.isnan(share) else f"{share:.2%}"


def plain_number(value: float) -> float | None:
    """None for NaN, which JSON lacks."""
    return None if math.isnan(value) else value


def clock(seconds: float | None) -> str:
    """`1:02:03`, `2:03`, or `-:--` where it is not known."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
