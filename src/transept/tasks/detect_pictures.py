"""Pictures of any sizes to their objects: batches, tiles, test-time augmentation, thresholds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_area

from transept.data.detection.transforms import DetectionPreprocessing, collate_detections, detection_eval_transform
from transept.data.images import as_bytes
from transept.errors import UsageError, unknown
from transept.heads.instances import Detections, Size
from transept.inference.windows import window_starts
from transept.ops.boxes import nms_by_label
from transept.tasks.task import evaluating

_INSIDE, _AS_GOOD = 0.7, 0.5
"""Shares of the area and of the score of a box that a tile's border cuts, from which on another stands for it."""
_TOGETHER = 256
"""Cut boxes that are compared with all others at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionInference:
    """How objects are read from pictures. The default is what all published single-scale figures were taken with."""

    score_threshold: float = 0.0
    """Objects must score above it. The methods themselves drop classes of a probability of 0.05 and less; the score may
    be lower, for FCOS and ATSS multiply the two."""
    classes: tuple[str, ...] | None = None
    """Classes to show; None: all."""
    max_detections: int = 100
    """At most so many objects in a picture, the best ones; with tiles, in each of them and in the whole."""
    scales: tuple[Size, ...] = ()
    """Longest long and short sides that each picture is tested at; none: its preprocessing's scale alone."""
    flip: bool = False
    """Each scale also mirrored left to right."""
    iou_threshold: float = 0.5
    """With tiles, several scales or mirror images: of objects of one class that overlap by more, the best is kept."""
    tile: int | None = None
    """Pixels of a side of the square tiles by which a picture is seen beside the whole; None: the whole alone. A tile
    is resized as a picture is."""
    overlap: float = 0.2
    """The share of a tile that the next one sees again, at least. An object that is no larger is seen whole by one."""
    batch_size: int = 1
    """Pictures of one call of the model, padded to the largest of them."""
    draw_masks: bool = True
    """False leaves masks as small grids over their boxes, which need far less memory in large pictures."""

    def __post_init__(self) -> None:
        for name in ("score_threshold", "iou_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name}={getattr(self, name)} is not in [0, 1]")
        for name in ("max_detections", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")
        if self.tile is not None and self.tile < 1:
            raise UsageError(f"tile={self.tile} must be at least 1")
        if not 0 <= self.overlap < 1:
            raise UsageError(f"overlap={self.overlap:g} is not in [0, 1)")
        if any(len(scale) != 2 or min(scale) < 1 for scale in self.scales):
            raise UsageError(f"scales={self.scales}; give pairs of a longest long and short side, in pixels")


def multi_scale_test(scale: Size) -> tuple[Size, ...]:
    """The scales of a multi-scale test for a model made for `scale`: 11, from three fifths of the short side to all.

    Of (1333, 800) short sides of 480, 512, ... 800 pixels, those that published multi-scale training draws from.
    """
    long, short = scale
    return tuple((long, round(short * part / 25)) for part in range(15, 26))


class _Detector(Protocol):
    """The part of `tasks.detect.Detector` that prediction needs."""

    classes: list[str]
    preprocessing: DetectionPreprocessing
    training: bool

    def __call__(self, images: Tensor, /) -> Any: ...

    def decode(
        self, outputs: Any, image_sizes: Tensor, original_sizes: Sequence[Size] | None = None
    ) -> list[Detections]: ...

    def train(self, mode: bool = True) -> Any: ...

    def parameters(self) -> Iterator[Tensor]: ...


def detect_pictures(
    detector: _Detector, pictures: Sequence[Image.Image | Tensor], inference: DetectionInference
) -> list[Detections]:
    """See `Detector.predict`."""
    numbers = _class_numbers(detector.classes, inference.classes)
    with evaluating(detector):
        detections: list[Detections] = []
        for start in range(0, len(pictures), inference.batch_size):
            images = [
                as_bytes(picture, len(detector.preprocessing.mean)).cpu()
                for picture in pictures[start : start + inference.batch_size]
            ]
            seen = _seen(detector, images, inference, numbers)
            for image, objects in zip(images, seen, strict=True):
                if inference.tile is not None:
                    objects = _add_tiles(detector, image, objects, inference, numbers)
                if objects.masks is not None and inference.draw_masks:
                    objects = objects._replace(masks=objects.image_masks((image.shape[-2], image.shape[-1])))
                detections.append(objects)
        return detections


def merge_detections(views: Sequence[Detections], iou_threshold: float = 0.5) -> Detections:
    """Join what several views of one image show, brought to its pixels: non-maximum suppression among equal labels.

    As mmdetection merges test-time augmentations. A mask stays with its box.
    """
    every = _joined(views)
    return every.take(nms_by_label(every.boxes, every.scores, every.labels, iou_threshold))


def _joined(views: Sequence[Detections]) -> Detections:
    masks = [view.masks for view in views if view.masks is not None]
    return Detections(
        torch.cat([view.boxes for view in views]),
        torch.cat([view.scores for view in views]),
        torch.cat([view.labels for view in views]),
        torch.cat(masks) if masks else None,
    )


def merge_tiles(
    views: Sequence[Detections], cut: Sequence[Bool[Tensor, " _n"]], iou_threshold: float = 0.5
) -> Detections:
    """Join what tiles of one image, and the whole, show: parts of objects go, then all is as `merge_detections`.

    Args:
        views: of each tile, brought to the pixels of the image.
        cut: of each tile, which boxes end at its border, where the object may go on. Such a box goes where a box of its
            label that is not cut holds `_INSIDE` of its area, and scores `_AS_GOOD` of its score or more.
        iou_threshold: see `DetectionInference`.
    """
    every = _joined(views)
    is_part = torch.cat(list(cut))
    whole = every.take(~is_part)
    keep = ~is_part
    for some in is_part.nonzero()[:, 0].split(_TOGETHER):
        keep[some] = ~_is_inside(every.take(some), whole)
    return merge_detections([every.take(keep)], iou_threshold)


def _is_inside(parts: Detections, whole: Detections) -> Bool[Tensor, " _n"]:
    low = torch.maximum(parts.boxes[:, None, :2], whole.boxes[None, :, :2])
    high = torch.minimum(parts.boxes[:, None, 2:], whole.boxes[None, :, 2:])
    inside = (high - low).clamp(min=0).prod(dim=2) >= _INSIDE * box_area(parts.boxes)[:, None]
    alike = parts.labels[:, None] == whole.labels[None]
    return (inside & alike & (whole.scores[None] >= _AS_GOOD * parts.scores[:, None])).any(dim=1)


def _seen(
    detector: _Detector, images: Sequence[Tensor], inference: DetectionInference, numbers: Tensor | None
) -> list[Detections]:
    """The objects in each of the images, as all views of it show them together."""
    views = [_detect(detector, images, scale, mirror) for scale, mirror in _views(inference)]
    merged = [
        seen[0] if len(seen) == 1 else merge_detections(seen, inference.iou_threshold)
        for seen in zip(*views, strict=True)
    ]
    return [_select(objects, inference, numbers) for objects in merged]


def _add_tiles(
    detector: _Detector, image: Tensor, whole: Detections, inference: DetectionInference, numbers: Tensor | None
) -> Detections:
    """What the whole image shows, with what its tiles do."""
    size, tile = (image.shape[-2], image.shape[-1]), inference.tile or 0
    stride = max(1, int(tile * (1 - inference.overlap)))
    corners = list(product(*(window_starts(side, tile, stride) for side in size)))
    if len(corners) == 1:
        return whole
    views, cut = [whole], [torch.zeros_like(whole.labels, dtype=torch.bool)]
    for start in range(0, len(corners), inference.batch_size):
        some = corners[start : start + inference.batch_size]
        tiles = [image[:, y : y + tile, x : x + tile] for y, x in some]
        for (y, x), objects in zip(some, _seen(detector, tiles, inference, numbers), strict=True):
            boxes = objects.boxes + objects.boxes.new_tensor([x, y, x, y])
            views.append(objects._replace(boxes=boxes))
            cut.append(_is_cut(boxes, (y, x), tile, size))
    return merge_tiles(views, cut, inference.iou_threshold)


def _is_cut(boxes: Tensor, corner: Size, tile: int, size: Size) -> Bool[Tensor, " _n"]:
    """Which boxes end within a hundredth of a tile of its border, where that is not the border of the image."""
    margin = max(1.0, tile / 100)
    (y, x), (height, width) = corner, size
    sides = ((x > 0, x), (y > 0, y), (x + tile < width, x + tile), (y + tile < height, y + tile))
    cut = [
        (column - at).abs() <= margin for column, (inner, at) in zip(boxes.unbind(dim=1), sides, strict=True) if inner
    ]
    return torch.stack(cut).any(dim=0)


def _views(inference: DetectionInference) -> list[tuple[Size | None, bool]]:
    mirrors = (False, True) if inference.flip else (False,)
    return [(scale, mirror) for scale in inference.scales or (None,) for mirror in mirrors]


def _detect(detector: _Detector, images: Sequence[Tensor], scale: Size | None, mirror: bool) -> list[Detections]:
    """The objects in bytes `3 H W`, each at its own size, as seen at this scale."""
    transform = detection_eval_transform(detector.preprocessing, scale)
    samples = [(transform(tv_tensors.Image(image.flip(-1) if mirror else image)), {}) for image in images]
    batch = collate_detections(samples, detector.preprocessing.multiple_of)
    device = next(iter(detector.parameters())).device
    originals = [(image.shape[-2], image.shape[-1]) for image in images]
    detections = detector.decode(detector(batch.images.to(device)), batch.sizes.to(device), originals)
    if mirror:
        detections = [_mirrored(objects, width) for objects, (_, width) in zip(detections, originals, strict=True)]
    return detections


def _mirrored(detections: Detections, width: int) -> Detections:
    x1, y1, x2, y2 = detections.boxes.unbind(dim=1)
    masks = None if detections.masks is None else detections.masks.flip(-1)
    return detections._replace(boxes=torch.stack((width - x2, y1, width - x1, y2), dim=1), masks=masks)


def _select(detections: Detections, inference: DetectionInference, numbers: Tensor | None) -> Detections:
    keep = detections.scores > inference.score_threshold
    if numbers is not None:
        keep &= torch.isin(detections.labels, numbers.to(detections.labels))
    return detections.take(keep.nonzero()[: inference.max_detections, 0])


def _class_numbers(classes: list[str], names: tuple[str, ...] | None) -> Tensor | None:
    if names is None:
        return None
    for name in names:
        if name not in classes:
            raise unknown("class of this detector", name, classes)
    return torch.tensor([number for number, name in enumerate(classes) if name in names])
