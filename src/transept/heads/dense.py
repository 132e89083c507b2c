"""Parts that the single-stage heads (RetinaNet, FCOS, ATSS) and the region proposal network share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.distributed import ReduceOp, all_reduce, is_available, is_initialized
from torchvision.ops import sigmoid_focal_loss

from transept.heads.instances import Detections, Size, resize_factors, size_tensor
from transept.layers.conv import ConvNorm, ConvNormAct
from transept.ops.boxes import clip_boxes, nms_by_label
from transept.ops.matching import IGNORED

FOCAL_BIAS = -math.log(99)
"""At the start every class has a probability of 1 % (focal loss paper, Section 4.1)."""


class Scale(nn.Module):
    """One learnt factor (FCOS, Section 3.2: one for each level)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x * self.scale


def tower(in_channels: int, channels: int, depth: int, norm: ConvNorm | None) -> nn.Sequential:
    """`depth` 3x3 convolutions with their norms and ReLUs (RetinaNet, Section 4)."""
    widths = [in_channels] + [channels] * depth
    return nn.Sequential(*(ConvNormAct(a, b, norm=norm) for a, b in pairwise(widths)))


def init_convs(head: nn.Module, classifier: nn.Conv2d | None = None) -> None:
    """Normal weights of deviation 0.01, zero biases; the classifier's so that every class is improbable."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if classifier is not None and classifier.bias is not None:
        nn.init.constant_(classifier.bias, FOCAL_BIAS)


def flatten_map(x: Float[Tensor, "b _ h w"], width: int) -> Float[Tensor, "b p {width}"]:
    """`b (a c) h w -> b (h w a) c` with `c = width`, in float32: a row for each prior, ordered as in `ops.anchors`."""
    b, channels, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(b, h * w * (channels // width), width).float()


def flatten_maps(maps: Sequence[Float[Tensor, "b _ _h _w"]], width: int) -> Float[Tensor, "b p {width}"]:
    """`flatten_map` of all levels, one after the other: `b p c`."""
    return torch.cat([flatten_map(level, width) for level in maps], dim=1)


def map_sizes(maps: Sequence[Float[Tensor, "b _c _h _w"]]) -> list[Size]:
    """Height and width of each `b c h w`."""
    return [(level.shape[-2], level.shape[-1]) for level in maps]


def spread(assignment: Int[Tensor, " v"], valid: Bool[Tensor, " p"]) -> Int[Tensor, " p"]:
    """An assignment of the valid priors as one of all; the others are ignored."""
    return torch.full_like(valid, IGNORED, dtype=assignment.dtype).masked_scatter(valid, assignment)


def focal_loss(
    logits: Float[Tensor, "p k"], assignment: Int[Tensor, " p"], labels: Int[Tensor, " n"]
) -> Float[Tensor, ""]:
    """The sum over priors and classes of the focal loss (RetinaNet, Section 3), alpha 0.25 and gamma 2.

    Ignored priors do not count. The labels are those of the boxes that the assignment numbers.
    """
    truth = torch.zeros_like(logits)
    positive = (assignment >= 0).nonzero().flatten()
    truth[positive, labels[assignment[positive]]] = 1
    counts = assignment != IGNORED
    return sigmoid_focal_loss(logits[counts], truth[counts], alpha=0.25, gamma=2, reduction="sum")


def mean_over_processes(count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The mean of a number over all processes while they train; itself where there is one.

    Without gradients the number itself, too: in a validation processes may have batches more or less than others, and
    would wait for them for ever.
    """
    if not (is_available() and is_initialized() and torch.is_grad_enabled()):
        return count
    count = count.clone()
    all_reduce(count, op=ReduceOp.SUM)
    return count / torch.distributed.get_world_size()


def stable_topk(values: Float[Tensor, "b n"], k: int) -> tuple[Float[Tensor, "b {k}"], Int[Tensor, "b {k}"]]:
    """The `k` largest of each row of `b n` and their places, `b k`, largest first and equal ones in order of place.

    `torch.topk` leaves the order of equal values open and ONNX's TopK does not; suppression follows that order. Which
    of several are taken where the k-th value occurs more than once stays open.
    """
    places = values.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
    best, order = values.gather(1, places).sort(dim=1, descending=True, stable=True)
    return best, places.gather(1, order)


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """From scores and boxes of all priors to detections.

    On each level the `per_level` best pairs of prior and class whose score exceeds `score_threshold`; then, over all
    levels, non-maximum suppression among equal labels, and the best `max_detections`.
    """

    score_threshold: float = 0.05
    per_level: int = 1000
    iou_threshold: float = 0.5
    max_detections: int = 100

    def __call__(
        self,
        logits: Sequence[Float[Tensor, "b _p k"]],
        boxes: Sequence[Float[Tensor, "b _p 4"]],
        sizes: Sequence[Size] | Shaped[Tensor, "b 2"],
        original_sizes: Sequence[Size] | Shaped[Tensor, "b 2"] | None = None,
        quality: Sequence[Float[Tensor, "b _p 1"]] | None = None,
    ) -> list[Detections]:
        """Per level logits `b p k`, boxes `b p 4` and, where there are, quality logits `b p 1`.

        Boxes are clipped to `sizes` and brought to `original_sizes`. The score is the class's probability, to be
        exceeded as such, times that of the quality.
        """
        sizes = size_tensor(sizes, boxes[0].device)
        candidates = []
        for i, (level_logits, level_boxes) in enumerate(zip(logits, boxes, strict=True)):
            num_classes = level_logits.shape[2]
            flat = level_logits.flatten(1)
            best, index = stable_topk(flat, min(self.per_level, flat.shape[1]))
            prior = index // num_classes
            probability = best.sigmoid()
            scores = probability
            if quality is not None:
                scores = probability * quality[i][..., 0].gather(1, prior).sigmoid()
            corners = level_boxes.gather(1, prior[..., None].expand(-1, -1, 4))
            candidates.append((corners, scores, index % num_classes, probability > self.score_threshold))
        corners, scores, labels, keep = (torch.cat(part, dim=1) for part in zip(*candidates, strict=True))
        corners = clip_boxes(corners, sizes) / resize_factors(sizes, original_sizes)
        detections = []
        for c, s, n, above in zip(corners, scores, labels, keep, strict=True):
            index = above.nonzero()[:, 0]
            detections.append(best_detections(c[index], s[index], n[index], self.iou_threshold, self.max_detections))
        return detections


def best_detections(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    labels: Int[Tensor, " n"],
    iou_threshold: float,
    max_detections: int,
) -> Detections:
    """Non-maximum suppression among equal labels of `n 4`, and the best that are left."""
    best = nms_by_label(boxes, scores, labels, iou_threshold)[:max_detections]
    return Detections(boxes[best], scores[best], labels[best])
