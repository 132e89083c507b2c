"""The pictures and annotations of one COCO file as a detection set."""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import tv_tensors

from transept.data.detection.coco_file import (
    Box,
    Picture,
    annotation_problem,
    area_of,
    clip_box,
    picture_problem,
    read_categories,
    read_coco,
)
from transept.data.detection.masks import decode_masks, mask_api
from transept.data.detection.target import DetectionSet, Target, make_sample
from transept.data.images import KEEP_BYTES, BadImageError, Skipped, as_array, read_image
from transept.data.labels import drawing_palette
from transept.data.measure import Source, spread
from transept.data.reading import PLAIN, Reading
from transept.errors import TranseptError
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

    Raises:
        TranseptError: the file is no COCO file, or holds what cannot be used: annotations of unknown pictures or
            categories, without a box, or with one that is not finite, has no area or lies outside the picture, or,
            with `masks`, no mask that fits it; ids given twice; pictures that are missing or of another size. All are
            counted and the first ones named.
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
        content: dict[str, list[Any]] | None = None,
    ) -> None:
        self.file = file
        self.masks = masks
        if masks:
            mask_api()
        content = read_coco(file) if content is None else content
        self.category_ids, self.classes = read_categories(content["categories"], file)
        self.palette = drawing_palette(len(self.classes))
        self._label = {number: label for label, number in enumerate(self.category_ids)}
        self.skipped: list[Skipped] = []
        self.reasons: Counter[str] = Counter()
        """How much was left out for what; with the annotations of pictures that were."""
        self.left_out: Counter[str] = Counter()
        """Sound annotations that training does without, and how many boxes were clipped."""
        pictures, bad_ids = self._pictures(content["images"], folder)
        self._assign(content["annotations"], pictures, bad_ids)
        if self.skipped and not skip_bad_annotations:
            raise TranseptError(_summary(self.skipped, file))
        self._small = min_size
        self.reading: Reading = PLAIN
        """How the files become pictures."""
        self._kept: dict[int, np.ndarray] = {}
        self._room = KEEP_BYTES
        self._select(pictures.values(), drop_empty)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, Target]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As in the base class.

        Raises:
            BadImageError: the picture is unreadable, or of another size than the file says.
        """
        picture = self._selected[index]
        use = [i for i, box in enumerate(picture.boxes) if not self._is_small(box)]
        annotations = [picture.annotations[i] for i in use]
        boxes = np.array([picture.boxes[i] for i in use], np.float32).reshape(-1, 4)
        labels = np.array([self._label[each["category_id"]] for each in annotations], np.int64)
        crowd = np.array([bool(each.get("iscrowd")) for each in annotations], bool)
        area = np.array([area_of(each) for each in annotations], np.float32)
        masks = decode_masks([each["segmentation"] for each in annotations], picture.size) if self.masks else None
        return make_sample(self._read(index), boxes, labels, masks, crowd, area, picture.id)

    def ground_truth(self) -> dict[str, Any]:
        annotations = []
        for annotation in (each for picture in self._selected for each in picture.annotations):
            # Numbered anew from 1: evaluators compute with ids, some files have none, and 0 would count as unmatched.
            complete = {"iscrowd": 0, **annotation, "area": area_of(annotation), "id": len(annotations) + 1}
            if not complete.get("segmentation"):
                complete.pop("segmentation", None)
            annotations.append(complete)
        return self._ground_truth(annotations)

    def some_files(self, indices: Sequence[int] | None = None) -> list[Source]:
        """Those to measure the set by, or at these places."""
        return [(self.paths[i], self.paths[i]) for i in (spread(len(self)) if indices is None else indices)]

    def _read(self, index: int) -> np.ndarray:
        """Bytes `H W c`."""
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        path, (height, width) = self.paths[index], self.sizes[index]
        picture = as_array(read_image(path, reading=self.reading))
        if picture.shape[:2] != (height, width):  # annotated as it is stored, not as it is seen
            picture = as_array(read_image(path, upright=False, reading=self.reading))
        if picture.shape[:2] != (height, width):
            raise BadImageError(
                path, f"is {picture.shape[1]} x {picture.shape[0]}, but {str(self.file)!r} says {width} x {height}"
            )
        if picture.nbytes <= self._room:
            self._room -= picture.nbytes
            self._kept[index] = picture
        return picture

    def _is_small(self, box: Box) -> bool:
        return box[2] - box[0] < self._small or box[3] - box[1] < self._small

    def _select(self, pictures: Iterable[Picture], drop_empty: bool) -> None:
        self._selected: list[Picture] = []
        for picture in pictures:
            usable = [not self._is_small(box) for box in picture.boxes]
            self.left_out[f"boxes under {self._small:g} px"] += usable.count(False)
            objects = sum(
                use and not each.get("iscrowd") for use, each in zip(usable, picture.annotations, strict=True)
            )
            if drop_empty and not objects:
                self.left_out["pictures without objects"] += 1
            elif drop_empty and min(picture.size) < 32:
                self.left_out["pictures under 32 px"] += 1
            else:
                self._selected.append(picture)
        self.left_out = +self.left_out  # without zeros
        self.image_ids = [picture.id for picture in self._selected]
        self.paths = [picture.path for picture in self._selected]
        self.sizes = [picture.size for picture in self._selected]

    def _pictures(self, entries: list[Any], folder: Path) -> tuple[dict[Any, Picture], set[Any]]:
        """The pictures by id, and the ids of those that cannot be used."""
        pictures: dict[Any, Picture] = {}
        bad: set[Any] = set()
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict) or "id" not in entry or not isinstance(entry.get("file_name"), str):
                raise TranseptError(f"{str(self.file)!r}: images[{position}] has no 'id' or no 'file_name'")
            number = entry["id"]
            if not isinstance(number, int | str):
                raise TranseptError(f"{str(self.file)!r}: images[{position}] has the id {number!r}; ids are numbers")
            if number in pictures or number in bad:
                self._refuse(
                    "images with an id given twice",
                    f"image {number} ({entry['file_name']!r}) has an id that another image has",
                )
                continue
            size = (entry.get("height"), entry.get("width"))
            if not all(side is None or (isinstance(side, int | float) and side >= 1) for side in size):
                self._refuse(
                    "images without a size",
                    f"image {number} ({entry['file_name']!r}) has the size {size[1]} x {size[0]}",
                )
                bad.add(number)
                continue
            sides = (0, 0) if None in size else (int(size[0]), int(size[1]))  # pyright: ignore[reportArgumentType]
            pictures[number] = Picture(number, folder / entry["file_name"], sides)
        with ThreadPoolExecutor() as pool:
            problems = pool.map(picture_problem, pictures.values(), [len(pictures) <= _CHECK_FILES] * len(pictures))
            for picture, problem in zip(list(pictures.values()), problems, strict=True):
                if problem:
                    kind = "images without a file" if problem == "does not exist" else "unusable image files"
                    self._refuse(kind, f"image {picture.id}, {str(picture.path)!r}, {problem}")
                    bad.add(picture.id)
                    del pictures[picture.id]
        return pictures, bad

    def _assign(self, entries: list[Any], pictures: dict[Any, Picture], bad_pictures: set[Any]) -> None:
        ids: set[Any] = set()
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise TranseptError(f"{str(self.file)!r}: annotations[{position}] is no object")
            number = entry.get("id", f"number {position + 1}")
            for key in ("id", "image_id", "category_id"):
                if not isinstance(entry.get(key, 0), int | str):
                    raise TranseptError(f"{str(self.file)!r}: annotations[{position}] has the {key} {entry[key]!r}")
            if entry.get("image_id") in bad_pictures:
                self.reasons["annotations of images left out"] += 1  # the picture is named already
                continue
            problem = self._problem(entry, number, pictures, ids)
            ids.add(number)
            if problem:
                kind, what = problem
                self._refuse(kind, f"annotation {number} {what}")
                continue
            picture = pictures[entry["image_id"]]
            x, y, width, height = map(float, entry["bbox"])
            box = clip_box((x, y, x + width, y + height), picture.size)
            # Annotators' rounding reaches up to a pixel beyond the border.
            self.left_out["boxes clipped at the border"] += max(-x, -y, x + width - box[2], y + height - box[3]) > 1
            picture.annotations.append(entry)
            picture.boxes.append(box)

    def _problem(
        self, annotation: dict[str, Any], number: Any, pictures: dict[Any, Picture], ids: set[Any]
    ) -> tuple[str, str] | None:
        """Why an annotation cannot be used: to be counted by, and as the end of a sentence."""
        if number in ids:
            return "ids given twice", "has an id that another annotation has"
        if "image_id" not in annotation:
            return "without an image", "has no 'image_id'"
        if annotation["image_id"] not in pictures:
            return "without an image", f"is of image {annotation['image_id']!r}, which is not in 'images'"
        category = annotation.get("category_id")
        if category not in self._label:
            return "of unknown categories", f"has the category {category!r}, which is not in 'categories'"
        return annotation_problem(annotation, pictures[annotation["image_id"]].size, masks=self.masks)

    def _refuse(self, kind: str, reason: str) -> None:
        self.reasons[kind] += 1
        self.skipped.append(Skipped(self.file, reason))


def _summary(skipped: list[Skipped], file: Path) -> str:
    names = listed((skip.reason for skip in skipped), separator="; ")
    noun = "1 entry" if len(skipped) == 1 else f"{len(skipped)} entries"
    return f"{noun} of {str(file)!r} cannot be used: {names}; leave them out with --skip-bad-annotations"
