"""Ranges of options, which frozen dataclasses ask of their own fields: the sentence begins with `name=value`."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from transept.errors import UsageError, advice


def check_within(interval: str, **values: float | Sequence[float] | None) -> None:
    """Each number is in an interval, written as in mathematics: `[0, 1)` holds 0 and not 1. None is no number.

    Raises:
        UsageError: one is not; of a sequence, any of its numbers.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    for name, value in values.items():
        for number in _numbers(value):
            above = number >= low if interval[0] == "[" else number > low
            below = number <= high if interval[-1] == "]" else number < high
            if not (above and below):
                raise UsageError(f"{name}={shown(value)} is not in {interval}")


def check_share(**values: float | Sequence[float] | None) -> None:
    """Each number is a share or a probability, in [0, 1]."""
    check_within("[0, 1]", **values)


def check_positive(most: float = 1e9, /, **values: float | Sequence[float] | None) -> None:
    """Each number is greater than 0, and `most` at most."""
    for name, value in values.items():
        if not all(number > 0 for number in _numbers(value)):
            raise UsageError(f"{name}={shown(value)} must be greater than 0")
    check_most(most, **values)


def check_not_negative(most: float = 1e9, /, **values: float | Sequence[float] | None) -> None:
    """Each number is 0 or more, and `most` at most."""
    for name, value in values.items():
        if not all(number >= 0 for number in _numbers(value)):
            raise UsageError(f"{name}={shown(value)} must not be negative")
    check_most(most, **values)


def check_most(most: float = 1e9, /, **values: float | Sequence[float] | None) -> None:
    """Each number is `most` at most."""
    for name, value in values.items():
        if any(number > most for number in _numbers(value)):
            raise UsageError(f"{name}={shown(value)} is more than {most:,g}")


def check_range(interval: str, **values: tuple[float, float]) -> None:
    """Each is a pair of numbers in the interval, the lower one first."""
    for name, (low, high) in values.items():
        check_within(interval, **{name: (low, high)})
        if low > high:
            raise UsageError(f"{name}={shown([low, high])} falls; give [low, high] with low <= high")


def check_known(known: Iterable[str], /, hint: str = "", **values: str) -> None:
    """Each is one of the known names; `hint` says where they are listed.

    Raises:
        UsageError: one is not; with the nearest name.
    """
    names = list(known)
    for name, value in values.items():
        if value not in names:
            raise UsageError(f"{name}={value!r} is not known; {advice(value, names, hint)}")


def shown(value: Any) -> str:
    """A value as one writes it in a YAML page: sequences in brackets, words in quotes, 2 for 2.0."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _numbers(value: float | Sequence[float] | None) -> Iterator[float]:
    if isinstance(value, Sequence):
        yield from value
    elif value is not None:
        yield value
