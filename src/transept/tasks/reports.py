"""What the reports of several tasks have in common: tables in files, and a table of classes for people."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from transept import draw
from transept.tasks.task import Column, Table
from transept.words import distinct, listed

Files = dict[str, Callable[[Path], object]]
"""Names of files, and what writes each."""

_ALL = 30
"""Classes up to which people are shown every one."""
_WORST = 10
SHEET = 24
"""Pictures of a sheet."""


def write_csv(header: Sequence[Any], rows: Iterable[Sequence[Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def per_class_file(per_class: Mapping[str, Mapping[str, Any]]) -> Files:
    """per_class.csv, with the figures of each class."""
    header = ["class", *next(iter(per_class.values()))]
    rows = [[name, *figures.values()] for name, figures in per_class.items()]
    return {"per_class.csv": partial(write_csv, header, rows)}


def class_files(
    per_class: Mapping[str, Mapping[str, Any]],
    matrix: np.ndarray,
    classes: Sequence[str],
    unit: str,
    *,
    more: Sequence[str] = (),
) -> Files:
    """per_class.csv, confusion.csv and confusion.png.

    Args:
        per_class: the figures of each class.
        matrix: counts `r c`, true in rows.
        classes: their names.
        unit: of the counts.
        more: names of rows and columns behind those of the classes.
    """
    names = [*distinct(classes), *more]
    counts = [[name, *row] for name, row in zip(names, matrix.tolist(), strict=True)]
    return per_class_file(per_class) | {
        "confusion.csv": partial(write_csv, ["true", *names], counts),
        "confusion.png": partial(draw.draw_confusion, matrix, names, names, unit),
    }


def class_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], worst_first: Sequence[int], by: str) -> Table:
    """For people: every class, or where there are many the worst, and a word where the others are."""
    if len(rows) <= _ALL:
        return Table(columns, rows)
    note = f"the {_WORST} of {len(rows)} classes with the least {by}; all are in --json and --report"
    return Table(columns, [rows[i] for i in worst_first[:_WORST]], note)


def class_notes(classes: Sequence[str], support: np.ndarray, predicted: np.ndarray, unit: str) -> list[str]:
    """What the figures of classes cannot say: which have no samples, and which are never found.

    Args:
        classes: names.
        support: true samples of each.
        predicted: how often each was predicted.
        unit: of these counts.
    """
    absent = [repr(name) for name, true in zip(distinct(classes), support.tolist(), strict=True) if not true]
    notes = []
    if absent:
        noun = "1 class has" if len(absent) == 1 else f"{len(absent)} classes have"
        notes.append(f"{noun} no {unit} here, and so no recall: {listed(absent, 10)}")
    return notes + never_notes(classes, support, predicted, unit)


def never_notes(
    classes: Sequence[str], support: np.ndarray, often: np.ndarray, unit: str, what: str = "predicted"
) -> list[str]:
    """Which classes have true samples and were never predicted, or whatever else was counted in `often`."""
    rows = zip(distinct(classes), support.tolist(), often.tolist(), strict=True)
    never = [f"{name!r} ({unit}: {true})" for name, true, times in rows if true and not times]
    if not never:
        return []
    noun = "1 class is" if len(never) == 1 else f"{len(never)} classes are"
    return [f"{noun} never {what}: {listed(never, 10)}"]
