"""Data of segmenters by name or folder: the built-in scenes, folders of masks or outlines, Hugging Face sets."""

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from transept.data.hub import HUB, load_hub
from transept.data.images import (
    EXTENSIONS,
    BadImageError,
    Skipped,
    unusable,
)
from transept.data.labels import CLASS_FILES, LabelTable, cityscapes_table, read_table, table_of_names, voc_table
from transept.data.measure import complete, refuse_reading
from transept.data.places import say_links
from transept.data.reading import PLAIN, Reading, WantedReading
from transept.data.scenes import DigitScenes, SceneOptions
from transept.data.segmentation.outlines import load_outlines
from transept.data.segmentation.pictures import (
    SCENES,
    HubSegmentation,
    MaskedPictures,
    SceneSegmentation,
    SegmentationSet,
)
from transept.data.segmentation.pixels import black_and_white, check_training_pixels, count_classes
from transept.data.splits import Choice, Fold, Parts, held_out, kind_of, matches, note_bare_splits, refuse_folds, take
from transept.errors import TranseptError, TranseptWarning, UsageError
from transept.files import files_below, read_text
from transept.ops.masks import IGNORE_LABEL
from transept.style import Color
from transept.words import listed

# Up to so many pictures are decoded and checked when a set is loaded (ADE20K's 20,000 would take minutes); of larger
# sets each one is checked when it is read.
_CHECK_FILES = 4000
# Of those so many are looked at, to tell masks of 0 and 255 from masks of indices.
_GLANCES = 100
_MASK_ENDINGS = ("_gtFine_labelTrainIds", "_gtFine_labelIds", "_gtFine_color")
_MASK_EXTENSIONS = (".png", ".gif", ".bmp", ".tif", ".tiff", ".pgm", ".ppm")
# Where pictures and masks of a split lie; `{}` is its name.
_LAYOUTS = (
    ("images/{}", ("annotations/{}", "masks/{}", "labels/{}")),
    ("{}/images", ("{}/annotations", "{}/masks", "{}/labels")),
    ("leftImg8bit/{}", ("gtFine/{}",)),
    ("{}", ("{}_labels", "{}_masks")),
)
_FLAT = ("images", ("annotations", "masks", "labels"))
_VOC_PICTURES, _VOC_LISTS = "JPEGImages", "ImageSets/Segmentation"
_VOC_MASKS = ("SegmentationClassPNG", "SegmentationClass")  # LabelMe until 5.3 kept arrays in the latter


@dataclass(frozen=True, slots=True)
class _Folders:
    """Where pictures and masks of a split lie."""

    pictures: Path
    masks: Path
    names: frozenset[str] | None = None
    """Without endings, those that are of the split; None: all."""


@dataclass(frozen=True, slots=True)
class SegmentationSplits:
    """The data that a segmenter is trained and judged on."""

    classes: list[str]
    palette: list[Color]
    train: SegmentationSet
    val: SegmentationSet
    skipped: list[Skipped]
    absent: list[str]
    """Classes of which no training picture (of a checked set) has a pixel."""
    parts: Parts
    """Which splits these are."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Nothing: pixels are counted of checked sets only."""


def load_segmentation_splits(
    data: str,
    *,
    halves: Literal["both", "val"] = "both",
    choice: Choice | None = None,
    known: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    reduce_zero_label: bool | None = None,
    columns: tuple[str, str] | None = None,
    val_fraction: float = 0.2,
    skip_bad_images: bool = False,
    skip_bad_annotations: bool = False,
    scenes: tuple[int, int] = (2000, 200),
    reading: Reading | WantedReading = PLAIN,
    seed: int = 0,
    scene_options: SceneOptions | None = None,
) -> SegmentationSplits:
    """The data set behind a name or folder.

    Args:
        data: one of
            - `digits-scenes`;
            - a folder with pictures in `images/training` and `images/validation` and masks of the same names in
              `annotations/` beside (also `train`, `val` and what else `data.splits` knows; `masks/`, `labels/`;
              `train/images`; Cityscapes' own layout), or with `images/` and `masks/` alone. Where there is no
              validation split, the training pictures are divided as in `load_splits`. What the values or colours of
              the masks mean stands in a file of it that `read_table` knows;
            - a folder or file with outlines of objects that `load_detection_splits` reads;
            - a folder that the `datasets` library wrote (`save_to_disk`), or `hf:` and the name of a set on the hub.
        halves: `val` reads what is measured alone; `train` is then empty.
        choice: which splits; default: training and validation.
        known: the classes of a model, in its order, by which outlines become masks.
        classes: names in the order of the masks' values, instead of a class list.
        reduce_zero_label: the value 0 means nothing and k is class k - 1, as in ADE20K; None: as the class list says.
        columns: the picture's and the mask's, of a `datasets` table with other image columns than two.
        val_fraction: held out where the data has no validation split.
        skip_bad_images: leave out what is unreadable or does not fit; it is in `skipped`.
        skip_bad_annotations: leave out objects without an outline that can be used; their pixels count as background.
        scenes: number of training and validation scenes of `digits-scenes`.
        reading: how the pictures' files become pictures; a part may be left to the training pictures to say.
        seed: of `digits-scenes`.
        scene_options: of `digits-scenes`.

    Raises:
        TranseptError: no such data, no class list, pictures without masks or masks without pictures, a half without a
            pixel of any class, and what `MaskedPictures.arrays` raises (of sets of up to 4,000 pictures here; all are
            counted and the first ones named).
        UsageError: no such split, or several could be meant.
    """
    choice = choice or Choice()
    if data == SCENES:
        refuse_reading(reading, data)
        refuse_folds(choice, data)
        parts = take(("train", "val"), data, choice, learns=True)
        length = scenes[0] if halves == "both" or parts.val == "train" else 0
        train = SceneSegmentation(DigitScenes("train", length, seed=seed, options=scene_options))
        val = SceneSegmentation(DigitScenes("val", scenes[1], seed=seed, options=scene_options))
        val = train if parts.val == "train" else val
        return SegmentationSplits(val.classes, val.palette, train, val, [], [], parts)
    skipped: list[Skipped] = []
    root = Path(data).expanduser()
    if data.startswith(HUB) or any((root / name).is_file() for name in ("dataset_dict.json", "state.json")):
        sets, parts = _hub_sets(data, halves, choice, classes, reduce_zero_label, columns, val_fraction)
    elif root.is_dir() and (folders := _split_folders(root, choice)):
        sets, parts, skipped = _folder_sets(root, folders, halves, choice, classes, reduce_zero_label, val_fraction)
    elif root.exists():
        sets, parts = load_outlines(
            data,
            halves=halves,
            choice=choice,
            known=classes or known,
            val_fraction=val_fraction,
            skip_bad_annotations=skip_bad_annotations,
        )
    else:
        raise TranseptError(f"there is no data {data!r}; give {SCENES!r} or a folder with images/ and annotations/")
    if root.exists():
        say_links((path for half in sets for path in (*half.paths, *half.masks)), root)
    reading = complete(reading, (sets[0] if len(sets[0]) else sets[1]).some_files())
    pixels, files = [], len(skipped) + sum(map(len, sets))
    for half in sets:
        half.reading = reading
        counts, bad = _check(half)
        pixels.append(counts)
        skipped += bad
    pixels = _read_black_and_white(sets, pixels, data)
    if skipped and not skip_bad_images:
        raise TranseptError(f"{_unusable(skipped)}: {unusable(skipped, files, 'mend them')}")
    if skipped:
        names = listed((f"{str(skip.path)!r} {skip.reason}" for skip in skipped), separator="; ")
        warnings.warn(f"{_unusable(skipped)}: {names}; left out", TranseptWarning, stacklevel=2)
    bad_paths = {skip.path for skip in skipped}
    train, val = (_without(half, bad_paths) for half in sets)
    measured = "validation" if halves == "both" else "measured"
    for half, name in ((train, "training"), (val, measured)):
        if len(half) == 0 and (half is val or halves == "both"):
            raise TranseptError(f"{data!r} has no {name} pictures" + (" that can be used" if skipped else ""))
    for counts, half, name in ((pixels[0], train, "training"), (pixels[1], val, measured)):
        if len(half) and counts is not None and not counts[:IGNORE_LABEL].any():
            raise TranseptError(f"no pixel of the {name} masks of {data!r} is of a class; all are to be ignored")
    if pixels[0] is not None and halves == "both":
        check_training_pixels(pixels[0], train.table, data)
    absent = _absent(train, pixels[0], data) if halves == "both" else []
    return SegmentationSplits(val.classes, val.palette, train, val, skipped, absent, parts)


def _check(pictures: MaskedPictures) -> tuple[np.ndarray | None, list[Skipped]]:
    """Pixels of each class and the pairs that cannot be used; nothing of sets too large to be read twice."""
    if len(pictures) > _CHECK_FILES:
        return None, []

    def read(index: int) -> np.ndarray | Skipped:
        try:
            _, mask = pictures.arrays(index)
        except BadImageError as error:
            reason = error.reason
            if error.path != pictures.paths[index]:  # left out is always the picture
                reason = f"has the mask {error.path.name!r}, which {error.reason}"
            return Skipped(pictures.paths[index], reason)
        return count_classes(mask)

    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(read, range(len(pictures))))
    counts = sum((each for each in answers if isinstance(each, np.ndarray)), np.zeros(256, np.int64))
    return counts, [each for each in answers if isinstance(each, Skipped)]


def _read_black_and_white(
    sets: Sequence[MaskedPictures], pixels: list[np.ndarray | None], data: str
) -> list[np.ndarray | None]:
    """Reads masks of 0 and 255 alone as two classes, where they are such. The pixels of each class, as read now."""
    known = [_glance(half) if counts is None else counts for half, counts in zip(sets, pixels, strict=True)]
    table = black_and_white(sets[1].table, known[0] + known[1], data)
    if table is None:
        return pixels
    before = sets[1].table.values[0]
    for half in sets:
        half.use_table(table)
    moved = []
    for counts in pixels:
        if counts is not None:
            black = 0 if before == IGNORE_LABEL else counts[before]
            white, counts = counts[IGNORE_LABEL], np.zeros_like(counts)
            counts[table.values[0]] += black
            counts[table.values[255]] += white
        moved.append(counts)
    return moved


def _glance(pictures: MaskedPictures) -> np.ndarray:
    """Pixels of each class in some pictures of a large set; what cannot be read is said when it is."""
    counts = np.zeros(256, np.int64)
    for index in range(0, len(pictures), max(1, len(pictures) // _GLANCES)):
        with suppress(BadImageError):
            counts += count_classes(pictures.arrays(index)[1])
    return counts


def _unusable(skipped: list[Skipped]) -> str:
    noun = "1 picture or mask" if len(skipped) == 1 else f"{len(skipped)} pictures or masks"
    return f"{noun} cannot be used"


def _without(pictures: MaskedPictures, bad: set[Path]) -> MaskedPictures:
    keep = [i for i, path in enumerate(pictures.paths) if path not in bad]
    return pictures if len(keep) == len(pictures) else pictures.take(keep)


def _divide(
    pictures: MaskedPictures, names: Sequence[str], share: float, fold: Fold | None, where: str
) -> list[MaskedPictures]:
    """Training and validation, see `held_out`."""
    if len(pictures) < 2:
        raise TranseptError(f"{where!r} has {len(pictures)} pictures; it needs two, to learn from and to check")
    measured = set(held_out(names, share, fold, repr(where)))
    return [pictures.take([i for i in range(len(names)) if (i in measured) == inside]) for inside in (False, True)]


def _absent(train: MaskedPictures, pixels: np.ndarray | None, data: str) -> list[str]:
    if pixels is None:
        return []
    absent = [name for name, count in zip(train.classes, pixels, strict=False) if count == 0]
    if absent:
        shown = ", ".join(repr(name) for name in absent[:10]) + (", ..." if len(absent) > 10 else "")
        noun = "1 class never occurs" if len(absent) == 1 else f"{len(absent)} classes never occur"
        warnings.warn(f"{noun} in the training pictures of {data!r}: {shown}", TranseptWarning, stacklevel=3)
    return absent


def _folder_sets(
    root: Path,
    folders: dict[str, _Folders],
    halves: Literal["both", "val"],
    choice: Choice,
    classes: Sequence[str] | None,
    reduce_zero_label: bool | None,
    val_fraction: float,
) -> tuple[list[MaskedPictures], Parts, list[Skipped]]:
    """Training (where it is read) and measured pictures, and what has no partner."""
    parts = take([name for name in folders if name], str(root), choice, learns=halves == "both")
    if halves == "both":
        parts = note_bare_splits(parts, root, [pictures for pictures, _ in _LAYOUTS], "masks")
    ending = next((each for each in _MASK_ENDINGS if _masks_end_so(folders[parts.val].masks, each)), "")
    table = _table(root, ending, classes, reduce_zero_label)
    sets, skipped = [], []
    for name in [parts.val] if halves == "val" else parts.read:
        pairs, odd = _match(folders[name], ending)
        sets.append(MaskedPictures([picture for picture, _ in pairs], [mask for _, mask in pairs], table))
        skipped += odd
    if parts.held_out:
        names = [path.relative_to(root).as_posix() for path in sets[0].paths]
        sets = _divide(sets[0], names, val_fraction, parts.fold, str(root))
    return [MaskedPictures([], [], table) if halves == "val" else sets[0], sets[-1]], parts, skipped


def _split_folders(root: Path, choice: Choice) -> dict[str, _Folders]:
    """Names of splits to the folders of their pictures and masks; "" where all are in one."""
    if (root / _VOC_PICTURES).is_dir() and (masks := _voc_masks(root)):
        return _voc_splits(root, masks, choice)
    for layout in () if choice.is_whole else _LAYOUTS:
        if found := _find_folders(root, layout, choice):
            return found
    return _find_folders(root, _FLAT, choice)


def _voc_masks(root: Path) -> Path | None:
    return next((root / name for name in _VOC_MASKS if (root / name).is_dir()), None)


def _voc_splits(root: Path, masks: Path, choice: Choice) -> dict[str, _Folders]:
    """Pascal VOC's lists of names; where none is of a split, all pictures that have a mask."""
    pictures = root / _VOC_PICTURES
    lists = {} if choice.is_whole else matches(root, f"{_VOC_LISTS}/{{}}.txt", choice)
    found = {name: _Folders(pictures, masks, _listed_in(file)) for name, file in lists.items()}
    return found or {"": _Folders(pictures, masks, frozenset(file.stem for file in files_below(masks)))}


def _listed_in(file: Path) -> frozenset[str]:
    return frozenset(name for line in read_text(file).splitlines() if (name := line.strip().strip('"')))


def _find_folders(root: Path, layout: tuple[str, tuple[str, ...]], choice: Choice) -> dict[str, _Folders]:
    found: dict[str, _Folders] = {}
    for masks in layout[1]:
        beside = {name.lower(): path for name, path in matches(root, masks, choice).items()}
        for name, pictures in matches(root, layout[0], choice).items():
            there = beside.get(name.lower())
            if there is not None and there.is_dir() and pictures.is_dir() and not _holds_text(there):
                found.setdefault(name, _Folders(pictures, there))
    return found


def _holds_text(folder: Path) -> bool:
    """Whether there are no masks but YOLO's outlines; folders of masks are known by the first."""
    found = False
    for file in files_below(folder):
        ending = file.suffix.lower()
        if ending in EXTENSIONS:
            return False
        found = found or ending == ".txt"
    return found


def _masks_end_so(folder: Path, ending: str) -> bool:
    return any(file.name.endswith(f"{ending}.png") for file in files_below(folder))


def _table(root: Path, ending: str, classes: Sequence[str] | None, reduce_zero_label: bool | None) -> LabelTable:
    if classes is not None:
        return table_of_names(classes, "classes", reduce_zero_label=bool(reduce_zero_label))
    for folder in (root, root.parent) if kind_of(root.name) else (root,):  # the list may lie beside the splits
        for name in CLASS_FILES:
            if os.path.lexists(folder / name):
                return read_table(folder / name, reduce_zero_label=reduce_zero_label)
    if ending:
        return cityscapes_table(ending)
    if _voc_masks(root):
        return voc_table()
    raise TranseptError(
        f"{str(root)!r} does not say what the values of its masks mean; add a classes.txt of lines 'value name', "
        "or a palette.txt of lines 'R G B name' for coloured masks"
    )


def _match(folders: _Folders, ending: str) -> tuple[list[tuple[Path, Path]], list[Skipped]]:
    """Pictures with the masks of the same name, and what has no partner."""
    pictures, masks = folders.pictures, folders.masks

    def by_name(folder: Path, cut: str, extensions: Sequence[str]) -> dict[str, list[Path]]:
        files: dict[str, list[Path]] = {}
        for file in sorted(files_below(folder)):
            if file.suffix.lower() in extensions and file.stem.endswith(cut) and not file.name.startswith("."):
                name = file.relative_to(folder).with_name(file.stem.removesuffix(cut))
                files.setdefault(name.as_posix(), []).append(file)
        return files

    of_picture = by_name(pictures, "_leftImg8bit" if ending else "", EXTENSIONS)
    of_mask = by_name(masks, ending, EXTENSIONS)
    pairs, skipped = [], []
    for name in sorted(folders.names if folders.names is not None else of_picture.keys() | of_mask.keys()):
        here, there = of_picture.get(name, []), of_mask.get(name, [])
        if not here and not there:
            skipped.append(Skipped(pictures / name, f"is listed, but is neither there nor in {str(masks)!r}"))
        elif not there:
            skipped.append(Skipped(here[0], f"has no mask (expected {str(masks / name)!r}.png)"))
        elif not here:
            skipped.append(Skipped(there[0], f"is a mask without a picture in {str(pictures)!r}"))
        elif len(here) + len(there) > 2:
            twice = here if len(here) > 1 else there
            skipped.append(Skipped(twice[0], f"and {twice[1].name!r} have the same name; keep one"))
        elif there[0].suffix.lower() not in _MASK_EXTENSIONS:
            skipped.append(Skipped(here[0], f"has the mask {there[0].name!r}, whose format blurs labels; save PNGs"))
        else:
            pairs.append((here[0], there[0]))
    return pairs, skipped


def _hub_sets(
    data: str,
    halves: Literal["both", "val"],
    choice: Choice,
    classes: Sequence[str] | None,
    reduce_zero_label: bool | None,
    columns: tuple[str, str] | None,
    val_fraction: float,
) -> tuple[list[MaskedPictures], Parts]:
    loaded, name = load_hub(data), data.removeprefix(HUB)
    from datasets import Image as ImageFeature  # an extra; `load_hub` says so where it is missing

    parts = take(list(loaded), name, choice, learns=halves == "both")
    features = loaded[parts.val].features
    pictures = [column for column, kind in features.items() if isinstance(kind, ImageFeature)]
    if columns is None:
        if len(pictures) != 2:
            raise UsageError(f"{name!r} has the image columns {pictures}; say which are picture and mask with columns=")
        first_is_mask = pictures[0].lower() in ("mask", "label", "labels", "annotation", "segmentation_mask")
        columns = (pictures[1], pictures[0]) if first_is_mask else (pictures[0], pictures[1])
    for column in columns:
        if column not in pictures:
            raise UsageError(f"{name!r} has no image column {column!r}; it has {pictures}")
    table = _table(Path(name), "", classes, reduce_zero_label)
    wanted = [parts.val] if halves == "val" else parts.read
    sets: list[MaskedPictures] = [HubSegmentation(loaded[each], columns, table, f"{name}/{each}") for each in wanted]
    if parts.held_out:
        sets = _divide(sets[0], [f"{parts.val}[{i}]" for i in range(len(sets[0]))], val_fraction, parts.fold, name)
    return [MaskedPictures([], [], table) if halves == "val" else sets[0], sets[-1]], parts
