"""A fingerprint of a run's data, by which a resumed run knows whether it has changed."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from lightning.pytorch.callbacks import Callback

from transept.data.classification.image_set import ImageSet
from transept.data.detection.coco_set import CocoSet
from transept.data.segmentation.pictures import MaskedPictures
from transept.errors import TranseptError


class Fingerprint(NamedTuple):
    """Counts and hashes of the classes and of the names and sizes of all files. Their contents are not read."""

    train: int
    """Training pictures."""
    val: int
    classes: int
    class_names: str
    """Hexadecimal, as `files`."""
    files: str


def fingerprint(splits: Any) -> Fingerprint:
    """The fingerprint of training and validation pictures together."""
    files = hashlib.sha256()
    for half in (splits.train, splits.val):
        for part in _description(half):
            files.update(part)
    names = hashlib.sha256("\n".join(splits.classes).encode(errors="surrogateescape"))
    counts = len(splits.train), len(splits.val), len(splits.classes)
    return Fingerprint(*counts, names.hexdigest()[:16], files.hexdigest()[:16])


def _description(half: Any) -> Iterator[bytes]:
    if isinstance(half, ImageSet):
        yield from half.description()
        return
    files = list(half.paths)
    if isinstance(half, MaskedPictures):
        files += half.masks
    if isinstance(half, CocoSet):
        files.append(half.file)
    for file in files:
        size = file.stat().st_size if file.is_file() else 0  # pictures from memory have names only
        yield f"{file.name} {size}\n".encode(errors="surrogateescape")


class DataRecord(Callback):
    """Keeps the fingerprint in the run's state."""

    def __init__(self, fingerprint: Fingerprint) -> None:
        self.fingerprint = fingerprint

    def state_dict(self) -> dict[str, Any]:
        return self.fingerprint._asdict()


def check_same_data(now: Fingerprint, state: dict[str, Any], data: str, *, accept: bool) -> None:
    """Compares with the fingerprint in the run's state, where it has one.

    Raises:
        TranseptError: the classes are others; or, unless `accept`, the files are.
    """
    kept = state.get("callbacks", {}).get(DataRecord.__name__)
    if kept is None:
        return
    before = Fingerprint(**kept)
    if now.class_names != before.class_names:
        change = f"{before.classes} then, {now.classes} now" if now.classes != before.classes else "other names"
        raise TranseptError(f"the classes of {data!r} have changed since this run began ({change}); start a new run")
    if now == before or accept:
        return
    changes = [
        f"{name} pictures: {old} then, {new} now"
        for name, old, new in (("training", before.train, now.train), ("validation", before.val, now.val))
        if old != new
    ] or ["as many pictures, but other names or sizes of files"]
    raise TranseptError(
        f"the data {data!r} has changed since this run was saved ({'; '.join(changes)}), so it would not end as an "
        "uninterrupted run; bring the data back as it was, or go on all the same with --accept-changed-data"
    )
