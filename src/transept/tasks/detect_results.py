"""A detector's answers in `eval` and `predict`: how it is judged, and objects drawn and listed."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from transept import draw
from transept.data.detection.sets import DetectionSplits
from transept.data.detection.target import Target
from transept.files import GrowingList, write_together
from transept.heads.instances import Detections, Size
from transept.metrics.detection import DetectionScores, Kind, detection_scores
from transept.style import drawing_palette
from transept.tasks.coco_results import to_coco_results
from transept.tasks.dense import predict_all
from transept.tasks.detect_pictures import DetectionInference
from transept.tasks.detect_report import TITLES, DetectorReport
from transept.tasks.task import Column, Evaluation, FileNames, Results, Table, Task, check_folder
from transept.words import percent, plain_number

DRAWN, RESULTS, IMAGES = ".objects.png", "results.json", "images.json"


def evaluate_detector(
    task: Task,
    splits: DetectionSplits,
    data: str,
    inference: DetectionInference,
    workers: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]],
    *,
    masks: bool,
) -> Evaluation:
    """See `Detector.evaluate`; with `masks`, those are scored, too."""
    truth, results = splits.val.ground_truth(), []

    def add(picture: Tensor, detections: Detections, target: Target) -> None:
        size = (picture.shape[-2], picture.shape[-1])
        results.extend(to_coco_results([detections], [target["image_id"]], splits.category_ids, [size]))

    seconds = predict_all(task, splits, data, task.compact(inference), add, workers=workers, progress=progress)
    kinds: tuple[Kind, ...] = ("bbox", "segm") if masks else ("bbox",)
    scores: dict[Kind, DetectionScores] = {kind: detection_scores(truth, results, kind) for kind in kinds}
    report = DetectorReport.of(truth, results, scores)
    absent = {name for name, value in scores["bbox"].per_class.items() if math.isnan(value)}
    metrics: dict[str, Any] = {"map": scores["bbox"].map}
    metrics |= {"scales": [list(scale) for scale in inference.scales], "flip": inference.flip}
    if inference.tile is not None:
        metrics |= {"tile": inference.tile, "overlap": inference.overlap}
    return Evaluation(
        metrics=metrics | {kind: _plain(scores[kind]) for kind in kinds} | report.metrics(),
        summary="   ".join(_line(TITLES[kind], scores[kind]) for kind in kinds),
        table=report.table(),
        images=len(splits.val),
        seconds=seconds,
        skipped=splits.skipped,
        notes=report.notes(),
        split=splits.parts.split,
        measured=splits.parts.measured(len(splits.val), len(task.classes) - len(absent), data),
        files=report.files(splits.val),
    )


def _plain(scores: DetectionScores) -> dict[str, Any]:
    per_class = {name: plain_number(value) for name, value in scores.per_class.items()}
    return {name: plain_number(value) for name, value in scores.means().items()} | {"per_class": per_class}


def _line(title: str, scores: DetectionScores) -> str:
    return f"{title} {percent(scores.map)}   AP50 {percent(scores.map50)}   AP75 {percent(scores.map75)}"


def draw_detections(picture: Image.Image, detections: Detections, classes: list[str], path: Path) -> None:
    """The picture with boxes, masks, classes and scores; a large one scaled down to the pixels that are shown."""
    if (step := max(picture.size) // draw.LARGEST) > 1:
        picture = picture.reduce(step)
        masks = detections.masks
        if masks is not None and masks.dtype == torch.bool:
            masks = masks[:, ::step, ::step]
        detections = detections._replace(boxes=detections.boxes / step, masks=masks)
    size = (picture.height, picture.width)
    draw.draw_objects(
        picture,
        detections.boxes.float().cpu().numpy(),
        detections.labels.cpu().numpy(),
        classes,
        drawing_palette(len(classes)),
        path,
        scores=detections.scores.float().cpu().numpy(),
        masks=None if detections.masks is None else _DrawnMasks(detections, size),
    )


def framed_detections(picture: Image.Image, detections: Detections, classes: list[str]) -> Image.Image:
    """The picture, at its own size, with boxes, masks, classes and scores."""
    return draw.boxed_frame(
        picture,
        detections.boxes.float().cpu().numpy(),
        detections.labels.cpu().numpy(),
        detections.scores.float().cpu().numpy(),
        classes,
        drawing_palette(len(classes)),
        masks=None if detections.masks is None else _DrawnMasks(detections, (picture.height, picture.width)),
    )


class _DrawnMasks(Sequence[np.ndarray]):
    """The masks of an image of this height and width, `H W` bool, each drawn when it is asked for."""

    def __init__(self, detections: Detections, size: Size) -> None:
        self._detections = detections
        self._size = size

    def __len__(self) -> int:
        return len(self._detections.boxes)

    def __getitem__(self, index: Any) -> Any:
        one = torch.tensor([index], device=self._detections.boxes.device)
        return self._detections.take(one).image_masks(self._size)[0].cpu().numpy()


class DetectorResults(Results):
    """For each picture NAME.objects.png; results.json with all objects in COCO's result format, and images.json, which
    says what the numbers of pictures and categories in it mean. Both are whole after each picture."""

    def __init__(self, task: Task, out: Path, inputs: Iterable[Path]) -> None:
        check_folder(out, task.kind, "a file")
        super().__init__(task, out)
        self._names = FileNames.beside(out, [*inputs, out / RESULTS, out / IMAGES])
        self._objects = GrowingList(out / RESULTS)
        categories = [{"id": number, "name": name} for number, name in enumerate(task.classes)]
        head = {"info": {"description": "transept predict"}, "categories": categories, "annotations": []}
        self._images = GrowingList(
            out / IMAGES, head=f'{json.dumps(head, ensure_ascii=False)[:-1]}, "images": [', tail="]}"
        )

    def add(self, path: Path, picture: Image.Image, prediction: Detections) -> None:
        classes = self.task.classes
        number, size = len(self.rows) + 1, (picture.height, picture.width)
        results = to_coco_results([prediction], [number], list(range(len(classes))), [size])
        name = self._names.take(path.stem, {"drawn": DRAWN})["drawn"]
        write_together(self.out, {name: lambda file: draw_detections(picture, prediction, classes, file)})
        # Pictures first: objects never refer to one that is not listed, even when stopped in between.
        self._images.extend([{"id": number, "file_name": str(path), "width": picture.width, "height": picture.height}])
        self._objects.extend(results)
        counts = Counter(item.label for item in self.task.items(prediction))
        self.rows.append({"image": str(path), "objects": dict(counts.most_common()), "drawn": str(self.out / name)})

    def finish(self) -> str:
        return f"{self.out}: *{DRAWN}, {RESULTS}, {IMAGES}"

    def table(self, top: int) -> Table:
        rows = [
            [row["image"], ", ".join(f"{number} {name}" for name, number in row["objects"].items()) or "none"]
            for row in self.rows
        ]
        return Table([Column("picture"), Column("objects")], rows)
