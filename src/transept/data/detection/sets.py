"""Detection data by name or folder: the built-in scenes, and COCO files as they are found."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from transept.data.detection.coco_file import read_coco
from transept.data.detection.coco_set import CocoSet
from transept.data.detection.formats import find_annotations
from transept.data.detection.formats.content import Annotated
from transept.data.detection.scenes import SCENES, SceneDetection
from transept.data.detection.target import DetectionSet
from transept.data.images import Skipped
from transept.data.labels import Color
from transept.data.measure import complete, refuse_reading
from transept.data.reading import PLAIN, Reading, WantedReading
from transept.data.scenes import DigitScenes, SceneOptions
from transept.errors import TranseptError, TranseptWarning

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


@dataclass(frozen=True, slots=True)
class DetectionSplits:
    """The data that a detector is trained and judged on."""

    classes: list[str]
    palette: list[Color]
    category_ids: list[int]
    train: DetectionSet
    val: DetectionSet
    skipped: list[Skipped]
    """Files and annotations that could not be used."""
    left_out: dict[str, int]
    """The annotations that training does without by its rules, and how often."""


def load_detection_splits(
    data: str,
    *,
    halves: Literal["both", "val"] = "both",
    masks: bool = False,
    keep_empty: bool = False,
    min_size: float = 1.0,
    skip_bad_annotations: bool = False,
    scenes: tuple[int, int] = (2000, 200),
    reading: Reading | WantedReading = PLAIN,
    seed: int = 0,
    scene_options: SceneOptions | None = None,
) -> DetectionSplits:
    """The data set behind a name or folder.

    Args:
        data: `digits-scenes`, or a folder as COCO's: `annotations/instances_train2017.json`, `train2017/` and the same
            for `val`; also `annotations/train.json`, `train/`, `images/train`, and Roboflow's
            `train/_annotations.coco.json`; or one that `find_annotations` reads.
        halves: `val` looks for the validation half alone; `train` is then empty.
        masks: whether targets have masks.
        keep_empty: train on pictures without objects too. They are always evaluated.
        min_size: smallest side of a box to train on, in pixels.
        skip_bad_annotations: leave out what cannot be used; it is in `skipped`.
        scenes: number of training and validation scenes of `digits-scenes`.
        reading: how the files become pictures; a part may be left to the training pictures to say.
        seed: of `digits-scenes`.
        scene_options: of `digits-scenes`.

    Raises:
        TranseptError: no such data, halves of different categories, nothing to train on, and as `CocoSet`.
        UsageError: `masks` without pycocotools.
    """
    if data == SCENES:
        refuse_reading(reading, data)
        length = scenes[0] if halves == "both" else 0
        train = SceneDetection(DigitScenes("train", length, seed=seed, options=scene_options), masks=masks)
        val = SceneDetection(DigitScenes("val", scenes[1], seed=seed, options=scene_options), masks=masks)
        return DetectionSplits(val.classes, val.palette, val.category_ids, train, val, [], {})
    root = Path(data).expanduser()
    if not root.is_dir():
        raise TranseptError(f"there is no data {data!r}; give {SCENES!r} or a folder with COCO annotations")
    read = partial(CocoSet, masks=masks, skip_bad_annotations=skip_bad_annotations, min_size=min_size)
    others = None if _coco_files(root) else find_annotations(root)
    file, folder, content = _find_half(root, _VAL, "validation", masks, others)
    val = read(file, folder, content=content)
    _report(val)
    _want_pictures(val)
    if halves == "val":
        val.reading = complete(reading, val.some_files())
        train: DetectionSet = SceneDetection(DigitScenes("train", 0), masks=False)
        train.classes, train.palette, train.category_ids = val.classes, val.palette, val.category_ids
        return DetectionSplits(val.classes, val.palette, val.category_ids, train, val, val.skipped, {})
    file, folder, content = _find_half(root, _TRAIN, "training", masks, others)
    train = read(file, folder, content=content, drop_empty=not keep_empty)
    _report(train)
    _want_pictures(train)
    train.reading = val.reading = complete(reading, train.some_files())
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


def _coco_files(root: Path) -> list[Path]:
    files = (root / form.format(name) for name in (*_TRAIN, *_VAL) for form in _FILES)
    return [file for file in files if file.is_file()]


def _find_half(
    root: Path, names: Sequence[str], half: str, masks: bool, others: dict[str, Annotated] | None
) -> tuple[Path, Path, dict[str, Any]]:
    """The annotation file of a half, the folder in which its pictures are, and the file's content."""
    if others is not None:
        found = next((others[name] for name in names if name in others), None)
        if found is None:
            has = ", ".join(name or "pictures of no split" for name in others)
            raise TranseptError(f"{str(root)!r} has no {half} annotations; it has {has}")
        return found.file, found.folder, found.content
    for name in names:
        file = next((root / form.format(name) for form in _FILES if (root / form.format(name)).is_file()), None)
        if file is None:
            continue
        folders = [root / form.format(name) for form in _FOLDERS]
        content = read_coco(file, masks=masks)
        names_of_files = [image.get("file_name") for image in islice(_dicts(content["images"]), 20)]
        for folder in folders:
            if any(isinstance(picture, str) and (folder / picture).is_file() for picture in names_of_files):
                return file, folder, content
        return file, next(folder for folder in folders if folder.is_dir()), content
    raise TranseptError(
        f"{str(root)!r} has no {half} annotations; COCO's are 'annotations/instances_{names[0]}2017.json', with "
        f"pictures in '{names[0]}2017'"
    )


def _dicts(entries: list[Any]) -> Iterator[dict[str, Any]]:
    return (entry for entry in entries if isinstance(entry, dict))
