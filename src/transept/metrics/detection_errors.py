"""What keeps a detector from a higher average precision: its errors by kind.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", arXiv 2008.08115, Sections 2.2 and 2.3,
with its overlaps of 0.5 and 0.1, on boxes. Each kind is weighed by how much AP50 rises when errors of that kind alone
are mended. Where paper and official code (tidecv 1.0.1) differ, this does what the code does, so that figures can be
compared:

- localisation is asked before classification;
- a box at an object that another box found is left out when it is mended, also where its own score is the higher one;
- of the boxes that could be mended to one object the best is, whether classification or localisation is wrong in it.

It differs from the code in three. Boxes in crowds are no errors of any kind; the code judges them, too. Classes without
objects have no AP, as in COCO's evaluation; the code counts them as 0 as long as they have boxes. And the 101 recalls
are the very numbers of COCO's, some of which the code misses by a rounding error, and then reads the precision beside.
"""

from typing import NamedTuple

import numpy as np

from transept.metrics.detection_matches import BACKGROUND, FOREGROUND, Matches, Pairs, split_by_label

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, IN_BACKGROUND, MISSED = range(6)


class DetectionErrors(NamedTuple):
    """Errors by kind; shares in 0..1."""

    ap50: float
    """Average precision of boxes at an overlap of 0.5."""
    gains: tuple[float, ...]
    """How much of `ap50` errors of each of `KINDS` cost."""
    counts: tuple[int, ...]
    """How many there are, whatever the score: false boxes, and in the last objects that no box comes near."""
    false_positive: float
    """What `ap50` gains if all false boxes come after all right ones."""
    false_negative: float
    """What it gains if no object is missed."""
    kind: np.ndarray
    """Of each box, the place of its error in `KINDS`; -1 where it is right or ignored."""
    near: np.ndarray
    """Of each false box, the object that it names wrongly, frames badly or finds once more; -1 for none."""
    overlap: np.ndarray
    """With that; 0 for none."""


def detection_errors(matches: Matches) -> DetectionErrors:
    """The errors of these boxes; NaN where there are no objects."""
    kind, near, overlap = _kinds(matches)
    label, right = matches.found.label, matches.object_of >= 0
    support, known = matches.support, matches.support > 0
    free = matches.found_by < 0
    # Of each free object, the best box that could be mended to it.
    mends = np.flatnonzero(np.isin(kind, (CLASSIFICATION, LOCALISATION)))
    mends = mends[free[near[mends]]]
    best = np.full(len(free), len(label))
    np.minimum.at(best, near[mends], mends)
    missed = free & (best == len(label))
    best = best[best < len(label)]

    def ap(keep: np.ndarray, label: np.ndarray = label, right: np.ndarray = right, left: np.ndarray = support) -> float:
        return _mean_ap(label[keep], right[keep], left, known)

    def without(objects: np.ndarray) -> np.ndarray:
        return support - np.bincount(matches.objects.label[objects], minlength=matches.classes)

    counted = ~matches.ignored
    ap50, gains = ap(counted), []
    for number in range(MISSED):
        mended = best[kind[best] == number]
        new_right, new_label = right.copy(), label.copy()
        new_right[mended] = True
        new_label[mended] = matches.objects.label[near[mended]]
        gains.append(ap(counted & ((kind != number) | new_right), new_label, new_right))
    gains.append(ap(counted, left=without(missed)))
    by_right = np.flatnonzero(counted)
    by_right = by_right[np.argsort(~right[by_right], kind="stable")]
    return DetectionErrors(
        ap50=ap50,
        # The curve is read at 101 recalls: mending can shift it by one and seem to do harm.
        gains=tuple(float(np.maximum(gain - ap50, 0)) for gain in gains),
        counts=(*np.bincount(kind[kind >= 0], minlength=MISSED).tolist(), int(missed.sum())),
        false_positive=ap(by_right) - ap50,
        false_negative=ap(counted, left=without(free)) - ap50,
        kind=kind,
        near=near,
        overlap=overlap,
    )


def _kinds(matches: Matches) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each box its kind of error, the object that it is near, and how far they overlap; -1, -1 and 0 for none."""
    pairs, number = matches.pairs, len(matches.score)
    same = matches.found.label[pairs.found] == matches.objects.label[pairs.object]
    used = matches.found_by[pairs.object] >= 0
    own, own_iou = _nearest(pairs.take(np.flatnonzero(same)), number)
    other, other_iou = _nearest(pairs.take(np.flatnonzero(~same)), number)
    found, found_iou = _nearest(pairs.take(np.flatnonzero(same & used)), number)
    nothing, no_overlap = np.full(number, -1), np.zeros(number)
    rules = [  # the first that is true
        (~matches.is_false, -1, nothing, no_overlap),
        ((own_iou >= BACKGROUND) & (own_iou <= FOREGROUND), LOCALISATION, own, own_iou),
        (other_iou >= FOREGROUND, CLASSIFICATION, other, other_iou),
        (found_iou >= FOREGROUND, DUPLICATE, found, found_iou),
        (np.maximum(own_iou, other_iou) <= BACKGROUND, IN_BACKGROUND, nothing, no_overlap),
        (np.ones(number, bool), BOTH, other, other_iou),
    ]
    conditions, kinds, near, overlap = zip(*rules, strict=True)
    kind = np.select(list(conditions), [np.full(number, each) for each in kinds])
    return kind, np.select(list(conditions), list(near)), np.select(list(conditions), list(overlap))


def _nearest(pairs: Pairs, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each box the object with the largest overlap, and that; -1 and 0 for none."""
    pairs = pairs.take(np.lexsort((-pairs.object, pairs.iou)))  # of what is written twice, the last stays
    nearest, iou = np.full(number, -1), np.zeros(number)
    nearest[pairs.found], iou[pairs.found] = pairs.object, pairs.iou
    return nearest, iou


def _mean_ap(label: np.ndarray, right: np.ndarray, support: np.ndarray, known: np.ndarray) -> float:
    """Mean over the classes that are `known` to have objects; `support` may leave none of them to find."""
    if not known.any():
        return float("nan")
    values = []
    for number, places in enumerate(split_by_label(label, len(support))):
        if known[number] and (support[number] or len(places)):
            values.append(_average_precision(right[places], int(support[number])))
    return float(np.mean(values)) if values else 1.0  # nothing was left to find, and nothing false was said


def _average_precision(right: np.ndarray, support: int) -> float:
    """COCO's, of boxes in the order of falling scores: the mean of the precision at 101 recalls."""
    if not support:
        return 0.0
    hits = right.cumsum()
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    places = np.searchsorted(hits / support, np.linspace(0, 1, 101), side="left")
    return float(np.append(precision, 0.0)[places].mean())
