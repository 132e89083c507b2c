"""Boxes `... 4`: x1, y1, x2, y2 in pixels, in continuous coordinates. The width is `x2 - x1`, with no pixel added.

Intersection over union of all pairs is `torchvision.ops.box_iou`; here is what torchvision lacks or does otherwise
(its coder clamps the log sizes only from above, and at another value).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import batched_nms, box_convert, nms

Std = tuple[float, float, float, float]

MAX_LOG_RATIO = math.log(1000 / 16)
"""A regressed box is at most this much (in logarithms) larger or smaller than its prior."""


def encode_deltas(priors: Float[Tensor, "... 4"], boxes: Float[Tensor, "... 4"], std: Std) -> Float[Tensor, "... 4"]:
    """The targets of a regressor: `((gx - px) / pw, (gy - py) / ph, ln(gw / pw), ln(gh / ph)) / std`.

    p is the prior, g the box; x and y are centres.
    """
    p, g = box_convert(priors, "xyxy", "cxcywh"), box_convert(boxes, "xyxy", "cxcywh")
    shift = (g[..., :2] - p[..., :2]) / p[..., 2:]
    stretch = (g[..., 2:] / p[..., 2:]).log()
    return torch.cat((shift, stretch), dim=-1) / boxes.new_tensor(std)


def decode_deltas(priors: Float[Tensor, "... 4"], deltas: Float[Tensor, "... 4"], std: Std) -> Float[Tensor, "... 4"]:
    """The inverse of `encode_deltas`, with both log sizes kept within `MAX_LOG_RATIO` of zero. Not clipped."""
    deltas = deltas * deltas.new_tensor(std)
    p = box_convert(priors, "xyxy", "cxcywh")
    centre = p[..., :2] + deltas[..., :2] * p[..., 2:]
    size = p[..., 2:] * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return torch.cat((centre - 0.5 * size, centre + 0.5 * size), dim=-1)


def encode_distances(points: Float[Tensor, "... 2"], boxes: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """From points `... 2` (x, y) to the left, top, right and bottom sides, in pixels; negative outside the box."""
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), dim=-1)


def decode_distances(points: Float[Tensor, "... 2"], distances: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """The inverse of `encode_distances`. Not clipped."""
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=-1)


def centerness(distances: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """`sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))` of distances `... 4`: 1 at the centre, 0 at a side."""
    pairs = distances.unflatten(-1, (2, 2))
    return (pairs.amin(dim=-2) / pairs.amax(dim=-2)).prod(dim=-1).sqrt()


def paired_iou(a: Float[Tensor, "n 4"], b: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """Intersection over union of the i-th of `n 4` with the i-th of `n 4`; 0 where both are empty."""
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    union = (a[:, 2:] - a[:, :2]).prod(dim=1) + (b[:, 2:] - b[:, :2]).prod(dim=1) - overlap
    return overlap / union.clamp(min=1e-6)


def clip_boxes(boxes: Float[Tensor, "b n 4"], sizes: Float[Tensor, "b 2"]) -> Float[Tensor, "b n 4"]:
    """Boxes `b n 4` into images of `sizes` `b 2` (height, width)."""
    limits = sizes.flip(-1).repeat(1, 2)[:, None]
    return torch.minimum(boxes.clamp(min=0), limits.to(boxes))


def nms_by_label(
    boxes: Float[Tensor, "n 4"], scores: Float[Tensor, " n"], labels: Int[Tensor, " n"], iou_threshold: float
) -> Int[Tensor, " kept"]:
    """Indices of the boxes `n 4` that no better box of their own label overlaps by more, best first."""
    if not torch.compiler.is_compiling():
        return batched_nms(boxes, scores, labels, iou_threshold)
    # batched_nms chooses its way by the number of boxes, which a traced graph does not know. Here labels are moved
    # far apart, to the cells of a square rather than in a row: the smaller the coordinates, the less of their digits
    # is lost. The appended zeros stand for no boxes at all.
    reach = torch.cat((boxes.flatten(), boxes.new_zeros(1))).max() + 1
    labels = labels.to(boxes)
    side = (torch.cat((labels, labels.new_zeros(1))).max() + 1).sqrt().ceil()
    row = ((labels + 0.5) / side).floor()
    cells = torch.stack((labels - row * side, row), dim=1).repeat(1, 2)
    return suppress(boxes + cells * reach, scores, iou_threshold)


def suppress(boxes: Float[Tensor, "n 4"], scores: Float[Tensor, " n"], iou_threshold: float) -> Int[Tensor, " kept"]:
    """`torchvision.ops.nms`, also in traced graphs: there torchvision asserts that two boxes or more are left."""
    if not torch.compiler.is_compiling():
        return nms(boxes, scores, iou_threshold)
    far = boxes.new_tensor([[-3.0, -3.0, -2.0, -2.0], [-6.0, -6.0, -5.0, -5.0]])
    indices = nms(torch.cat((boxes, far)), torch.cat((scores, scores.new_full((2,), -1.0))), iou_threshold)
    return indices[:-2]
