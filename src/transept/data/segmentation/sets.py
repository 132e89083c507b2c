"""Pictures with a class for each pixel: the built-in scenes, folders of masks, Hugging Face sets."""

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from torchvision import tv_tensors

from transept.data.hub import HUB, load_hub
from transept.data.images import (
    EXTENSIONS,
    KEEP_BYTES,
    BadImageError,
    Skipped,
    as_array,
    read_image,
    read_mask,
    stored_form,
)
from transept.data.labels import (
    CLASS_FILES,
    Color,
    LabelTable,
    cityscapes_table,
    drawing_color,
    read_table,
    table_of_names,
)
from transept.data.measure import Source, complete, refuse_reading, spread
from transept.data.reading import PLAIN, Reading, WantedReading
from transept.data.scenes import DIGITS, DigitScenes, SceneOptions
from transept.data.segmentation.pixels import black_and_white, check_training_pixels, count_classes
from transept.data.splits import Choice, Fold, Parts, held_out, kind_of, matches, note_bare_tests, refuse_folds, take
from transept.errors import TranseptError, TranseptWarning, UsageError
from transept.files import files_below
from transept.ops.masks import IGNORE_LABEL
from transept.words import listed

Pair = tuple[tv_tensors.Image, tv_tensors.Mask]

SCENES = "digits-scenes"
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


class SegmentationSet(Sequence[Pair]):
    """Pictures (8 bits: RGB, `3 H W`, or other bands `c H W`) with masks (classes, `H W`, 64-bit).

    Pixels of no class are `IGNORE_LABEL`.
    """

    reading: Reading = PLAIN
    """How files become pictures."""
    classes: list[str]
    palette: list[Color]
    """A colour for each class."""
    paths: list[Path]
    """The pictures' files, or names for those that have none."""

    def __len__(self) -> int:
        return len(self.paths)

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The picture `H W c` and its classes `H W`, both 8 bit."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Pair:  # pyright: ignore[reportIncompatibleMethodOverride]
        picture, mask = self.arrays(index)
        return (
            tv_tensors.Image(torch.from_numpy(picture.copy()).permute(2, 0, 1).contiguous()),
            tv_tensors.Mask(torch.from_numpy(mask.astype(np.int64))),
        )


class SceneSegmentation(SegmentationSet):
    """`digits-scenes`: the ground and ten digits."""

    def __init__(self, scenes: DigitScenes) -> None:
        self.scenes = scenes
        self.classes = ["ground", *DIGITS]
        self.palette = [(40, 40, 40), *map(drawing_color, range(10))]
        self.paths = [Path(f"{SCENES}-{scenes.split}-{scenes.seed}-{i:05d}.png") for i in range(len(scenes))]

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        scene = self.scenes[index]
        return scene.image, scene.semantic


class _Source(NamedTuple):
    """A picture and its mask: paths, or files in memory with names for errors."""

    picture: Path | bytes
    mask: Path | bytes
    picture_name: Path
    mask_name: Path


class MaskedPictures(SegmentationSet):
    """Pictures and masks of the same size from files. Decoded ones are kept while they fit into a gigabyte."""

    def __init__(self, paths: Sequence[Path], masks: Sequence[Path], table: LabelTable) -> None:
        self.table = table
        self.classes, self.palette = table.classes, table.palette
        self.paths = list(paths)
        self.masks = list(masks)
        self.reading: Reading = PLAIN
        """How the pictures' files become pictures."""
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._room = KEEP_BYTES

    def use_table(self, table: LabelTable) -> None:
        """Read the masks by another table of the same classes."""
        self.table = table
        self._kept.clear()
        self._room = KEEP_BYTES

    def source(self, index: int) -> _Source:
        return _Source(self.paths[index], self.masks[index], self.paths[index], self.masks[index])

    def some_files(self, indices: Sequence[int] | None = None) -> list[Source]:
        """Pictures to measure the set by, or at these places; one that is missing says so when it is read."""
        files: list[Source] = []
        for i in spread(len(self)) if indices is None else indices:
            with suppress(BadImageError):
                source = self.source(i)
                files.append((_open(source.picture), source.picture_name))
        return files

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """As in the base class.

        Raises:
            BadImageError: either file is unreadable, the mask is of another size than the picture, or a value of it
                is no class.
        """
        kept = self._kept.get(index)
        if kept is None:
            kept = _read_pair(self.source(index), self.table, self.reading)
            size = kept[0].nbytes + kept[1].nbytes
            if size <= self._room:
                self._room -= size
                self._kept[index] = kept
        return kept

    def take(self, indices: Sequence[int]) -> "MaskedPictures":
        """The set of these alone."""
        paths, masks = ([files[i] for i in indices] for files in (self.paths, self.masks))
        return self._read_so(MaskedPictures(paths, masks, self.table))

    def _read_so(self, other: "MaskedPictures") -> "MaskedPictures":
        other.reading = self.reading
        return other


class HubSegmentation(MaskedPictures):
    """A table of the `datasets` library with a picture and a mask in each row."""

    def __init__(self, rows: Any, columns: tuple[str, str], table: LabelTable, name: str) -> None:
        from datasets import Image as ImageFeature  # an extra

        self.columns = columns
        # Undecoded, so that our reader sees the file: EXIF tag, formats, errors with a name.
        self.rows = rows.select_columns(list(columns))
        for column in columns:
            self.rows = self.rows.cast_column(column, ImageFeature(decode=False))
        picture, mask = ([Path(f"{name}[{i}].{column}") for i in range(len(rows))] for column in columns)
        super().__init__(picture, mask, table)

    def take(self, indices: Sequence[int]) -> MaskedPictures:
        name = str(self.paths[0]).partition("[")[0] if self.paths else ""
        return self._read_so(HubSegmentation(self.rows.select(indices), self.columns, self.table, name))

    def source(self, index: int) -> _Source:
        row = self.rows[index]
        names = self.paths[index], self.masks[index]
        for column, name in zip(self.columns, names, strict=True):
            if row[column] is None or not (row[column]["bytes"] or row[column]["path"]):
                raise BadImageError(name, "is empty")
        picture, mask = (row[column]["bytes"] or Path(row[column]["path"]) for column in self.columns)
        return _Source(picture, mask, *names)


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
    classes: Sequence[str] | None = None,
    reduce_zero_label: bool | None = None,
    columns: tuple[str, str] | None = None,
    val_fraction: float = 0.2,
    skip_bad_images: bool = False,
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
            - a folder that the `datasets` library wrote (`save_to_disk`), or `hf:` and the name of a set on the hub.
        halves: `val` reads what is measured alone; `train` is then empty.
        choice: which splits; default: training and validation.
        classes: names in the order of the masks' values, instead of a class list.
        reduce_zero_label: the value 0 means nothing and k is class k - 1, as in ADE20K; None: as the class list says.
        columns: the picture's and the mask's, of a `datasets` table with other image columns than two.
        val_fraction: held out where the data has no validation split.
        skip_bad_images: leave out what is unreadable or does not fit; it is in `skipped`.
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
    elif root.is_dir():
        sets, parts, skipped = _folder_sets(root, halves, choice, classes, reduce_zero_label, val_fraction)
    else:
        raise TranseptError(f"there is no data {data!r}; give {SCENES!r} or a folder with images/ and annotations/")
    reading = complete(reading, (sets[0] if len(sets[0]) else sets[1]).some_files())
    pixels = []
    for half in sets:
        half.reading = reading
        counts, bad = _check(half)
        pixels.append(counts)
        skipped += bad
    pixels = _read_black_and_white(sets, pixels, data)
    if skipped and not skip_bad_images:
        raise TranseptError(f"{_summary(skipped)}; mend them, or leave them out with --skip-bad-images")
    if skipped:
        warnings.warn(f"{_summary(skipped)}; left out", TranseptWarning, stacklevel=2)
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


def _read_pair(source: _Source, table: LabelTable, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    picture = as_array(read_image(_open(source.picture), name=source.picture_name, reading=reading))
    height, width = picture.shape[:2]
    mask = read_mask(_open(source.mask), name=source.mask_name)
    if mask.size != (width, height):
        # A mask drawn on the picture as it is stored, before the EXIF tag turns it, is turned with it.
        stored, orientation = stored_form(_open(source.picture), name=source.picture_name)
        if mask.size == stored:
            mask = read_mask(_open(source.mask), name=source.mask_name, orientation=orientation)
    if mask.size != (width, height):
        raise BadImageError(
            source.mask_name,
            f"is {mask.width} x {mask.height}, but its picture {str(source.picture_name)!r} is {width} x {height}",
        )
    return picture, table.encode(mask, source.mask_name)


def _open(source: Path | bytes) -> Path | BinaryIO:
    return BytesIO(source) if isinstance(source, bytes) else source


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


def _summary(skipped: list[Skipped]) -> str:
    names = listed((f"{str(skip.path)!r} {skip.reason}" for skip in skipped), separator="; ")
    noun = "1 picture or mask" if len(skipped) == 1 else f"{len(skipped)} pictures or masks"
    return f"{noun} cannot be used: {names}"


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
    halves: Literal["both", "val"],
    choice: Choice,
    classes: Sequence[str] | None,
    reduce_zero_label: bool | None,
    val_fraction: float,
) -> tuple[list[MaskedPictures], Parts, list[Skipped]]:
    """Training (where it is read) and measured pictures, and what has no partner."""
    folders = _split_folders(root, choice)
    parts = take([name for name in folders if name], str(root), choice, learns=halves == "both")
    if halves == "both":
        parts = note_bare_tests(parts, root, [pictures for pictures, _ in _LAYOUTS], "masks")
    ending = next((each for each in _MASK_ENDINGS if _masks_end_so(folders[parts.val][1], each)), "")
    table = _table(root, ending, classes, reduce_zero_label)
    sets, skipped = [], []
    for name in [parts.val] if halves == "val" else parts.read:
        pairs, odd = _match(*folders[name], ending)
        sets.append(MaskedPictures([picture for picture, _ in pairs], [mask for _, mask in pairs], table))
        skipped += odd
    if parts.held_out:
        names = [path.relative_to(root).as_posix() for path in sets[0].paths]
        sets = _divide(sets[0], names, val_fraction, parts.fold, str(root))
    return [MaskedPictures([], [], table) if halves == "val" else sets[0], sets[-1]], parts, skipped


def _split_folders(root: Path, choice: Choice) -> dict[str, tuple[Path, Path]]:
    """Names of splits to the folders of their pictures and masks; "" where all are in one."""
    for layout in () if choice.is_whole else _LAYOUTS:
        if found := _find_folders(root, layout, choice):
            return found
    flat = _find_folders(root, _FLAT, choice)
    if not flat:
        raise TranseptError(
            f"{str(root)!r} has no pictures with masks; put them into images/training, annotations/training, "
            "images/validation and annotations/validation"
        )
    return flat


def _find_folders(root: Path, layout: tuple[str, tuple[str, ...]], choice: Choice) -> dict[str, tuple[Path, Path]]:
    found: dict[str, tuple[Path, Path]] = {}
    for masks in layout[1]:
        beside = {name.lower(): path for name, path in matches(root, masks, choice).items()}
        for name, pictures in matches(root, layout[0], choice).items():
            there = beside.get(name.lower())
            if there is not None and there.is_dir() and pictures.is_dir():
                found.setdefault(name, (pictures, there))
    return found


def _masks_end_so(folder: Path, ending: str) -> bool:
    return any(file.name.endswith(f"{ending}.png") for file in files_below(folder))


def _table(root: Path, ending: str, classes: Sequence[str] | None, reduce_zero_label: bool | None) -> LabelTable:
    if classes is not None:
        return table_of_names(classes, "classes", reduce_zero_label=bool(reduce_zero_label))
    for folder in (root, root.parent) if kind_of(root.name) else (root,):  # the list may lie beside the splits
        for name in CLASS_FILES:
            if (folder / name).is_file():
                return read_table(folder / name, reduce_zero_label=reduce_zero_label)
    if ending:
        return cityscapes_table(ending)
    raise TranseptError(
        f"{str(root)!r} does not say what the values of its masks mean; add a classes.txt of lines 'value name', "
        "or a palette.txt of lines 'R G B name' for coloured masks"
    )


def _match(pictures: Path, masks: Path, ending: str) -> tuple[list[tuple[Path, Path]], list[Skipped]]:
    """Pictures with the masks of the same name, and what has no partner."""

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
    for name in sorted(of_picture.keys() | of_mask.keys()):
        here, there = of_picture.get(name, []), of_mask.get(name, [])
        if not there:
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
