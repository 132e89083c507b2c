"""Which objects a detector found: its boxes beside the annotated ones, matched as COCO's evaluation matches them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from transept.metrics.detection import MOST_BOXES, Kind, coco_library

FOREGROUND = 0.5
"""Overlap (IoU) from which on a box is of an object."""
BACKGROUND = 0.1
"""Overlap up to which it is of none: TIDE's."""


class Boxes(NamedTuple):
    """n boxes of all pictures."""

    picture: np.ndarray
    """Place in the annotations' images."""
    label: np.ndarray
    """Place in their categories."""
    box: np.ndarray
    """`n 4`: x, y, width, height in pixels."""

    def take(self, places: np.ndarray) -> "Boxes":
        return Boxes(*(values[places] for values in self))


class Pairs(NamedTuple):
    """Boxes and objects of one picture that overlap by `BACKGROUND` or more."""

    found: np.ndarray
    """Place in `Matches.found`."""
    object: np.ndarray
    iou: np.ndarray

    def take(self, places: np.ndarray) -> "Pairs":
        return Pairs(*(values[places] for values in self))


@dataclass(frozen=True, slots=True)
class Matches:
    """A detector's boxes and the objects that they are of. Crowds are no objects, and what lies in one is no error."""

    classes: int
    found: Boxes
    """The detector's, in the order of falling scores."""
    score: np.ndarray
    objects: Boxes
    """The annotated ones."""
    pairs: Pairs
    object_of: np.ndarray
    """Of each box, the object that it found, of its class; -1 for none."""
    found_by: np.ndarray
    """Of each object, the box; -1 for none."""
    ignored: np.ndarray
    """Of each box, whether it is of no object but lies in a crowd of its class."""

    @property
    def is_false(self) -> np.ndarray:
        return (self.object_of < 0) & ~self.ignored

    @property
    def support(self) -> np.ndarray:
        """Objects of each class."""
        return np.bincount(self.objects.label, minlength=self.classes)


def match_detections(
    ground_truth: Mapping[str, Any], results: Iterable[Mapping[str, Any]], kind: Kind = "bbox"
) -> Matches:
    """Boxes in COCO's result format beside annotations in COCO's format; with "segm" by the overlap of their masks.

    The best box takes first: of the objects of its class that no better box took, the one with the largest overlap,
    from `FOREGROUND` on. As in `detection_scores`, the 100 best boxes of a class and picture count.

    Raises:
        UsageError: faster-coco-eval is not installed.
    """
    pictures = {image["id"]: place for place, image in enumerate(ground_truth["images"])}
    labels = {category["id"]: place for place, category in enumerate(ground_truth["categories"])}
    annotations = sorted(ground_truth["annotations"], key=_is_crowd)  # crowds come last, and are cut off below
    results = list(results)
    objects, found = _boxes(annotations, pictures, labels), _boxes(results, pictures, labels)
    crowds = sum(map(_is_crowd, annotations))
    score = np.array([result["score"] for result in results], np.float64)
    order = _best_first(found, score)
    found, score = found.take(order), score[order]
    number = len(annotations) - crowds
    shapes = found.box, objects.box
    if kind == "segm":
        sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
        ordered = [results[place] for place in order.tolist()]
        shapes = tuple(_masks(entries, sizes) for entries in (ordered, annotations))
    pairs = _overlaps(found, objects, number, *shapes)
    same = (found.label[pairs.found] == objects.label[pairs.object]) & (pairs.iou >= FOREGROUND)
    in_crowd = pairs.object >= number
    candidates = pairs.take(np.flatnonzero(same & ~in_crowd))
    # Of equal overlaps COCO takes the later object.
    candidates = candidates.take(np.lexsort((-candidates.object, -candidates.iou, candidates.found)))
    object_of, found_by = assign(candidates, len(score), number)
    ignored = np.zeros(len(score), bool)
    ignored[pairs.found[same & in_crowd]] = True
    return Matches(
        classes=len(labels),
        found=found,
        score=score,
        objects=objects.take(np.arange(number)),
        pairs=pairs.take(np.flatnonzero(~in_crowd)),
        object_of=object_of,
        found_by=found_by,
        ignored=ignored & (object_of < 0),
    )


def assign(pairs: Pairs, found: int, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Goes through the pairs in their order, and joins those whose box and object are both still free.

    Gives the object of each box and the box of each object, -1 for none.
    """
    object_of, found_by = [-1] * found, [-1] * objects
    for box, thing in zip(pairs.found.tolist(), pairs.object.tolist(), strict=True):
        if object_of[box] < 0 and found_by[thing] < 0:
            object_of[box], found_by[thing] = thing, box
    return np.array(object_of, np.int64), np.array(found_by, np.int64)


def best_thresholds(matches: Matches, otherwise: float) -> np.ndarray:
    """Of each class, the score from which on its boxes have the highest F1.

    A class of which no box is right gets the median of the others, and where there is no other, `otherwise`.
    """
    support, thresholds = matches.support, np.full(matches.classes, np.nan)
    counted = np.flatnonzero(~matches.ignored)
    label, score, right = matches.found.label[counted], matches.score[counted], matches.object_of[counted] >= 0
    for number, places in enumerate(split_by_label(label, matches.classes)):
        hits, scores = right[places].cumsum(), score[places]
        if len(places) and hits[-1]:
            f1 = 2 * hits / (np.arange(1, len(hits) + 1) + support[number])
            f1[:-1][scores[:-1] == scores[1:]] = 0  # equal scores are shown together
            thresholds[number] = scores[f1.argmax()]
    known = ~np.isnan(thresholds)
    return np.where(known, thresholds, np.median(thresholds[known]) if known.any() else otherwise)


def shown(matches: Matches, thresholds: np.ndarray) -> np.ndarray:
    """Which boxes count at these scores of the classes."""
    return (matches.score >= thresholds[matches.found.label]) & ~matches.ignored


def box_confusion(matches: Matches, thresholds: np.ndarray) -> np.ndarray:
    """Counts `k+1 k+1` of objects by true class (rows) and class of the box (columns); the last of both is background.

    Boxes below the scores of their classes do not count. False boxes that overlap a missed object of another class by
    `FOREGROUND` or more are taken for that, the largest overlap first; the others are of the background, as are missed
    objects that no box is left for.
    """
    counted = shown(matches, thresholds)
    true = np.where(counted, matches.object_of, -1)
    missed = np.ones(len(matches.objects.label), bool)
    missed[true[true >= 0]] = False
    false = counted & (true < 0)
    pairs = matches.pairs
    # Pairs of one class are left out: a missed object has none, or a box of it that is below the score.
    other = matches.found.label[pairs.found] != matches.objects.label[pairs.object]
    wrong = np.flatnonzero(false[pairs.found] & missed[pairs.object] & (pairs.iou >= FOREGROUND) & other)
    pairs = pairs.take(wrong[np.lexsort((pairs.found[wrong], -pairs.iou[wrong]))])
    taken, _ = assign(pairs, len(true), len(missed))
    object_of = np.where(true >= 0, true, taken)[counted]
    missed[object_of[object_of >= 0]] = False
    k = matches.classes
    rows = np.append(matches.objects.label, k)[object_of]  # -1: the last
    cells = np.concatenate(((k + 1) * rows + matches.found.label[counted], (k + 1) * matches.objects.label[missed] + k))
    return np.bincount(cells, minlength=(k + 1) ** 2).reshape(k + 1, k + 1)


def split_by_label(label: np.ndarray, classes: int) -> list[np.ndarray]:
    """The places of each class, in their order."""
    return np.split(np.argsort(label, kind="stable"), np.bincount(label, minlength=classes).cumsum()[:-1])


def _is_crowd(annotation: Mapping[str, Any]) -> bool:
    return bool(annotation.get("iscrowd", 0))


def _boxes(entries: list[Any], pictures: Mapping[Any, int], labels: Mapping[Any, int]) -> Boxes:
    return Boxes(
        np.array([pictures[entry["image_id"]] for entry in entries], np.int64),
        np.array([labels[entry["category_id"]] for entry in entries], np.int64),
        np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4),
    )


def _best_first(found: Boxes, score: np.ndarray) -> np.ndarray:
    """The places of the boxes that count, in the order of falling scores."""
    order = np.lexsort((-score, found.label, found.picture))
    picture, label = found.picture[order], found.label[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (picture[1:] != picture[:-1]) | (label[1:] != label[:-1])
    rank = np.arange(len(order)) - np.flatnonzero(is_first)[is_first.cumsum() - 1]
    order = order[rank < MOST_BOXES]
    return order[np.lexsort((order, found.picture[order], -score[order]))]


def _masks(entries: list[Any], sizes: Mapping[Any, tuple[int, int]]) -> np.ndarray:
    """Run lengths of polygons, lists of run lengths, and run lengths."""
    *_, mask_api = coco_library()
    masks = np.empty(len(entries), object)
    for place, entry in enumerate(entries):
        mask, size = entry["segmentation"], sizes[entry["image_id"]]
        if isinstance(mask, list):
            mask = mask_api.merge(mask_api.frPyObjects(mask, *size))
        elif isinstance(mask["counts"], list):
            mask = mask_api.frPyObjects(mask, *size)
        masks[place] = mask
    return masks


def _overlaps(found: Boxes, objects: Boxes, first_crowd: int, shapes: np.ndarray, things_shapes: np.ndarray) -> Pairs:
    """Of the boxes or masks in each picture. One lies in a crowd with the share of its own area."""
    *_, mask_api = coco_library()
    parts: list[Pairs] = []
    number = max(found.picture.max(initial=-1), objects.picture.max(initial=-1)) + 1
    for boxes, things in zip(
        split_by_label(found.picture, number), split_by_label(objects.picture, number), strict=True
    ):
        if len(boxes) and len(things):
            crowd = (things >= first_crowd).astype(np.uint8)
            pair = shapes[boxes], things_shapes[things]
            iou = np.asarray(mask_api.iou(*(each if each.dtype != object else each.tolist() for each in pair), crowd))
            row, column = np.nonzero(iou >= BACKGROUND)
            parts.append(Pairs(boxes[row], things[column], iou[row, column]))
    nothing = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Pairs(*map(np.concatenate, zip(nothing, *parts, strict=True)))
