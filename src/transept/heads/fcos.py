"""FCOS (Tian et al., "Fully Convolutional One-Stage Object Detection", arXiv 1904.01355).

Section 3.1    InsideBox     in `ops.matching`: each point of a level answers for a box around it
Section 3.2    FCOSHead      two towers over all levels, a learnt factor for each level
Section 3.3    centerness    in `ops.boxes`; its branch leaves the class tower, as first published

No centre sampling, no division by the stride, IoU loss: the paper's first version, which the published models follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from transept.heads.dense import (
    Scale,
    Selection,
    flatten_map,
    flatten_maps,
    focal_loss,
    init_convs,
    map_sizes,
    mean_over_processes,
    tower,
)
from transept.heads.instances import Detections, Size, Target
from transept.ops.anchors import grid_points
from transept.ops.boxes import centerness, decode_distances, encode_distances, paired_iou
from transept.ops.matching import InsideBox

STRIDES = (8, 16, 32, 64, 128)


class FCOSOutputs(NamedTuple):
    """Per level, finest first."""

    logits: list[Tensor]
    """`b k h w`; no background."""
    distances: list[Tensor]
    """`b 4 h w`: left, top, right and bottom of the cell's centre, in pixels."""
    centerness: list[Tensor]
    """`b 1 h w`, logits."""


class FCOSHead(nn.Module):
    """Maps `b c h w` of as many levels as `num_levels` to class logits, distances and centreness of each point."""

    def __init__(self, in_channels: int, num_classes: int, *, channels: int = 256, num_levels: int = 5) -> None:
        super().__init__()
        self.cls_convs = tower(in_channels, channels, 4, norm="group")
        self.reg_convs = tower(in_channels, channels, 4, norm="group")
        self.conv_cls = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.conv_reg = nn.Conv2d(channels, 4, 3, padding=1)
        self.conv_centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in range(num_levels))
        init_convs(self, self.conv_cls)

    def forward(self, maps: Sequence[Float[Tensor, "b c _h _w"]]) -> FCOSOutputs:
        outputs = FCOSOutputs([], [], [])
        for x, scale in zip(maps, self.scales, strict=True):
            classes = self.cls_convs(x)
            outputs.logits.append(self.conv_cls(classes))
            outputs.distances.append(scale(self.conv_reg(self.reg_convs(x))).float().exp())
            outputs.centerness.append(self.conv_centerness(classes))
        return outputs


@dataclass(frozen=True, kw_only=True, slots=True)
class FCOSLoss:
    """Focal loss, -ln(IoU) weighted with the centreness, and cross-entropy of the centreness.

    Over the number of positives, and the second over the sum of its weights; both are means over the processes.
    """

    num_classes: int
    strides: tuple[int, ...] = STRIDES
    matcher: InsideBox = InsideBox()

    def __call__(self, outputs: FCOSOutputs, targets: Sequence[Target]) -> dict[str, Float[Tensor, ""]]:
        logits, distances = flatten_maps(outputs.logits, self.num_classes), flatten_maps(outputs.distances, 4)
        quality = flatten_maps(outputs.centerness, 1)[..., 0]
        levels = _points(self.strides, outputs)
        points = torch.cat(levels)
        classes, guesses, truths, qualities = logits.new_zeros(()), [], [], []
        for i, target in enumerate(targets):
            assignment = self.matcher(levels, target.boxes)
            classes = classes + focal_loss(logits[i], assignment, target.labels)
            positive = (assignment >= 0).nonzero().flatten()
            guesses.append(decode_distances(points[positive], distances[i][positive]))
            truths.append(torch.cat((target.boxes[assignment[positive]], points[positive]), dim=1))
            qualities.append(quality[i][positive])
        guesses, qualities = torch.cat(guesses), torch.cat(qualities)
        truths, at = torch.cat(truths).split((4, 2), dim=1)
        weights = centerness(encode_distances(at, truths))
        positives = mean_over_processes(logits.new_tensor(len(guesses))).clamp(min=1)
        overlap = -paired_iou(guesses, truths).clamp(min=1e-6).log()
        return {
            "loss_cls": classes / positives,
            "loss_bbox": (overlap * weights).sum() / mean_over_processes(weights.sum()).clamp(min=1e-6),
            "loss_centerness": binary_cross_entropy_with_logits(qualities, weights, reduction="sum") / positives,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class FCOSDecoder:
    """Points and distances to boxes, then the best of each class by probability times centreness."""

    num_classes: int
    strides: tuple[int, ...] = STRIDES
    select: Selection = Selection()

    def __call__(
        self,
        outputs: FCOSOutputs,
        sizes: Sequence[Size] | Shaped[Tensor, "b 2"],
        original_sizes: Sequence[Size] | Shaped[Tensor, "b 2"] | None = None,
    ) -> list[Detections]:
        """Outputs, and height and width of each resized image without padding, to the detections of each image."""
        boxes = [
            decode_distances(points, flatten_map(level, 4))
            for points, level in zip(_points(self.strides, outputs), outputs.distances, strict=True)
        ]
        logits = [flatten_map(level, self.num_classes) for level in outputs.logits]
        quality = [flatten_map(level, 1) for level in outputs.centerness]
        return self.select(logits, boxes, sizes, original_sizes, quality)


def _points(strides: Sequence[int], outputs: FCOSOutputs) -> list[Tensor]:
    device = outputs.logits[0].device
    return [grid_points(stride, size, device) for stride, size in zip(strides, map_sizes(outputs.logits), strict=True)]
