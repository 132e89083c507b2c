"""RetinaNet (Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002).

Section 3      focal_loss      in `heads.dense`
Section 4      RetinaNetHead   two towers over all levels; 9 anchors in each cell
Section 4      RetinaNetLoss   matching by overlap, focal loss and L1
Section 4.1    RetinaNetDecoder

As in the published models the overlaps for foreground and background are 0.5 and 0.4, every box gets its best
anchors, and the regression loss is L1, not smooth L1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from transept.heads.dense import Selection, flatten_map, flatten_maps, focal_loss, init_convs, map_sizes, spread, tower
from transept.heads.instances import Detections, Size, Target
from transept.ops.anchors import Anchors
from transept.ops.boxes import Std, decode_deltas, encode_deltas
from transept.ops.matching import MaxIoU

ANCHORS = Anchors(strides=(8, 16, 32, 64, 128), scales=(4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)), ratios=(0.5, 1, 2))
STD: Std = (1.0, 1.0, 1.0, 1.0)


class RetinaNetOutputs(NamedTuple):
    """Per level, finest first."""

    logits: list[Tensor]
    """`b (a k) h w`, anchor then class; no background."""
    deltas: list[Tensor]
    """`b (a 4) h w`."""


class RetinaNetHead(nn.Module):
    """Maps `b c h w` of any number of levels to class logits and box deltas of each anchor."""

    def __init__(self, in_channels: int, num_classes: int, *, channels: int = 256, anchors_per_cell: int = 9) -> None:
        super().__init__()
        self.cls_convs = tower(in_channels, channels, 4, norm=None)
        self.reg_convs = tower(in_channels, channels, 4, norm=None)
        self.retina_cls = nn.Conv2d(channels, anchors_per_cell * num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(channels, anchors_per_cell * 4, 3, padding=1)
        init_convs(self, self.retina_cls)

    def forward(self, maps: Sequence[Float[Tensor, "b c _h _w"]]) -> RetinaNetOutputs:
        return RetinaNetOutputs(
            [self.retina_cls(self.cls_convs(x)) for x in maps], [self.retina_reg(self.reg_convs(x)) for x in maps]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RetinaNetLoss:
    """Focal loss and L1 on the encoded boxes, both over the number of positives (at least one for each image)."""

    num_classes: int
    anchors: Anchors = ANCHORS
    matcher: MaxIoU = MaxIoU(positive=0.5, negative=0.4, low_quality=0.0)
    std: Std = STD

    def __call__(self, outputs: RetinaNetOutputs, targets: Sequence[Target]) -> dict[str, Float[Tensor, ""]]:
        logits, deltas = flatten_maps(outputs.logits, self.num_classes), flatten_maps(outputs.deltas, 4)
        sizes = map_sizes(outputs.logits)
        anchors = torch.cat(self.anchors(sizes, logits.device))
        classes, boxes, positives = logits.new_zeros(()), logits.new_zeros(()), 0
        for i, target in enumerate(targets):
            valid = self.anchors.on_image(sizes, target.size).to(anchors.device)
            assignment = spread(self.matcher(anchors[valid], target.boxes), valid)
            classes = classes + focal_loss(logits[i], assignment, target.labels)
            positive = (assignment >= 0).nonzero().flatten()
            truth = encode_deltas(anchors[positive], target.boxes[assignment[positive]], self.std)
            boxes = boxes + (deltas[i][positive] - truth).abs().sum()
            positives += max(1, len(positive))
        return {"loss_cls": classes / positives, "loss_bbox": boxes / positives}


@dataclass(frozen=True, kw_only=True, slots=True)
class RetinaNetDecoder:
    """Anchors and deltas to boxes, then the best of each class."""

    num_classes: int
    anchors: Anchors = ANCHORS
    select: Selection = Selection()
    std: Std = STD

    def __call__(
        self,
        outputs: RetinaNetOutputs,
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
        return self.select(logits, boxes, sizes, original_sizes)
