"""What people name as pictures: files, folders and patterns, lists of files, and standard input."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from transept.data.images import EXTENSIONS, BadImageError, Picture, find_images
from transept.data.video import ENDINGS as VIDEO_ENDINGS
from transept.data.video import is_address
from transept.errors import TranseptError, UsageError, warn
from transept.extras import install
from transept.files import is_file, is_there, open_regular, read_bytes
from transept.words import listed

STDIN = "-"
LISTED = "@"
"""Before the name of a list."""
_PATH = "path"
"""The column of a list in Parquet, as of the tables that `predict` writes."""
_LISTS = (".txt", ".lst", ".list")
"""Endings of files that are rather lists of pictures than pictures."""


@dataclass(frozen=True, slots=True)
class Input:
    """A picture that was named."""

    path: Path
    """Of its file, or what stands for it."""
    content: bytes | None = None
    """The file itself, where it came by standard input."""

    @property
    def source(self) -> Path | BinaryIO:
        """What `read_image` reads."""
        return self.path if self.content is None else BytesIO(self.content)


def find_inputs(sources: Iterable[str | PathLike[str]]) -> list[Input]:
    """The pictures behind what was named, each once, in order.

    Args:
        sources: as `find_images`. Words, not paths, may also be `-`, the bytes of one file on standard input, or
            `@LIST`, a text file with a path in each line (`@-`: on standard input), or a Parquet file with a column
            `path`. Paths lead from the list's folder; where there is no such file, from the current one. Empty lines
            are passed over; none is a comment.

    Raises:
        UsageError: an address, or standard input named for two things.
        TranseptError: a source that names nothing, or a list that cannot be read.

    Warns:
        TranseptWarning: pictures are named more than once; they are counted.
    """
    words = list(sources)
    if STDIN in words and LISTED + STDIN in words:
        raise UsageError(
            f"standard input is one thing, a picture ({STDIN}) or a list ({LISTED}{STDIN}); give one of them"
        )
    found: dict[Path, Input] = {}
    repeats = 0
    for word in words:
        for each in _inputs_of(word):
            repeats += found.setdefault(each.path, each) is not each
    if repeats:
        counted = "1 name of a picture is" if repeats == 1 else f"{repeats:,} names of pictures are"
        warn(f"{counted} there a second time; each picture is taken once, where it is named first")
    return list(found.values())


def find_input(source: str | PathLike[str]) -> Input:
    """The one picture that was named, as `find_inputs`.

    Raises:
        UsageError: it names several.
        TranseptError: as `find_inputs`.
    """
    inputs = find_inputs([source])
    if len(inputs) > 1:
        raise UsageError(f"{str(source)!r} names {len(inputs)} pictures; give one")
    return inputs[0]


def read_input(image: Input, read: Callable[..., Picture]) -> Picture:
    """The picture, by `read_image` or a task's `read`.

    Raises:
        BadImageError: as `read`; of a file that looks like a list of pictures or a video, with what to give instead.
    """
    try:
        return read(image.source, name=image.path)
    except BadImageError as error:
        hint = "" if image.content is not None or not is_file(image.path) else _hint(image.path)
        raise BadImageError(error.path, f"{error.reason}; {hint}" if hint else error.reason) from error


def _hint(path: Path) -> str:
    ending = path.suffix.lower()
    if ending in _LISTS:
        return f"where it lists pictures, give '{LISTED}{path}'"
    return f"a video is given alone: transept predict MODEL '{path}'" if ending in VIDEO_ENDINGS else ""


def _inputs_of(source: str | PathLike[str]) -> Iterable[Input]:
    if not isinstance(source, str):
        return map(Input, find_images([Path(source)]))
    if is_address(source):
        raise UsageError(
            f"{source!r} is an address, and pictures are not fetched; let curl do it: "
            f"curl -sSfL '{source}' | transept VERB MODEL {STDIN}"
        )
    if source == STDIN:
        return [Input(Path("stdin"), sys.stdin.buffer.read())]
    if source.startswith(LISTED):
        return map(Input, _listed(source.removeprefix(LISTED)))
    return map(Input, find_images([source]))


def _listed(name: str) -> Iterator[Path]:
    folder = Path() if name == STDIN else Path(name).parent
    for line in _listed_in_table(Path(name)) if Path(name).suffix.lower() == ".parquet" else _listed_in_text(name):
        beside = folder / line
        yield beside if is_there(beside) else Path(line)


def _listed_in_text(name: str) -> list[str]:
    try:
        content = sys.stdin.buffer.read() if name == STDIN else read_bytes(Path(name))
        lines = content.decode("utf-8-sig").splitlines()
    except OSError as error:
        reason = (
            "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror or error})"
        )
        raise TranseptError(
            f"the list {name!r} {reason}; give {LISTED} and a text file with a path in each line"
        ) from error
    except UnicodeDecodeError as error:
        hint = f"a picture is given without {LISTED}" if Path(name).suffix.lower() in EXTENSIONS else "save it as UTF-8"
        raise TranseptError(f"the list {name!r} is no text of UTF-8; {hint}") from error
    paths = [line for line in lines if line.strip()]
    if not paths:
        raise TranseptError(f"the list {name!r} names no pictures; write a path in each line")
    return paths


def _listed_in_table(file: Path) -> list[str]:
    try:
        import pyarrow  # an extra
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise UsageError(f"the list {str(file)!r} needs the package 'pyarrow': {install('data')}") from error
    try:
        with open_regular(file) as content:
            table = pyarrow.parquet.read_table(content)
        paths = table[_PATH].cast(pyarrow.string()).drop_null().to_pylist() if _PATH in table.column_names else None
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise TranseptError(f"the list {str(file)!r} is no Parquet file that can be read ({reason})") from error
    if not paths:
        have = f"the column {_PATH!r} without paths" if paths == [] else f"the columns {listed(table.column_names, 6)}"
        raise TranseptError(f"the list {str(file)!r} has {have}; give it a column {_PATH!r} of paths")
    return paths
