"""Values of annotation files as tools write them: what is plain is taken and counted, all else is refused."""

import json
import math
from collections import Counter
from typing import Any

TEXT, FLOATS, FLAGS, SIZES = (
    "numbers written as text",
    "whole floats in place of integers",
    "other forms of iscrowd than 0 and 1",
    "sizes of 0 or -1, read from the picture",
)
"""What values are counted as."""
NUMBERS = frozenset((int, float))
"""The types of JSON's numbers; a bool is none, though Python has it among the integers."""

_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


class NotPlainError(ValueError):
    """A value whose meaning is not plain."""


def plain_number(value: Any, taken: Counter[str]) -> float:
    """A finite number, also as text."""
    number = value
    if type(value) is str:
        try:
            number = float(value)
        except ValueError:
            raise NotPlainError from None
        taken[TEXT] += 1
    if type(number) not in NUMBERS:
        raise NotPlainError
    try:
        finite = math.isfinite(number)
    except OverflowError:
        finite = False
    if not finite:
        raise NotPlainError
    return float(number)


def plain_integer(value: Any, taken: Counter[str]) -> int:
    """A whole number, also as text or as a float."""
    if type(value) is int:
        return value
    number = plain_number(value, taken)
    if not number.is_integer():
        raise NotPlainError
    taken[FLOATS] += type(value) is float
    return int(number)


def plain_flag(value: Any, taken: Counter[str]) -> bool:
    """0 or 1, also as a bool, a float, text, or nothing for 0."""
    if type(value) is int and value in (0, 1):
        return bool(value)
    flag = False if value is None else _FLAGS.get(str(value).strip().lower())
    if flag is None:
        raise NotPlainError
    taken[FLAGS] += 1
    return flag


def plain_numbers(values: Any, taken: Counter[str]) -> list[float]:
    """A list of finite numbers, also one written as text as a whole."""
    if type(values) is str:
        try:
            values = json.loads(values)
        except (ValueError, RecursionError):
            raise NotPlainError from None
        taken[TEXT] += 1
    if not isinstance(values, list):
        raise NotPlainError
    return [plain_number(value, taken) for value in values]
