"""Mask R-CNN (He et al., arXiv 1703.06870): boxes and masks of the proposals of a region proposal network.

Section 3    MaskRCNNHead       box head and mask head on RoIAlign
Section 3    MaskRCNNLoss       matching, sampling, the losses of both
Section 3    MaskRCNNDecoder    boxes first, masks only of what is found
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from transept.heads.instances import Detections, Size, Target, resize_factors, size_tensor
from transept.heads.roi import (
    BoxDecoder,
    BoxHead,
    BoxLoss,
    BoxOutputs,
    MaskHead,
    add_masks,
    mask_loss,
    positives,
    sample_rois,
    to_rois,
)
from transept.ops.matching import MaxIoU, RandomSampler


class MaskRCNNHead(nn.Module):
    """Maps `b c h w` of strides 4, 8, 16, 32 (more are ignored) and regions `k 5` to what the heads see there."""

    def __init__(self, in_channels: int, num_classes: int, *, hidden: int = 1024, mask_channels: int = 256) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.bbox_head = BoxHead(in_channels, num_classes, hidden=hidden)
        self.mask_head = MaskHead(in_channels, num_classes, channels=mask_channels)

    def boxes(self, maps: Sequence[Float[Tensor, "b c _h _w"]], rois: Float[Tensor, "k 5"]) -> BoxOutputs:
        return self.bbox_head(self.bbox_head.features(maps, rois))

    def masks(self, maps: Sequence[Float[Tensor, "b c _h _w"]], rois: Float[Tensor, "k 5"]) -> Float[Tensor, "k n m m"]:
        """Logits `k num_classes 28 28`."""
        return self.mask_head(self.mask_head.features(maps, rois))

    def forward(
        self, maps: Sequence[Float[Tensor, "b c _h _w"]], rois: Float[Tensor, "k 5"]
    ) -> tuple[BoxOutputs, Float[Tensor, "k n m m"]]:
        """Both heads at the same regions."""
        return self.boxes(maps, rois), self.masks(maps, rois)


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskRCNNLoss:
    """512 regions of each image, at most a quarter of them positive; class, box and mask losses."""

    matcher: MaxIoU = MaxIoU(positive=0.5, negative=0.5, low_quality=0.5)
    sampler: RandomSampler = RandomSampler(number=512, positive_fraction=0.25)
    boxes: BoxLoss = BoxLoss()

    def __call__(
        self,
        head: MaskRCNNHead,
        maps: Sequence[Float[Tensor, "b c _h _w"]],
        proposals: Sequence[Float[Tensor, "_n 4"]],
        targets: Sequence[Target],
    ) -> dict[str, Float[Tensor, ""]]:
        """Proposals `n 4` of each image, in pixels of the resized image."""
        samples = sample_rois(proposals, targets, self.matcher, self.sampler, head.num_classes)
        losses = self.boxes(head.boxes(maps, samples.rois), samples)
        samples = positives(samples)
        return losses | {"loss_mask": mask_loss(head.masks(maps, samples.rois), samples, targets)}


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskRCNNDecoder:
    """Proposals to detections with masks."""

    boxes: BoxDecoder = BoxDecoder()

    def __call__(
        self,
        head: MaskRCNNHead,
        maps: Sequence[Float[Tensor, "b c _h _w"]],
        proposals: Sequence[Float[Tensor, "_n 4"]],
        sizes: Sequence[Size] | Shaped[Tensor, "b 2"],
        original_sizes: Sequence[Size] | Shaped[Tensor, "b 2"] | None = None,
    ) -> list[Detections]:
        """Proposals `n 4` of each image, and height and width of each resized image (without padding) and original."""
        rois = to_rois(proposals)
        detections = self.boxes(rois, head.boxes(maps, rois), sizes, original_sizes)
        factors = resize_factors(size_tensor(sizes, rois.device), original_sizes)
        return add_masks([head.mask_head], maps, detections, factors)
