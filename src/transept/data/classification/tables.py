"""Labelled pictures in tables of the `datasets` library."""

from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from transept.data.classification.image_set import ImageSet, ManyLabels, Paths, Read, classes_of, refuse_unlearnt
from transept.data.classification.label_columns import read_label_columns
from transept.data.hub import HUB, load_hub, stored_file
from transept.errors import TranseptError


class HubSet(ImageSet):
    """A table with a picture and a class in each row."""

    def __init__(self, rows: Any, column: str, labels: Sequence[int], name: str) -> None:
        from datasets import Image  # an extra

        # Undecoded, so that our reader sees the file: EXIF tag, formats, errors with a name.
        self.rows = rows.select_columns([column]).cast_column(column, Image(decode=False))
        self.column = column
        root, _, split = name.rpartition("/")
        names = (f"{split}[{i}]" for i in range(len(labels)))
        super().__init__(Paths(Path(root), names), labels, places=np.arange(len(labels)))
        self.version = str(rows._fingerprint)

    def source(self, index: int) -> Path | BinaryIO:
        assert self.places is not None
        file = self.rows[int(self.places[index])][self.column]
        found = stored_file(file, self.paths[index], str(self.paths.root))
        return BytesIO(found) if isinstance(found, bytes) else found


def hub_pictures(data: str) -> list[HubSet]:
    """The pictures of all splits; whatever classes they have is not read.

    Raises:
        TranseptError: as `load_hub`, or there is not exactly one column of pictures.
        UsageError: `datasets` is not installed.
    """
    loaded, name = load_hub(data), data.removeprefix(HUB)
    return [
        HubSet(rows, _picture_column(rows.features, name), [0] * len(rows), f"{name}/{split}")
        for split, rows in loaded.items()
    ]


def hub_splits(data: str) -> tuple[list[str], Read]:
    """The names of its splits, and what reads some of them: their classes and rows.

    The pictures are the column of type Image, the classes that of type ClassLabel, or else one called `label`.

    Raises:
        TranseptError: as `load_hub`; on reading, columns that are missing or not unique, or rows without a class.
    """
    loaded = load_hub(data)
    return list(loaded), partial(_read_splits, loaded, data.removeprefix(HUB))


def _read_splits(loaded: Any, name: str, splits: list[str]) -> tuple[list[str], list[ImageSet]]:
    features = loaded[splits[0]].features
    picture, label = _columns(features, name)
    values = {split: list(loaded[split][label]) for split in splits}
    classes = getattr(features[label], "names", None)
    if classes is None:
        known = sorted({value for column in values.values() for value in column if value is not None})
        classes = [str(value) for value in known]
        numbers = {value: number for number, value in enumerate(known)}
        values = {split: [numbers.get(value, -1) for value in column] for split, column in values.items()}
    if len(classes) < 2:
        raise TranseptError(f"{name!r} has the classes {list(classes)}; a classifier needs two or more")
    sets: list[ImageSet] = []
    for split, labels in values.items():
        missing = next((i for i, value in enumerate(labels) if value is None or value < 0), None)
        if missing is not None:
            raise TranseptError(f"row {missing} of the split {split!r} of {name!r} has no {label}")
        sets.append(HubSet(loaded[split], picture, labels, f"{name}/{split}"))
    return list(classes), sets


class MultiLabelHubSet(ManyLabels, HubSet):
    """A table with a picture and any number of classes in each row."""


def multi_label_hub_splits(data: str, separator: str | None) -> tuple[list[str], Read, str]:
    """The same of sets with any number of labels in each row; and how they are read, for people.

    Labels are a column of lists, of names or of ClassLabel's numbers, or what else `read_label_columns` takes.

    Raises:
        TranseptError: as `load_hub`; or there is no such column, or not exactly one of pictures.
        UsageError: labels may be separated in several ways.
    """
    loaded, name = load_hub(data), data.removeprefix(HUB)
    first = loaded[next(iter(loaded))]
    picture = _picture_column(first.features, name)
    columns = [column for column, kind in first.features.items() if _may_be_labels(kind)]
    splits = {split: table.select_columns(columns) for split, table in loaded.items()}
    rows = {column: [value for table in splits.values() for value in table[column]] for column in columns}
    classes: list[str] = []
    for column in columns:
        item = getattr(first.features[column], "feature", None)
        if (names := getattr(item, "names", None)) is not None:
            rows = {column: [[names[number] for number in cell or ()] for cell in rows[column]]}
            classes = list(names)
            break
    found = read_label_columns(rows, [], name, separator)
    ends = np.cumsum([0, *map(len, splits.values())]).tolist()
    labels = {split: found.labels[start:end] for split, start, end in zip(splits, ends, ends[1:], strict=False)}
    known = classes or found.classes

    def read(wanted: list[str]) -> tuple[list[str], list[ImageSet]]:
        names = known or classes_of(frozenset().union(*labels[wanted[0]]))
        sets: list[ImageSet] = []
        for split in wanted:
            refuse_unlearnt(frozenset().union(*labels[split]), names, split, name)
            rows = MultiLabelHubSet(loaded[split], picture, [0] * len(labels[split]), f"{name}/{split}")
            sets.append(rows.labelled(labels[split], names))
        return names, sets

    return list(loaded), read, found.understood


def _may_be_labels(kind: Any) -> bool:
    """A text, a whole number, or a list of them: no column of pictures, vectors or times is read for its labels."""
    item = getattr(kind, "feature", kind)
    return hasattr(item, "names") or getattr(item, "dtype", "").startswith(
        ("string", "large_string", "int", "uint", "bool")
    )


def _picture_column(features: Any, name: str) -> str:
    import datasets  # an extra

    pictures = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    if len(pictures) != 1:
        raise TranseptError(f"{name!r} has the columns {list(features)}; it needs exactly one image column")
    return pictures[0]


def _columns(features: Any, name: str) -> tuple[str, str]:
    import datasets  # an extra

    picture = _picture_column(features, name)
    labels = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    labels = labels if len(labels) == 1 else [column for column in ("label", "labels") if column in features][:1]
    if len(labels) != 1:
        raise TranseptError(
            f"{name!r} has the columns {list(features)}; it needs exactly one column of type ClassLabel or called "
            "'label'"
        )
    return picture, labels[0]
