"""What `eval` says of a detector beyond average precision: each class, errors by kind, and the worst pictures.

Precision, recall, confusion and pictures are of boxes, at an overlap of 0.5 and the score with the best F1 of each
class; average precision, its curves and errors by kind are of masks, too, where there are any.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from transept import draw
from transept.data.detection.target import DetectionSet
from transept.data.images import as_shown
from transept.metrics.classes import ClassScores, class_scores, most_confused, plain_classes
from transept.metrics.detection import DetectionScores, Kind
from transept.metrics.detection_errors import (
    CLASSIFICATION,
    DUPLICATE,
    IN_BACKGROUND,
    KINDS,
    DetectionErrors,
    detection_errors,
)
from transept.metrics.detection_matches import Matches, best_thresholds, box_confusion, match_detections, shown
from transept.style import MISSED, WRONG
from transept.tasks.reports import SHEET, Files, class_files, class_table, never_notes, write_csv
from transept.tasks.task import Column, Table
from transept.words import distinct, percent, plain_number

SHOWN_SCORE = 0.3
"""Least score of an object that people are shown, where none is asked for."""
TITLES: dict[Kind, str] = {"bbox": "box AP", "segm": "mask AP"}
_KEYS: dict[Kind, str] = {"bbox": "box_ap", "segm": "mask_ap"}
_BEFORE: dict[Kind, str] = {"bbox": "", "segm": "mask_"}
"""What names of files and figures begin with."""
_BACKGROUND = "background"
_LONGEST = 640
"""Pixels of a picture's longest side in a sheet."""


@dataclass(frozen=True)
class DetectorReport:
    """A detector's results on a set, judged."""

    names: list[str]
    scores: Mapping[Kind, DetectionScores]
    matches: Matches
    thresholds: np.ndarray
    """Of each class, the score with the best F1."""
    confusion: np.ndarray
    """True classes in rows, the last is background."""
    errors: Mapping[Kind, DetectionErrors]
    """Of boxes, and of masks where they are scored."""

    @classmethod
    def of(
        cls, truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], scores: Mapping[Kind, DetectionScores]
    ) -> "DetectorReport":
        categories = truth["categories"]
        names = distinct([category["name"] for category in categories], [category["id"] for category in categories])
        matches = match_detections(truth, results)
        thresholds = best_thresholds(matches, SHOWN_SCORE)
        confusion = box_confusion(matches, thresholds)
        errors: dict[Kind, DetectionErrors] = {
            kind: detection_errors(matches if kind == "bbox" else match_detections(truth, results, kind))
            for kind in scores
        }
        return cls(names, scores, matches, thresholds, confusion, errors)

    def metrics(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "per_class": self.per_class,
            "confused": most_confused(self.confusion, [*self.names, _BACKGROUND]),
        } | {
            f"{_BEFORE[kind]}{name}": plain(kind)
            for kind in self.scores
            for name, plain in (("errors", self._plain_errors), ("precision_recall", self._plain_curves))
        }

    @cached_property
    def per_class(self) -> dict[str, dict[str, Any]]:
        """Plain figures of each class by its name."""
        of_classes = ClassScores(*(values[:-1] for values in class_scores(self.confusion)))  # without the background
        rows = {}
        for name, row in plain_classes(self.names, of_classes, "objects").items():
            ap = {_KEYS[kind]: plain_number(scores.per_class[name]) for kind, scores in self.scores.items()}
            ap50 = plain_number(float(self.scores["bbox"].precision50[name].mean()))
            rows[name] = ap | {"box_ap50": ap50} | row | {"score": float(self.thresholds[len(rows)])}
        return rows

    def table(self) -> Table:
        """The figures of each class, and below them what errors of each kind cost."""
        kinds = list(self.scores)
        numbers = [*(TITLES[kind] for kind in kinds), "precision", "recall", "F1", "at score", "objects"]
        shares = [*(_KEYS[kind] for kind in kinds), "precision", "recall", "f1"]
        columns = [Column("class"), *(Column(name, True) for name in numbers)]
        rows = [
            [name, *(percent(row[key]) for key in shares), f"{row['score']:.2f}", str(row["objects"])]
            for name, row in self.per_class.items()
        ]
        values = np.array([self.scores["bbox"].per_class[name] for name in self.names])
        table = class_table(columns, rows, np.argsort(values, kind="stable").tolist(), "box AP")
        notes = [table.note] if table.note else []
        for kind, errors in self.errors.items():
            if not np.isnan(errors.ap50):
                costs = ", ".join(f"{name} {percent(gain)}" for name, gain in zip(KINDS, errors.gains, strict=True))
                notes.append(f"errors of each kind alone cost so much of the {TITLES[kind]}50: {costs}")
        return table._replace(note="\n".join(notes))

    def notes(self) -> list[str]:
        """Classes that are never found."""
        return never_notes(self.names, self.matches.support, self.confusion.diagonal()[:-1], "objects", "found")

    def files(self, pictures: DetectionSet) -> Files:
        """Tables and pictures; those of `pictures` are read again."""
        files = class_files(self.per_class, self.confusion, self.names, "objects", more=[_BACKGROUND])
        for kind, scores in self.scores.items():
            errors, before = self._plain_errors(kind), _BEFORE[kind]
            rows = [[name, errors[name]["count"], errors[name]["cost"]] for name in KINDS]
            rows += [[name, "", errors[name]["cost"]] for name in ("false_positive", "false_negative")]
            files |= {
                f"{before}precision_recall.csv": partial(_write_curves, self._plain_curves(kind)),
                f"{before}precision_recall.png": partial(draw.draw_precision_recall, scores.precision50),
                f"{before}errors.csv": partial(write_csv, ["kind", "count", "cost in AP50"], rows),
            }
        return files | self._sheets(pictures)

    def _plain_errors(self, kind: Kind) -> dict[str, Any]:
        errors = self.errors[kind]
        rows = zip(KINDS, errors.counts, errors.gains, strict=True)
        return {
            f"{_KEYS[kind]}50": plain_number(errors.ap50),
            **{name: {"count": count, "cost": plain_number(gain)} for name, count, gain in rows},
            "false_positive": {"cost": plain_number(errors.false_positive)},
            "false_negative": {"cost": plain_number(errors.false_negative)},
        }

    def _plain_curves(self, kind: Kind) -> dict[str, Any]:
        """Without classes that have no objects."""
        curves = {name: curve for name, curve in self.scores[kind].precision50.items() if not np.isnan(curve).any()}
        mean = np.mean(list(curves.values()), axis=0) if curves else np.zeros(0)
        return {
            "recall": np.linspace(0, 1, len(mean)).round(4).tolist(),
            "mean": mean.round(6).tolist(),
            "per_class": {name: curve.round(6).tolist() for name, curve in curves.items()},
        }

    def _sheets(self, pictures: DetectionSet) -> Files:
        """worst.png: the most missed objects and false boxes; confident.png: false boxes of the highest scores."""
        matches, number = self.matches, len(pictures)
        wrong = np.bincount(matches.found.picture[self._counted & matches.is_false], minlength=number)
        wrong += np.bincount(matches.objects.picture[self._missed], minlength=number)
        order = np.argsort(-wrong, kind="stable")
        order = order[wrong[order] > 0][:SHEET]
        confident = np.flatnonzero(matches.is_false)[:SHEET]
        files: Files = {}
        if len(order):
            files["worst.png"] = partial(self._draw_worst, pictures, order.tolist())
        if len(confident):
            files["confident.png"] = partial(self._draw_confident, pictures, confident.tolist())
        return files

    @cached_property
    def _counted(self) -> np.ndarray:
        """Which boxes have the score of their class."""
        return shown(self.matches, self.thresholds)

    @cached_property
    def _missed(self) -> np.ndarray:
        """Which objects no counted box found."""
        found_by = self.matches.found_by
        return (found_by < 0) | ~np.append(self._counted, False)[found_by]

    def _draw_worst(self, pictures: DetectionSet, order: Sequence[int], path: Path) -> None:
        matches, items = self.matches, []
        for number in order:
            picture, scale = _reduced(as_shown(pictures[number][0]), _LONGEST)
            here = self._counted & (matches.found.picture == number)
            right, false = here & ~matches.is_false, here & matches.is_false
            unseen = self._missed & (matches.objects.picture == number)
            said = [
                f"{draw.shorten(self.names[label], 20)} {score:.2f}"
                for label, score in zip(matches.found.label[false], matches.score[false], strict=True)
            ]
            items.append(
                draw.Judged(
                    pictures.paths[number].name,
                    picture,
                    _corners(matches.found.box[right]) * scale,
                    _corners(matches.found.box[false]) * scale,
                    said,
                    _corners(matches.objects.box[unseen]) * scale,
                    [draw.shorten(self.names[label], 20) for label in matches.objects.label[unseen]],
                )
            )
        draw.draw_judged(items, path)

    def _draw_confident(self, pictures: DetectionSet, boxes: Sequence[int], path: Path) -> None:
        items = []
        for place in boxes:
            number, near = int(self.matches.found.picture[place]), int(self.errors["bbox"].near[place])
            whole = as_shown(pictures[number][0])
            (box,) = _corners(self.matches.found.box[[place]])
            window = _surroundings(box, whole.size)
            picture, scale = _reduced(whole.crop(window), 256)
            marks = [draw.Mark(_placed(box, window, scale), WRONG)]
            if near >= 0:
                (true,) = _corners(self.matches.objects.box[[near]])
                marks.insert(0, draw.Mark(_placed(true, window, scale), MISSED, dashed=True))
            said = [(self.names[self.matches.found.label[place]], float(self.matches.score[place]))]
            items.append(draw.Labelled(pictures.paths[number].name, picture, said, self._truth(place), marks))
        draw.draw_sheet(items, path)

    def _truth(self, place: int) -> str:
        """What a false box is of."""
        kind, near = self.errors["bbox"].kind[place], self.errors["bbox"].near[place]
        if kind == IN_BACKGROUND:
            return _BACKGROUND
        name = self.names[self.matches.objects.label[near]]
        if kind == CLASSIFICATION:
            return name
        if kind == DUPLICATE:
            return f"{draw.shorten(name, 14)}, found twice"
        return f"{draw.shorten(name, 17)}, IoU {self.errors['bbox'].overlap[place]:.2f}"


def _write_curves(curves: Mapping[str, Any], path: Path) -> None:
    columns = [curves["recall"], curves["mean"], *curves["per_class"].values()]
    write_csv(["recall", "mean", *curves["per_class"]], zip(*columns, strict=True), path)


def _corners(boxes: np.ndarray) -> np.ndarray:
    """x y width height to x1 y1 x2 y2."""
    return np.hstack((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]))


def _reduced(picture: Any, longest: int) -> tuple[Any, float]:
    """The picture with no side longer than this, and the factor of its sides."""
    scale = min(1.0, longest / max(picture.size))
    if scale == 1:
        return picture, scale
    return picture.resize([max(1, round(side * scale)) for side in picture.size], reducing_gap=2.0), scale


def _surroundings(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A square window around a box, twice as long and at least 48 pixels, moved into the picture and cut to it."""
    side = max(48.0, 2 * float((box[2:] - box[:2]).max()))
    low = np.clip((box[:2] + box[2:] - side) / 2, 0, np.maximum(np.array(size) - side, 0))
    x1, y1 = np.floor(low).astype(int).tolist()
    x2, y2 = np.minimum(np.ceil(low + side), size).astype(int).tolist()
    return x1, y1, x2, y2


def _placed(box: np.ndarray, window: tuple[int, int, int, int], scale: float) -> tuple[float, float, float, float]:
    """A box in the pixels of a window that was cut out and scaled, cut to it."""
    x1, y1, x2, y2 = window
    low, high = np.array([x1, y1]), np.array([x2, y2])
    left, top, right, bottom = ((np.clip(box.reshape(2, 2), low, high) - low) * scale).ravel().tolist()
    return left, top, right, bottom
