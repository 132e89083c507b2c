"""Writing files so that a crash, a full disk or a reader in between never sees half of one."""

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

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
