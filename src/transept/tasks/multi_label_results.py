"""What a classifier's answers say in `eval`, where a picture has any number of labels."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from transept import draw
from transept.data.classification.image_set import ImageSet, label_words
from transept.data.images import Skipped, as_shown
from transept.metrics.calibration import calibration
from transept.metrics.classes import plain_classes
from transept.metrics.multi_label import MultiLabelMeter, MultiLabelScores, curve_of, multi_label_scores
from transept.tasks.classify_results import plain_curve
from transept.tasks.reports import SHEET, Files, class_notes, class_table, per_class_file
from transept.tasks.task import Column, Evaluation, Table
from transept.words import distinct, percent, plain_number

_TINY = 1e-7


def multi_label_evaluation(
    meter: MultiLabelMeter,
    classes: Sequence[str],
    images: ImageSet,
    thresholds: np.ndarray,
    *,
    seconds: float,
    skipped: Sequence[Skipped],
) -> Evaluation:
    """What `meter` saw of `images`, in their order; labels are said from `thresholds`, ` k`, on."""
    labels, probabilities = meter.answers()
    scores = multi_label_scores(labels, probabilities, thresholds)
    curve = calibration(probabilities.ravel(), labels.ravel().astype(bool))
    figures = plain_classes(classes, scores.classes, "pictures")
    per_class = {
        name: {"average_precision": plain_number(float(average)), **shares, "threshold": float(threshold)}
        for (name, shares), average, threshold in zip(
            figures.items(), scores.average_precision, thresholds, strict=True
        )
    }
    loss = meter.loss
    summary = (
        f"mAP {percent(scores.map)}   macro F1 {percent(scores.macro_f1)}   micro F1 {percent(scores.micro_f1)}   "
        f"loss {loss:.4f}   calibration error {curve.ece:.2%}"
    )
    return Evaluation(
        metrics={
            "loss": loss,
            "map": plain_number(scores.map),
            "macro_f1": plain_number(scores.macro_f1),
            "micro_f1": plain_number(scores.micro_f1),
            "without_labels": int((~labels.any(axis=1)).sum()),
            "ece": curve.ece,
            "calibration": plain_curve(curve),
            "per_class": per_class,
        },
        summary=summary,
        table=_table(classes, scores, thresholds),
        images=meter.samples,
        seconds=seconds,
        skipped=skipped,
        notes=class_notes(classes, scores.classes.support, (probabilities >= thresholds).sum(axis=0), "pictures"),
        files=per_class_file(per_class)
        | _curves(classes, labels, probabilities, scores)
        | {
            "calibration.png": partial(
                draw.draw_calibration, curve, of="a label", right="that have the label", unit="labels"
            ),
            "worst.png": partial(_draw_worst, images, classes, labels, probabilities, thresholds),
        },
    )


def _table(classes: Sequence[str], scores: MultiLabelScores, thresholds: np.ndarray) -> Table:
    names = ("AP", "precision", "recall", "F1", "pictures", "threshold")
    figures = zip(distinct(classes), scores.average_precision.tolist(), *scores.classes, thresholds, strict=True)
    rows = [
        [name, *map(percent, shares), str(support), f"{threshold:.3f}"] for name, *shares, support, threshold in figures
    ]
    worst_first = np.argsort(scores.average_precision, kind="stable")  # NaN comes last
    columns = [Column("class"), *(Column(name, True) for name in names)]
    return class_table(columns, rows, worst_first.tolist(), "AP")


def _curves(classes: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, scores: MultiLabelScores) -> Files:
    """precision_recall.png, where any class has pictures."""
    curves = []
    for i, name in enumerate(distinct(classes)):
        if not scores.classes.support[i]:
            continue
        curve = curve_of(labels[:, i], probabilities[:, i])
        chosen = float(scores.classes.recall[i]), float(scores.classes.precision[i])
        # From the highest threshold on: recall rises.
        line = curve.recall[::-1], curve.precision[::-1]
        curves.append(draw.ClassCurve(name, float(scores.average_precision[i]), *line, chosen))
    return {"precision_recall.png": partial(draw.draw_threshold_curves, curves)} if curves else {}


def _draw_worst(
    images: ImageSet,
    classes: Sequence[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    thresholds: np.ndarray,
    path: Path,
) -> None:
    """The pictures with the highest loss, read again: what they have, and all that is said or should be."""
    likely = np.clip(np.where(labels == 1, probabilities, 1 - probabilities), _TINY, 1)
    order = np.argsort(np.log(likely).mean(axis=1), kind="stable")[:SHEET]
    items = []
    for i in order.tolist():
        picture = as_shown(images[i][0]).copy()
        picture.thumbnail((256, 256))
        shown = np.flatnonzero((labels[i] == 1) | (probabilities[i] >= thresholds))
        shown = shown[np.argsort(-probabilities[i, shown], kind="stable")][:8]
        best: list[tuple[str, float]] = [(classes[int(k)], float(probabilities[i, k])) for k in shown]
        items.append(draw.Labelled(images.paths[i].name, picture, best, label_words(labels[i], classes)))
    draw.draw_sheet(items, path)
