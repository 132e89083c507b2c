"""Heads on regions of interest: features, box head, mask head, and what one stage learns and says.

RoIFeatures         RoIAlign (Mask R-CNN, arXiv 1703.06870, Section 3) on the level that fits the region (FPN, Eq. 1)
BoxHead             two fully connected layers, or four convolutions and one ("4conv1fc")
MaskHead            four convolutions, one doubling, a mask for each class
sample_rois         which proposals a stage learns from
BoxLoss, MaskLoss   what it learns
BoxDecoder          what it says

Regions are `k 5`: number of the image in the batch, x1, y1, x2, y2 in pixels of the resized image. Number -1 is none.
The background is class number `num_classes`, the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, relu
from torchvision.ops import generalized_box_iou_loss, roi_align

from transept.errors import TranseptError
from transept.heads.dense import best_detections
from transept.heads.instances import Detections, Size, Target, resize_factors, size_tensor
from transept.heads.rpn import distance
from transept.layers.conv import ConvNormAct
from transept.layers.linear import Linear
from transept.ops.boxes import Std, clip_boxes, decode_deltas, encode_deltas
from transept.ops.masks import crop_masks
from transept.ops.matching import MaxIoU, RandomSampler

MASK_SIZE = 28


def to_rois(boxes: Sequence[Float[Tensor, "_n 4"]]) -> Float[Tensor, "k 5"]:
    """Boxes `n 4` of each image as one `k 5`.

    A box without extent is no image's: traced graphs, which want a known number of proposals, fill up with such.
    """
    numbers = [torch.where((b[:, 2:] > b[:, :2]).all(dim=1, keepdim=True), i, -1) for i, b in enumerate(boxes)]
    return torch.cat([torch.cat((number.to(b), b), dim=1) for number, b in zip(numbers, boxes, strict=True)])


def roi_levels(rois: Float[Tensor, "k 5"], num_levels: int = 4) -> Int[Tensor, " k"]:
    """` k`: the level each region is read from, `floor(log2(sqrt(w h) / 56 + 1e-6))` within those there are."""
    area = (rois[:, 3:] - rois[:, 1:3]).prod(dim=1)
    return (area.sqrt() / 56 + 1e-6).log2().floor().clamp(0, num_levels - 1).long()


@dataclass(frozen=True, kw_only=True, slots=True)
class RoIFeatures:
    """Regions `k 5` to their features `k c s s`, by RoIAlign with half-pixel shift and adaptive sampling."""

    size: int
    strides: tuple[int, ...] = (4, 8, 16, 32)

    def __call__(
        self, maps: Sequence[Float[Tensor, "b c _h _w"]], rois: Float[Tensor, "k 5"]
    ) -> Float[Tensor, "k c s s"]:
        """Maps beyond the `strides` (the pooled level) are not used."""
        levels = roi_levels(rois, len(self.strides))
        rois = torch.cat((rois[:, :1].clamp(min=0), rois[:, 1:]), dim=1)  # without extent, those of no image read 0
        if torch.compiler.is_compiling():
            # The number of regions on a level is not known in a traced graph, so every level reads all of them. One
            # that does not belong to the level is given no extent: it has no sampling points and costs nothing. What it
            # reads, 0 or in OpenVINO the mean of nothing, is not taken.
            solid = (rois[:, 3:] > rois[:, 1:3]).all(dim=1)
            features = torch.zeros(())
            for i, (x, stride) in enumerate(zip(maps, self.strides, strict=False)):
                here = (solid & (levels == i))[:, None]
                regions = torch.cat((rois[:, :1], rois[:, 1:] * here), dim=1)
                pooled = roi_align(x, regions.to(x), self.size, 1 / stride, sampling_ratio=0, aligned=True)
                features = torch.where(here[..., None, None], pooled, features)
            return features
        indices = [(levels == i).nonzero().flatten() for i in range(len(self.strides))]
        pooled = [
            roi_align(x, rois[index].to(x), self.size, 1 / stride, sampling_ratio=0, aligned=True)
            for x, index, stride in zip(maps, indices, self.strides, strict=False)
        ]
        return torch.cat(pooled)[torch.cat(indices).argsort()]


class BoxOutputs(NamedTuple):
    logits: Tensor
    """`k (c + 1)`, the background last."""
    deltas: Tensor
    """`k (c 4)`, or `k 4` where all classes share one box."""


class BoxHead(nn.Module):
    """Region features `k c 7 7` to class logits and box deltas.

    Args:
        num_convs: 3x3 convolutions with batch norm before the fully connected layers.
        num_fcs: fully connected layers, each with ReLU.
        class_agnostic: one box for all classes.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        num_convs: int = 0,
        num_fcs: int = 2,
        hidden: int = 1024,
        class_agnostic: bool = False,
        size: int = 7,
    ) -> None:
        super().__init__()
        self.features = RoIFeatures(size=size)
        self.shared_convs = nn.Sequential(*(ConvNormAct(in_channels, in_channels) for _ in range(num_convs)))
        widths = [in_channels * size**2] + [hidden] * num_fcs
        fcs = [Linear(a, b) for a, b in pairwise(widths)]
        self.shared_fcs = nn.ModuleList(fcs)
        self.fc_cls = nn.Linear(widths[-1], num_classes + 1)
        self.fc_reg = nn.Linear(widths[-1], 4 if class_agnostic else 4 * num_classes)
        for fc in fcs:
            nn.init.xavier_uniform_(fc.weight)
        nn.init.normal_(self.fc_cls.weight, std=0.01)
        nn.init.normal_(self.fc_reg.weight, std=0.001)
        for fc in (*fcs, self.fc_cls, self.fc_reg):
            nn.init.zeros_(fc.bias)

    def forward(self, x: Float[Tensor, "k c s s"]) -> BoxOutputs:
        x = self.shared_convs(x).flatten(1)
        for fc in self.shared_fcs:
            x = relu(fc(x))
        return BoxOutputs(self.fc_cls(x).float(), self.fc_reg(x).float())


class MaskHead(nn.Module):
    """Region features `k c 14 14` to mask logits `k num_classes 28 28`."""

    def __init__(self, in_channels: int, num_classes: int, *, channels: int = 256, num_convs: int = 4) -> None:
        super().__init__()
        self.features = RoIFeatures(size=MASK_SIZE // 2)
        widths = [in_channels] + [channels] * num_convs
        self.convs = nn.Sequential(*(ConvNormAct(a, b, norm=None) for a, b in pairwise(widths)))
        self.upsample = nn.ConvTranspose2d(widths[-1], channels, 2, stride=2)
        self.conv_logits = nn.Conv2d(channels, num_classes, 1)
        for conv in (self.upsample, self.conv_logits):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, x: Float[Tensor, "k c s s"]) -> Float[Tensor, "k n 2*s 2*s"]:
        return self.conv_logits(relu(self.upsample(self.convs(x)))).float()


class Samples(NamedTuple):
    """The regions a stage learns from, image by image."""

    rois: Tensor
    """`k 5`"""
    labels: Tensor
    """` k`, `num_classes` for background."""
    matched: Tensor
    """` k`: the number of its object in the image's target; BACKGROUND where it has none."""
    boxes: Tensor
    """`k 4`: the box of that object; zeros where there is none."""
    truth: Tensor
    """` k`, bool: the region is itself an object's box, added to the proposals."""


@torch.no_grad()
def sample_rois(
    proposals: Sequence[Float[Tensor, "_n 4"]],
    targets: Sequence[Target],
    matcher: MaxIoU,
    sampler: RandomSampler,
    num_classes: int,
) -> Samples:
    """Proposals `n 4` of each image, with the objects' boxes before them, matched and sampled."""
    images = []
    for i, (boxes, target) in enumerate(zip(proposals, targets, strict=True)):
        numbers = torch.arange(len(target.boxes), device=boxes.device)
        assignment = torch.cat((numbers, matcher(boxes, target.boxes)))
        index = torch.cat(sampler(assignment))
        matched = assignment[index]
        positive = matched >= 0
        labels = torch.full_like(matched, num_classes)
        labels[positive] = target.labels[matched[positive]]
        objects = target.boxes.to(boxes)
        corners = torch.cat((objects, boxes))[index]
        truth = torch.zeros_like(corners)
        truth[positive] = objects[matched[positive]]
        rois = torch.cat((corners.new_full((len(corners), 1), i), corners), dim=1)
        images.append(Samples(rois, labels, matched, truth, index < len(numbers)))
    return Samples(*(torch.cat(part) for part in zip(*images, strict=True)))


def deltas_of(deltas: Float[Tensor, "k _"], labels: Int[Tensor, " k"]) -> Float[Tensor, "k 4"]:
    """From `k (c 4)` those of each region's label ` k`, `k 4`; what is shared by all classes as it is."""
    if deltas.shape[1] == 4:
        return deltas
    return deltas.unflatten(1, (-1, 4))[torch.arange(labels.shape[0], device=labels.device), labels]


def masks_of(logits: Float[Tensor, "k n m m"], labels: Int[Tensor, " k"]) -> Float[Tensor, "k m m"]:
    """From `k c m m` the masks of each region's label ` k`: `k m m`."""
    return logits[torch.arange(labels.shape[0], device=labels.device), labels]


def refine_rois(
    rois: Float[Tensor, "k 5"],
    outputs: BoxOutputs,
    std: Std,
    sizes: Float[Tensor, "b 2"],
    labels: Int[Tensor, " k"] | None = None,
) -> Float[Tensor, "k 5"]:
    """Regions `k 5` moved by the box of their label, or of their best class, and clipped to images of `sizes` `b 2`.

    Labels that are background stand for the best class as well.
    """
    num_classes = outputs.logits.shape[1] - 1
    best = outputs.logits[:, :-1].argmax(dim=1)
    classes = best if labels is None else torch.where(labels == num_classes, best, labels)
    boxes = decode_deltas(rois[:, 1:], deltas_of(outputs.deltas, classes), std)
    limits = sizes[rois[:, 0].long()]
    return torch.cat((rois[:, :1], clip_boxes(boxes[:, None], limits)[:, 0]), dim=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxLoss:
    """Cross-entropy of all sampled regions, and of the positives' boxes, both over the number of sampled regions.

    The latter is the L1 or smooth L1 (beta 1) distance of the deltas, or 10 times the GIoU loss of the decoded boxes.
    """

    std: Std = (0.1, 0.1, 0.2, 0.2)
    distance: Literal["l1", "smooth_l1", "giou"] = "l1"

    def __call__(self, outputs: BoxOutputs, samples: Samples) -> dict[str, Float[Tensor, ""]]:
        number = max(1, len(samples.labels))
        classes = cross_entropy(outputs.logits, samples.labels, reduction="sum") / number
        positive = (samples.matched >= 0).nonzero().flatten()
        deltas = deltas_of(outputs.deltas[positive], samples.labels[positive])
        rois, truth = samples.rois[positive, 1:], samples.boxes[positive]
        if self.distance == "giou":
            boxes = 10 * generalized_box_iou_loss(decode_deltas(rois, deltas, self.std), truth, reduction="sum")
        else:
            beta = 1.0 if self.distance == "smooth_l1" else None
            boxes = distance(deltas, encode_deltas(rois, truth, self.std), beta)
        return {"loss_cls": classes, "loss_bbox": boxes / number}


def positives(samples: Samples) -> Samples:
    """Those that have an object."""
    positive = samples.matched >= 0
    return Samples(*(part[positive] for part in samples))


def mask_loss(logits: Float[Tensor, "k n m m"], samples: Samples, targets: Sequence[Target]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the logits `k c m m` of positive samples, on the channel of the object's class.

    Raises:
        TranseptError: a target has no masks.
    """
    crops = []
    for i, target in enumerate(targets):
        if target.masks is None or len(target.masks) != len(target.boxes):
            have = "no masks" if target.masks is None else f"{len(target.masks)} masks"
            raise TranseptError(
                f"target {i} of the batch has {len(target.boxes)} boxes and {have}; a mask head learns from one each"
            )
        here = samples.rois[:, 0] == i
        crops.append(crop_masks(target.masks[samples.matched[here]], samples.rois[here, 1:], logits.shape[-1]))
    guess, truth = masks_of(logits, samples.labels), torch.cat(crops)
    return binary_cross_entropy_with_logits(guess, truth, reduction="sum") / max(1, truth.numel())


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxDecoder:
    """Regions and their outputs to detections.

    Soft-max; every class of every region whose score exceeds `score_threshold`; non-maximum suppression among equal
    labels, in the original image; the best `max_detections`.
    """

    std: Std = (0.1, 0.1, 0.2, 0.2)
    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    max_detections: int = 100

    def boxes(
        self, rois: Float[Tensor, "k 5"], outputs: BoxOutputs, sizes: Float[Tensor, "b 2"]
    ) -> Float[Tensor, "k _ 4"]:
        """`k c 4` (c is 1 where all classes share one box), clipped to the images."""
        deltas = outputs.deltas.unflatten(1, (-1, 4))
        return clip_boxes(decode_deltas(rois[:, None, 1:], deltas, self.std), sizes[rois[:, 0].long()])

    def __call__(
        self,
        rois: Float[Tensor, "k 5"],
        outputs: BoxOutputs,
        sizes: Sequence[Size] | Shaped[Tensor, "b 2"],
        original_sizes: Sequence[Size] | Shaped[Tensor, "b 2"] | None = None,
    ) -> list[Detections]:
        """Regions `k 5`, and height and width of each resized image without padding."""
        limits = size_tensor(sizes, rois.device)
        scores = outputs.logits.softmax(dim=1)[:, :-1]
        boxes = self.boxes(rois, outputs, limits).expand(-1, scores.shape[1], 4)
        factors = resize_factors(limits, original_sizes)
        images = []
        for i in range(len(limits)):
            region, label = ((rois[:, :1] == i) & (scores > self.score_threshold)).nonzero().unbind(dim=1)
            corners = boxes[region, label] / factors[i]
            best = best_detections(corners, scores[region, label], label, self.iou_threshold, self.max_detections)
            images.append(best)
        return images


def add_masks(
    heads: Sequence[MaskHead],
    maps: Sequence[Float[Tensor, "b c _h _w"]],
    detections: Sequence[Detections],
    factors: Float[Tensor, "b 1 4"],
) -> list[Detections]:
    """Detections with the masks that the heads see at their boxes, the mean where there are several heads.

    `factors`, `b 1 4`, bring the boxes to pixels of the resized image.
    """
    rois = to_rois([image.boxes * factor for image, factor in zip(detections, factors, strict=True)])
    labels = torch.cat([image.labels for image in detections])
    features = heads[0].features(maps, rois)
    masks = torch.stack([masks_of(head(features), labels).sigmoid() for head in heads]).mean(dim=0)
    if len(detections) == 1:
        return [detections[0]._replace(masks=masks)]
    split = masks.split([len(image.boxes) for image in detections])
    return [image._replace(masks=part) for image, part in zip(detections, split, strict=True)]
