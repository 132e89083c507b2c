"""Errors by kind equal those of the official code (tide_figures.py); what the two differ in, by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transept.metrics.detection import detection_scores
from transept.metrics.detection_errors import KINDS, detection_errors
from transept.metrics.detection_matches import best_thresholds, box_confusion, match_detections

pytest.importorskip("faster_coco_eval")

SETS = json.loads(Path(__file__).with_name("tide_figures.json").read_text())["sets"]
CAT, DOG, BIRD = 1, 2, 3


def entry(label: int, box: tuple[float, float, float, float], **more: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": label, "bbox": list(box), **more}


def truth_of(*annotations: dict[str, Any]) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "height": 100, "width": 400}],
        "categories": [{"id": number, "name": name} for number, name in ((1, "cat"), (2, "dog"), (3, "bird"))],
        "annotations": [{"id": i, "iscrowd": 0} | each for i, each in enumerate(annotations, 1)],
    }


ONE_OF_EACH = truth_of(
    entry(CAT, (0, 0, 20, 20)), entry(DOG, (100, 0, 20, 20)), entry(CAT, (200, 0, 20, 20)), entry(CAT, (300, 0, 20, 20))
)
FOUND = [
    entry(CAT, (0, 0, 20, 20), score=0.9),
    entry(CAT, (1, 0, 20, 20), score=0.8),  # once more
    entry(CAT, (100, 0, 20, 20), score=0.7),  # a dog
    entry(CAT, (200, 0, 20, 8), score=0.6),  # 0.4 of it
    entry(DOG, (310, 0, 20, 20), score=0.5),  # 1/3 of a cat
    entry(DOG, (50, 50, 20, 20), score=0.4),  # nothing
]


@pytest.mark.parametrize("number", range(len(SETS)))
def test_equals_the_official_code(number: int):
    truth, results, tide = SETS[number]["truth"], SETS[number]["results"], SETS[number]["tide"]
    errors = detection_errors(match_detections(truth, results, SETS[number]["kind"]))
    assert list(errors.counts) == tide["counts"]
    assert min(errors.counts) > 0
    assert errors.ap50 * 100 == pytest.approx(tide["ap50"], abs=1e-9)
    np.testing.assert_allclose(np.array(errors.gains) * 100, tide["gains"], rtol=0, atol=1e-9)
    special = [100 * errors.false_positive, 100 * errors.false_negative]
    np.testing.assert_allclose(special, tide["special"], rtol=0, atol=1e-9)


def test_one_error_of_each_kind():
    errors = detection_errors(match_detections(ONE_OF_EACH, FOUND))
    assert [KINDS[kind] for kind in errors.kind[1:]] == [
        "duplicate",
        "classification",
        "localisation",
        "both",
        "background",
    ]
    assert errors.counts == (1, 1, 1, 1, 1, 1)
    assert errors.near.tolist() == [-1, 0, 1, 2, 3, -1]
    assert errors.overlap == pytest.approx([0, 19 / 21, 1, 0.4, 1 / 3, 0])
    cats = 34 / 101  # recalls 0 to 0.33, at a precision of 1
    assert errors.ap50 == pytest.approx(cats / 2)
    # The dog is found at once; the two false dogs come after it.
    assert errors.gains[0] == pytest.approx(0.5)
    assert errors.gains[5] == pytest.approx((51 / 101 - cats) / 2)


def test_crowds_and_what_lies_in_them_count_nowhere():
    crowd = entry(DOG, (0, 50, 400, 50), iscrowd=1)
    crowded = truth_of(*ONE_OF_EACH["annotations"], crowd)
    inside = [entry(DOG, (20 * i, 55, 20, 20), score=0.95) for i in range(5)]
    matches = match_detections(crowded, FOUND + inside)
    errors = detection_errors(matches)
    assert matches.ignored.sum() == 6  # the dog in the background, too
    assert errors.counts == (1, 1, 1, 1, 0, 1)
    assert errors.ap50 == pytest.approx(detection_scores(crowded, FOUND + inside).map50, abs=1e-12)
    matrix = box_confusion(matches, best_thresholds(matches, 0.3))
    assert matrix[:3].sum() == 4
    assert errors.gains[4] == 0


def test_boxes_of_a_class_without_objects_change_no_ap():
    birds = [entry(BIRD, (200, 0, 20, 20), score=0.99), entry(BIRD, (60, 60, 9, 9), score=0.2)]
    plain = detection_errors(match_detections(ONE_OF_EACH, FOUND))
    with_birds = detection_errors(match_detections(ONE_OF_EACH, FOUND + birds))
    assert with_birds.ap50 == plain.ap50 == pytest.approx(detection_scores(ONE_OF_EACH, FOUND + birds).map50)
    assert with_birds.counts == (2, 1, 1, 1, 2, 1)
    assert with_birds.gains[4] == plain.gains[4]


def test_the_score_with_the_best_f1_and_the_confusion_there():
    matches = match_detections(ONE_OF_EACH, FOUND)
    # Cats: 1 of 1, 1 of 2, ... are right. No dog is: the median of the others.
    assert best_thresholds(matches, 0.3).tolist() == [0.9, 0.9, 0.9]
    assert box_confusion(matches, np.array([0.9, 0.9, 0.9])).tolist() == [
        [1, 0, 0, 2],
        [0, 0, 0, 1],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    assert box_confusion(matches, np.array([0.0, 0.0, 0.0])).tolist() == [
        [1, 0, 0, 2],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
        [2, 2, 0, 0],
    ]


def test_boxes_of_one_score_are_shown_together():
    truth = truth_of(entry(CAT, (0, 0, 20, 20)), entry(CAT, (50, 0, 20, 20)))
    results = [entry(CAT, (x, 0, 20, 20), score=score) for x, score in ((0, 0.8), (100, 0.5), (50, 0.5), (150, 0.5))]
    # 1 of 1 is right: F1 2/3. From 0.5 on 2 of 4: 2/3, too, and the higher score stays.
    assert best_thresholds(match_detections(truth, results), 0.3)[0] == 0.8


def test_nothing_found_and_nothing_to_find():
    nothing = match_detections(ONE_OF_EACH, [])
    errors = detection_errors(nothing)
    assert (errors.ap50, errors.gains[5], errors.false_negative, errors.counts[5]) == (0, 1, 1, 4)
    assert best_thresholds(nothing, 0.3).tolist() == [0.3, 0.3, 0.3]
    assert box_confusion(nothing, np.full(3, 0.3))[:, 3].tolist() == [3, 1, 0, 0]
    errors = detection_errors(match_detections(truth_of(), FOUND))
    assert np.isnan(errors.ap50)
    assert np.isnan(errors.gains).all()
    assert errors.counts == (0, 0, 0, 0, 6, 0)
