"""Labelled pictures: the built-in digits and class folders."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from transept.data.images import BadImageError, read_image
from transept.errors import TranseptError

# Files that systems leave in folders of pictures; nobody means them.
_LITTER = {"thumbs.db", "desktop.ini", "ehthumbs.db"}
_CHECK_BYTES = 512 * 2**20
_KEEP_BYTES = 1024 * 2**20


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file left out of a set, and why."""

    path: Path
    reason: str


class ImageSet(Sequence[tuple[Image.Image, int]]):
    """RGB pictures with class numbers. Decoded pictures are kept while they fit into a gigabyte."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[int]) -> None:
        self.paths = list(paths)
        self.labels = list(labels)
        self._kept: dict[int, Image.Image] = {}
        self._room = _KEEP_BYTES

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        picture = self._kept.get(index)
        if picture is None:
            picture = read_image(self.paths[index])
            size = picture.width * picture.height * 3
            if size <= self._room:
                self._room -= size
                self._kept[index] = picture
        return picture, self.labels[index]


class ArraySet(ImageSet):
    """Pictures from memory instead of files."""

    def __init__(self, arrays: np.ndarray, labels: Sequence[int], names: Sequence[str]) -> None:
        super().__init__([Path(name) for name in names], labels)
        self._kept = {i: Image.fromarray(array).convert("RGB") for i, array in enumerate(arrays)}


@dataclass(frozen=True, slots=True)
class Splits:
    """What a classifier is trained and judged on."""

    classes: list[str]
    train: ImageSet
    val: ImageSet
    skipped: list[Skipped]


def load_splits(
    data: str, *, val_fraction: float = 0.2, skip_bad_images: bool = False, labelled: bool = True
) -> Splits:
    """The data set behind a name or folder.

    Args:
        data: `digits`, or a folder with `train/CLASS/*` and `val/CLASS/*`, or with `CLASS/*`, which is split: of
            each class the share `val_fraction` whose names hash lowest is held out, so the same files are held out
            on every machine, and a file added later moves few others.
        val_fraction: see above.
        skip_bad_images: leave unreadable files out; they are in `skipped`.
        labelled: False takes a folder without class subfolders, or with one, as pictures of a single class.

    Raises:
        TranseptError: no such data, a class without pictures, fewer than two classes, classes that differ between
            the halves, or unreadable files (all are counted and the first ones named).
    """
    if data == "digits":
        return _digits()
    root = Path(data).expanduser()
    if not root.is_dir():
        raise TranseptError(f"there is no data {data!r}; give 'digits' or a folder with one subfolder for each class")
    halves = _halves(root, labelled)
    skipped = _unreadable([file for files in halves.values() for found in files.values() for file in found])
    if skipped and not skip_bad_images:
        names = "; ".join(f"{str(skip.path)!r} {skip.reason}" for skip in skipped[:3])
        more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        noun = "1 file is" if len(skipped) == 1 else f"{len(skipped)} files are"
        raise TranseptError(
            f"{noun} not readable as pictures: {names}{more}; remove them, or leave them out with --skip-bad-images"
        )
    bad = {skip.path for skip in skipped}
    for half, files in halves.items():
        for name, found in files.items():
            files[name] = [file for file in found if file not in bad]
            if not files[name]:
                raise TranseptError(f"no picture of the class {name!r} in {str(root / half)!r} is readable")
    if "" in halves:
        train, val = _split(halves[""], root, val_fraction)
    else:
        train, val = halves.values()
    return Splits(list(train), _to_set(train), _to_set(val), skipped)


def _halves(root: Path, labelled: bool = True) -> dict[str, dict[str, list[Path]]]:
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


def _unreadable(files: Sequence[Path]) -> list[Skipped]:
    """The files that are no pictures, in order. Up to half a gigabyte is decoded, on all cores."""
    if sum(file.stat().st_size for file in files) > _CHECK_BYTES:  # would take minutes: the size alone tells little
        return [Skipped(file, "is empty") for file in files if file.stat().st_size == 0]

    def problem(file: Path) -> Skipped | None:
        try:
            read_image(file)
        except BadImageError as error:
            return Skipped(error.path, error.reason)
        return None

    with ThreadPoolExecutor() as pool:
        return [found for found in pool.map(problem, files) if found]


def _digits() -> Splits:
    """scikit-learn's 1,797 scans of handwritten digits, 8 x 8 in 16 greys; the last 360 are held out."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    arrays = (np.asarray(pixels).reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    labels = [int(label) for label in labels]
    names = [f"digit-{i:04d}.png" for i in range(len(labels))]
    cut = len(labels) - 360
    train = ArraySet(arrays[:cut], labels[:cut], names[:cut])
    return Splits([str(digit) for digit in range(10)], train, ArraySet(arrays[cut:], labels[cut:], names[cut:]), [])


def _class_files(root: Path, labelled: bool = True) -> dict[str, list[Path]]:
    """Class name (the subfolder) to its files, both sorted."""
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    if len(folders) < 2 and not labelled:
        files = {"pictures": _files(root)}
        if not files["pictures"]:
            raise TranseptError(f"there are no pictures in {str(root)!r}")
        return files
    if not folders:
        raise TranseptError(f"{str(root)!r} has no subfolders; pictures go into one subfolder for each class")
    if len(folders) == 1:
        raise TranseptError(f"{str(root)!r} has one class only, {folders[0].name!r}; a classifier needs two or more")
    files = {folder.name: _files(folder) for folder in folders}
    for name, found in files.items():
        if not found:
            raise TranseptError(f"the class folder {str(root / name)!r} is empty; fill it or remove it")
    return files


def _files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".") and file.name.lower() not in _LITTER
    )


def _split(
    files: dict[str, list[Path]], root: Path, val_fraction: float
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    train: dict[str, list[Path]] = defaultdict(list)
    val: dict[str, list[Path]] = defaultdict(list)
    for name, found in files.items():
        if len(found) < 2:
            raise TranseptError(f"the class {name!r} has one picture; it needs two, one to learn from and one to check")
        ranked = sorted(found, key=lambda file: hashlib.sha1(file.relative_to(root).as_posix().encode()).digest())
        held_out = set(ranked[: min(max(1, round(val_fraction * len(found))), len(found) - 1)])
        for file in found:
            (val if file in held_out else train)[name].append(file)
    return dict(train), dict(val)


def _to_set(files: dict[str, list[Path]]) -> ImageSet:
    pairs = [(file, number) for number, found in enumerate(files.values()) for file in found]
    return ImageSet([file for file, _ in pairs], [number for _, number in pairs])
