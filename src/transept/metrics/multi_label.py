"""Scores of classifiers that give a picture any number of labels.

Figures are scikit-learn's; its import takes two seconds, which every verb would wait for, so functions do it.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from transept.metrics.classes import ClassScores
from transept.metrics.loss import LossMeter

DEFAULT_THRESHOLD = 0.5


class Curve(NamedTuple):
    """Precision and recall of a class at every threshold, from all pictures to none."""

    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray
    """One fewer: none leaves precision 1 and recall 0."""


class MultiLabelScores(NamedTuple):
    """All in 0..1."""

    average_precision: np.ndarray
    """Of each class, ` k`; NaN for a class without pictures."""
    classes: ClassScores
    """At the thresholds."""
    micro_f1: float
    """F1 of all answers together."""

    @property
    def map(self) -> float:
        """Mean average precision of the classes that have pictures; NaN where none has."""
        return _mean(self.average_precision)

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have pictures; NaN where none has."""
        return _mean(self.classes.f1[self.classes.support > 0])


def multi_label_scores(labels: np.ndarray, scores: np.ndarray, thresholds: np.ndarray) -> MultiLabelScores:
    """Of labels `n k` (0 or 1), probabilities `n k`, and the least probability ` k` of an answer."""
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support  # see above

    answers = scores >= thresholds
    options: dict[str, Any] = dict(average=None, zero_division=np.nan)
    precision, recall, f1, support = precision_recall_fscore_support(labels, answers, **options)
    options["average"] = "micro"
    _, _, micro, _ = precision_recall_fscore_support(labels, answers, **options)
    average_precision = [
        average_precision_score(truth, score) if truth.any() else np.nan
        for truth, score in zip(labels.T, scores.T, strict=True)
    ]
    per_class = ClassScores(np.asarray(precision), np.asarray(recall), np.asarray(f1), np.asarray(support, np.int64))
    return MultiLabelScores(np.asarray(average_precision), per_class, float(micro))


def curve_of(labels: np.ndarray, scores: np.ndarray) -> Curve:
    """Of one class, labels and probabilities ` n`."""
    from sklearn.metrics import precision_recall_curve  # see above

    return Curve(*precision_recall_curve(labels, scores))


def best_thresholds(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The threshold of each class with the highest F1, ` k`, of labels and probabilities `n k`.

    It lies in the middle between two probabilities that occur, so that others near them are judged alike; classes
    without pictures, which no threshold finds, have `DEFAULT_THRESHOLD`.
    """
    return np.array([_best_threshold(*pair) for pair in zip(labels.T, scores.T, strict=True)])


def _best_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    if not labels.any():
        return DEFAULT_THRESHOLD
    curve = curve_of(labels, scores)
    precision, recall = curve.precision[:-1], curve.recall[:-1]
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    threshold = float(curve.thresholds[f1.argmax()])
    below = scores[scores < threshold]
    return (threshold + float(below.max(initial=0))) / 2


class MultiLabelMeter(LossMeter):
    """Mean loss, mean average precision, and F1 at the best thresholds; keeps all answers."""

    def reset(self) -> None:
        super().reset()
        self._scores: list[Tensor] = []
        self._labels: list[Tensor] = []

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:  # pyright: ignore
        """Logits and labels `b k`."""
        super().update(loss, logits, labels)
        self._scores.append(logits.detach().float().sigmoid().cpu())
        self._labels.append((labels >= 0.5).to(torch.uint8).cpu())

    def state(self) -> dict[str, Any]:
        kept = {"scores": torch.cat(self._scores), "labels": torch.cat(self._labels)} if self._scores else {}
        return super().state() | kept

    def add(self, state: dict[str, Any]) -> None:
        super().add(state)
        if "scores" in state:
            self._scores.append(state["scores"])
            self._labels.append(state["labels"])

    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels and probabilities, `n k`."""
        return torch.cat(self._labels).numpy(), torch.cat(self._scores).numpy()

    def thresholds(self) -> np.ndarray:
        """See `best_thresholds`."""
        return best_thresholds(*self.answers())

    def means(self) -> dict[str, float]:
        labels, probabilities = self.answers()
        scores = multi_label_scores(labels, probabilities, self.thresholds())
        return super().means() | {"map": scores.map, "micro_f1": scores.micro_f1, "macro_f1": scores.macro_f1}


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
