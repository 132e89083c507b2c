"""Detections as COCO's result format has them, and back."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transept.data.detection.masks import mask_api
from transept.errors import TranseptError, UsageError
from transept.heads.instances import Detections, Size

Result = dict[str, Any]
"""`image_id`, `category_id`, `bbox` (x, y, width, height in pixels), `score`, and with masks `segmentation` (run-length
encoded, as JSON takes it)."""

_TOGETHER = 2**23
"""Pixels of the masks that are drawn at a time, so that large pictures need little memory."""


def to_coco_results(
    detections: Sequence[Detections],
    image_ids: Sequence[int | str],
    category_ids: Sequence[int],
    sizes: Sequence[Size] | None = None,
) -> list[Result]:
    """One result for each object, image by image, best first.

    Args:
        detections: of each image, in its own pixels.
        image_ids: the data set's id of each image.
        category_ids: the data set's id of each label.
        sizes: height and width of each image; needed for masks that are not drawn into the image yet.

    Raises:
        UsageError: masks without pycocotools, or without the sizes they need.
    """
    results: list[Result] = []
    for i, (objects, image_id) in enumerate(zip(detections, image_ids, strict=True)):
        x1, y1, x2, y2 = objects.boxes.float().cpu().unbind(dim=1)
        boxes = torch.stack((x1, y1, x2 - x1, y2 - y1), dim=1).tolist()
        first = len(results)
        for box, score, label in zip(boxes, objects.scores.tolist(), objects.labels.tolist(), strict=True):
            result = {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
            results.append(result)
        if objects.masks is not None:
            for result, mask in zip(results[first:], _encoded(objects, sizes[i] if sizes else None), strict=True):
                result["segmentation"] = mask
    return results


def from_coco_results(
    results: Iterable[Result], image_ids: Sequence[int | str], category_ids: Sequence[int]
) -> list[Detections]:
    """The detections of each of the images, best first; masks are `n H W` bool.

    Raises:
        TranseptError: a result of another image or category, or masks for some objects of an image only.
        UsageError: masks without pycocotools.
    """
    labels = {number: label for label, number in enumerate(category_ids)}
    by_image: dict[int | str, list[Result]] = {number: [] for number in image_ids}
    for position, result in enumerate(results):
        for key, ids in (("image_id", by_image), ("category_id", labels)):
            if result.get(key) not in ids:
                raise TranseptError(f"result {position} has the {key} {result.get(key)!r}, which the data lacks")
        by_image[result["image_id"]].append(result)
    detections = []
    for number, of_image in by_image.items():
        of_image.sort(key=lambda result: -result["score"])
        boxes = torch.tensor([result["bbox"] for result in of_image], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        scores = torch.tensor([result["score"] for result in of_image], dtype=torch.float32)
        classes = torch.tensor([labels[result["category_id"]] for result in of_image], dtype=torch.int64)
        masks = [result["segmentation"] for result in of_image if "segmentation" in result]
        if masks and len(masks) < len(of_image):
            raise TranseptError(f"of {len(of_image)} results of image {number!r} only {len(masks)} have a segmentation")
        detections.append(Detections(boxes, scores, classes, _decoded(masks) if masks else None))
    return detections


def _encoded(detections: Detections, size: Size | None) -> Iterable[dict[str, Any]]:
    api = mask_api()
    assert detections.masks is not None
    if size is None:
        if detections.masks.dtype != torch.bool:
            raise UsageError("masks that are not drawn into the image need its height and width: give sizes")
        size = (detections.masks.shape[-2], detections.masks.shape[-1])
    together = max(1, _TOGETHER // (size[0] * size[1]))
    for start in range(0, len(detections.boxes), together):
        end = min(start + together, len(detections.boxes))
        some = detections.take(torch.arange(start, end, device=detections.boxes.device))
        drawn = some.image_masks(size).cpu().numpy().astype(np.uint8)
        for rle in api.encode(np.asfortranarray(drawn.transpose(1, 2, 0))):
            yield {"size": list(size), "counts": rle["counts"].decode()}


def _decoded(masks: list[dict[str, Any]]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask_api().decode(masks).transpose(2, 0, 1))).bool()
