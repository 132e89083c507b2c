"""Scores of semantic segmentation from one confusion matrix.

By hand, because evaluation works without the packages for training, torchmetrics among them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from transept.errors import TranseptError
from transept.metrics.loss import LossMeter
from transept.ops.interpolation import resize_map
from transept.ops.masks import IGNORE_LABEL


class SegmentationScores(NamedTuple):
    """All in 0..1; NaN for what no pixel decides."""

    miou: float
    """Mean of `iou` over the classes that occur in masks or predictions."""
    pixel_accuracy: float
    mean_accuracy: float
    """Mean of `accuracy` over the classes that occur in masks."""
    iou: Tensor
    """Per class: intersection over union of predicted and true pixels. NaN for a class in neither."""
    accuracy: Tensor
    """Per class: share of its true pixels that were found. NaN for a class without any."""


class ConfusionMeter:
    """Counts pixels by true and predicted class, over any number of images of any sizes; exact.

    `matrix` is `num_classes num_classes`, true classes in rows; the sum of the matrices of several processes is
    the matrix of all their images.
    """

    def __init__(self, num_classes: int, ignore_label: int = IGNORE_LABEL) -> None:
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.reset()

    def reset(self) -> None:
        self.matrix = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)

    def update(self, labels: Tensor, masks: Tensor) -> None:
        """Predicted class numbers and true ones, of one shape. Pixels that `masks` ignore count nowhere.

        Raises:
            TranseptError: the shapes differ, or a value is no class.
        """
        if labels.shape != masks.shape:
            raise TranseptError(f"predictions are {tuple(labels.shape)} and masks {tuple(masks.shape)}; resize them")
        valid = masks != self.ignore_label
        true, predicted = masks[valid].long(), labels[valid].long()
        for name, values in (("mask", true), ("prediction", predicted)):
            if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < self.num_classes:
                wrong = values[(values < 0) | (values >= self.num_classes)][0]
                raise TranseptError(
                    f"a {name} holds the label {int(wrong)}; classes are 0 to {self.num_classes - 1},"
                    f" and {self.ignore_label} in a mask is ignored"
                )
        counts = torch.bincount(true * self.num_classes + predicted, minlength=self.num_classes**2)
        self.matrix = self.matrix.to(counts.device) + counts.view(self.num_classes, -1)

    def scores(self) -> SegmentationScores:
        matrix = self.matrix.double().cpu()
        hit, true, predicted = matrix.diagonal(), matrix.sum(dim=1), matrix.sum(dim=0)
        iou, accuracy = hit / (true + predicted - hit), hit / true  # 0 / 0 is NaN
        share = hit.sum() / true.sum()
        return SegmentationScores(float(iou.nanmean()), float(share), float(accuracy.nanmean()), iou, accuracy)


class SegmentationMeter(LossMeter):
    """Mean loss, and the scores of `ConfusionMeter`, over the batches of an epoch."""

    def __init__(self, num_classes: int) -> None:
        self.confusion = ConfusionMeter(num_classes)
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self.confusion.reset()

    def update(self, loss: Tensor, logits: Tensor, masks: Tensor) -> None:  # pyright: ignore
        """Logits `b k h w` of any size, resized to the masks `b H W` before the best class is taken."""
        super().update(loss, logits, masks)
        self.confusion.update(resize_map(logits, masks.shape[-2:]).argmax(dim=1), masks)

    def state(self) -> dict[str, Any]:
        return super().state() | {"matrix": self.confusion.matrix.cpu()}

    def add(self, state: dict[str, Any]) -> None:
        super().add(state)
        self.confusion.matrix = self.confusion.matrix.cpu() + state["matrix"]

    def means(self) -> dict[str, float]:
        scores = self.confusion.scores()
        return super().means() | {
            "miou": scores.miou,
            "pixel_accuracy": scores.pixel_accuracy,
            "mean_accuracy": scores.mean_accuracy,
        }
