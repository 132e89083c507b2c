"""A segmenter's answers in `eval` and `predict`: mIoU and the worst pictures, and three files for each picture."""

import heapq
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from transept import draw
from transept.data.images import as_shown
from transept.data.segmentation.sets import SegmentationSet, SegmentationSplits
from transept.errors import TranseptError
from transept.files import write_together
from transept.metrics.classes import class_scores, most_confused, plain_classes
from transept.metrics.segmentation import ConfusionMeter, SegmentationScores
from transept.style import Color
from transept.tasks.dense import predict_all
from transept.tasks.labelling import ranked_table
from transept.tasks.reports import SHEET, class_files, never_notes
from transept.tasks.task import Column, Evaluation, FileNames, Results, Table, Task, check_folder
from transept.words import listed, percent, plain_number

_LONGEST = 320
"""Pixels of a picture's longest side in the sheet of the worst."""
ENDINGS = {"overlay": ".overlay.png", "labels": ".labels.png", "json": ".shares.json"}


def evaluate_segmenter(
    task: Task,
    splits: SegmentationSplits,
    data: str,
    inference: Any,
    workers: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]],
) -> Evaluation:
    """See `Segmenter.evaluate`."""
    meter, worst = ConfusionMeter(len(task.classes)), WorstPictures()

    def add(picture: Tensor, prediction: Any, mask: Tensor) -> None:
        labels, of_picture = prediction.labels.cpu(), ConfusionMeter(len(task.classes))
        of_picture.update(labels, mask)
        meter.matrix += of_picture.matrix
        worst.add(of_picture, labels)

    seconds = predict_all(task, splits, data, inference, add, workers=workers, progress=progress)
    scores, pixels = meter.scores(), meter.matrix.sum(dim=1)
    if not pixels.sum():
        raise TranseptError(f"no pixel of the measured masks of {data!r} is of a class; all are to be ignored")
    absent = [name for name, count in zip(task.classes, pixels.tolist(), strict=True) if count == 0]
    matrix = meter.matrix.cpu().numpy()
    per_class = _per_class(task.classes, scores, matrix)
    metrics = {
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
        "mean_accuracy": scores.mean_accuracy,
        "per_class": per_class,
        "absent": absent,
        "confused": most_confused(matrix, task.classes),
        "ratios": list(inference.ratios),
        "flip": inference.flip,
        "crop": None if inference.crop is None else list(inference.crop),
        "stride": None if inference.stride is None else list(inference.stride),
    }
    return Evaluation(
        metrics=metrics,
        summary=f"mIoU {scores.miou:.2%}   pixel accuracy {scores.pixel_accuracy:.2%}   "
        f"mean class accuracy {scores.mean_accuracy:.2%}",
        table=_class_table(per_class),
        images=len(splits.val),
        seconds=seconds,
        skipped=splits.skipped,
        notes=[
            *([_absent_note(absent, data)] if absent else []),
            *never_notes(task.classes, matrix.sum(axis=1), matrix.sum(axis=0), "pixels"),
        ],
        split=splits.parts.split,
        measured=splits.parts.measured(len(splits.val), len(task.classes) - len(absent), data),
        files=class_files(per_class, matrix, task.classes, "pixels")
        | {"worst.png": partial(worst.draw, splits.val, task.classes, splits.palette)},
    )


class WorstPictures:
    """The pictures with the least mean IoU of the classes that occur in them, and what was predicted, made small."""

    def __init__(self, most: int = SHEET) -> None:
        self._most = most
        self._seen = 0
        self._heap: list[tuple[float, int, np.ndarray]] = []
        """The best of the worst first: IoU and place of the picture, both negative, and class numbers `h w`."""

    def add(self, meter: ConfusionMeter, labels: Tensor) -> None:
        """The counts and predicted class numbers `H W` of the next picture."""
        place, self._seen = self._seen, self._seen + 1
        occurs = meter.matrix.sum(dim=1) > 0
        if occurs.any():  # of one class alone it is the pixel accuracy
            iou = float(meter.scores().iou[occurs].mean())
            push = heapq.heappush if len(self._heap) < self._most else heapq.heappushpop
            push(self._heap, (-iou, -place, _small(labels.numpy())))

    def draw(self, pictures: SegmentationSet, classes: Sequence[str], palette: Sequence[Color], path: Path) -> None:
        """Those pictures, read again, beside their true and their predicted classes."""
        items = []
        for iou, place, predicted in sorted(self._heap, key=lambda entry: entry[:2], reverse=True):
            image, mask = pictures[-place]
            picture = as_shown(image).convert("RGB").resize(predicted.shape[::-1], reducing_gap=2.0)
            name = pictures.paths[-place].name
            items.append(draw.Compared(name, f"mIoU {-iou:.1%}", picture, _small(mask.numpy()), predicted))
        draw.draw_compared(items, classes, palette, path)


def _small(labels: np.ndarray) -> np.ndarray:
    """Class numbers with no side longer than what a sheet shows."""
    scale = min(1.0, _LONGEST / max(labels.shape))
    height, width = (max(1, round(side * scale)) for side in labels.shape)
    return np.asarray(Image.fromarray(labels.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST))


def _per_class(classes: list[str], scores: SegmentationScores, matrix: np.ndarray) -> dict[str, dict[str, Any]]:
    """Of each class, for JSON; `accuracy` is the recall of its pixels."""
    figures = plain_classes(classes, class_scores(matrix), "pixels")
    total = int(matrix.sum())
    rows = zip(figures.items(), scores.iou.tolist(), scores.accuracy.tolist(), strict=True)
    return {
        name: {"iou": plain_number(iou), "accuracy": plain_number(accuracy), "share": row["pixels"] / total} | row
        for (name, row), iou, accuracy in rows
    }


def _class_table(per_class: dict[str, dict[str, Any]]) -> Table:
    columns = [Column("class"), *(Column(name, True) for name in ("IoU", "accuracy", "precision", "of all pixels"))]
    rows = [
        [name, percent(row["iou"]), percent(row["accuracy"]), percent(row["precision"]), percent(row["share"])]
        for name, row in per_class.items()
    ]
    return Table(columns, rows)


def _absent_note(absent: list[str], data: str) -> str:
    verb = "1 class never occurs" if len(absent) == 1 else f"{len(absent)} classes never occur"
    return f"{verb} in the measured masks of {data!r}: {listed(map(repr, absent), 10)}"


class SegmenterResults(Results):
    """For each picture NAME.overlay.png with a legend, NAME.labels.png of class numbers, and NAME.shares.json."""

    def __init__(self, task: Task, palette: Sequence[Color], out: Path, inputs: Iterable[Path]) -> None:
        check_folder(out, task.kind, "three files")
        super().__init__(task, out)
        self._palette = palette
        self._names = FileNames.beside(out, inputs)

    def add(self, path: Path, picture: Image.Image, prediction: Any) -> None:
        task = self.task
        labels = prediction.labels.cpu().numpy()
        files = self._names.take(path.stem, ENDINGS)
        row: dict[str, Any] = {"image": str(path), "width": picture.width, "height": picture.height}
        row["shares"] = {item.label: item.score for item in task.items(prediction)}
        text = json.dumps(row | {"classes": task.classes}, ensure_ascii=False, indent=1) + "\n"
        write_together(
            self.out,
            {
                files["overlay"]: lambda file: draw.draw_overlay(picture, labels, task.classes, self._palette, file),
                files["labels"]: lambda file: draw.label_image(labels, self._palette).save(file),
                files["json"]: lambda file: file.write_text(text, encoding="utf-8"),
            },
        )
        self.rows.append(row | {kind: str(self.out / file) for kind, file in files.items()})

    def finish(self) -> str:
        return f"{self.out}: {', '.join(f'*{ending}' for ending in ENDINGS.values())}"

    def table(self, top: int) -> Table:
        best = [list(row["shares"].items()) for row in self.rows]
        ranks = min(top, max(map(len, best)))
        return ranked_table([row["image"] for row in self.rows], best, ranks, "class", "share")
