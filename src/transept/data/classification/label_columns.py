"""The columns of a table that say several labels of each picture: cells that list them, or a column for each class."""

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transept.errors import TranseptError, UsageError
from transept.words import listed

_SEPARATORS = (";", "|", ",")
_NAMES = ("labels", "classes", "tags", "categories", "label", "class", "class_name", "category", "target", "y")
"""What the column of lists is called, in any case."""
_ABSENT_OR_PRESENT = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True, "-1": False}
"""Values of a class's column; CelebA's has -1 for 0."""


class LabelColumns(NamedTuple):
    """The labels of each row."""

    labels: list[frozenset[str]]
    classes: list[str]
    """All of them in the columns' order, where each has one; else none."""
    understood: str
    """How the table was read, for people."""


def read_label_columns(
    rows: Mapping[str, Sequence[Any]], others: Sequence[str], file: Path | str, separator: str | None
) -> LabelColumns:
    """Labels of a column of lists, or of columns of 0 and 1.

    Args:
        rows: the table, by column.
        others: columns that say something else.
        file: for errors.
        separator: what stands between the labels of a cell; None: whichever of `;`, `|` and `,` occurs.

    Raises:
        TranseptError: there are neither, or a cell is no list.
        UsageError: several separators occur.
    """
    columns = {name: values for name, values in rows.items() if name not in others}
    binary = [name for name, values in columns.items() if _is_binary(values)]
    lists = next((name for known in _NAMES for name in columns if name.strip().lower() == known), None)
    if lists is not None and (lists not in binary or len(binary) < 2):
        return _of_lists(lists, columns[lists], file, separator)
    if separator is not None:
        raise UsageError(f"label_separator={separator!r}, but {str(file)!r} has no column of lists; leave it out")
    if not binary:
        raise TranseptError(
            f"{str(file)!r} has the columns {listed(map(repr, rows), 10)}; several labels of each picture are a column "
            f"of lists called {listed(map(repr, _NAMES[:3]))}, such as 'cat;dog', or a column of 0 and 1 for each class"
        )
    for name in columns:
        if name not in binary:
            _refuse_unsure(name, columns[name], file)
    return _of_columns(binary, columns, file)


def joined(labels: Sequence[str]) -> str:
    """Labels as a cell that `read_label_columns` takes."""
    return ";".join(labels) if not any(";" in label for label in labels) else json.dumps(labels, ensure_ascii=False)


def _of_lists(name: str, cells: Sequence[Any], file: Path | str, separator: str | None) -> LabelColumns:
    if all(cell is None or isinstance(cell, list | tuple) for cell in cells):
        labels = [frozenset(_text(each) for each in cell or ()) for cell in cells]
        return LabelColumns(_checked(labels, name, file), [], f"the lists in {name!r}")
    texts = ["" if cell is None else _text(cell) for cell in cells]
    filled = [text for text in texts if text]
    if filled and all(text.startswith("[") and text.endswith("]") for text in filled):
        labels = [_list(text, row, name, file) for row, text in enumerate(texts, 2)]
        return LabelColumns(_checked(labels, name, file), [], f"the JSON lists in {name!r}")
    if separator is None:
        there = [each for each in _SEPARATORS if any(each in text for text in filled)]
        if len(there) > 1:
            raise UsageError(
                f"the labels in the column {name!r} of {str(file)!r} may be separated by "
                f"{' or '.join(map(repr, there))}; say by which with --label_separator"
            )
        separator = there[0] if there else None
    parts = [text.split(separator) if separator else [text] for text in texts]
    labels = [frozenset(part.strip() for part in cell if part.strip()) for cell in parts]
    if separator is not None:
        return LabelColumns(labels, [], f"{name!r}, separated by {separator!r}")
    spaces = "; where spaces are between labels, give --label_separator ' '" if any(" " in t for t in filled) else ""
    return LabelColumns(labels, [], f"{name!r}, one in each cell, for none of ; | , is there{spaces}")


def _of_columns(names: Sequence[str], columns: Mapping[str, Sequence[Any]], file: Path | str) -> LabelColumns:
    classes = [name.strip() for name in names]
    if len(set(classes)) < len(classes) or "" in classes:
        raise TranseptError(f"{str(file)!r} has classes of one name, or without; give each column a name of its own")
    present = [[_ABSENT_OR_PRESENT[_text(value).lower()] for value in columns[name]] for name in names]
    labels = [
        frozenset(name for name, here in zip(classes, row, strict=True) if here) for row in zip(*present, strict=True)
    ]
    rest = [repr(name) for name in columns if name not in names]
    unread = f" ({listed(rest)} not read)" if rest else ""
    return LabelColumns(labels, classes, f"{len(names)} columns of 0 and 1, {listed(map(repr, classes))}{unread}")


def _is_binary(values: Sequence[Any]) -> bool:
    texts = {_text(value).lower() for value in values}
    return texts <= _ABSENT_OR_PRESENT.keys() and not ("-1" in texts and texts & {"0", "0.0", "false"})


def _refuse_unsure(name: str, values: Sequence[Any], file: Path | str) -> None:
    """A column of classes with something else in some of its rows would otherwise be passed over."""
    texts = [_text(value).lower() for value in values]
    odd = [row for row, text in enumerate(texts, 2) if text not in _ABSENT_OR_PRESENT or text == "-1"]
    if texts and all(text in _ABSENT_OR_PRESENT or text == "" for text in texts):
        raise TranseptError(
            f"{str(file)!r}, row {odd[0]}, has {texts[odd[0] - 2]!r} in the column {name!r} of 0 and 1; write 0 or 1, "
            "or remove the row or the column"
        )


def _list(text: str, row: int, name: str, file: Path | str) -> frozenset[str]:
    """JSON's, or Python's as tables of pandas have it."""
    try:
        values = json.loads(text or "[]")
    except json.JSONDecodeError:
        try:
            values = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            values = None
    if not isinstance(values, list) or any(isinstance(value, dict | list) for value in values):
        raise TranseptError(f"{str(file)!r}, row {row}, has {text!r} in {name!r}; give a list of labels")
    return frozenset(_text(value) for value in values)


def _checked(labels: list[frozenset[str]], name: str, file: Path | str) -> list[frozenset[str]]:
    empty = next((row for row, each in enumerate(labels, 2) if "" in each), None)
    if empty is not None:
        raise TranseptError(f"{str(file)!r}, row {empty}, has a label without a name in {name!r}; remove it")
    return labels


def _text(value: Any) -> str:
    """Whole numbers that a tool wrote as 3.0 are 3."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None or value != value else str(value).strip()
