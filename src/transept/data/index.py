"""The contents of large folders and archives, kept from run to run so that a million files need not be listed again.

A folder's modification time changes whenever something is added to it, removed from it or renamed in it, so only the
folders whose time has changed are listed anew. What is kept lies in torch's hub cache, beside the weights
(`TORCH_HOME` moves it), and may be deleted at any time.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from transept.errors import TranseptError
from transept.files import identity, write_atomically

WORTH_KEEPING = 10_000
"""Fewer files than this are listed faster than an index of them is read."""
_SETTLED = 2 * 10**9
"""Nanoseconds. What was changed later than that before it was read may change again within one tick of the clock."""


class File(NamedTuple):
    """A file under a folder."""

    name: str
    """From that folder, with slashes."""
    size: int
    """In bytes."""


def list_files(root: Path, *, loose: bool = False) -> dict[str, list[File]]:
    """Each subfolder of `root` with the files in it, those in its own subfolders too, sorted.

    Subfolders may be links, at any depth; a link to a folder around it is not followed. Hidden subfolders of `root`
    are left out, and the files that lie in it itself, unless `loose`: then they are under the empty name.
    """
    key = f"files of {root.resolve()}"
    known = recall(key) or {}
    entries: dict[str, Any] = {}
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    changed = False
    while pending:
        folder, around = pending.pop()
        try:
            same = identity((root / folder).stat())
        except FileNotFoundError:
            if not folder:
                raise
            continue  # a link whose folder is gone, which the time of its own folder does not tell
        if same in around:
            continue
        modified = modification(root / folder)
        entry = known.get(folder)
        if entry is None or modified is None or entry[0] != modified:
            entry, changed = [modified, *_scan(root / folder)], True
        entries[folder] = entry
        pending += [(f"{folder}/{name}" if folder else name, around | {same}) for name in entry[1]]
    if (changed or len(entries) < len(known)) and sum(len(entry[2]) for entry in entries.values()) >= WORTH_KEEPING:
        remember(key, entries)
    by_class: dict[str, list[File]] = {name: [] for name in sorted(entries[""][1]) if not name.startswith(".")}
    if loose:
        by_class = {"": []} | by_class
    for folder in sorted(entries):
        name = folder.partition("/")[0]
        if name in by_class:
            inside = f"{folder}/" if folder else ""
            by_class[name] += [File(inside + file, size) for file, size in zip(*entries[folder][2:], strict=True)]
    for files in by_class.values():
        files.sort(key=lambda file: file.name.split("/"))
    return by_class


def _scan(folder: Path) -> tuple[list[str], list[str], list[int]]:
    """Names of folders, names of files, their sizes."""
    folders, files, sizes = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                is_folder, is_plain = entry.is_dir(), entry.is_file()
                size = entry.stat().st_size
            except FileNotFoundError:  # a link to nothing
                continue
            except OSError:  # a link to itself
                is_folder, is_plain, size = False, False, 0
            if is_folder:
                folders.append(entry.name)
            else:  # what is no file is said when it is read
                files.append(entry.name)
                sizes.append(size if is_plain else 0)
    return folders, files, sizes


def modification(path: Path) -> int | None:
    """When it was changed, in nanoseconds; None where that was so recently that the time tells nothing yet."""
    modified = path.stat().st_mtime_ns
    return modified if time.time_ns() - modified > _SETTLED else None


def recall(key: str) -> Any:
    """The value remembered under this key, or None: then it is gone, damaged, or of another version."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        page = json.loads(_place(key).read_text(encoding="ascii"))
        if page["key"] == key:
            return page["value"]
    return None


def remember(key: str, value: Any) -> None:
    """For later runs. Where nothing can be written they do without."""
    path = _place(key)
    with suppress(OSError, TranseptError):
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"key": key, "value": value}, separators=(",", ":"))
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="ascii"))


def _place(key: str) -> Path:
    # 3: the form of what is kept
    name = hashlib.sha256(f"3 {key}".encode(errors="surrogateescape")).hexdigest()[:20]
    return Path(torch.hub.get_dir()) / "transept" / f"index-{name}.json"
