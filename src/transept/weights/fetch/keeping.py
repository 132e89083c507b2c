"""Where downloaded files lie, whole ones and beginnings, and how processes that want the same one take turns."""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import torch
from filelock import FileLock, Timeout

from transept.errors import TranseptError, UsageError
from transept.weights.catalogue.records import CHECKPOINTS


def local_path(url: str) -> Path:
    """Where `fetch` keeps the file behind `url`, there or not.

    A file of the catalogue has the name that stands there: for `.pth` the published one, under which torch.hub and
    others keep it too. Every other name is made of the whole address and eight digits of its hash, for half the
    world calls its file `model.safetensors`.

    Raises:
        UsageError: `url` is no http or https address of a file.
    """
    try:
        address = urlsplit(url)
    except ValueError:  # brackets that hold no IPv6 address
        address = urlsplit("")
    if address.scheme not in ("http", "https") or not address.hostname:
        raise UsageError(f"cannot download {url!r}: give an http or https address, or the path of a local file")
    if "@" in address.netloc:
        raise UsageError(
            f"cannot download from {address.hostname} with a name and password in the address; leave them out"
        )
    file = PurePosixPath(unquote(address.path))
    if not file.name or address.path.endswith("/"):
        raise UsageError(f"cannot download {url!r}: it names a folder; give the address of a file")
    name = next((checkpoint.file for checkpoint in CHECKPOINTS if checkpoint.url == url), "")
    if not name:
        readable = re.sub(r"[^\w.-]+", "_", f"{address.netloc}{file.with_suffix('')}", flags=re.ASCII)[-120:]
        suffix = re.sub(r"[^\w.]+", "_", file.suffix, flags=re.ASCII)[:20]
        name = f"{readable.lstrip('.')}-{hashlib.sha256(url.encode()).hexdigest()[:8]}{suffix}"
    return cached(name)


def cached(file: str) -> Path:
    """The path of a file in torch's hub cache, there or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / file


def is_kept(path: Path, url: str, sha256: str | None) -> bool:
    if not path.is_file():
        return False
    if sha256 is not None and not (digest := _digest(path)).startswith(sha256.lower()):
        raise TranseptError(
            f"{str(path)!r} is not the file published at {url} (its SHA-256 begins with {digest[: len(sha256)]}, the "
            f"published one with {sha256.lower()}); move it away and it will be downloaded"
        )
    return True


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def alone(path: Path, wait: Callable[[str], None]) -> Iterator[None]:
    """One process at a time; the lock of a killed one is free. Its file stays: removing it would split the waiting."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        wait("another process is downloading it, waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class AttemptError(Exception):
    """An attempt has failed. `again`: another may succeed, after `wait` seconds where somebody knows."""

    def __init__(self, reason: str, *, again: bool = False, wait: float | None = None) -> None:
        super().__init__(reason)
        self.again, self.wait = again, wait


WEB_PAGE = (
    "the server sent a web page, perhaps to share or to log in, instead of the file; open the address in a browser"
)


@dataclass(frozen=True, slots=True)
class Edition:
    """The marks that tell one state of a published file from the next."""

    source: str
    etag: str | None
    modified: str | None
    length: int | None

    @property
    def validator(self) -> str | None:
        """For If-Range, which takes no weak tags."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    @property
    def resumable(self) -> bool:
        return bool(self.etag or self.modified or self.length)

    def may_be(self, other: "Edition") -> bool:
        """Nothing that both state differs, and they do state something."""
        pairs = [
            (mine, its)
            for mine, its in (
                (self.etag and self.etag.removeprefix("W/"), other.etag and other.etag.removeprefix("W/")),
                (self.modified, other.modified),
                (self.length, other.length),
            )
            if mine is not None and its is not None
        ]
        return bool(pairs) and all(mine == its for mine, its in pairs)


class Part:
    """The beginning of a file, `NAME.part`, and beside it what it is the beginning of, `NAME.part.json`."""

    def __init__(self, path: Path, source: str) -> None:
        self.file, self.notes = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
        self.source = source
        self.edition = self._read_notes()
        self.pieced = self.edition is not None
        """It was not received in one go."""
        if self.edition is None:
            self.discard()

    def _read_notes(self) -> Edition | None:
        try:
            edition = Edition(**json.loads(self.notes.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        whole = edition.length if isinstance(edition.length, int) else math.inf
        known = edition.source == self.source and edition.resumable and 0 < self.size <= whole
        return edition if known else None

    @property
    def size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    def begin(self, edition: Edition) -> None:
        # In this order no crash can put the old bytes under the new notes.
        self.discard()
        self.notes.write_text(json.dumps(asdict(edition)))
        self.edition, self.pieced = edition, False

    def discard(self) -> None:
        self.file.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)
        self.edition = None

    def finish(self, path: Path, sha256: str | None) -> None:
        """Check the whole and give it its name."""
        with self.file.open("rb+") as file:
            start = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
            os.fsync(file.fileno())
        if start.startswith((b"<!doctype html", b"<html")):
            self.discard()
            raise AttemptError(WEB_PAGE)
        if sha256 is not None and not (digest := _digest(self.file)).startswith(sha256.lower()):
            # Pieces of two editions, where the server names none, or bytes that a crash of the machine lost.
            pieced = self.pieced
            self.discard()
            raise AttemptError(
                f"its SHA-256 begins with {digest[: len(sha256)]}, the published one with {sha256.lower()}; "
                "what came was removed",
                again=pieced,
                wait=0,
            )
        self.file.replace(path)
        self.notes.unlink(missing_ok=True)
