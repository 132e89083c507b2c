"""Cascade R-CNN (Cai and Vasconcelos, arXiv 1712.00726, and 1906.09756 with masks): heads that correct each other.

Section 4.1    Stage                 each next stage has narrower deviations
Section 4.2    CascadeRCNNLoss       each next stage learns from better boxes, by a higher overlap
Section 4.3    CascadeRCNNDecoder    boxes of the last stage, scores of all

The mean of the stages' class scores is taken before the soft-max, as the published models do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from transept.heads.instances import Detections, Size, Target, resize_factors, size_tensor
from transept.heads.roi import (
    BoxDecoder,
    BoxHead,
    BoxLoss,
    BoxOutputs,
    MaskHead,
    Samples,
    add_masks,
    mask_loss,
    positives,
    refine_rois,
    sample_rois,
    to_rois,
)
from transept.ops.boxes import Std
from transept.ops.matching import MaxIoU, RandomSampler


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stage's threshold, weight and deviations."""

    iou: float
    """From this overlap on a region is positive, below it is background."""
    weight: float
    """The factor of its losses."""
    std: Std
    """The deviations by which its deltas are divided."""


STAGES = (
    Stage(iou=0.5, weight=1.0, std=(0.1, 0.1, 0.2, 0.2)),
    Stage(iou=0.6, weight=0.5, std=(0.05, 0.05, 0.1, 0.1)),
    Stage(iou=0.7, weight=0.25, std=(0.033, 0.033, 0.067, 0.067)),
)


class CascadeRCNNHead(nn.Module):
    """Maps `b c h w` of strides 4, 8, 16, 32 (more are ignored) and regions `k 5` to each stage's outputs.

    Args:
        num_convs, num_fcs, class_agnostic: the box heads (see `BoxHead`). Cascade R-CNN has two layers and one box for
            all classes, Cascade Mask R-CNN four convolutions, one layer and a box for each class.
        with_masks: a mask head for each stage.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        stages: tuple[Stage, ...] = STAGES,
        num_convs: int = 0,
        num_fcs: int = 2,
        class_agnostic: bool = True,
        with_masks: bool = False,
        hidden: int = 1024,
        mask_channels: int = 256,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stages = stages
        self.bbox_head = nn.ModuleList(
            BoxHead(
                in_channels,
                num_classes,
                num_convs=num_convs,
                num_fcs=num_fcs,
                class_agnostic=class_agnostic,
                hidden=hidden,
            )
            for _ in stages
        )
        self.mask_head = nn.ModuleList(
            MaskHead(in_channels, num_classes, channels=mask_channels) for _ in (stages if with_masks else ())
        )

    def boxes(self, stage: int, maps: Sequence[Float[Tensor, "b c _h _w"]], rois: Float[Tensor, "k 5"]) -> BoxOutputs:
        head = self.bbox_head[stage]
        assert isinstance(head, BoxHead)
        return head(head.features(maps, rois))

    def masks(
        self, stage: int, maps: Sequence[Float[Tensor, "b c _h _w"]], rois: Float[Tensor, "k 5"]
    ) -> Float[Tensor, "k n m m"]:
        """Logits `k num_classes 28 28`."""
        return self.mask_heads[stage](self.mask_heads[stage].features(maps, rois))

    @property
    def mask_heads(self) -> list[MaskHead]:
        return [head for head in self.mask_head if isinstance(head, MaskHead)]

    def forward(
        self, maps: Sequence[Float[Tensor, "b c _h _w"]], rois: Float[Tensor, "k 5"], sizes: Float[Tensor, "b 2"]
    ) -> tuple[Float[Tensor, "k 5"], BoxOutputs]:
        """Regions through all stages, each moved by its best class and clipped to images of `sizes` `b 2`.

        Returns the regions that the last stage saw, and its outputs with the mean of all stages' logits.
        """
        outputs = self.boxes(0, maps, rois)
        logits = [outputs.logits]
        for i, before in enumerate(self.stages[:-1]):
            rois = refine_rois(rois, outputs, before.std, sizes)
            outputs = self.boxes(i + 1, maps, rois)
            logits.append(outputs.logits)
        return rois, BoxOutputs(torch.stack(logits).mean(dim=0), outputs.deltas)


@dataclass(frozen=True, kw_only=True, slots=True)
class CascadeRCNNLoss:
    """The losses of all stages, each matched and sampled anew on the boxes of the one before."""

    sampler: RandomSampler = RandomSampler(number=512, positive_fraction=0.25)
    giou: bool = False
    """Ten times the GIoU loss of decoded boxes (Cascade Mask R-CNN) in place of smooth L1 of deltas."""

    def __call__(
        self,
        head: CascadeRCNNHead,
        maps: Sequence[Float[Tensor, "b c _h _w"]],
        proposals: Sequence[Float[Tensor, "_n 4"]],
        targets: Sequence[Target],
    ) -> dict[str, Float[Tensor, ""]]:
        """Proposals `n 4` of each image, in pixels of the resized image."""
        sizes = size_tensor([target.size for target in targets], maps[0].device)
        losses = {}
        for i, stage in enumerate(head.stages):
            matcher = MaxIoU(positive=stage.iou, negative=stage.iou)
            samples = sample_rois(proposals, targets, matcher, self.sampler, head.num_classes)
            outputs = head.boxes(i, maps, samples.rois)
            stage_losses = BoxLoss(std=stage.std, distance="giou" if self.giou else "smooth_l1")(outputs, samples)
            if head.mask_heads:
                objects = positives(samples)
                stage_losses["loss_mask"] = mask_loss(head.masks(i, maps, objects.rois), objects, targets)
            losses |= {f"s{i}.{name}": stage.weight * value for name, value in stage_losses.items()}
            if i + 1 < len(head.stages):
                proposals = next_proposals(samples, outputs, stage.std, sizes)
        return losses


@torch.no_grad()
def next_proposals(
    samples: Samples, outputs: BoxOutputs, std: Std, sizes: Float[Tensor, "b 2"]
) -> list[Float[Tensor, "_n 4"]]:
    """A stage's sampled regions, moved, as proposals `n 4` of each image; without those that are objects' boxes."""
    rois = refine_rois(samples.rois, outputs, std, sizes, samples.labels)[~samples.truth]
    return [rois[rois[:, 0] == i, 1:] for i in range(len(sizes))]


@dataclass(frozen=True, kw_only=True, slots=True)
class CascadeRCNNDecoder:
    """Proposals to detections, with masks where there are mask heads."""

    boxes: BoxDecoder = BoxDecoder(std=STAGES[-1].std)

    def __call__(
        self,
        head: CascadeRCNNHead,
        maps: Sequence[Float[Tensor, "b c _h _w"]],
        proposals: Sequence[Float[Tensor, "_n 4"]],
        sizes: Sequence[Size] | Shaped[Tensor, "b 2"],
        original_sizes: Sequence[Size] | Shaped[Tensor, "b 2"] | None = None,
    ) -> list[Detections]:
        """Proposals `n 4` of each image, and height and width of each resized image (without padding) and original."""
        limits = size_tensor(sizes, maps[0].device)
        rois, outputs = head(maps, to_rois(proposals), limits)
        detections = self.boxes(rois, outputs, limits, original_sizes)
        if not head.mask_heads:
            return detections
        return add_masks(head.mask_heads, maps, detections, resize_factors(limits, original_sizes))
