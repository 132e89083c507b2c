"""Pictures with boxes and instance masks: the built-in scenes and COCO files as they are found."""

import json
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from transept.data.classification.sets import Skipped
from transept.data.images import BadImageError, read_image, stored_form
from transept.data.labels import Color, drawing_color
from transept.data.scenes import DIGITS, DigitScenes, SceneOptions, scene_size
from transept.errors import TranseptError, TranseptWarning, UsageError

Target = dict[str, Any]
"""What is on a picture of n objects:

- `boxes`: `n 4`, x1 y1 x2 y2 in continuous pixels, inside the picture; floats
- `labels`: `n`, classes 0..; 64-bit
- `masks`: `n H W`, 8 bit, where they were asked for
- `iscrowd`: `n`, true for a region of many objects, which is neither learnt nor counted as a miss
- `area`: `n`, as annotated, in pixels
- `image_id`: the file's own
- `original_size`: height and width
"""

SCENES = "digits-scenes"
# The heads of up to so many pictures are read when a set is loaded; of larger sets existence alone is checked there.
_CHECK_FILES = 5000
_KEEP_BYTES = 1024 * 2**20
_TRAIN = ("train", "training")
_VAL = ("val", "valid", "validation", "test")
_FILES = (
    "annotations/instances_{}2017.json",
    "annotations/instances_{}.json",
    "annotations/{}.json",
    "{}/_annotations.coco.json",
    "{}/annotations.json",
    "{}.json",
)
_FOLDERS = ("{}2017", "{}", "images/{}2017", "images/{}", "{}/images", "images", ".")


class DetectionSet(Sequence[tuple[tv_tensors.Image, Target]]):
    """Pictures (8-bit RGB, `3 H W`) with what is on them, a `Target`."""

    classes: list[str]
    palette: list[Color]
    """A colour for each class, to draw it with."""
    category_ids: list[int]
    """The file's id of each class, for results."""
    image_ids: list[int] | list[int | str]
    paths: list[Path]
    sizes: list[tuple[int, int]]
    """Height and width of each picture."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def ground_truth(self) -> dict[str, Any]:
        """The whole set in COCO's form, with the file's ids, for evaluation."""
        raise NotImplementedError

    def _ground_truth(self, annotations: list[dict[str, Any]]) -> dict[str, Any]:
        images = [
            {"id": number, "file_name": path.name, "height": height, "width": width}
            for number, path, (height, width) in zip(self.image_ids, self.paths, self.sizes, strict=True)
        ]
        names = zip(self.category_ids, self.classes, strict=True)
        categories = [{"id": number, "name": name} for number, name in names]
        return {"images": images, "annotations": annotations, "categories": categories}


class SceneDetection(DetectionSet):
    """`digits-scenes`: ten digits, with the boxes and masks of their visible parts."""

    def __init__(self, scenes: DigitScenes, *, masks: bool = True) -> None:
        self.scenes = scenes
        self.masks = masks
        self.classes = list(DIGITS)
        self.palette = [drawing_color(label) for label in range(len(DIGITS))]
        self.category_ids = list(range(1, len(DIGITS) + 1))
        self.image_ids = list(range(1, len(scenes) + 1))
        self.paths = [Path(f"{SCENES}-{scenes.split}-{scenes.seed}-{i:05d}.png") for i in range(len(scenes))]
        self.sizes = [scene_size(scenes.split, scenes.seed, i, scenes.options) for i in range(len(scenes))]

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, Target]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scene = self.scenes[index]
        return _item(
            scene.image,
            scene.boxes,
            scene.labels,
            scene.masks if self.masks else None,
            np.zeros(len(scene.labels), bool),
            scene.masks.sum((1, 2)),
            self.image_ids[index],
        )

    def ground_truth(self) -> dict[str, Any]:
        encode = _mask_api().encode if self.masks else None
        annotations: list[dict[str, Any]] = []
        for image_id, scene in zip(self.image_ids, self.scenes, strict=True):
            for label, (x1, y1, x2, y2), mask in zip(scene.labels, scene.boxes.tolist(), scene.masks, strict=True):
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": self.category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                }
                if encode:
                    rle = encode(np.asfortranarray(mask.astype(np.uint8)))
                    annotation["segmentation"] = {"size": list(mask.shape), "counts": rle["counts"].decode()}
                annotations.append(annotation)
        return self._ground_truth(annotations)


@dataclass(slots=True)
class _Picture:
    """An image of a COCO file with the annotations that can be used."""

    id: int | str
    path: Path
    size: tuple[int, int]
    """Height and width; (0, 0) until the picture is looked at, where the file leaves them out."""
    annotations: list[dict[str, Any]] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    """x1 y1 x2 y2 of each annotation, clipped."""


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
    ) -> None:
        self.file = file
        self.masks = masks
        if masks:
            _mask_api()
        content = _read_json(file)
        self.category_ids, self.classes = _categories(content["categories"], file)
        self.palette = [drawing_color(label) for label in range(len(self.classes))]
        self._label = {number: label for label, number in enumerate(self.category_ids)}
        self.skipped: list[Skipped] = []
        self.reasons: Counter[str] = Counter()
        """How much was left out for what; with the annotations of pictures that were."""
        self.left_out: Counter[str] = Counter()
        """What training does without, though nothing is wrong with it, and how many boxes were clipped."""
        pictures, bad_ids = self._pictures(content["images"], folder)
        self._assign(content["annotations"], pictures, bad_ids)
        if self.skipped and not skip_bad_annotations:
            raise TranseptError(_summary(self.skipped, file))
        self._small = min_size
        self._kept: dict[int, Image.Image] = {}
        self._room = _KEEP_BYTES
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
        area = np.array([_area(each) for each in annotations], np.float32)
        masks = _decode([each["segmentation"] for each in annotations], picture.size) if self.masks else None
        return _item(np.asarray(self._read(index)), boxes, labels, masks, crowd, area, picture.id)

    def ground_truth(self) -> dict[str, Any]:
        annotations = []
        for annotation in (each for picture in self._selected for each in picture.annotations):
            # Numbered anew from 1: evaluators compute with ids, some files have none, and 0 would count as unmatched.
            complete = {"iscrowd": 0, **annotation, "area": _area(annotation), "id": len(annotations) + 1}
            if not complete.get("segmentation"):
                complete.pop("segmentation", None)
            annotations.append(complete)
        return self._ground_truth(annotations)

    def _read(self, index: int) -> Image.Image:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        path, (height, width) = self.paths[index], self.sizes[index]
        picture = read_image(path)
        if picture.size != (width, height):  # annotated as it is stored, not as it is seen
            picture = read_image(path, upright=False)
        if picture.size != (width, height):
            raise BadImageError(
                path, f"is {picture.width} x {picture.height}, but {str(self.file)!r} says {width} x {height}"
            )
        if 3 * height * width <= self._room:
            self._room -= 3 * height * width
            self._kept[index] = picture
        return picture

    def _is_small(self, box: tuple[float, float, float, float]) -> bool:
        return box[2] - box[0] < self._small or box[3] - box[1] < self._small

    def _select(self, pictures: Iterable[_Picture], drop_empty: bool) -> None:
        self._selected: list[_Picture] = []
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

    def _pictures(self, entries: list[Any], folder: Path) -> tuple[dict[Any, _Picture], set[Any]]:
        """The pictures by id, and the ids of those that cannot be used."""
        found: dict[Any, _Picture] = {}
        bad: set[Any] = set()
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict) or "id" not in entry or not isinstance(entry.get("file_name"), str):
                raise TranseptError(f"{str(self.file)!r}: images[{position}] has no 'id' or no 'file_name'")
            number = entry["id"]
            if not isinstance(number, int | str):
                raise TranseptError(f"{str(self.file)!r}: images[{position}] has the id {number!r}; ids are numbers")
            if number in found or number in bad:
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
            known = (0, 0) if None in size else (int(size[0]), int(size[1]))  # pyright: ignore[reportArgumentType]
            found[number] = _Picture(number, folder / entry["file_name"], known)
        with ThreadPoolExecutor() as pool:
            problems = pool.map(_picture_problem, found.values(), [len(found) <= _CHECK_FILES] * len(found))
            for picture, problem in zip(list(found.values()), problems, strict=True):
                if problem:
                    kind = "images without a file" if problem == "does not exist" else "unusable image files"
                    self._refuse(kind, f"image {picture.id}, {str(picture.path)!r}, {problem}")
                    bad.add(picture.id)
                    del found[picture.id]
        return found, bad

    def _assign(self, entries: list[Any], pictures: dict[Any, _Picture], bad_pictures: set[Any]) -> None:
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
            box = _clip((x, y, x + width, y + height), picture.size)
            # Annotators' rounding reaches up to a pixel beyond the border.
            self.left_out["boxes clipped at the border"] += max(-x, -y, x + width - box[2], y + height - box[3]) > 1
            picture.annotations.append(entry)
            picture.boxes.append(box)

    def _problem(
        self, entry: dict[str, Any], number: Any, pictures: dict[Any, _Picture], ids: set[Any]
    ) -> tuple[str, str] | None:
        """Why an annotation cannot be used: to be counted by, and as the end of a sentence."""
        if number in ids:
            return "ids given twice", "has an id that another annotation has"
        if "image_id" not in entry:
            return "without an image", "has no 'image_id'"
        if entry["image_id"] not in pictures:
            return "without an image", f"is of image {entry['image_id']!r}, which is not in 'images'"
        if entry.get("category_id") not in self._label:
            return (
                "of unknown categories",
                f"has the category {entry.get('category_id')!r}, which is not in 'categories'",
            )
        box = entry.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(isinstance(x, int | float) for x in box)):
            return (
                "without a bbox",
                f"has {'no bbox' if box is None else f'the bbox {box!r}'}; give [x, y, width, height]",
            )
        if not all(map(math.isfinite, box)):
            return "boxes not finite", f"has the bbox {box}, which is not finite"
        x, y, width, height = box
        if width <= 0 or height <= 0:
            return "boxes without area", f"has the bbox {box}, which has no area"
        size = pictures[entry["image_id"]].size
        x1, y1, x2, y2 = _clip((x, y, x + width, y + height), size)
        if x1 >= x2 or y1 >= y2:
            return (
                "boxes outside their picture",
                f"has the bbox {box}, which lies outside its picture of {size[1]} x {size[0]}",
            )
        problem = _mask_problem(entry.get("segmentation"), size) if self.masks else None
        return ("unusable masks", problem) if problem else None

    def _refuse(self, kind: str, reason: str) -> None:
        self.reasons[kind] += 1
        self.skipped.append(Skipped(self.file, reason))


@dataclass(frozen=True, slots=True)
class DetectionSplits:
    """What a detector is trained and judged on."""

    classes: list[str]
    palette: list[Color]
    category_ids: list[int]
    train: DetectionSet
    val: DetectionSet
    skipped: list[Skipped]
    """What could not be used."""
    left_out: dict[str, int]
    """What training does without by its rules, and how often."""


def load_detection_splits(
    data: str,
    *,
    halves: Literal["both", "val"] = "both",
    masks: bool = False,
    keep_empty: bool = False,
    min_size: float = 1.0,
    skip_bad_annotations: bool = False,
    scenes: tuple[int, int] = (2000, 200),
    seed: int = 0,
    scene_options: SceneOptions | None = None,
) -> DetectionSplits:
    """The data set behind a name or folder.

    Args:
        data: `digits-scenes`, or a folder as COCO's: `annotations/instances_train2017.json`, `train2017/` and the same
            for `val`; also `annotations/train.json`, `train/`, `images/train`, and Roboflow's
            `train/_annotations.coco.json`.
        halves: `val` looks for the validation half alone; `train` is then empty.
        masks: whether targets have masks.
        keep_empty: train on pictures without objects too. They are always evaluated.
        min_size: smallest side of a box to train on, in pixels.
        skip_bad_annotations: leave out what cannot be used; it is in `skipped`.
        scenes: number of training and validation scenes of `digits-scenes`.
        seed: of `digits-scenes`.
        scene_options: of `digits-scenes`.

    Raises:
        TranseptError: no such data, halves of different categories, nothing to train on, and as `CocoSet`.
        UsageError: `masks` without pycocotools.
    """
    if data == SCENES:
        length = scenes[0] if halves == "both" else 0
        train = SceneDetection(DigitScenes("train", length, seed=seed, options=scene_options), masks=masks)
        val = SceneDetection(DigitScenes("val", scenes[1], seed=seed, options=scene_options), masks=masks)
        return DetectionSplits(val.classes, val.palette, val.category_ids, train, val, [], {})
    root = Path(data).expanduser()
    if not root.is_dir():
        raise TranseptError(f"there is no data {data!r}; give {SCENES!r} or a folder with COCO annotations")
    read = partial(CocoSet, masks=masks, skip_bad_annotations=skip_bad_annotations, min_size=min_size)
    val = read(*_find_half(root, _VAL, "validation"))
    _report(val)
    _want_pictures(val)
    if halves == "val":
        train: DetectionSet = SceneDetection(DigitScenes("train", 0), masks=False)
        train.classes, train.palette, train.category_ids = val.classes, val.palette, val.category_ids
        return DetectionSplits(val.classes, val.palette, val.category_ids, train, val, val.skipped, {})
    train = read(*_find_half(root, _TRAIN, "training"), drop_empty=not keep_empty)
    _report(train)
    _want_pictures(train)
    if (train.category_ids, train.classes) != (val.category_ids, val.classes):
        of_train, of_val = (dict(zip(half.category_ids, half.classes, strict=True)) for half in (train, val))
        odd = min(n for n in of_train.keys() | of_val.keys() if of_train.get(n) != of_val.get(n))
        raise TranseptError(
            f"category {odd} is {of_train.get(odd)!r} in {str(train.file)!r} and {of_val.get(odd)!r} in "
            f"{str(val.file)!r}; both must have the same categories"
        )
    skipped = train.skipped + val.skipped
    return DetectionSplits(train.classes, train.palette, train.category_ids, train, val, skipped, dict(train.left_out))


def _report(half: CocoSet) -> None:
    """Nothing is left out or changed without a word."""
    for what, counts in (("left out", half.reasons), ("not used as they are", half.left_out)):
        if counts:
            reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
            example = f"; e.g. {half.skipped[0].reason}" if counts is half.reasons else ""
            warnings.warn(f"{str(half.file)!r}, {what}: {reasons}{example}", TranseptWarning, stacklevel=3)


def _want_pictures(half: CocoSet) -> None:
    if not len(half):
        why = "".join(f"; {count} {what}" for what, count in half.left_out.items())
        raise TranseptError(f"{str(half.file)!r} has no pictures that can be used{why}")


def _find_half(root: Path, names: Sequence[str], half: str) -> tuple[Path, Path]:
    """The annotation file of a half, and the folder in which its pictures are."""
    for name in names:
        file = next((root / form.format(name) for form in _FILES if (root / form.format(name)).is_file()), None)
        if file is None:
            continue
        folders = [root / form.format(name) for form in _FOLDERS]
        listed = [entry.get("file_name") for entry in islice(_dicts(_read_json(file)["images"]), 20)]
        for folder in folders:
            if any(isinstance(picture, str) and (folder / picture).is_file() for picture in listed):
                return file, folder
        return file, next(folder for folder in folders if folder.is_dir())
    raise TranseptError(
        f"{str(root)!r} has no {half} annotations; COCO's are 'annotations/instances_{names[0]}2017.json', with "
        f"pictures in '{names[0]}2017'"
    )


def _dicts(entries: list[Any]) -> Iterator[dict[str, Any]]:
    return (entry for entry in entries if isinstance(entry, dict))


def _read_json(file: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise TranseptError(f"cannot read {str(file)!r} ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise TranseptError(f"{str(file)!r} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise TranseptError(
            f"{str(file)!r} is no COCO file: it holds a {type(content).__name__}, not an object with 'images', "
            "'annotations' and 'categories'"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            what = f"its {key!r} is no list" if key in content else f"it has no {key!r}"
            raise TranseptError(f"{str(file)!r} is no COCO file: {what}")
    return content


def _categories(entries: list[Any], file: Path) -> tuple[list[int], list[str]]:
    """Ids, ascending, and names."""
    names: dict[int, str] = {}
    for position, entry in enumerate(entries):
        well = isinstance(entry, dict) and isinstance(entry.get("id"), int) and isinstance(entry.get("name"), str)
        if not well:
            raise TranseptError(f"{str(file)!r}: categories[{position}] has no number 'id' or no 'name'")
        if entry["id"] in names:
            raise TranseptError(
                f"{str(file)!r} gives the category id {entry['id']} to {names[entry['id']]!r} and {entry['name']!r}"
            )
        names[entry["id"]] = entry["name"]
    if not names:
        raise TranseptError(f"{str(file)!r} has no categories")
    ids = sorted(names)
    return ids, [names[number] for number in ids]


def _picture_problem(picture: _Picture, check_size: bool) -> str | None:
    """Why a picture cannot be used; fills in a size that the file leaves out."""
    unknown = picture.size == (0, 0)
    if not check_size and not unknown:
        return None if picture.path.is_file() else "does not exist"
    try:
        (width, height), orientation = stored_form(picture.path)
    except BadImageError as error:
        return error.reason
    upright = (width, height) if orientation >= 5 else (height, width)
    if unknown:
        picture.size = upright
    elif picture.size not in (upright, (height, width)):
        return f"is {upright[1]} x {upright[0]}, not {picture.size[1]} x {picture.size[0]}"
    return None


def _mask_problem(segmentation: Any, size: tuple[int, int]) -> str | None:
    """Why a polygon or run-length encoding is none of a picture of this size, as the end of a sentence."""
    if not segmentation:
        return "has no segmentation, which instance masks need"
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not (isinstance(polygon, list) and all(isinstance(x, int | float) for x in polygon)):
                return "has a segmentation that is no list of polygons [x1, y1, x2, y2, ...]"
            if len(polygon) < 6 or len(polygon) % 2:
                return f"has a polygon of {len(polygon)} numbers; it needs pairs, three or more"
            if not all(map(math.isfinite, polygon)):
                return "has a polygon that is not finite"
        return None
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        return "has a segmentation that is neither polygons nor run lengths with 'size' and 'counts'"
    if segmentation.get("size") != list(size):
        return (
            f"has run lengths of the size {segmentation.get('size')}, but its picture is {list(size)} (height, width)"
        )
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if not all(isinstance(run, int) and run >= 0 for run in counts) or sum(counts) != size[0] * size[1]:
            return f"has run lengths that do not add up to {size[0] * size[1]} pixels"
    elif not isinstance(counts, str):
        return "has 'counts' that are neither a list nor a string"
    elif not _fills(counts, size):
        return f"has compressed run lengths that do not decode to {size[0] * size[1]} pixels"
    return None


def _fills(counts: str, size: tuple[int, int]) -> bool:
    """Whether COCO's compressed run lengths describe exactly the pixels; pycocotools crashes on others, or worse.

    Six bits a character from '0', the sixth says that the number goes on; from the third number on each is the
    difference to the one before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return False
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return shift == 0 and min(runs, default=-1) >= 0 and sum(runs) == size[0] * size[1]


def _decode(segmentations: list[Any], size: tuple[int, int]) -> np.ndarray:
    """Masks `n H W`, rasterised at the picture's own size."""
    if not segmentations:
        return np.zeros((0, *size), np.uint8)
    api = _mask_api()
    encoded = []
    for segmentation in segmentations:
        if isinstance(segmentation, list):
            encoded.append(api.merge(api.frPyObjects(segmentation, *size)))
        elif isinstance(segmentation["counts"], list):
            encoded.append(api.frPyObjects(segmentation, *size))
        else:
            encoded.append(segmentation)
    return np.ascontiguousarray(api.decode(encoded).transpose(2, 0, 1))


def _mask_api() -> Any:
    try:
        from pycocotools import mask
    except ModuleNotFoundError as error:
        raise UsageError("instance masks need the package 'pycocotools': pip install 'transept[detect]'") from error
    return mask


def _item(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    masks: np.ndarray | None,
    crowd: np.ndarray,
    area: np.ndarray,
    image_id: int | str,
) -> tuple[tv_tensors.Image, Target]:
    height, width = image.shape[:2]
    target: Target = {
        "boxes": tv_tensors.BoundingBoxes(  # pyright: ignore[reportCallIssue]
            torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4), format="XYXY", canvas_size=(height, width)
        ),
        "labels": torch.as_tensor(labels, dtype=torch.int64),
        "iscrowd": torch.as_tensor(crowd, dtype=torch.bool),
        "area": torch.as_tensor(area, dtype=torch.float32),
        "image_id": image_id,
        "original_size": torch.tensor([height, width]),
    }
    if masks is not None:
        target["masks"] = tv_tensors.Mask(torch.as_tensor(masks.astype(np.uint8)))
    return tv_tensors.Image(torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous()), target


def _clip(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    height, width = size
    x1, y1, x2, y2 = box
    return min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)


def _area(annotation: dict[str, Any]) -> float:
    area = annotation.get("area")
    return area if isinstance(area, int | float) else annotation["bbox"][2] * annotation["bbox"][3]


def _summary(skipped: list[Skipped], file: Path) -> str:
    names = "; ".join(skip.reason for skip in skipped[:3])
    more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    noun = "1 entry" if len(skipped) == 1 else f"{len(skipped)} entries"
    return f"{noun} of {str(file)!r} cannot be used: {names}{more}; leave them out with --skip-bad-annotations"
