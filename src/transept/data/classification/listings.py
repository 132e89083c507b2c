"""Labelled pictures in a table of their own: a CSV or Parquet file with a path and a label, or several, in each row."""

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np

from transept.data.classification.image_set import ImageSet, MultiLabelSet, Paths, classes_of, refuse_unlearnt
from transept.data.classification.label_columns import LabelColumns, read_label_columns
from transept.data.places import PictureFolder
from transept.errors import TranseptError, UsageError, warn
from transept.extras import install
from transept.files import check_regular, is_file, open_regular
from transept.words import listed

ENDINGS = (".csv", ".tsv", ".parquet")
_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img"),
    "label": ("label", "class", "class_name", "category", "target", "y"),
    "split": ("split", "set", "subset", "fold"),
    "group": ("group", "group_id"),
}
"""What columns are called, in any case."""


def is_listing(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and os.path.lexists(path) and not path.is_dir()


@dataclass(frozen=True, slots=True)
class _Rows:
    """What a table says, row by row."""

    file: Path
    paths: list[str]
    labels: list[Any]
    """Texts, or sets of them."""
    splits: list[str]
    groups: list[str] | None
    classes: list[str]
    """Where the table says them beside the labels."""

    def sorted_labels(self, rows: Sequence[int]) -> list[str]:
        """Those of these rows."""
        found: set[str] = set()
        for row in rows:
            label = self.labels[row]
            found |= label if isinstance(label, frozenset) else {label}
        return classes_of(found)


def find_listing(file: Path, *, fewest: int) -> tuple[list[str], Any]:
    """The names of the splits in a table, none where it has no such column, and what reads some of them.

    Paths lead from the table's folder; those of another machine are found by their end. Labels are names, or numbers,
    which are then sorted as such. A column `group` names the group of each picture.

    Args:
        file: with a header, separated by commas, semicolons or tabs; or Parquet.
        fewest: classes that there must be.

    Raises:
        TranseptError: the file cannot be read, or has no column of paths or of labels.
    """
    rows = _table(file)
    columns = _columns_of(rows, file, "path", "label")
    labels = [_text(value) for value in rows[columns["label"]]]
    _refuse_empty(labels, columns["label"], file)
    return _split_names(rows, columns), partial(_read, _rows(file, rows, columns, labels, []), fewest)


def find_multi_label_listing(file: Path, separator: str | None) -> tuple[list[str], Any, str]:
    """The same of tables with any number of labels in each row; and how they are read, for people.

    Args:
        file: as `find_listing` takes it.
        separator: what stands between the labels of a cell; see `read_label_columns`.

    Raises:
        TranseptError: the file cannot be read, or has no column of paths or none of labels.
        UsageError: labels may be separated in several ways.
    """
    rows = _table(file)
    columns = _columns_of(rows, file, "path")
    others = [columns[what] for what in ("path", "split", "group") if what in columns]
    found: LabelColumns = read_label_columns(rows, others, file, separator)
    read = partial(_read, _rows(file, rows, columns, found.labels, found.classes), 1)
    return _split_names(rows, columns), read, found.understood


def _table(file: Path) -> Mapping[str, Sequence[Any]]:
    return _parquet(file) if file.suffix.lower() == ".parquet" else _csv(file)


def _columns_of(rows: Mapping[str, Any], file: Path, *needed: str) -> dict[str, str]:
    """The names of the columns that there are, by what they say."""
    columns = {what: column for what, names in _COLUMNS.items() if (column := _column(rows, names)) is not None}
    for what in needed:
        if what not in columns:
            several = ", or --classify.multi_label true for any number of labels" if what == "label" else ""
            raise TranseptError(
                f"{str(file)!r} has the columns {listed(map(repr, rows), 10)}; it needs one of {what}s, called "
                f"{listed(map(repr, _COLUMNS[what]), 10)}{several}"
            )
    return columns


def _rows(
    file: Path, rows: Mapping[str, Sequence[Any]], columns: Mapping[str, str], labels: list[Any], classes: list[str]
) -> _Rows:
    texts = {what: [_text(value) for value in rows[columns[what]]] for what in ("path", "split") if what in columns}
    for what, values in texts.items():
        _refuse_empty(values, columns[what], file)
    paths = texts["path"]
    groups = None
    if "group" in columns:  # a picture without a group is one by itself
        groups = [_text(value) or f"\0{path}" for value, path in zip(rows[columns["group"]], paths, strict=True)]
    return _Rows(file, paths, labels, texts.get("split", [""] * len(paths)), groups, classes)


def _split_names(rows: Mapping[str, Sequence[Any]], columns: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(map(_text, rows[columns["split"]]))) if "split" in columns else []


def _refuse_empty(texts: Sequence[str], column: str, file: Path) -> None:
    row = next((row for row, text in enumerate(texts, 2) if not text), None)
    if row is not None:
        raise TranseptError(f"{str(file)!r}, row {row}, has no {column!r}; fill it in or remove the row")


def _read(table: _Rows, fewest: int, names: list[str]) -> tuple[list[str], list[ImageSet]]:
    file = table.file
    folder = PictureFolder(file.parent, file)
    classes = table.classes
    moved: Counter[str] = Counter()
    sets = []
    for name in names:
        rows = [row for row, split in enumerate(table.splits) if split == name]
        found = table.sorted_labels(rows)
        classes = classes or found
        refuse_unlearnt(found, classes, name, str(file))
        places = []
        for row in rows:
            path, how = folder.path(table.paths[row])
            if folder.is_outside(path):
                raise TranseptError(
                    f"{str(file)!r}, row {row + 2}, names {table.paths[row]!r}, which is outside of the data "
                    f"folder {str(file.parent)!r}; put the pictures there, or the table beside them"
                )
            moved[how or ""] += 1
            places.append(path.relative_to(file.parent).as_posix() if path.is_relative_to(file.parent) else str(path))
        sets.append(_image_set(table, rows, places, classes))
    if len(classes) < fewest:
        raise TranseptError(f"{str(file)!r} has the labels {classes}; a classifier needs {_FEWEST[fewest]}")
    del moved[""]
    if moved:
        counts = listed(f"{count} {how}" for how, count in moved.items())
        warn(f"{str(file)!r}: {counts}: taken for what they mean")
    return classes, sets


_FEWEST = {1: "one or more", 2: "two or more"}


def _image_set(table: _Rows, rows: Sequence[int], places: Sequence[str], classes: Sequence[str]) -> ImageSet:
    root = table.file.parent
    sizes = np.array([_size(root / place) for place in places], np.int64)
    numbers = {label: number for number, label in enumerate(classes)}
    labels = [table.labels[row] for row in rows]
    if labels and isinstance(labels[0], frozenset):
        images: ImageSet = MultiLabelSet(Paths(root, places), (), sizes=sizes).labelled(labels, classes)
    else:
        images = ImageSet(Paths(root, places), [numbers[label] for label in labels], sizes=sizes)
    if table.groups is not None:
        images.groups = np.array([table.groups[row] for row in rows])
    return images


def _csv(file: Path) -> Mapping[str, Sequence[Any]]:
    try:
        with TextIOWrapper(open_regular(file), encoding="utf-8-sig", newline="") as lines:
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
        raise UsageError(f"Parquet tables need the package 'pyarrow': {install('data')}") from error
    try:
        check_regular(file)
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


def _size(path: Path) -> int:
    """In bytes; one that is missing is named when the set is checked, or when it is read."""
    return path.stat().st_size if is_file(path) else 0
