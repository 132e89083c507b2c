"""What was asked for, cut into shards, as it is kept beside them: whoever resumes must ask for the same."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from transept.checks import shown
from transept.errors import TranseptError, UsageError
from transept.files import read_text, remove_unfinished, write_atomically

PLAN = "_plan.json"
LOCK = "_lock"
LABEL_MAPS = "_labels"
"""Readers of a folder of Parquet files pass over names that begin with `_`."""
DIGESTS = {"model": "another model", "names": "other pictures"}
"""What is asked and kept as a digest, which tells a person nothing."""
_LOCK_SECONDS = 10
"""A job that was killed may hold its folder until its reading processes have noticed."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Pictures numbered from 0, in shards of `rows` each; the last may have fewer."""

    folder: Path
    pictures: int
    rows: int
    asked: Mapping[str, Any]
    """Plain data that decides what the rows are."""

    @property
    def shards(self) -> int:
        return -(-self.pictures // self.rows)

    def numbers(self, shard: int) -> range:
        """Its pictures."""
        return range(shard * self.rows, min((shard + 1) * self.rows, self.pictures))

    def file(self, shard: int) -> Path:
        """Where its rows are, once all of them are."""
        return self.folder / f"part-{shard:05d}.parquet"

    def label_maps(self, shard: int) -> Path:
        """The folder of its pictures' label maps."""
        return self.folder / LABEL_MAPS / f"{shard:05d}"

    def missing(self) -> list[int]:
        """The shards that are not written yet."""
        return [shard for shard in range(self.shards) if not self.file(shard).exists()]

    def as_dict(self) -> dict[str, Any]:
        return {"pictures": self.pictures, "rows": self.rows, **self.asked}


def begin(plan: Plan, *, resume: bool) -> list[int]:
    """Keep the plan in its folder, which is created, or find the same plan there; gives the shards that are missing.

    What was left half-written is removed: nobody else may be writing.

    Raises:
        UsageError: the folder holds another plan, or the same and is not to be resumed, or other things.
        TranseptError: it cannot be written to.
    """
    file, wanted = plan.folder / PLAN, json.loads(json.dumps(plan.as_dict()))
    check_folder(plan.folder, resume=resume)
    if file.exists():
        _check(_read(file), wanted, plan.folder)
    else:
        make_folder(plan.folder)
        write_atomically(file, lambda path: path.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8"))
    missing = plan.missing()
    remove_unfinished(plan.folder, [PLAN, *(plan.file(shard).name for shard in missing)])
    for shard in missing:
        shutil.rmtree(plan.label_maps(shard), ignore_errors=True)
    return missing


def check_folder(folder: Path, *, resume: bool) -> None:
    """Whether rows may be written to a folder, as far as can be said before the model is known.

    Raises:
        UsageError: it holds rows and is not to be resumed, or other things.
    """
    if (folder / PLAN).exists():
        if not resume:
            raise UsageError(f"{str(folder)!r} holds rows already; go on with --resume, or give another folder")
    elif _is_taken(folder):
        raise UsageError(f"{str(folder)!r} is there, and no folder of rows; give a new folder")


@contextmanager
def claim(folder: Path, *, resume: bool) -> Iterator[None]:
    """The folder, which is made, is this process' alone to write to. The lock goes with the process, however that ends.

    Raises:
        UsageError: another process is writing rows there, or as `check_folder`.
        TranseptError: it cannot be made.
    """
    check_folder(folder, resume=resume)
    make_folder(folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=_LOCK_SECONDS if resume else 0)
    except Timeout:
        raise UsageError(
            f"another process is writing to {str(folder)!r}; wait for it, or give another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def make_folder(folder: Path) -> None:
    """Where there is none.

    Raises:
        TranseptError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TranseptError(f"cannot make {str(folder)!r}: {error.strerror or error}") from error


def kept_rows(folder: Path) -> int | None:
    """Of a shard, by the plan in the folder; None where there is none.

    Raises:
        TranseptError: it cannot be read.
    """
    rows = _read(folder / PLAN).get("rows") if (folder / PLAN).exists() else None
    return rows if isinstance(rows, int) and rows > 0 else None


def _is_taken(folder: Path) -> bool:
    """A file, or a folder of other things than a plan that a kill cut off."""
    if not folder.is_dir():
        return folder.exists()
    return any(file.name != LOCK and not file.name.startswith(f".{Path(PLAN).stem}-") for file in folder.iterdir())


def _read(file: Path) -> Any:
    try:
        kept = json.loads(read_text(file))
    except ValueError as error:
        raise TranseptError(f"{str(file)!r} is no plan of rows ({error}); give another folder") from error
    if not isinstance(kept, dict):
        raise TranseptError(f"{str(file)!r} is no plan of rows; give another folder")
    return kept


def _check(kept: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    for name in wanted:
        if kept.get(name) != wanted[name]:
            before, now = (f"{shown(each.get(name)):.60}" for each in (kept, wanted))
            other = DIGESTS.get(name) or f"{name}={before}, and now it is {now}"
            raise UsageError(f"{str(folder)!r} was begun with {other}; give the same as then, or another folder")
