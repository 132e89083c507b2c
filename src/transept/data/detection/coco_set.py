"""The pictures and annotations of one COCO file as a detection set."""

import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import tv_tensors

from transept.data.detection.annotations import Annotations, plain_segmentation
from transept.data.detection.boxes import Boxes
from transept.data.detection.coco_file import MISSING, Picture, picture_problem, read_categories, read_coco, read_size
from transept.data.detection.masks import decode_masks, mask_api, mask_problem, plain_mask
from transept.data.detection.target import DetectionSet, Target, make_sample
from transept.data.detection.values import FLOATS, TEXT, NotPlainError
from transept.data.images import KEEP_BYTES, BadImageError, Skipped, as_array, read_image
from transept.data.measure import Source, spread
from transept.data.places import TAILS, PictureFolder
from transept.data.reading import PLAIN, Reading
from transept.errors import TranseptError, TranseptWarning, warn
from transept.style import drawing_palette
from transept.words import listed

# The heads of up to so many pictures are read when a set is loaded; of larger sets existence alone is checked there.
_CHECK_FILES = 5000


class CocoSet(DetectionSet):
    """Pictures and annotations of one COCO file. Decoded pictures are kept while they fit into a gigabyte.

    Args:
        file: the JSON.
        folder: of its pictures.
        masks: whether targets have masks, and every annotation must have one.
        skip_bad_annotations: leave out what cannot be used; it is in `skipped`.
        min_size: boxes that are narrower or lower than this, in pixels, after clipping, are no targets; they stay in
            `ground_truth`.
        drop_empty: leave out pictures without an object that is no crowd, and those with a side below 32 pixels, as
            training does.
        content: of the file, where it was read already (`read_coco`).
        searched: folders that pictures were looked for in, of which `folder` is one, to be named where there is none.

    Raises:
        TranseptError: the file is no COCO file, or holds what cannot be used: annotations of unknown pictures or
            categories, without a box, or with one that is not finite, has no area or lies outside the picture, or,
            with `masks`, no mask that fits it; values whose meaning is not plain; ids given twice; pictures that are
            missing, outside of the data folder or of another size. All are counted and the first ones named.

    Warns:
        TranseptWarning: values that are not as COCO has them were taken for what they plainly mean. All are counted.
    """

    def __init__(
        self,
        file: Path,
        folder: Path,
        *,
        masks: bool = False,
        skip_bad_annotations: bool = False,
        min_size: float = 1.0,
        drop_empty: bool = False,
        content: dict[str, Any] | None = None,
        searched: Sequence[Path] = (),
    ) -> None:
        self.file = file
        self.masks = masks
        if masks:
            mask_api()
        content = read_coco(file, masks=masks) if content is None else content
        taken: Counter[str] = Counter()
        self.category_ids, self.classes = read_categories(content["categories"], file, taken)
        self.palette = drawing_palette(len(self.classes))
        self.skipped: list[Skipped] = []
        self.reasons: Counter[str] = Counter()
        """How much was left out for what; with the annotations of pictures that were."""
        self.left_out: Counter[str] = Counter()
        """Sound annotations that training does without, and how many boxes were clipped."""
        pictures = self._pictures(content["images"], folder, taken, searched or [folder])
        annotations = content["annotations"]
        if not isinstance(annotations, Annotations):
            annotations = Annotations(annotations, masks=masks)
        self._assign(annotations, pictures, taken)
        if self.skipped and not skip_bad_annotations:
            raise TranseptError(_summary(self.skipped, file))
        if taken := +taken:
            counts = ", ".join(f"{count} {what}" for what, count in taken.items())
            warnings.warn(f"{str(file)!r}: {counts}: taken for what they mean", TranseptWarning, stacklevel=2)
        self.reading: Reading = PLAIN
        """How the files become pictures."""
        self._kept: dict[int, np.ndarray] = {}
        self._room = KEEP_BYTES
        self._select([picture for picture in pictures.values() if picture], min_size, drop_empty)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, Target]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As in the base class.

        Raises:
            BadImageError: the picture is unreadable, or of another size than the file says.
        """
        picture = self._selected[index]
        rows = self._rows(index)
        rows = rows[~self._small[rows]]
        masks = decode_masks([self._masks[row] for row in rows], picture.size) if self.masks else None
        boxes, labels, crowd, area = self._boxes[rows], self._labels[rows], self._crowd[rows], self._areas[rows]
        return make_sample(self._read(index), boxes, labels, masks, crowd, area, picture.id)

    def classes_in(self, index: int) -> list[int]:
        rows = self._rows(index)
        return np.unique(self._labels[rows[~self._small[rows] & ~self._crowd[rows]]]).tolist()

    def ground_truth(self) -> dict[str, Any]:
        """As in the base class; boxes are clipped as those of the targets, and masks there where the set has them."""
        annotations: list[dict[str, Any]] = []
        for index, picture in enumerate(self._selected):
            for row in self._rows(index).tolist():
                x1, y1, x2, y2 = self._boxes[row].tolist()
                # Numbered anew from 1: evaluators compute with ids, some files have none, and 0 would count as
                # unmatched.
                entry = {
                    "id": len(annotations) + 1,
                    "image_id": picture.id,
                    "category_id": self.category_ids[self._labels[row]],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(self._areas[row]),
                    "iscrowd": int(self._crowd[row]),
                }
                if self.masks:
                    entry["segmentation"] = plain_segmentation(self._masks[row])
                annotations.append(entry)
        return self._ground_truth(annotations)

    def say_left_out(self) -> None:
        """Nothing is left out or changed without a word."""
        for what, counts in (("left out", self.reasons), ("not used as they are", self.left_out)):
            if counts:
                reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
                example = f"; e.g. {self.skipped[0].reason}" if counts is self.reasons else ""
                warn(f"{str(self.file)!r}, {what}: {reasons}{example}")

    def picture(self, index: int, reading: Reading) -> np.ndarray:
        """Bytes `H W c`, read so.

        Raises:
            BadImageError: as when it is taken with its objects.
        """
        path, (height, width) = self.paths[index], self.sizes[index]
        picture = as_array(read_image(path, reading=reading))
        if picture.shape[:2] != (height, width):  # annotated as it is stored, not as it is seen
            picture = as_array(read_image(path, upright=False, reading=reading))
        if picture.shape[:2] != (height, width):
            raise BadImageError(
                path, f"is {picture.shape[1]} x {picture.shape[0]}, but {str(self.file)!r} says {width} x {height}"
            )
        return picture

    def outlines(self, index: int) -> list[tuple[int, Any]]:
        """The class and COCO's segmentation of each object, crowds included; of sets with masks."""
        return [(int(self._labels[row]), self._masks[row]) for row in self._rows(index)]

    def some_files(self, indices: Sequence[int] | None = None) -> list[Source]:
        """Those to measure the set by, or at these places."""
        return [(self.paths[i], self.paths[i]) for i in (spread(len(self)) if indices is None else indices)]

    def _rows(self, index: int) -> np.ndarray:
        """The annotations of a picture."""
        return np.arange(*self._spans[index])

    def _read(self, index: int) -> np.ndarray:
        """`picture`, kept while there is room."""
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        picture = self.picture(index, self.reading)
        if picture.nbytes <= self._room:
            self._room -= picture.nbytes
            self._kept[index] = picture
        return picture

    def _select(self, pictures: Sequence[Picture], min_size: float, drop_empty: bool) -> None:
        sides = self._boxes[:, 2:] - self._boxes[:, :2]
        self._small = np.any(sides < min_size, axis=1)
        self.left_out[f"boxes under {min_size:g} px"] = int(self._small.sum())
        objects = np.bincount(self._of_picture[~self._small & ~self._crowd], minlength=len(pictures))
        small = np.array([min(picture.size) < 32 for picture in pictures], bool)
        use = np.ones(len(pictures), bool)
        if drop_empty:
            use = (objects > 0) & ~small
            self.left_out["pictures without objects"] = int((objects == 0).sum())
            self.left_out["pictures under 32 px"] = int((small & (objects > 0)).sum())
        self.left_out = +self.left_out  # without zeros
        ends = np.searchsorted(self._of_picture, np.arange(len(pictures) + 1))
        self._spans = np.stack([ends[:-1], ends[1:]], 1)[use]
        self._selected = [picture for picture, used in zip(pictures, use, strict=True) if used]
        self.image_ids = [picture.id for picture in self._selected]
        self.paths = [picture.path for picture in self._selected]
        self.sizes = [picture.size for picture in self._selected]

    def _pictures(
        self, entries: list[Any], folder: Path, taken: Counter[str], searched: Sequence[Path]
    ) -> dict[int | str, Picture | None]:
        """The pictures by id; None for one that cannot be used."""
        pictures: dict[int | str, Picture | None] = {}
        places, by_end = PictureFolder(folder, self.file), Counter[Path]()
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict) or "id" not in entry or not isinstance(entry.get("file_name"), str):
                raise TranseptError(f"{str(self.file)!r}: images[{position}] has no 'id' or no 'file_name'")
            name = entry["file_name"]
            number = _identity(entry["id"], taken)
            if number is None:
                raise TranseptError(
                    f"{str(self.file)!r}: images[{position}] has the id {entry['id']!r}; ids are numbers"
                )
            if number in pictures:
                self._refuse(
                    "images with an id given twice", f"image {number} ({name!r}) has an id that another image has"
                )
                continue
            pictures[number] = None
            try:
                size = read_size(entry, taken)
            except NotPlainError:
                sides = f"{entry['width']} x {entry['height']}"
                self._refuse("images without a size", f"image {number} ({name!r}) has the size {sides}")
                continue
            path, kind = places.path(name)
            if kind:
                taken[kind] += 1
                by_end[path] += kind == TAILS
            if places.is_outside(path):
                self._refuse(
                    "images outside of the data folder",
                    f"image {number} ({name!r}) is outside of the data folder, which has no such file; "
                    "put it or a link to it there",
                )
                continue
            pictures[number] = Picture(number, path, size)
        self._look(pictures, by_end, searched)
        return pictures

    def _look(self, pictures: dict[int | str, Picture | None], by_end: Counter[Path], searched: Sequence[Path]) -> None:
        there = [picture for picture in pictures.values() if picture]
        with ThreadPoolExecutor() as pool:
            problems = list(pool.map(picture_problem, there, [len(there) <= _CHECK_FILES] * len(there)))
        if set(problems) == {MISSING}:
            folders = listed((repr(str(each)) for each in searched), 5)
            raise TranseptError(
                f"none of the pictures ({len(there):,}) that {str(self.file)!r} names is there, e.g. "
                f"{there[0].path.name!r}: looked for in {folders}; put them into one of these, or into 'images' in the "
                "data folder"
            )
        for picture, problem in zip(there, problems, strict=True):
            if by_end[picture.path] > 1:
                problem = "would stand for several images, of other folders; keep these folders"
            if problem:
                kind = "images without a file" if problem == MISSING else "unusable image files"
                self._refuse(kind, f"image {picture.id}, {str(picture.path)!r}, {problem}")
                pictures[picture.id] = None

    def _assign(self, found: Annotations, pictures: dict[int | str, Picture | None], taken: Counter[str]) -> None:
        """Judges the annotations and keeps those that can be used, in the order of the pictures."""
        problems: dict[int, tuple[str, str]] = {}
        self._check_ids(found, problems, taken)
        # Numbers of the usable pictures from 0; -2 for the others.
        usable = [number for number, picture in pictures.items() if picture]
        numbers = dict.fromkeys(pictures, -2) | {number: i for i, number in enumerate(usable)}
        of_picture = self._look_up(found.image_ids, numbers, "image_id", taken)
        labels = self._look_up(
            found.category_ids, {number: i for i, number in enumerate(self.category_ids)}, "category_id", taken
        )
        for row in np.flatnonzero(of_picture == -1).tolist():
            image = found.image_ids[row]
            what = "has no 'image_id'" if image is None else f"is of image {image!r}, which is not in 'images'"
            problems.setdefault(row, ("without an image", what))
        for row in np.flatnonzero(labels == -1).tolist():
            what = f"has the category {found.category_ids[row]!r}, which is not in 'categories'"
            problems.setdefault(row, ("of unknown categories", what))
        sizes = np.array([pictures[number].size for number in usable] or [(0, 0)])  # pyright: ignore[reportOptionalMemberAccess]
        boxes = Boxes(found, sizes[np.maximum(of_picture, 0)], taken)
        for row, problem in boxes.problems():
            problems.setdefault(row, problem)
        if self.masks:
            sides = list(map(tuple, sizes.tolist()))
            for row, index in enumerate(of_picture.tolist()):
                if index >= 0 and row not in problems:
                    mask = found.segmentations[row] = plain_mask(found.segmentations[row], taken)
                    if problem := mask_problem(mask, sides[index]):
                        problems[row] = "unusable masks", problem
        # The pictures left out are named already.
        self.reasons["annotations of images left out"] += int((of_picture == -2).sum())
        self.reasons = +self.reasons
        good = of_picture >= 0
        for row, (kind, what) in sorted(problems.items()):
            if of_picture[row] != -2:
                self._refuse(kind, f"annotation {_name(found, row)} {what}")
                good[row] = False
        # Annotators' rounding reaches up to a pixel beyond the border.
        self.left_out["boxes clipped at the border"] = int((boxes.overhang[good] > 1).sum())
        rows = np.flatnonzero(good)
        rows = rows[np.argsort(of_picture[rows], kind="stable")]
        self._of_picture, self._labels = of_picture[rows], labels[rows]
        self._boxes, self._areas, self._crowd = boxes.clipped[rows], boxes.areas[rows], boxes.crowd[rows]
        self._masks = [found.segmentations[row] for row in rows] if self.masks else []

    def _check_ids(self, found: Annotations, problems: dict[int, tuple[str, str]], taken: Counter[str]) -> None:
        ids = [number for number in found.ids if number is not None]
        if {int, str}.issuperset(map(type, ids)) and len(set(ids)) == len(ids):
            return
        seen: set[int | str] = set()
        for row, given in enumerate(found.ids):
            if given is None:
                continue
            number = _identity(given, taken)
            if number is None:
                raise TranseptError(f"{str(self.file)!r}: annotations[{row}] has the id {given!r}; ids are numbers")
            if number in seen:
                problems[row] = "ids given twice", "has an id that another annotation has"
            seen.add(number)

    def _look_up(self, values: list[Any], known: dict[Any, int], key: str, taken: Counter[str]) -> np.ndarray:
        """What is known for each value; -1 where nothing is."""
        if {int, str, type(None)}.issuperset(map(type, values)):
            found = np.fromiter((known.get(value, -1) for value in values), np.int64, len(values))
        else:
            found = np.full(len(values), -1)
        if (found != -1).all():
            return found
        by_text = {str(value): number for value, number in known.items()}
        for row in np.flatnonzero(found == -1).tolist():
            value = _identity(values[row], taken)
            if value is None and values[row] is not None:
                raise TranseptError(
                    f"{str(self.file)!r}: annotations[{row}] has the {key} {values[row]!r}; ids are numbers"
                )
            if value not in known and str(value) in by_text:
                taken[TEXT] += 1
            found[row] = known.get(value, by_text.get(str(value), -1))
        return found

    def _refuse(self, kind: str, reason: str) -> None:
        self.reasons[kind] += 1
        self.skipped.append(Skipped(self.file, reason))


def _identity(value: Any, taken: Counter[str]) -> int | str | None:
    """The id that a value is; None where it is none."""
    if type(value) is float and value.is_integer():
        taken[FLOATS] += 1
        return int(value)
    return value if isinstance(value, int | str) and type(value) is not bool else None


def _name(found: Annotations, row: int) -> Any:
    return f"number {row + 1}" if found.ids[row] is None else found.ids[row]


def _summary(skipped: list[Skipped], file: Path) -> str:
    names = listed((skip.reason for skip in skipped), separator="; ")
    noun = "1 entry" if len(skipped) == 1 else f"{len(skipped)} entries"
    return f"{noun} of {str(file)!r} cannot be used: {names}; leave them out with --skip-bad-annotations"
