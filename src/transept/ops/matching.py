"""Which prior answers for which box, and which of them a loss looks at.

An assignment is a tensor ` p` of box numbers, one for each prior, or `BACKGROUND` or `IGNORED`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import box_iou

from transept.ops.boxes import encode_distances

BACKGROUND = -1
IGNORED = -2


@dataclass(frozen=True, kw_only=True, slots=True)
class MaxIoU:
    """Each prior takes the box that it overlaps most: from `positive` on it is that box's, below `negative` background.

    With `low_quality` every box then also takes all priors that reach its own largest overlap, if that is at least
    this number; a later box takes from an earlier one. A box that no prior touches takes none (the official rule
    would give it every prior that touches nothing either).
    """

    positive: float
    negative: float
    low_quality: float | None = None

    def __call__(self, priors: Float[Tensor, "p 4"], boxes: Float[Tensor, "n 4"]) -> Int[Tensor, " p"]:
        """Priors `p 4` and boxes `n 4` to an assignment ` p`."""
        if not len(boxes) or not len(priors):
            return priors.new_full((len(priors),), BACKGROUND, dtype=torch.long)
        iou = box_iou(boxes, priors)
        best, box = iou.max(dim=0)
        assignment = torch.full_like(box, IGNORED)
        assignment[best < self.negative] = BACKGROUND
        assignment = torch.where(best >= self.positive, box, assignment)
        if self.low_quality is None:
            return assignment
        reached = iou.amax(dim=1, keepdim=True)
        matches = (iou == reached) & (reached >= self.low_quality) & (reached > 0)
        numbers = torch.arange(len(boxes), device=boxes.device)[:, None]
        last = torch.where(matches, numbers, BACKGROUND).amax(dim=0)
        return torch.where(last >= 0, last, assignment)


@dataclass(frozen=True, kw_only=True, slots=True)
class ATSS:
    """Adaptive training sample selection (Zhang et al., CVPR 2020, Algorithm 1).

    The candidates of a box are, on each level, the `candidates` anchors whose centres are nearest to its own. Those
    that overlap it by at least the mean plus the unbiased standard deviation of all candidates' overlaps, and whose
    centre lies more than 0.01 pixels inside it, are its own; one claimed twice goes to the larger overlap.
    """

    candidates: int = 9

    def __call__(self, levels: Sequence[Float[Tensor, "_p 4"]], boxes: Float[Tensor, "n 4"]) -> Int[Tensor, " p"]:
        """Anchors `p 4` of each level and boxes `n 4` to an assignment of all levels' anchors."""
        anchors = torch.cat(list(levels))
        if not len(boxes) or not len(anchors):
            return anchors.new_full((len(anchors),), BACKGROUND, dtype=torch.long)
        iou = box_iou(boxes, anchors)
        centres = (anchors[:, :2] + anchors[:, 2:]) / 2
        distance = torch.cdist((boxes[:, :2] + boxes[:, 2:]) / 2, centres, compute_mode="donot_use_mm_for_euclid_dist")
        nearest, start = [], 0
        for level in levels:
            near = distance[:, start : start + len(level)]
            nearest.append(near.topk(min(self.candidates, len(level)), largest=False).indices + start)
            start += len(level)
        nearest = torch.cat(nearest, dim=1)
        overlaps = iou.gather(1, nearest)
        threshold = overlaps.mean(dim=1) + (overlaps.std(dim=1) if overlaps.shape[1] > 1 else 0.0)
        inside = encode_distances(centres[nearest], boxes[:, None]).amin(dim=-1) > 0.01
        positive = torch.zeros_like(iou, dtype=torch.bool).scatter_(
            1, nearest, (overlaps >= threshold[:, None]) & inside
        )
        best, box = iou.masked_fill(~positive, -1.0).max(dim=0)
        return torch.where(best >= 0, box, BACKGROUND)


@dataclass(frozen=True, kw_only=True, slots=True)
class InsideBox:
    """FCOS (Tian et al., ICCV 2019, Section 3.1): a point belongs to the smallest box around it that suits its level.

    It lies strictly inside, and its largest distance to a side lies in the level's range, ends included.
    """

    ranges: tuple[tuple[float, float], ...] = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8))
    """In pixels, finest level first."""

    def __call__(self, levels: Sequence[Float[Tensor, "_p 2"]], boxes: Float[Tensor, "n 4"]) -> Int[Tensor, " p"]:
        """Points `p 2` of each level and boxes `n 4` to an assignment of all levels' points."""
        points = torch.cat(list(levels))
        if not len(boxes) or not len(points):
            return points.new_full((len(points),), BACKGROUND, dtype=torch.long)
        bounds = [points.new_tensor(ends).expand(len(p), 2) for ends, p in zip(self.ranges, levels, strict=True)]
        low, high = torch.cat(bounds).unbind(dim=1)
        distances = encode_distances(points, boxes[:, None])  # n p 4
        reach = distances.amax(dim=-1)
        suits = (distances.amin(dim=-1) > 0) & (low <= reach) & (reach <= high)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        smallest, box = torch.where(suits, areas[:, None], torch.inf).min(dim=0)
        return torch.where(smallest < torch.inf, box, BACKGROUND)


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomSampler:
    """At most `number` priors, of them at most `positive_fraction` positive; background fills the rest."""

    number: int
    positive_fraction: float

    def __call__(self, assignment: Int[Tensor, " p"]) -> tuple[Int[Tensor, " positives"], Int[Tensor, " negatives"]]:
        """An assignment to the indices of the sampled positives and of the sampled background, each at random."""
        positive = _some(assignment >= 0, int(self.number * self.positive_fraction))
        return positive, _some(assignment == BACKGROUND, self.number - len(positive))


def _some(mask: Tensor, number: int) -> Tensor:
    indices = mask.nonzero().flatten()
    if len(indices) <= number:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:number]]
