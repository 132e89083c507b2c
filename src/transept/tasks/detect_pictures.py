"""Pictures of any sizes to their objects: batches, test-time augmentation, thresholds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from transept.data.detection.transforms import DetectionPreprocessing, collate_detections, detection_eval_transform
from transept.data.images import as_bytes
from transept.errors import UsageError, unknown
from transept.heads.instances import Detections, Size
from transept.ops.boxes import nms_by_label


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionInference:
    """How objects are read from pictures. The default is what all published single-scale figures were taken with."""

    score_threshold: float = 0.0
    """Objects must score above it. The methods themselves drop classes of a probability of 0.05 and less; the score may
    be lower, for FCOS and ATSS multiply the two."""
    classes: tuple[str, ...] | None = None
    """Classes to show; None: all."""
    max_detections: int = 100
    """At most so many objects in a picture, the best ones."""
    scales: tuple[Size, ...] = ()
    """Longest long and short sides that each picture is tested at; none: its preprocessing's scale alone."""
    flip: bool = False
    """Each scale also mirrored left to right."""
    iou_threshold: float = 0.5
    """With several scales or mirror images: of objects of one class that overlap by more, the best is kept."""
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
    training = detector.training
    detector.train(False)
    try:
        detections: list[Detections] = []
        for start in range(0, len(pictures), inference.batch_size):
            images = [
                as_bytes(picture, len(detector.preprocessing.mean)).cpu()
                for picture in pictures[start : start + inference.batch_size]
            ]
            views = [_detect(detector, images, scale, mirror) for scale, mirror in _views(inference)]
            for image, seen in zip(images, zip(*views, strict=True), strict=True):
                objects = seen[0] if len(seen) == 1 else merge_detections(seen, inference.iou_threshold)
                objects = _select(objects, inference, numbers)
                if objects.masks is not None and inference.draw_masks:
                    objects = objects._replace(masks=objects.image_masks((image.shape[-2], image.shape[-1])))
                detections.append(objects)
        return detections
    finally:
        detector.train(training)


def merge_detections(views: Sequence[Detections], iou_threshold: float = 0.5) -> Detections:
    """Join what several views of one image show, brought to its pixels: non-maximum suppression among equal labels.

    As mmdetection merges test-time augmentations. A mask stays with its box.
    """
    labels = torch.cat([view.labels for view in views])
    scores = torch.cat([view.scores for view in views])
    boxes = torch.cat([view.boxes for view in views])
    masks = [view.masks for view in views if view.masks is not None]
    every = Detections(boxes, scores, labels, torch.cat(masks) if masks else None)
    return every.take(nms_by_label(boxes, scores, labels, iou_threshold))


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
