"""Files read only where they are files, and written so that a crash or a full disk never leaves half of one."""

import errno
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from transept.errors import TranseptError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """`write` a new file under a temporary name beside `path`, then give it the name at once.

    Raises:
        TranseptError: the disk is full or the folder not writable; what was at `path` is as it was.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise TranseptError(
            f"cannot write {str(path)!r}: {error.strerror or error}; nothing saved before is lost"
        ) from error


def remove_unfinished(folder: Path, names: Iterable[str]) -> None:
    """Remove what writers of files of these names left when they were killed; nobody else may be writing now."""
    for name in map(Path, names):
        for file in folder.glob(f".{name.stem}-{_MADE}{name.suffix}"):
            file.unlink(missing_ok=True)


_MADE = "[a-z0-9_]" * 8
"""What `tempfile` puts into a name."""


def write_together(folder: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Write several files of `folder`, which is created: they get their names once all are written, or none does.

    Raises:
        TranseptError: the disk is full, the folder not writable, or a name is a folder's; all is as it was.
    """
    missing = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as name:
            for file, write in writers.items():
                write(Path(name, file))
                with Path(name, file).open("rb+") as written:
                    os.fsync(written.fileno())
            if taken := [file for file in writers if (folder / file).is_dir()]:
                raise IsADirectoryError(errno.EISDIR, f"{taken[0]!r} is a folder there")
            for file in writers:
                Path(name, file).replace(folder / file)
    except OSError as error:
        if missing:
            with suppress(OSError):
                folder.rmdir()
        raise TranseptError(
            f"cannot write to {str(folder)!r}: {error.strerror or error}; nothing saved before is lost"
        ) from error


class GrowingList:
    """A JSON file whose list grows: whole and valid after each `extend`, whenever the work is stopped.

    The file begins with the first `extend`, in the place of what was there, and has one line for each item.
    """

    def __init__(self, path: Path, *, head: str = "[", tail: str = "]") -> None:
        """`head` and `tail`: the JSON before and behind the items."""
        self.path = path
        self._head = head
        self._tail = f"\n{tail}\n".encode()
        self._end = 0  # where the tail begins

    def extend(self, items: Iterable[Any]) -> None:
        """Add items of plain data, one after the other.

        Raises:
            TranseptError: the disk is full or the folder, which is created, not writable.
        """
        lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
        comma = "," if self._end > len(self._head.encode()) else ""
        text = ("" if self._end else self._head) + (f"{comma}\n{lines}" if lines else "")
        added = text.encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self._end else "wb") as file:
                file.seek(self._end)
                file.write(added + self._tail)  # in one piece: the old tail goes as the new one comes
            self._end += len(added)
        except OSError as error:
            raise TranseptError(f"cannot write {str(self.path)!r}: {error.strerror or error}") from error


def reserve(folder: Path, size: int) -> None:
    """Make sure that `size` bytes can be written to `folder`, which is created.

    The space is really allocated for a moment: free-space figures know nothing of quotas and limits.

    Raises:
        TranseptError: it cannot be created or written to, or has too little room.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
            else:
                file.truncate(size)
    except OSError as error:
        need = f"{size / 2**20:.0f} MB" if size >= 2**20 else f"{size} bytes"
        raise TranseptError(
            f"cannot write to {str(folder)!r} ({error.strerror or error}); it needs {need} of room; "
            "free some or give another folder with --out"
        ) from error


def is_file(path: Path) -> bool:
    """Whether a regular file is there; no name, however long or odd, is an error."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises where a name is too long


def is_there(path: Path) -> bool:
    """Whether a file or folder is there; no name is an error, as for `is_file`."""
    return os.path.exists(path)  # noqa: PTH110


def check_regular(path: Path) -> None:
    """A pipe would wait for ever, a device never end: what is opened is looked at before.

    Raises:
        NotRegularError: it is neither a file nor a folder.
        OSError: it is a folder, or there is nothing.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise NotRegularError(errno.EINVAL, "it is a pipe, socket or device, not a file", str(path))


class NotRegularError(OSError):
    """A pipe, socket or device where a file is expected."""


def open_regular(path: Path) -> BinaryIO:
    """A file of the user's, open for reading; every one is opened by this.

    Raises:
        OSError: as `check_regular`, or it cannot be read.
    """
    check_regular(path)
    return path.open("rb")


def read_bytes(path: Path) -> bytes:
    """Raises `OSError` as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, without the mark at its beginning.

    Raises:
        TranseptError: the file is unreadable or not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TranseptError(
            f"cannot read {str(path)!r} as UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except (OSError, ValueError) as error:
        raise TranseptError(f"cannot read {str(path)!r} ({getattr(error, 'strerror', None) or error})") from error


_MOST_ENTRIES = 100_000
_DEEPEST = 100
_LONGEST = 2**24
"""Bounds of YAML: entries with those that aliases stand for, levels, and bytes."""


def read_yaml(path: Path) -> Any:
    """The plain data of a YAML file, of a bounded size: a few lines of aliases can stand for billions of entries.

    Raises:
        TranseptError: the file is unreadable, not UTF-8, not YAML, or out of bounds.
    """
    text = read_text(path)
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise TranseptError(f"{str(path)!r} is not YAML that can be read ({error})") from error


def parse_yaml(text: str) -> Any:
    """The plain data of a YAML text.

    Raises:
        ValueError: it is not YAML, or out of bounds; with the line.
    """
    import yaml  # which most that write files can do without

    try:
        _check_bounds(yaml.parse(text, Loader=_yaml_loader()), len(text))
        return yaml.load(text, Loader=_yaml_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"line {mark.line + 1}: {error.problem}" if mark else str(error.problem)) from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        # The constructors of numbers, dates and flags raise these on values that only look like theirs.
        if "integer string conversion" in str(error):
            raise ValueError("a number has thousands of digits") from error
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _yaml_loader() -> Any:
    """libyaml's where it is there: ten times as fast."""
    import yaml  # as above

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _check_bounds(events: Iterable[Any], length: int) -> None:
    """Counts as if every alias were written out, without doing so."""
    import yaml  # as above

    if length > _LONGEST:
        raise ValueError(f"it has {length} characters, more than {_LONGEST}")
    sizes: dict[str, int] = {}
    within: list[tuple[str | None, int]] = []  # the anchors around, and the count where each began
    count = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes and any(event.anchor == anchor for anchor, _ in within):
                raise ValueError(f"line {event.start_mark.line + 1}: '*{event.anchor}' stands inside itself")
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            within.append((event.anchor, count))
            count += 1
            if len(within) > _DEEPEST:
                raise ValueError(f"line {event.start_mark.line + 1}: it is nested more than {_DEEPEST} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, start = within.pop()
            if anchor is not None:
                sizes[anchor] = count - start
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        if count > _MOST_ENTRIES:
            raise ValueError(
                f"line {event.start_mark.line + 1}: it stands for more than {_MOST_ENTRIES:,} entries; write fewer"
            )


def files_below(root: Path) -> Iterator[Path]:
    """Every file below a folder, also behind links to folders; one that leads back to a folder around it is passed
    over."""
    around = {os.fspath(root): frozenset({identity(root.stat())})}
    for folder, folders, names in os.walk(root, followlinks=True):
        above = around.pop(folder)
        for name in list(folders):
            inner = os.path.join(folder, name)  # noqa: PTH118 - the key under which os.walk comes to it
            same = identity(Path(inner).stat())
            if same in above:
                folders.remove(name)
            else:
                around[inner] = above | {same}
        yield from (Path(folder, name) for name in names)


def identity(status: os.stat_result) -> tuple[int, int]:
    """Equal for two paths of one file or folder."""
    return status.st_dev, status.st_ino


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
