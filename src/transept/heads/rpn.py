"""The region proposal network (Ren et al., "Faster R-CNN", arXiv 1506.01497, Section 3.1) on a pyramid.

RPNHead      one 3x3 convolution, objectness and deltas of 3 anchors in each cell
RPNLoss      matching by overlap, 256 anchors of each image, cross-entropy and L1 (cascade: smooth L1)
Proposals    the best anchors of each level, decoded, suppressed level by level
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, relu, smooth_l1_loss

from transept.heads.dense import flatten_map, flatten_maps, init_convs, map_sizes, spread, stable_topk
from transept.heads.instances import Size, Target, size_tensor
from transept.ops.anchors import Anchors, inside_image
from transept.ops.boxes import Std, clip_boxes, decode_deltas, encode_deltas, suppress
from transept.ops.matching import MaxIoU, RandomSampler

ANCHORS = Anchors(strides=(4, 8, 16, 32, 64), scales=(8,), ratios=(0.5, 1, 2))
STD: Std = (1.0, 1.0, 1.0, 1.0)


class RPNOutputs(NamedTuple):
    """Per level, finest first."""

    logits: list[Tensor]
    """`b a h w`: objectness."""
    deltas: list[Tensor]
    """`b (a 4) h w`."""


class Proposal(NamedTuple):
    """The proposals of one image, best first."""

    boxes: Tensor
    """`n 4`, x1 y1 x2 y2, in pixels of the resized image."""
    scores: Tensor
    """` n`, in 0..1."""


class RPNHead(nn.Module):
    """Maps `b c h w` of any number of levels to objectness and box deltas of each anchor."""

    def __init__(self, in_channels: int, *, channels: int = 256, anchors_per_cell: int = 3) -> None:
        super().__init__()
        self.rpn_conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, anchors_per_cell, 1)
        self.rpn_reg = nn.Conv2d(channels, anchors_per_cell * 4, 1)
        init_convs(self)

    def forward(self, maps: Sequence[Float[Tensor, "b c _h _w"]]) -> RPNOutputs:
        hidden = [relu(self.rpn_conv(x)) for x in maps]
        return RPNOutputs([self.rpn_cls(x) for x in hidden], [self.rpn_reg(x) for x in hidden])


@dataclass(frozen=True, kw_only=True, slots=True)
class RPNLoss:
    """Cross-entropy of the sampled anchors and the distance of their deltas, both over the number of sampled anchors.

    With `beta` the distance is smooth L1, else L1. With `inside` only anchors that lie wholly on the image take part.
    """

    anchors: Anchors = ANCHORS
    matcher: MaxIoU = MaxIoU(positive=0.7, negative=0.3, low_quality=0.3)
    sampler: RandomSampler = RandomSampler(number=256, positive_fraction=0.5)
    beta: float | None = None
    inside: bool = False
    std: Std = STD

    def __call__(self, outputs: RPNOutputs, targets: Sequence[Target]) -> dict[str, Float[Tensor, ""]]:
        logits, deltas = flatten_maps(outputs.logits, 1)[..., 0], flatten_maps(outputs.deltas, 4)
        sizes = map_sizes(outputs.logits)
        anchors = torch.cat(self.anchors(sizes, logits.device))
        objectness, boxes, sampled = logits.new_zeros(()), logits.new_zeros(()), 0
        for i, target in enumerate(targets):
            assignment = self.match(anchors, sizes, target)
            positive, negative = self.sampler(assignment)
            classes = torch.cat((logits.new_ones(len(positive)), logits.new_zeros(len(negative))))
            guess = logits[i][torch.cat((positive, negative))]
            objectness = objectness + binary_cross_entropy_with_logits(guess, classes, reduction="sum")
            truth = encode_deltas(anchors[positive], target.boxes[assignment[positive]], self.std)
            boxes = boxes + distance(deltas[i][positive], truth, self.beta)
            sampled += len(classes)
        return {"loss_rpn_cls": objectness / max(1, sampled), "loss_rpn_bbox": boxes / max(1, sampled)}

    def match(self, anchors: Float[Tensor, "n 4"], sizes: Sequence[Size], target: Target) -> Int[Tensor, " n"]:
        """The assignment of all levels' anchors `n 4` for one image; those that take no part are ignored."""
        valid = self.anchors.on_image(sizes, target.size).to(anchors.device)
        if self.inside:
            valid &= inside_image(anchors, target.size)
        return spread(self.matcher(anchors[valid], target.boxes), valid)


def distance(guess: Float[Tensor, "n 4"], truth: Float[Tensor, "n 4"], beta: float | None) -> Float[Tensor, ""]:
    """The sum of L1 distances, or with `beta` of smooth L1 distances."""
    if beta is None:
        return l1_loss(guess, truth, reduction="sum")
    return smooth_l1_loss(guess, truth, reduction="sum", beta=beta)


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposals:
    """The `per_level` best anchors of each level, decoded and clipped, suppressed within it; the `kept` best of all."""

    per_level: int = 1000
    kept: int = 1000
    iou_threshold: float = 0.7
    anchors: Anchors = ANCHORS
    std: Std = STD

    @torch.no_grad()
    def __call__(self, outputs: RPNOutputs, sizes: Sequence[Size] | Shaped[Tensor, "b 2"]) -> list[Proposal]:
        """Outputs, and height and width of each resized image without padding, to the proposals of each image."""
        device = outputs.logits[0].device
        limits = size_tensor(sizes, device)
        images: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(len(outputs.logits[0]))]
        levels = zip(self.anchors(map_sizes(outputs.logits), device), outputs.logits, outputs.deltas, strict=True)
        for anchors, logits, deltas in levels:
            logits, deltas = flatten_map(logits, 1)[..., 0], flatten_map(deltas, 4)
            best, index = stable_topk(logits, min(self.per_level, logits.shape[1]))
            deltas = deltas.gather(1, index[..., None].expand(-1, -1, 4))
            boxes = clip_boxes(decode_deltas(anchors[index], deltas, self.std), limits)
            solid = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
            for i, image in enumerate(images):
                if torch.compiler.is_compiling():
                    image.append(_emptied(boxes[i], best[i].sigmoid() * solid[i], self.iou_threshold))
                    continue
                index = solid[i].nonzero()[:, 0]
                corners, scores = boxes[i][index], best[i][index].sigmoid()
                kept = suppress(corners, scores, self.iou_threshold)
                image.append((corners[kept], scores[kept]))
        return [self._best(image) for image in images]

    def _best(self, levels: list[tuple[Tensor, Tensor]]) -> Proposal:
        boxes, scores = (torch.cat(part) for part in zip(*levels, strict=True))
        order = scores.argsort(descending=True, stable=True)[: self.kept]
        return Proposal(boxes[order], scores[order])


def _emptied(boxes: Tensor, scores: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Suppression for traced graphs, which want a known number: what is suppressed stays, without extent or score.

    `to_rois` knows it by that.
    """
    kept = suppress(boxes, scores, iou_threshold)
    # Values are gathered, not filled in: OpenVINO expands nothing to a length that is a difference.
    scores = torch.zeros_like(scores).scatter(0, kept, scores[kept])
    return boxes * (scores > 0)[:, None], scores
