"""What a classifier's answers say in `eval`: figures of each class, calibration, and the worst pictures."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from transept import draw
from transept.data.classification.image_set import ImageSet
from transept.data.images import Skipped, as_shown
from transept.metrics.accuracy import AccuracyMeter
from transept.metrics.calibration import Calibration, calibration
from transept.metrics.classes import ClassScores, class_scores, most_confused, plain_classes
from transept.tasks.reports import SHEET, Files, class_files, class_notes, class_table
from transept.tasks.task import Column, Evaluation, Table
from transept.words import distinct, percent, plain_number


class AnswersMeter(AccuracyMeter):
    """Accuracy and loss, and of each picture four numbers, in the order of the pictures."""

    def reset(self) -> None:
        super().reset()
        self._batches: list[Tensor] = []

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        super().update(loss, logits, labels)
        probabilities, best = logits.float().softmax(dim=1).max(dim=1)
        losses = cross_entropy(logits.float(), labels, reduction="none")
        self._batches.append(
            torch.stack([labels.double(), best.double(), probabilities.double(), losses.double()]).cpu()
        )

    def answers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of each picture: its label, the best class, the probability of that, and the loss."""
        labels, best, probabilities, losses = torch.cat(self._batches, dim=1).numpy()
        return labels.astype(np.int64), best.astype(np.int64), probabilities, losses


def classifier_evaluation(
    meter: AnswersMeter, classes: Sequence[str], images: ImageSet, *, seconds: float, skipped: Sequence[Skipped]
) -> Evaluation:
    """What `meter` saw of `images`, in their order."""
    labels, best, probabilities, losses = meter.answers()
    matrix = np.bincount(labels * len(classes) + best, minlength=len(classes) ** 2).reshape(len(classes), -1)
    scores, curve = class_scores(matrix), calibration(probabilities, labels == best)
    per_class = plain_classes(classes, scores, "pictures")
    means = meter.means()
    five = f"top-5 {means['top5']:.2%}   " if len(classes) > 5 else ""  # else all are right
    summary = f"top-1 {means['top1']:.2%}   {five}loss {means['loss']:.4f}   "
    balanced = scores.balanced_accuracy
    metrics = means | {
        "balanced_accuracy": plain_number(balanced),
        "ece": curve.ece,
        "calibration": plain_curve(curve),
        "per_class": per_class,
        "confused": most_confused(matrix, classes),
    }
    return Evaluation(
        metrics=metrics,
        summary=summary + f"balanced accuracy {percent(balanced)}   calibration error {curve.ece:.2%}",
        table=_table(classes, scores),
        images=meter.samples,
        seconds=seconds,
        skipped=skipped,
        notes=class_notes(classes, scores.support, matrix.sum(axis=0), "pictures"),
        files=class_files(per_class, matrix, classes, "pictures")
        | {"calibration.png": partial(draw.draw_calibration, curve)}
        | _sheets(images, classes, (labels, best, probabilities, losses)),
    )


def _table(classes: Sequence[str], scores: ClassScores) -> Table:
    columns = [Column("class"), *(Column(name, True) for name in ("precision", "recall", "F1", "pictures"))]
    figures = zip(distinct(classes), *(part.tolist() for part in scores), strict=True)
    rows = [[name, *map(percent, shares), str(support)] for name, *shares, support in figures]
    worst_first = np.argsort(scores.f1, kind="stable")  # NaN comes last
    return class_table(columns, rows, worst_first.tolist(), "F1")


def plain_curve(curve: Calibration) -> list[dict[str, Any]]:
    """A calibration curve, for JSON."""
    edges = np.linspace(0, 1, len(curve.pictures) + 1).tolist()
    rows = zip(curve.pictures.tolist(), curve.confidence.tolist(), curve.accuracy.tolist(), strict=True)
    return [
        {"bin": [edges[i], edges[i + 1]], "pictures": n, "confidence": plain_number(c), "accuracy": plain_number(a)}
        for i, (n, c, a) in enumerate(rows)
    ]


Answers = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _sheets(images: ImageSet, classes: Sequence[str], answers: Answers) -> Files:
    """worst.png: the highest losses; confident.png: wrong with the highest probability, where anything is wrong."""
    labels, best, probabilities, losses = answers
    wrong = np.flatnonzero(labels != best)
    orders = {
        "worst.png": np.argsort(-losses, kind="stable"),
        "confident.png": wrong[np.argsort(-probabilities[wrong], kind="stable")],
    }
    return {
        name: partial(_draw_worst, images, classes, answers, order[:SHEET].tolist())
        for name, order in orders.items()
        if len(order)
    }


def _draw_worst(images: ImageSet, classes: Sequence[str], answers: Answers, order: Sequence[int], path: Path) -> None:
    """The pictures of these numbers, read again."""
    labels, best, probabilities, losses = answers
    items = []
    for i in order:
        picture = as_shown(images[i][0]).copy()
        picture.thumbnail((256, 256))
        truth, taken = int(labels[i]), int(best[i])
        shown = [(classes[taken], float(probabilities[i]))]
        if truth != taken:
            shown.append((classes[truth], float(np.exp(-losses[i]))))
        items.append(draw.Labelled(images.paths[i].name, picture, shown, classes[truth]))
    draw.draw_sheet(items, path)
