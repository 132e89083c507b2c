"""Labelled pictures in a table of their own: a CSV or Parquet file with a path and a label in each row."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from transept.data.classification.image_set import ImageSet, Paths
from transept.data.places import PictureFolder
from transept.errors import TranseptError, UsageError, warn
from transept.words import listed

ENDINGS = (".csv", ".tsv", ".parquet")
_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img"),
    "label": ("label", "class", "class_name", "category", "target", "y"),
    "split": ("split", "set", "subset", "fold"),
}
"""What columns are called, in any case."""


def is_listing(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and path.is_file()


def find_listing(file: Path, *, fewest: int) -> tuple[list[str], Any]:
    """The names of the splits in a table, none where it has no such column, and what reads some of them.

    Paths lead from the table's folder; those of another machine are found by their end. Labels are names, or numbers,
    which are then sorted as such.

    Args:
        file: with a header, separated by commas, semicolons or tabs; or Parquet.
        fewest: classes that there must be.

    Raises:
        TranseptError: the file cannot be read, or has no column of paths or of labels.
    """
    rows = _parquet(file) if file.suffix.lower() == ".parquet" else _csv(file)
    columns = {what: _column(rows, names) for what, names in _COLUMNS.items()}
    for what in ("path", "label"):
        if columns[what] is None:
            raise TranseptError(
                f"{str(file)!r} has the columns {listed(map(repr, rows), 10)}; it needs one of {what}s, called "
                f"{listed(map(repr, _COLUMNS[what]), 10)}"
            )
    paths, labels = ([_text(value) for value in rows[str(columns[what])]] for what in ("path", "label"))
    split = columns["split"]
    splits = [_text(value) for value in rows[split]] if split is not None else [""] * len(paths)
    for row, values in enumerate(zip(paths, labels, splits, strict=True), 2):
        for what, value in zip(columns, values, strict=True):
            if not value and columns[what] is not None:
                raise TranseptError(f"{str(file)!r}, row {row}, has no {columns[what]!r}; fill it in or remove the row")
    names = list(dict.fromkeys(splits))
    return ([] if split is None else names), partial(_read, file, paths, labels, splits, fewest)


def _read(
    file: Path, paths: list[str], labels: list[str], splits: list[str], fewest: int, names: list[str]
) -> tuple[list[str], list[ImageSet]]:
    folder = PictureFolder(file.parent, file)
    classes: list[str] = []
    moved: Counter[str] = Counter()
    sets = []
    for name in names:
        rows = [row for row, split in enumerate(splits) if split == name]
        found = {labels[row] for row in rows}
        classes = classes or _sorted(found)
        odd = _sorted(found - set(classes))
        if odd:
            raise TranseptError(
                f"the label {odd[0]!r} is in the split {name!r} of {str(file)!r} only, so nothing is learnt of it"
            )
        places = []
        for row in rows:
            path, how = folder.path(paths[row])
            if folder.is_outside(path):
                raise TranseptError(
                    f"{str(file)!r}, row {row + 2}, names {paths[row]!r}, which is not in {str(file.parent)!r}; put "
                    "the pictures there, or the table beside them"
                )
            moved[how or ""] += 1
            places.append(path.relative_to(file.parent).as_posix() if path.is_relative_to(file.parent) else str(path))
        sizes = np.array([_size(file.parent / place) for place in places], np.int64)
        numbers = {label: number for number, label in enumerate(classes)}
        sets.append(ImageSet(Paths(file.parent, places), [numbers[labels[row]] for row in rows], sizes=sizes))
    if len(classes) < fewest:
        raise TranseptError(f"{str(file)!r} has the labels {classes}; a classifier needs two or more")
    del moved[""]
    if moved:
        counts = listed(f"{count} {how}" for how, count in moved.items())
        warn(f"{str(file)!r}: {counts}: taken for what they mean")
    return classes, sets


def _csv(file: Path) -> Mapping[str, Sequence[Any]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            head = lines.readline()
            separator = max(",;\t", key=head.count)
            lines.seek(0)
            reader = csv.reader(lines, delimiter=separator)
            names = next(reader, [])
            rows = [row for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TranseptError(f"cannot read the table {str(file)!r} ({error})") from error
    if not rows:
        raise TranseptError(f"the table {str(file)!r} has no rows under its header")
    for number, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise TranseptError(
                f"{str(file)!r}, row {number}, has {len(row)} fields and the header {len(names)}; quote fields that "
                "hold a separator"
            )
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def _parquet(file: Path) -> Mapping[str, Sequence[Any]]:
    try:
        import pyarrow  # an extra
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise UsageError("Parquet tables need the package 'pyarrow': pip install 'transept[data]'") from error
    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise TranseptError(f"cannot read the table {str(file)!r} ({' '.join(str(error).split())})") from error
    if not len(table):
        raise TranseptError(f"the table {str(file)!r} has no rows")
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _column(rows: Mapping[str, Any], names: Sequence[str]) -> str | None:
    known = {column.strip().lower(): column for column in rows}
    return next((known[name] for name in names if name in known), None)


def _text(value: Any) -> str:
    """Whole numbers that a tool wrote as 3.0 are 3."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def _sorted(labels: set[str]) -> list[str]:
    return sorted(labels, key=int) if all(label.isdecimal() for label in labels) else sorted(labels)


def _size(path: Path) -> int:
    """In bytes; one that is missing is named when the set is checked, or when it is read."""
    return path.stat().st_size if path.is_file() else 0
