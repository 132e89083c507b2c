"""Figures of each class, against counts by hand and torchmetrics."""

import numpy as np
import pytest
import torch

from transept.metrics.calibration import calibration
from transept.metrics.classes import class_scores, most_confused, plain_classes


def test_scores_of_a_matrix_by_hand():
    """Of 90 common and 10 rare pictures the rare are never predicted; the third class has no pictures."""
    scores = class_scores(np.array([[90, 0, 0], [10, 0, 0], [0, 0, 0]]))
    assert scores.recall[:2].tolist() == [1, 0]
    assert scores.precision[0] == pytest.approx(0.9)
    assert scores.f1[:2] == pytest.approx([2 * 0.9 / 1.9, 0])
    assert scores.support.tolist() == [90, 10, 0]
    assert np.isnan([scores.precision[1], scores.recall[2], scores.f1[2]]).all()
    assert scores.balanced_accuracy == 0.5


def test_classes_of_one_name_are_told_apart_and_nothing_is_nan():
    rows = plain_classes(["crane", "crane", "owl"], class_scores(np.diag([1, 2, 0])), "pictures")
    assert list(rows) == ["crane (0)", "crane (1)", "owl"]
    assert rows["owl"] == {"precision": None, "recall": None, "f1": None, "pictures": 0}


def test_pairs_that_are_confused():
    matrix = np.array([[5, 1, 0], [3, 2, 0], [0, 0, 0]])
    assert most_confused(matrix, ["a", "b", "c"]) == [
        {"true": "b", "predicted": "a", "count": 3},
        {"true": "a", "predicted": "b", "count": 1},
    ]
    assert len(most_confused(matrix, ["a", "b", "c"], most=1)) == 1


def test_calibration_by_hand():
    curve = calibration(np.array([0.95, 0.95, 0.6, 1.0]), np.array([True, False, True, True]), bins=10)
    assert curve.pictures.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 3]
    assert curve.accuracy[9] == pytest.approx(2 / 3)
    assert curve.ece == pytest.approx((abs(2.9 - 2) + 0.4) / 4)


def test_calibration_is_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.classification")
    logits = torch.randn(500, 7, generator=torch.Generator().manual_seed(0)) * 2
    labels = torch.randint(7, (500,), generator=torch.Generator().manual_seed(1))
    probabilities, best = logits.softmax(dim=1).max(dim=1)
    expected = functional.multiclass_calibration_error(logits.softmax(dim=1), labels, 7, n_bins=15)
    assert calibration(probabilities.numpy(), (best == labels).numpy()).ece == pytest.approx(float(expected), abs=1e-6)
