"""Detection data by name or folder: the built-in scenes, and COCO files as they are found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from transept.data.detection.categories import Classes, Coco, unite
from transept.data.detection.coco_file import read_coco
from transept.data.detection.coco_set import CocoSet
from transept.data.detection.formats import find_annotations
from transept.data.detection.scenes import SCENES, SceneDetection
from transept.data.detection.target import DetectionSet
from transept.data.images import Skipped
from transept.data.measure import complete, refuse_reading
from transept.data.places import say_links
from transept.data.reading import PLAIN, Reading, WantedReading
from transept.data.scenes import DigitScenes, SceneOptions
from transept.data.splits import Choice, Parts, matches, note_bare_splits, refuse_folds, say_unmeasured, take
from transept.errors import TranseptError, UsageError
from transept.style import Color
from transept.words import listed

_FILES = (
    "annotations/instances_{}.json",
    "annotations/{}.json",
    "{}/_annotations.coco.json",
    "{}/annotations.json",
    "{}.json",
)
_SINGLE = ("*.json", "annotations/*.json")
_LOOKED_AT = 20
"""Of more JSON files than that none is read to find the one with annotations."""


class NoAnnotationsError(TranseptError):
    """A folder holds nothing that is read as annotations."""


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
    parts: Parts
    """Which splits these are."""
    counts: dict[str, int]
    """Training objects of each class, where they are counted beforehand."""


def load_detection_splits(
    data: str,
    *,
    halves: Literal["both", "val"] = "both",
    choice: Choice | None = None,
    known: Sequence[str] | None = None,
    val_fraction: float = 0.2,
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
        data: `digits-scenes`; a folder as COCO's: `annotations/instances_train2017.json`, `train2017/` and the same
            for `val`; also `annotations/train.json`, `train/`, `images/train`, and Roboflow's
            `train/_annotations.coco.json`, in any spelling that `data.splits` knows; or a COCO file, or a folder with
            one, in itself or in `annotations/`; or one that `find_annotations` reads. Where there is no validation
            split, the training pictures are divided as in `load_splits`.
        halves: `val` reads what is measured alone; `train` is then empty.
        choice: which splits; default: training and validation.
        known: the classes of a model, in its order: measured pictures may lack some of them.
        val_fraction: held out where the data has no validation split.
        masks: whether targets have masks.
        keep_empty: train on pictures without objects too. They are always evaluated.
        min_size: smallest side of a box to train on, in pixels.
        skip_bad_annotations: leave out what cannot be used; it is in `skipped`.
        scenes: number of training and validation scenes of `digits-scenes`.
        reading: how the files become pictures; a part may be left to the training pictures to say.
        seed: of `digits-scenes`.
        scene_options: of `digits-scenes`.

    Raises:
        TranseptError: no such data, an id with two names, categories that training lacks, nothing to train on, and as
            `CocoSet`.
        UsageError: no such split, or several could be meant; `masks` without pycocotools.
    """
    choice = choice or Choice()
    if data == SCENES:
        refuse_reading(reading, data)
        refuse_folds(choice, data)
        parts = take(("train", "val"), data, choice, learns=True)
        length = scenes[0] if halves == "both" or parts.val == "train" else 0
        train = SceneDetection(DigitScenes("train", length, seed=seed, options=scene_options), masks=masks)
        val = SceneDetection(DigitScenes("val", scenes[1], seed=seed, options=scene_options), masks=masks)
        val = train if parts.val == "train" else val
        return DetectionSplits(val.classes, val.palette, val.category_ids, train, val, [], {}, parts, {})
    found = read_annotations(data, halves=halves, choice=choice, known=known, val_fraction=val_fraction, masks=masks)
    of_train, of_val, order, parts = found

    def read(half: Coco, *, drop_empty: bool = False) -> CocoSet:
        found = CocoSet(
            half.file,
            half.folder,
            masks=masks,
            skip_bad_annotations=skip_bad_annotations,
            min_size=min_size,
            drop_empty=drop_empty,
            content=half.content,
            searched=half.searched,
        )
        found.say_left_out()
        _want_pictures(found)
        return found

    if of_train is None:
        val = read(of_val)
        val.reading = complete(reading, val.some_files())
        say_links(val.paths, Path(data).expanduser())
        if known is not None:
            say_unmeasured(of_val.without_objects(), data)
        nothing: DetectionSet = SceneDetection(DigitScenes("train", 0), masks=False)
        nothing.classes, nothing.palette, nothing.category_ids = order.names, val.palette, order.ids
        return DetectionSplits(order.names, val.palette, order.ids, nothing, val, val.skipped, {}, parts, {})
    val, train = read(of_val), read(of_train, drop_empty=not keep_empty)
    train.reading = val.reading = complete(reading, train.some_files())
    say_links([*train.paths, *val.paths], Path(data).expanduser())
    counts = of_train.counts()
    say_unmeasured([name for name in of_val.without_objects() if counts.get(name)], data)
    return DetectionSplits(
        train.classes,
        train.palette,
        train.category_ids,
        train,
        val,
        train.skipped + val.skipped,
        dict(train.left_out),
        parts,
        counts,
    )


class AnnotatedHalves(NamedTuple):
    """What is to be learnt and measured, before any picture is read."""

    train: Coco | None
    """None where it is not read."""
    val: Coco
    order: Classes
    """The classes as a model has them."""
    parts: Parts


def read_annotations(
    data: str,
    *,
    halves: Literal["both", "val"],
    choice: Choice,
    known: Sequence[str] | None,
    val_fraction: float,
    masks: bool,
) -> AnnotatedHalves:
    """Find and read the annotations of a folder or file, and give both halves the same categories.

    Arguments and errors are those of `load_detection_splits`.
    """
    root = Path(data).expanduser()
    sources = _find_sources(root, data, choice, masks)
    parts = take([name for name in sources if name], data, choice, learns=halves == "both")
    if halves == "both":
        parts = note_bare_splits(parts, root, ("{}", "images/{}"), "annotations")
    contents = {name: sources[name]() for name in ([parts.val] if halves == "val" else parts.read)}
    train, val = contents.get(parts.train), contents[parts.val]
    if parts.held_out:
        train, val = val.divide(val_fraction, parts.fold)
    if halves == "val":
        return AnnotatedHalves(None, val, val.fit(known, data), parts)
    assert train is not None
    unite(train, val)
    return AnnotatedHalves(train, val, Classes(list(val.names), list(val.names.values())), parts)


def _want_pictures(half: CocoSet) -> None:
    if not len(half):
        why = "".join(f"; {count} {what}" for what, count in half.left_out.items())
        raise TranseptError(f"{str(half.file)!r} has no pictures that can be used{why}")


def _find_sources(root: Path, data: str, choice: Choice, masks: bool) -> dict[str, Callable[[], Coco]]:
    """Names of splits to what reads their annotations; "" where they have no split."""
    if root.exists() and not root.is_dir():
        up = root.parent.parent if root.parent.name.lower() == "annotations" else root.parent
        return {"": partial(Coco.read, root, up, _name(root), masks=masks)}
    if not root.is_dir():
        raise TranseptError(
            f"there is no data {data!r}; give {SCENES!r} or a folder with COCO annotations, or a COCO file"
        )
    found: dict[str, Callable[[], Coco]] = {}
    for form in () if choice.is_whole else _FILES:
        for name, file in matches(root, form, choice).items():
            found.setdefault(name, partial(Coco.read, file, root, name, masks=masks))
    if found:
        return found
    others = find_annotations(root)
    if others is None:
        file = _only_file(root)
        return {"": partial(Coco.read, file, root, _name(file), masks=masks)}
    if len(others) > 1 and ("" in others or choice.is_whole):
        names = listed(repr(name) if name else "no split" for name in others)
        raise UsageError(
            f"{str(root)!r} has annotations in {names}; put all or none of them into splits, and leave out --split none"
        )
    return {name: partial(Coco.of, each, masks=masks) for name, each in others.items()}


def _name(file: Path) -> str:
    return file.stem.removeprefix("instances_")


def _only_file(root: Path) -> Path:
    """The COCO file in a folder without splits."""
    files = sorted(file for form in _SINGLE for file in root.glob(form))
    if 1 < len(files) <= _LOOKED_AT:
        files = [file for file in files if _is_coco(file)]
    if len(files) > 1:
        raise UsageError(
            f"{str(root)!r} has several annotation files, {listed(repr(file.name) for file in files)}; give the one "
            f"that is meant: --data {files[0]}"
        )
    if not files:
        raise NoAnnotationsError(
            f"{str(root)!r} has no annotations; COCO's are 'annotations/instances_val2017.json', with pictures in "
            "'val2017', and a single file is given itself: --data FILE.json"
        )
    return files[0]


def _is_coco(file: Path) -> bool:
    try:
        read_coco(file)
    except TranseptError:
        return False
    return True
