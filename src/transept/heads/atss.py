"""ATSS (Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection", arXiv 1912.02424).

Algorithm 1    ATSS        in `ops.matching`
Section 3.1    ATSSHead    one square anchor in each cell, towers as in FCOS; the centreness branch leaves the box tower

The regression loss is GIoU with a weight of 2, on decoded boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import generalized_box_iou_loss

from transept.heads.dense import (
    Scale,
    Selection,
    flatten_map,
    flatten_maps,
    focal_loss,
    init_convs,
    map_sizes,
    mean_over_processes,
    spread,
    tower,
)
from transept.heads.instances import Detections, Size, Target
from transept.ops.anchors import Anchors
from transept.ops.boxes import Std, centerness, decode_deltas, encode_distances
from transept.ops.matching import ATSS

ANCHORS = Anchors(strides=(8, 16, 32, 64, 128), scales=(8,), ratios=(1,))
STD: Std = (0.1, 0.1, 0.2, 0.2)


class ATSSOutputs(NamedTuple):
    """Per level, finest first."""

    logits: list[Tensor]
    """`b k h w`; no background."""
    deltas: list[Tensor]
    """`b 4 h w`."""
    centerness: list[Tensor]
    """`b 1 h w`, logits."""


class ATSSHead(nn.Module):
    """Maps `b c h w` of as many levels as `num_levels` to class logits, box deltas and centreness of each anchor."""

    def __init__(self, in_channels: int, num_classes: int, *, channels: int = 256, num_levels: int = 5) -> None:
        super().__init__()
        self.cls_convs = tower(in_channels, channels, 4, norm="group")
        self.reg_convs = tower(in_channels, channels, 4, norm="group")
        self.atss_cls = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.atss_reg = nn.Conv2d(channels, 4, 3, padding=1)
        self.atss_centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in range(num_levels))
        init_convs(self, self.atss_cls)

    def forward(self, maps: Sequence[Float[Tensor, "b c _h _w"]]) -> ATSSOutputs:
        outputs = ATSSOutputs([], [], [])
        for x, scale in zip(maps, self.scales, strict=True):
            boxes = self.reg_convs(x)
            outputs.logits.append(self.atss_cls(self.cls_convs(x)))
            outputs.deltas.append(scale(self.atss_reg(boxes)))
            outputs.centerness.append(self.atss_centerness(boxes))
        return outputs


@dataclass(frozen=True, kw_only=True, slots=True)
class ATSSLoss:
    """Focal loss, twice the GIoU loss weighted with the centreness, and cross-entropy of the centreness.

    Over the number of positives, and the second over the sum of its weights; both are means over the processes and
    at least 1.
    """

    num_classes: int
    anchors: Anchors = ANCHORS
    matcher: ATSS = ATSS()
    std: Std = STD

    def __call__(self, outputs: ATSSOutputs, targets: Sequence[Target]) -> dict[str, Float[Tensor, ""]]:
        logits, deltas = flatten_maps(outputs.logits, self.num_classes), flatten_maps(outputs.deltas, 4)
        quality = flatten_maps(outputs.centerness, 1)[..., 0]
        sizes = map_sizes(outputs.logits)
        levels = self.anchors(sizes, logits.device)
        anchors = torch.cat(levels)
        classes, guesses, truths, qualities = logits.new_zeros(()), [], [], []
        for i, target in enumerate(targets):
            valid = self.anchors.on_image(sizes, target.size).to(anchors.device)
            on_image = valid.split([len(level) for level in levels])
            matched = self.matcher([a[v] for a, v in zip(levels, on_image, strict=True)], target.boxes)
            assignment = spread(matched, valid)
            classes = classes + focal_loss(logits[i], assignment, target.labels)
            positive = (assignment >= 0).nonzero().flatten()
            guesses.append(decode_deltas(anchors[positive], deltas[i][positive], self.std))
            truths.append(torch.cat((target.boxes[assignment[positive]], anchors[positive]), dim=1))
            qualities.append(quality[i][positive])
        guesses, qualities = torch.cat(guesses), torch.cat(qualities)
        truths, priors = torch.cat(truths).split(4, dim=1)
        weights = centerness(encode_distances((priors[:, :2] + priors[:, 2:]) / 2, truths))
        positives = mean_over_processes(logits.new_tensor(len(guesses))).clamp(min=1)
        overlap = generalized_box_iou_loss(guesses, truths)
        return {
            "loss_cls": classes / positives,
            "loss_bbox": 2 * (overlap * weights).sum() / mean_over_processes(weights.sum()).clamp(min=1),
            "loss_centerness": binary_cross_entropy_with_logits(qualities, weights, reduction="sum") / positives,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ATSSDecoder:
    """Anchors and deltas to boxes, then the best of each class by probability times centreness."""

    num_classes: int
    anchors: Anchors = ANCHORS
    select: Selection = Selection(iou_threshold=0.6)
    std: Std = STD

    def __call__(
        self,
        outputs: ATSSOutputs,
        sizes: Sequence[Size] | Shaped[Tensor, "b 2"],
        original_sizes: Sequence[Size] | Shaped[Tensor, "b 2"] | None = None,
    ) -> list[Detections]:
        """Outputs, and height and width of each resized image without padding, to the detections of each image."""
        anchors = self.anchors(map_sizes(outputs.logits), outputs.logits[0].device)
        boxes = [
            decode_deltas(priors, flatten_map(level, 4), self.std)
            for priors, level in zip(anchors, outputs.deltas, strict=True)
        ]
        logits = [flatten_map(level, self.num_classes) for level in outputs.logits]
        quality = [flatten_map(level, 1) for level in outputs.centerness]
        return self.select(logits, boxes, sizes, original_sizes, quality)
