"""The folder of a run, which one process at a time writes to."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from transept.errors import TranseptError
from transept.files import remove_unfinished, write_atomically
from transept.tasks.run_folder import AVERAGE, BEST, CONFIG, CURVES, LAST, LOCK, METRICS, STATE, TEST
from transept.training.options.recipe import Recipe, plain

_LOCK_SECONDS = 10
"""A run that was killed may hold its folder until its loading processes have noticed."""


@contextmanager
def claim(folder: Path, *, resume: bool) -> Iterator[None]:
    """The folder belongs to this process, and where it holds a run, that is the one to resume.

    The lock goes with the process, however that ends.

    Raises:
        TranseptError: another run is or was there.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=_LOCK_SECONDS if resume else 0)
    except Timeout:
        raise TranseptError(f"another process is training in {str(folder)!r}; give another folder with --out") from None
    try:
        if not resume and (folder / CONFIG).exists():
            raise TranseptError(
                f"{str(folder)!r} holds a run already; go on with --resume {folder}, or give another folder with --out"
            )
        remove_unfinished(folder, (CONFIG, METRICS, CURVES, BEST, LAST, AVERAGE, STATE, TEST))
        yield
    finally:
        lock.release()


def write_config(recipe: Recipe, folder: Path) -> None:
    """The recipe as it is followed, every option spelt out."""
    text = yaml.safe_dump(plain(dataclasses.asdict(recipe)), sort_keys=False, allow_unicode=True)
    write_atomically(folder / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
