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
            self._keep(index, picture)
        return picture, self.labels[index]

    def _keep(self, index: int, picture: Image.Image) -> None:
        size = picture.width * picture.height * 3
        if size <= self._room:
            self._room -= size
            self._kept[index] = picture

    def check(self) -> list[Skipped]:
        """Decode every file, on all cores; the ones that fail, in order."""

        def problem(index: int) -> Skipped | None:
            try:
                self[index]
            except BadImageError as error:
                return Skipped(error.path, error.reason)
            return None

        with ThreadPoolExecutor() as pool:
            return [found for found in pool.map(problem, range(len(self))) if found]

    def without(self, skipped: Sequence[Skipped]) -> "ImageSet":
        """The set less some files."""
        bad = {skip.path for skip in skipped}
        left = [i for i, path in enumerate(self.paths) if path not in bad]
        rest = ImageSet([self.paths[i] for i in left], [self.labels[i] for i in left])
        for new, old in enumerate(left):
            if old in self._kept:
                rest._keep(new, self._kept[old])
        return rest


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


def load_splits(data: str, *, val_fraction: float = 0.2, skip_bad_images: bool = False) -> Splits:
    """The data set behind a name or folder.

    Args:
        data: `digits`, or a folder with `train/CLASS/*` and `val/CLASS/*`, or with `CLASS/*`, which is split: of
            each class the share `val_fraction` whose names hash lowest is held out, so the same files are held out
            on every machine, and a file added later moves few others.
        val_fraction: see above.
        skip_bad_images: leave unreadable files out; they are in `skipped`.

    Raises:
        TranseptError: no such data, a class without pictures, fewer than two classes, classes that differ between
            the halves, or unreadable files (all are counted and the first ones named).
    """
    if data == "digits":
        return _digits()
    root = Path(data).expanduser()
    if not root.is_dir():
        raise TranseptError(f"there is no data {data!r}; give 'digits' or a folder with one subfolder for each class")
    if (root / "train").is_dir():
        val = next((root / name for name in ("val", "validation", "valid", "test") if (root / name).is_dir()), None)
        if val is None:
            raise TranseptError(
                f"{str(root)!r} has a folder train/ but no val/ beside it; add one, or give {data}/train"
            )
        train_files, val_files = _class_files(root / "train"), _class_files(val)
        if list(train_files) != list(val_files):
            odd = sorted(set(train_files) ^ set(val_files))[0]
            where = "train" if odd in train_files else val.name
            raise TranseptError(
                f"the class {odd!r} is in {where}/ only; {str(root)!r} must have the same classes in both"
            )
    else:
        train_files, val_files = _split(_class_files(root), root, val_fraction)
    classes = list(train_files)
    train, val_set = _to_set(train_files), _to_set(val_files)
    skipped: list[Skipped] = []
    if sum(file.stat().st_size for image_set in (train, val_set) for file in image_set.paths) <= _CHECK_BYTES:
        skipped = [*train.check(), *val_set.check()]
    else:  # decoding everything would take minutes: look for what the name or size alone tells
        skipped = [
            Skipped(file, "is empty")
            for image_set in (train, val_set)
            for file in image_set.paths
            if file.stat().st_size == 0
        ]
    if skipped and not skip_bad_images:
        names = "; ".join(f"{str(skip.path)!r} {skip.reason}" for skip in skipped[:3])
        more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        noun = "1 file is" if len(skipped) == 1 else f"{len(skipped)} files are"
        raise TranseptError(
            f"{noun} not readable as pictures: {names}{more}; remove them, or train with --skip_bad_images true"
        )
    train, val_set = train.without(skipped), val_set.without(skipped)
    for name, image_set in (("training", train), ("validation", val_set)):
        for number, label in enumerate(classes):
            if number not in image_set.labels:
                raise TranseptError(f"no {name} picture of the class {label!r} in {str(root)!r} is readable")
    return Splits(classes, train, val_set, skipped)


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


def _class_files(root: Path) -> dict[str, list[Path]]:
    """Class name (the subfolder) to its files, both sorted."""
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
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
