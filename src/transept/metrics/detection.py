"""COCO's average precision of boxes and masks, computed by faster-coco-eval."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from transept.errors import TranseptError, UsageError
from transept.extras import install
from transept.metrics.loss import LossMeter
from transept.words import distinct

Kind = Literal["bbox", "segm"]
MOST_BOXES = 100
"""Of each class and picture the best so many count."""


class DetectionScores(NamedTuple):
    """All in 0..1; NaN for what no object decides. Best 100 objects of an image, unless it says otherwise."""

    map: float
    """Average precision: the mean over classes and over overlaps (IoU) of 0.5, 0.55, ..., 0.95."""
    map50: float
    """At an overlap of 0.5."""
    map75: float
    map_small: float
    """The mean over objects with an area below 32 x 32 pixels, as annotated."""
    map_medium: float
    map_large: float
    """From 96 x 96 pixels on."""
    recall1: float
    """Share of the objects found, the mean as in `map`, with the best object of each class and image."""
    recall10: float
    recall100: float
    recall_small: float
    recall_medium: float
    recall_large: float
    per_class: dict[str, float]
    """`map` of each class by its name; where several classes have one name, with the category id behind it."""
    precision50: Mapping[str, np.ndarray] = {}
    """Of each class, precision at an overlap of 0.5 and the recalls 0, 0.01, ..., 1: the highest at that recall or a
    larger one, 0 where none is reached. NaN for a class without objects."""

    def means(self) -> dict[str, float]:
        """All but `per_class` and `precision50`."""
        scores = self._asdict()
        del scores["per_class"], scores["precision50"]
        return scores


def detection_scores(
    ground_truth: Mapping[str, Any], results: Iterable[Mapping[str, Any]], kind: Kind = "bbox"
) -> DetectionScores:
    """Scores of results in COCO's format against annotations in COCO's format. Neither is changed.

    Boxes (`bbox`) or masks (`segm`) are compared. The size of a result is that of what is compared: for masks that of
    the mask, also where the result has a box (pycocotools takes the box's then, and mmdetection removes it). An
    annotation without `area` has that of its box or mask.

    Raises:
        TranseptError: a result of an image or category that the annotations lack, or without what is compared.
        UsageError: faster-coco-eval is not installed.
    """
    coco, evaluator, _ = coco_library()
    image_numbers = {image["id"]: number for number, image in enumerate(ground_truth["images"], 1)}
    categories = [dict(category) for category in ground_truth["categories"]]
    truth = coco(
        {
            # The library takes whole numbers only, and files have names as well.
            "images": [image | {"id": image_numbers[image["id"]]} for image in ground_truth["images"]],
            "categories": categories,
            "annotations": _numbered(ground_truth["annotations"], kind, image_numbers, "annotation"),
        }
    )
    for annotation in truth.anns.values():
        if annotation.get("area") is None:  # which the library takes for 0
            annotation["area"] = _area(truth, annotation, kind)
    known = {category["id"] for category in categories}
    entries = []
    for position, result in enumerate(results):
        for key, among in (("image_id", image_numbers), ("category_id", known)):
            if result.get(key) not in among:
                raise TranseptError(f"result {position} has the {key} {result.get(key)!r}, which the annotations lack")
        compared = {key: value for key, value in result.items() if key not in ("bbox", "segmentation")}
        entries.append(compared | _compared(result, kind, f"result {position}"))
    for result in entries:
        result["image_id"] = image_numbers[result["image_id"]]
    run = evaluator(truth, truth.loadRes(entries), kind)
    run.evaluate()
    run.accumulate()
    return _read(run, categories)


class DetectionMeter(LossMeter):
    """Mean loss, and the scores of boxes and of masks over the images of a set.

    Names of scores are those of `DetectionScores`, those of masks begin with `mask_`; what no object decides is left
    out, such as `map_small` where all objects are large.
    """

    def __init__(self, ground_truth: Mapping[str, Any], *, masks: bool = False) -> None:
        """Annotations in COCO's form, of the images that the meter will see.

        Raises:
            UsageError: faster-coco-eval is not installed.
        """
        coco_library()  # said before the first epoch, not after it
        self.ground_truth = ground_truth
        self.kinds: tuple[Kind, ...] = ("bbox", "segm") if masks else ("bbox",)
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self.results: list[Mapping[str, Any]] = []

    def update(self, loss: Tensor, results: Sequence[Mapping[str, Any]], targets: Any) -> None:  # pyright: ignore
        """Results of a batch in COCO's format; `targets` has one entry for each of its images."""
        super().update(loss, results, targets)
        self.results += results

    def state(self) -> dict[str, Any]:
        return super().state() | {"results": self.results}

    def add(self, state: dict[str, Any]) -> None:
        super().add(state)
        self.results += state["results"]

    def scores(self) -> dict[Kind, DetectionScores]:
        return {kind: detection_scores(self.ground_truth, self.results, kind) for kind in self.kinds}

    def means(self) -> dict[str, float]:
        means = super().means()
        for kind, scores in self.scores().items():
            prefix = "mask_" if kind == "segm" else ""
            means |= {prefix + name: value for name, value in scores.means().items() if not math.isnan(value)}
        return means


def coco_library() -> tuple[Any, Any, Any]:
    """faster-coco-eval's COCO, its evaluator, and its functions on masks.

    Raises:
        UsageError: it is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster, mask  # of an extra
    except ModuleNotFoundError as error:
        raise UsageError(f"average precision needs the package 'faster-coco-eval': {install('detect')}") from error
    return COCO, COCOeval_faster, mask


def _numbered(
    annotations: Iterable[Mapping[str, Any]], kind: Kind, image_numbers: Mapping[Any, int], what: str
) -> list[dict[str, Any]]:
    """Copies with ids from 1 on: 0 would count as unmatched."""
    copies = []
    for number, annotation in enumerate(annotations, 1):
        if kind == "segm":
            _compared(annotation, kind, f"{what} {annotation.get('id', number)}")
        copies.append(dict(annotation) | {"id": number, "image_id": image_numbers[annotation["image_id"]]})
    return copies


def _compared(entry: Mapping[str, Any], kind: Kind, what: str) -> dict[str, Any]:
    key = "bbox" if kind == "bbox" else "segmentation"
    if not entry.get(key):
        raise TranseptError(f"{what} has no {key!r}, which {kind} scores need")
    return {key: entry[key]}


def _area(truth: Any, annotation: Mapping[str, Any], kind: Kind) -> float:
    if kind == "bbox":
        return float(annotation["bbox"][2] * annotation["bbox"][3])
    *_, mask_api = coco_library()
    return float(mask_api.area(truth.annToRLE(annotation)))


def _read(run: Any, categories: Sequence[Mapping[str, Any]]) -> DetectionScores:
    # Overlaps, recalls, classes, areas (all, small, medium, large), numbers of objects (1, 10, 100); -1: no object.
    precision, recall = np.asarray(run.eval["precision"]), np.asarray(run.eval["recall"])
    shape = [len(run.params.iouThrs), len(run.params.recThrs), len(run.params.catIds), 4, 3]
    precision, recall = precision.reshape(shape), recall.reshape(shape[:1] + shape[2:])
    numbers = [category["id"] for category in categories]
    labels = dict(zip(numbers, distinct([category["name"] for category in categories], numbers), strict=True))
    places = {labels[number]: k for k, number in enumerate(run.params.catIds)}
    per_class = {name: _mean(precision[:, :, k, 0, 2]) for name, k in places.items()}
    curves = np.where(precision[0, ..., 0, 2] > -1, precision[0, ..., 0, 2], np.nan)
    return DetectionScores(
        _mean(precision[..., 0, 2]),
        _mean(precision[0, ..., 0, 2]),
        _mean(precision[5, ..., 0, 2]),
        *(_mean(precision[..., area, 2]) for area in (1, 2, 3)),
        *(_mean(recall[..., 0, number]) for number in (0, 1, 2)),
        *(_mean(recall[..., area, 2]) for area in (1, 2, 3)),
        per_class=per_class,
        precision50={name: curves[:, k] for name, k in places.items()},
    )


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")
