"""Labelled pictures: the built-in digits, class folders, tables of the Hugging Face hub, shards."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from transept.data.classification.image_set import ArraySet, ImageSet, ManyLabels, Paths, Read
from transept.data.classification.listings import find_listing, find_multi_label_listing, is_listing
from transept.data.classification.shards import SHARDS, find_shards
from transept.data.classification.tables import hub_splits, multi_label_hub_splits
from transept.data.hub import HUB, is_table
from transept.data.images import BadImageError, Skipped, unusable
from transept.data.index import File, list_files
from transept.data.measure import complete, refuse_reading, spread
from transept.data.places import LOOKED_AT, say_links
from transept.data.reading import PLAIN, Reading, WantedReading
from transept.data.splits import WHOLE, Choice, Fold, Parts, held_out, kind_of, matches, say_unmeasured, take
from transept.errors import TranseptError, UsageError, warn
from transept.files import check_regular
from transept.words import listed

# Files that systems leave in folders of pictures; nobody means them.
_LITTER = {"thumbs.db", "desktop.ini", "ehthumbs.db"}


@dataclass(frozen=True, slots=True)
class Splits:
    """The pictures that a classifier is trained and judged on."""

    classes: list[str]
    train: ImageSet
    """Empty where only the measured pictures are read."""
    val: ImageSet
    skipped: list[Skipped]
    parts: Parts
    """Which splits these are."""
    understood: str = ""
    """How several labels of each picture were read."""

    @property
    def counts(self) -> dict[str, int]:
        """Training pictures of each class; nothing where there is one class, which is none."""
        if len(self.classes) < 2:
            return {}
        return dict(zip(self.classes, self.train.counts(len(self.classes)).tolist(), strict=True))

    @property
    def measured_classes(self) -> int:
        """Classes of which there are measured pictures."""
        return int(np.count_nonzero(self.val.counts(len(self.classes))))


def load_splits(
    data: str,
    *,
    halves: Literal["both", "val"] = "both",
    choice: Choice | None = None,
    known: Sequence[str] | None = None,
    val_fraction: float = 0.2,
    skip_bad_images: bool = False,
    labelled: bool = True,
    multi_label: bool = False,
    label_separator: str | None = None,
    reading: Reading | WantedReading = PLAIN,
) -> Splits:
    """The data set behind a name or folder.

    Args:
        data: one of

            - `digits`;
            - a folder with `train/CLASS/*` and `val/CLASS/*` in any spelling that `data.splits` knows, or with
              `CLASS/*`. Where there is no validation split, the training pictures are divided: of each class the share
              `val_fraction` whose names hash lowest is held out, so the same files are held out on every machine, and
              a file added later moves few others;
            - a CSV or Parquet file with a path and a label in each row, see `listings.find_listing`, or several, see
              `listings.find_multi_label_listing`;
            - `hf:NAME`, a set of the Hugging Face hub, or a folder that the `datasets` library read or wrote;
            - `wds:TRAIN,VAL`, patterns of tar shards, or `wds:FOLDER`: see `shards.find_shards`.
        halves: `val` reads what is measured alone; `train` is then empty.
        choice: which splits; default: training and validation.
        known: the classes of a model, in its order. Measured pictures are numbered by them, and may lack some.
        val_fraction: see above.
        skip_bad_images: leave unreadable files out; they are in `skipped`. Of sets too large to be decoded
            beforehand, only empty files are found here; an unreadable training picture is then replaced by the next
            one when it is met.
        multi_label: a picture has any number of labels; tables, sets of the hub and shards say them.
        label_separator: what stands between the labels of a cell, where that is not to be found out.
        labelled: False takes a folder without class subfolders, or with one, as pictures of a single class.
        reading: how files become pictures; a part may be left to the training pictures to say.

    Raises:
        TranseptError: no such data, a class without training pictures, fewer than two classes, or unreadable files
            (all are counted and the first ones named).
        UsageError: no such split, or several could be meant.
    """
    choice = choice or Choice()
    understood = ""
    if multi_label:
        names, read, understood = _multi_label_source(data, label_separator)
    elif data == "digits":
        refuse_reading(reading, data)
        return _digits(choice)
    else:
        names, read = _source(data, choice, labelled=labelled, fewest=1 if known else 2)
    parts = take(names, data, choice, learns=halves == "both")
    wanted = parts.read if halves == "both" else [parts.val]
    classes, sets = read(wanted)
    if known is not None and not len(known) == len(classes) == 1000:  # ImageNet's folders have numbers, in its order
        classes, sets = list(known), [_numbered_by(known, classes, each, data) for each in sets]
    reading = complete(reading, sets[0].some_files())
    for half in sets:
        half.reading = reading
    unreadable = [_unreadable(half) for half in sets]
    skipped = [skip for half in unreadable for skip in half.values()]
    if skipped and not skip_bad_images:
        noun = "1 file is" if len(skipped) == 1 else f"{len(skipped)} files are"
        files = sum(map(len, sets))
        raise TranseptError(f"{noun} not readable as pictures: {unusable(skipped, files, 'remove them')}")
    if Path(data).expanduser().exists():
        say_links((half.paths[i] for half in sets for i in spread(len(half), LOOKED_AT)), Path(data).expanduser())
    sets = [_without(half, list(bad), classes) for half, bad in zip(sets, unreadable, strict=True)]
    if parts.held_out:
        train, val = _split(sets[0], classes, val_fraction, parts.fold, data)
    else:
        train, val = (sets[0] if halves == "both" else sets[0].take([])), sets[-1]
    train.skips_bad_images = skip_bad_images
    if multi_label and halves == "both":
        _say_untrained(classes, train, data)
    if known is not None or halves == "both":
        _say_unmeasured(classes, val, data)
    return Splits(classes, train, val, skipped, parts, understood)


def _multi_label_source(data: str, separator: str | None) -> tuple[list[str], Read, str]:
    root = Path(data).expanduser()
    if is_listing(root):
        return find_multi_label_listing(root, separator)
    if is_table(data):
        return multi_label_hub_splits(data, separator)
    if data.startswith(SHARDS):
        return *find_shards(data.removeprefix(SHARDS), multi_label=True), "the lists in the samples' .cls or .json"
    if not root.exists() and data != "digits":
        raise TranseptError(f"there is no table {data!r}; give a .csv, .tsv or .parquet file")
    kind = "folders say one class of each picture" if root.is_dir() else "it has one label of each picture"
    raise UsageError(
        f"data={data!r} with multi_label: {kind}; give a table, .csv, .tsv or .parquet, whose column 'labels' lists "
        "those of each picture, or leave multi_label out"
    )


def _source(data: str, choice: Choice, *, labelled: bool, fewest: int) -> tuple[list[str], Read]:
    """The names of the splits, and what reads some of them."""
    root = Path(data).expanduser()
    if is_table(data):
        return hub_splits(data)
    if data.startswith(SHARDS):
        return find_shards(data.removeprefix(SHARDS))
    if is_listing(root):
        return find_listing(root, fewest=fewest)
    if root.is_dir():
        return _split_folders(root, choice), partial(_read_folders, root, labelled, fewest)
    raise TranseptError(
        f"there is no data {data!r}; give 'digits', a folder with a subfolder for each class, a table (CSV, Parquet), "
        f"or a name that begins with {HUB} or {SHARDS}"
    )


def _split_folders(root: Path, choice: Choice) -> list[str]:
    """The subfolders that are splits; none where they are classes.

    Raises:
        UsageError: they may be either.
    """
    found = sorted(matches(root, "{}", choice))
    names = [name for name in found if (root / name).is_dir()]
    if choice.is_whole or not names:
        return []
    kinds = {kind_of(name) for name in names}
    others = sorted(each.name for each in root.iterdir() if each.is_dir() and each.name not in names)
    others = [name for name in others if not name.startswith(".")]
    if others and not choice.names:
        first, other = names[0], others[0]
        if "train" not in kinds or len(kinds) < 2:
            kind = kind_of(first) or "train"
            option = "--train_split" if kind == "train" else "--split"
            raise UsageError(
                f"{first!r} in {str(root)!r} may be a split or, as {other!r} beside it, a class; say {option} {first} "
                f"or {option} {WHOLE} (the folder has no splits)"
            )
        warn(f"{str(root)!r} has the splits {listed(map(repr, names))}; {listed(map(repr, others))} is not read")
    return names


def _read_folders(root: Path, labelled: bool, fewest: int, names: list[str]) -> tuple[list[str], list[ImageSet]]:
    """The classes of the first folder, to which those of the others must belong."""
    classes: list[str] = []
    sets = []
    for name in names:
        folder = _innermost(root, name)
        by_class = _class_files(folder, labelled, fewest=1 if classes else fewest)
        classes = classes or list(by_class)
        if not labelled and len(classes) == 1:
            by_class = {classes[0]: [file for files in by_class.values() for file in files]}
        odd = [each for each in by_class if each not in classes]
        if odd:
            raise TranseptError(
                f"the class {odd[0]!r} is in {name}/ only, so nothing is learnt of it; add pictures of it to "
                f"{str(root / names[0])!r}, or remove it from {str(folder)!r}"
            )
        pairs = [(file, classes.index(each)) for each, files in by_class.items() for file in files]
        paths = Paths(folder, [file.name for file, _ in pairs])
        sizes = np.array([file.size for file, _ in pairs], np.int64)
        sets.append(ImageSet(paths, [number for _, number in pairs], sizes=sizes))
    return classes, sets


def _innermost(root: Path, name: str) -> Path:
    """The split's folder; archives often hold `seg_train/seg_train/CLASS`."""
    folder = root / name
    inner = [each for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")] if name else []
    return inner[0] if len(inner) == 1 and inner[0].name == name else folder


def _numbered_by(known: Sequence[str], classes: Sequence[str], images: ImageSet, data: str) -> ImageSet:
    """The pictures with the numbers that a model has for their classes."""
    if list(known) == list(classes):
        return images
    odd = sorted(set(classes) - set(known))
    if odd:
        raise TranseptError(f"the classes of {data!r} are not the model's {len(known)}: {odd[0]!r} is only in the data")
    return images.renumbered([list(known).index(name) for name in classes], len(known))


def _say_unmeasured(classes: Sequence[str], val: ImageSet, data: str) -> None:
    counts = val.counts(len(classes))
    say_unmeasured([name for name, count in zip(classes, counts, strict=True) if not count], data)


def _say_untrained(classes: Sequence[str], train: ImageSet, data: str) -> None:
    """Where labels are columns, or were divided by chance, all of a class may be elsewhere."""
    counts = train.counts(len(classes))
    empty = [repr(name) for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        verb = "class has" if len(empty) == 1 else "classes have"
        warn(
            f"{len(empty)} {verb} no training pictures in {data!r}, and nothing is learnt of them: {listed(empty, 10)}"
        )


def _unreadable(images: ImageSet) -> dict[int, Skipped]:
    """Numbers of those that are no pictures. Small sets are decoded, on all cores; of large ones the size is seen."""
    if not images.small:  # would take minutes or hours
        empty = [] if images.sizes is None else np.flatnonzero(images.sizes == 0).tolist()
        return {i: Skipped(images.paths[i], _why_empty(images.paths[i])) for i in empty}

    def problem(index: int) -> Skipped | None:
        try:
            images.read(index)
        except BadImageError as error:
            return Skipped(error.path, error.reason)
        return None

    with ThreadPoolExecutor() as pool:
        return {i: skip for i, skip in enumerate(pool.map(problem, range(len(images)))) if skip}


def _why_empty(path: Path) -> str:
    try:
        check_regular(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "is empty"


def _without(images: ImageSet, bad: list[int], classes: Sequence[str]) -> ImageSet:
    """The readable ones."""
    if not bad:
        return images
    good = np.setdiff1d(np.arange(len(images)), bad)
    rest = images.take(good)
    before, after = (half.counts(len(classes)) for half in (images, rest))
    empty = np.flatnonzero((before > 0) & (after == 0))
    if len(empty):
        raise TranseptError(f"no picture of the class {classes[empty[0]]!r} in {str(images.paths.root)!r} is readable")
    return rest


def _digits(choice: Choice) -> Splits:
    """scikit-learn's 1,797 scans of handwritten digits, 8 x 8 in 16 greys; the last 360 are held out."""
    # Takes seconds, and only these data need it.
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    arrays = (np.asarray(pixels).reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    labels = [int(label) for label in labels]
    names = [f"digit-{i:04d}.png" for i in range(len(labels))]
    cut = len(labels) - 360
    train = ArraySet(arrays[:cut], labels[:cut], names[:cut])
    val = ArraySet(arrays[cut:], labels[cut:], names[cut:])
    parts = take(("train", "val"), "digits", choice, learns=True)
    classes = [str(digit) for digit in range(10)]
    if parts.held_out:
        train, val = _split(train, classes, 0.0, parts.fold, "digits")
    return Splits(classes, train, train if parts.val == "train" and not parts.held_out else val, [], parts)


def _class_files(root: Path, labelled: bool, *, fewest: int) -> dict[str, list[File]]:
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
    if len(folders) < fewest:
        raise TranseptError(
            f"{str(root)!r} has one class only, {next(iter(folders))!r}; a classifier needs two or more"
        )
    by_class = {name: [file for file in files if _is_meant(file.name)] for name, files in folders.items()}
    for name, files in by_class.items():
        if not files and fewest > 1:
            raise TranseptError(f"the class folder {str(root / name)!r} is empty; fill it or remove it")
    return by_class


def _is_meant(name: str) -> bool:
    name = name.rpartition("/")[2]
    return not name.startswith(".") and name.lower() not in _LITTER


def _split(
    images: ImageSet, classes: Sequence[str], val_fraction: float, fold: Fold | None, data: str
) -> tuple[ImageSet, ImageSet]:
    """Training and validation: of each class its share, but of pictures in groups, or with several labels."""
    strata = None if isinstance(images, ManyLabels) else images.labels
    if strata is not None:
        for name, count in zip(classes, images.counts(len(classes)), strict=True):
            if count == 1:
                raise TranseptError(
                    f"the class {name!r} has one picture; it needs two, one to learn from and one to check"
                )
    elif len(images) < 2:
        raise TranseptError(f"{data!r} has {len(images)} pictures; it needs two, to learn from and to check")
    names = [images.paths.name(i) for i in range(len(images))]
    groups = None if images.groups is None else images.groups.tolist()
    measured = np.zeros(len(images), bool)
    measured[held_out(names, val_fraction, fold, repr(data), strata=strata, groups=groups)] = True
    return images.take(np.flatnonzero(~measured)), images.take(np.flatnonzero(measured))
