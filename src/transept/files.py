"""Writing files so that a crash, a full disk or a reader in between never sees half of one."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

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
