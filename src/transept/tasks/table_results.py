"""The answers of `predict` in one table, as CSV or Parquet."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transept.errors import TranseptError, UsageError
from transept.extras import install
from transept.files import write_atomically
from transept.tasks.task import TABLE_ENDINGS, Column, Results, Table, Task


class TableResults(Results):
    """The rows of all pictures in a table whose first column is their path; nothing is drawn.

    A CSV file grows with each picture; Parquet is written at the end.
    """

    def __init__(self, task: Task, out: Path, inference: Any) -> None:
        """
        Raises:
            UsageError: another ending, a folder, or a package that is not installed.
        """
        super().__init__(task, out)
        if out.is_dir():
            raise UsageError(f"--out {out}: is a folder; give the name of a file")
        self._types = {"path": str, **task.columns(inference)}
        self._write = table_writer(out, self._types)
        self._count = 0

    def add(self, path: Path, picture: Image.Image, prediction: Any) -> None:
        rows = [(str(path), *values) for values in self.task.records(prediction)]
        self._write.add(rows)
        self._count += len(rows)
        names = list(self._types)[1:]
        self.rows.append({"image": str(path), "rows": [dict(zip(names, row[1:], strict=True)) for row in rows]})

    def finish(self) -> str:
        self._write.finish()
        pictures = len(self.rows)
        rows = f"{self._count} row{'' if self._count == 1 else 's'}"
        return f"{self.out}: {rows} of {pictures} picture{'' if pictures == 1 else 's'}"

    def table(self, top: int) -> Table:
        return Table(
            [Column("picture"), Column("rows", True)], [[row["image"], str(len(row["rows"]))] for row in self.rows]
        )


class _CSV:
    def __init__(self, path: Path, types: Mapping[str, Any]) -> None:
        self.path = path
        self._header: list[Sequence[Any]] = [tuple(types)]

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("w" if self._header else "a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([*self._header, *rows])
            self._header = []
        except OSError as error:
            raise TranseptError(f"cannot write {str(self.path)!r}: {error.strerror or error}") from error

    def finish(self) -> None:
        """All is there."""


class _Parquet:
    def __init__(self, path: Path, types: Mapping[str, Any]) -> None:
        try:
            import pyarrow  # an extra
        except ModuleNotFoundError as error:
            raise UsageError(
                f"--out {path} needs the package 'pyarrow': {install('data')}, or give a name that ends in .csv"
            ) from error
        self.path = path
        plain = {str: pyarrow.string(), float: pyarrow.float64(), int: pyarrow.int64()}
        kinds: dict[Any, Any] = {**plain, np.ndarray: pyarrow.list_(pyarrow.float32())}
        kinds |= {list[kind]: pyarrow.list_(stored) for kind, stored in plain.items()}
        self._schema = pyarrow.schema([(name, kinds[kind]) for name, kind in types.items()])
        self._rows: list[Sequence[Any]] = []

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        self._rows += rows

    def finish(self) -> None:
        import pyarrow.parquet  # an extra

        names = self._schema.names
        rows = [dict(zip(names, row, strict=True)) for row in self._rows]
        table = pyarrow.Table.from_pylist(rows, schema=self._schema)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, lambda file: pyarrow.parquet.write_table(table, file))


def table_writer(path: Path, types: Mapping[str, Any]) -> _CSV | _Parquet:
    """What writes rows of columns of these names and types, by the ending of the path: `add` some, then `finish`.

    Types are `str`, `float` and `int`; of Parquet also lists of them, and `np.ndarray` for vectors of float32.

    Raises:
        UsageError: a package that is not installed.
    """
    return _WRITERS[path.suffix.lower()](path, types)


_WRITERS: dict[str, type[_CSV | _Parquet]] = dict(zip(TABLE_ENDINGS, (_CSV, _Parquet), strict=True))
