"""What a confusion matrix says of each class: precision, recall, F1, support, and which classes are taken for which."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from transept.words import distinct, plain_number


class ClassScores(NamedTuple):
    """Of each class, in its place; NaN for what no sample decides."""

    precision: np.ndarray
    """Share of what was predicted as the class that is of it; NaN for a class that is never predicted."""
    recall: np.ndarray
    """Share of the class that was found; NaN for a class without samples."""
    f1: np.ndarray
    """Harmonic mean of the two; NaN for a class that is neither there nor predicted."""
    support: np.ndarray
    """True samples."""

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have samples; NaN where none has."""
        known = self.recall[self.support > 0]
        return float(known.mean()) if known.size else float("nan")


def class_scores(matrix: np.ndarray) -> ClassScores:
    """Scores of counts `k k`, true classes in rows."""
    from sklearn.metrics import precision_recall_fscore_support  # two seconds, which every verb would wait for

    if not matrix.any():
        nothing = np.full(len(matrix), np.nan)
        return ClassScores(nothing, nothing, nothing, np.zeros(len(matrix), np.int64))
    true, predicted = np.indices(matrix.shape).reshape(2, -1)
    scores = precision_recall_fscore_support(
        true,
        predicted,
        labels=np.arange(len(matrix)),
        sample_weight=matrix.ravel(),
        zero_division=np.nan,  # pyright: ignore[reportArgumentType]
    )
    precision, recall, f1, support = map(np.asarray, scores)
    return ClassScores(precision, recall, f1, support.round().astype(np.int64))


def plain_classes(classes: Sequence[str], scores: ClassScores, count: str) -> dict[str, dict[str, Any]]:
    """The scores of each class by its name, for JSON; its samples are called `count` there."""
    rows = zip(scores.precision, scores.recall, scores.f1, scores.support, strict=True)
    return {
        name: {
            "precision": plain_number(float(precision)),
            "recall": plain_number(float(recall)),
            "f1": plain_number(float(f1)),
            count: int(support),
        }
        for name, (precision, recall, f1, support) in zip(distinct(classes), rows, strict=True)
    }


def most_confused(matrix: np.ndarray, classes: Sequence[str], most: int = 100) -> list[dict[str, Any]]:
    """The pairs of classes that are taken for each other, for JSON: the most frequent first, at most so many."""
    wrong = matrix - np.diag(matrix.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    cells = zip(*(part.tolist() for part in np.unravel_index(order, wrong.shape)), strict=True)
    return [
        {"true": classes[row], "predicted": classes[column], "count": int(wrong[row, column])}
        for row, column in cells
        if wrong[row, column] > 0
    ]
