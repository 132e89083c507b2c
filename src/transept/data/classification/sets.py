"""Labelled pictures: the built-in digits, class folders, tables of the Hugging Face hub, shards."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transept.data.classification.image_set import ArraySet, ImageSet, Paths
from transept.data.classification.shards import SHARDS, load_shards
from transept.data.classification.tables import load_hub_halves
from transept.data.hub import HUB, is_table
from transept.data.images import BadImageError, Skipped
from transept.data.index import File, list_files
from transept.data.measure import complete, refuse_reading
from transept.data.reading import PLAIN, Reading, WantedReading
from transept.errors import TranseptError
from transept.words import listed

# Files that systems leave in folders of pictures; nobody means them.
_LITTER = {"thumbs.db", "desktop.ini", "ehthumbs.db"}


@dataclass(frozen=True, slots=True)
class Splits:
    """The pictures that a classifier is trained and judged on."""

    classes: list[str]
    train: ImageSet
    val: ImageSet
    skipped: list[Skipped]


def load_splits(
    data: str,
    *,
    val_fraction: float = 0.2,
    skip_bad_images: bool = False,
    labelled: bool = True,
    reading: Reading | WantedReading = PLAIN,
) -> Splits:
    """The data set behind a name or folder.

    Args:
        data: one of

            - `digits`;
            - a folder with `train/CLASS/*` and `val/CLASS/*`, or with `CLASS/*`, which is split: of each class the
              share `val_fraction` whose names hash lowest is held out, so the same files are held out on every
              machine, and a file added later moves few others;
            - `hf:NAME`, a set of the Hugging Face hub, or a folder that the `datasets` library reads or wrote;
            - `wds:TRAIN,VAL`, patterns of tar shards, or `wds:FOLDER`: see `shards.load_shards`.
        val_fraction: see above.
        skip_bad_images: leave unreadable files out; they are in `skipped`. Of sets too large to be decoded
            beforehand, only empty files are found here; an unreadable training picture is then replaced by the next
            one when it is met.
        labelled: False takes a folder without class subfolders, or with one, as pictures of a single class.
        reading: how files become pictures; a part may be left to the training pictures to say.

    Raises:
        TranseptError: no such data, a class without pictures, fewer than two classes, classes that differ between
            the halves, or unreadable files (all are counted and the first ones named).
    """
    root = Path(data).expanduser()
    if data == "digits":
        refuse_reading(reading, data)
        return _digits()
    if is_table(data):
        classes, halves = load_hub_halves(data)
    elif data.startswith(SHARDS):
        classes, halves = load_shards(data.removeprefix(SHARDS))
    elif root.is_dir():
        classes, halves = _folder_halves(root, labelled)
    else:
        raise TranseptError(
            f"there is no data {data!r}; give 'digits' or a folder with one subfolder for each class, "
            f"or a name that begins with {HUB} or {SHARDS}"
        )
    reading = complete(reading, halves[0].some_files())
    for half in halves:
        half.reading = reading
    unreadable = [_unreadable(half) for half in halves]
    skipped = [skip for half in unreadable for skip in half.values()]
    if skipped and not skip_bad_images:
        names = listed((f"{str(skip.path)!r} {skip.reason}" for skip in skipped), separator="; ")
        noun = "1 file is" if len(skipped) == 1 else f"{len(skipped)} files are"
        raise TranseptError(
            f"{noun} not readable as pictures: {names}; remove them, or leave them out with --skip-bad-images"
        )
    halves = [_without(half, list(bad), classes) for half, bad in zip(halves, unreadable, strict=True)]
    train, val = halves if len(halves) == 2 else _split(halves[0], classes, val_fraction)
    train.skips_bad_images = skip_bad_images
    return Splits(classes, train, val, skipped)


def _folder_halves(root: Path, labelled: bool) -> tuple[list[str], list[ImageSet]]:
    halves = _halves(root, labelled)
    sets = []
    for half, by_class in halves.items():
        pairs = [(file, number) for number, files in enumerate(by_class.values()) for file in files]
        paths = Paths(root / half, [file.name for file, _ in pairs])
        sizes = np.array([file.size for file, _ in pairs], np.int64)
        sets.append(ImageSet(paths, [number for _, number in pairs], sizes=sizes))
    return list(next(iter(halves.values()))), sets


def _halves(root: Path, labelled: bool) -> dict[str, dict[str, list[File]]]:
    """Folder name (`train` and `val`, or one empty name where the root is to be split) to class to files."""
    if not (root / "train").is_dir():
        return {"": _class_files(root, labelled)}
    val = next((name for name in ("val", "validation", "valid", "test") if (root / name).is_dir()), None)
    if val is None:
        raise TranseptError(f"{str(root)!r} has a folder train/ but no val/ beside it; add one, or give {root}/train")
    halves = {name: _class_files(root / name, labelled) for name in ("train", val)}
    odd = sorted(set(halves["train"]) ^ set(halves[val]))
    if odd:
        where = "train" if odd[0] in halves["train"] else val
        raise TranseptError(
            f"the class {odd[0]!r} is in {where}/ only; {str(root)!r} must have the same classes in both"
        )
    return halves


def _unreadable(images: ImageSet) -> dict[int, Skipped]:
    """Numbers of those that are no pictures. Small sets are decoded, on all cores; of large ones the size is seen."""
    if not images.small:  # would take minutes or hours
        empty = [] if images.sizes is None else np.flatnonzero(images.sizes == 0).tolist()
        return {i: Skipped(images.paths[i], "is empty") for i in empty}

    def problem(index: int) -> Skipped | None:
        try:
            images.read(index)
        except BadImageError as error:
            return Skipped(error.path, error.reason)
        return None

    with ThreadPoolExecutor() as pool:
        return {i: skip for i, skip in enumerate(pool.map(problem, range(len(images)))) if skip}


def _without(images: ImageSet, bad: list[int], classes: Sequence[str]) -> ImageSet:
    """The readable ones."""
    if not bad:
        return images
    good = np.setdiff1d(np.arange(len(images)), bad)
    rest = images.take(good)
    before, after = (np.bincount(half.labels, minlength=len(classes)) for half in (images, rest))
    empty = np.flatnonzero((before > 0) & (after == 0))
    if len(empty):
        raise TranseptError(f"no picture of the class {classes[empty[0]]!r} in {str(images.paths.root)!r} is readable")
    return rest


def _digits() -> Splits:
    """scikit-learn's 1,797 scans of handwritten digits, 8 x 8 in 16 greys; the last 360 are held out."""
    # Takes seconds, and only these data need it.
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    arrays = (np.asarray(pixels).reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    labels = [int(label) for label in labels]
    names = [f"digit-{i:04d}.png" for i in range(len(labels))]
    cut = len(labels) - 360
    train = ArraySet(arrays[:cut], labels[:cut], names[:cut])
    return Splits([str(digit) for digit in range(10)], train, ArraySet(arrays[cut:], labels[cut:], names[cut:]), [])


def _class_files(root: Path, labelled: bool) -> dict[str, list[File]]:
    """Class name (the subfolder) to its files, both sorted."""
    folders = list_files(root, loose=not labelled)
    if not labelled:
        loose = folders.pop("")
        if len(folders) < 2:
            files = [file for folder in (loose, *folders.values()) for file in folder if _is_meant(file.name)]
            if not files:
                raise TranseptError(f"there are no pictures in {str(root)!r}")
            return {"pictures": files}
    if not folders:
        raise TranseptError(f"{str(root)!r} has no subfolders; pictures go into one subfolder for each class")
    if len(folders) == 1:
        raise TranseptError(
            f"{str(root)!r} has one class only, {next(iter(folders))!r}; a classifier needs two or more"
        )
    by_class = {name: [file for file in files if _is_meant(file.name)] for name, files in folders.items()}
    for name, files in by_class.items():
        if not files:
            raise TranseptError(f"the class folder {str(root / name)!r} is empty; fill it or remove it")
    return by_class


def _is_meant(name: str) -> bool:
    name = name.rpartition("/")[2]
    return not name.startswith(".") and name.lower() not in _LITTER


def _split(images: ImageSet, classes: Sequence[str], val_fraction: float) -> tuple[ImageSet, ImageSet]:
    labels = np.asarray(images.labels)
    held_out = np.zeros(len(labels), bool)
    for number, name in enumerate(classes):
        members = np.flatnonzero(labels == number)
        if len(members) < 2:
            raise TranseptError(f"the class {name!r} has one picture; it needs two, one to learn from and one to check")
        hashes = {i: hashlib.sha1(os.fsencode(images.paths.name(i))).digest() for i in members.tolist()}
        ranked = sorted(hashes, key=hashes.__getitem__)
        held_out[ranked[: min(max(1, round(val_fraction * len(ranked))), len(ranked) - 1)]] = True
    return images.take(np.flatnonzero(~held_out)), images.take(np.flatnonzero(held_out))
