"""UPerNet (Xiao et al., "Unified Perceptual Parsing for Scene Understanding", arXiv 1807.10221), its scene part.

Section 3.1    PyramidPooling    what the coarsest map shows in 1, 4, 9 and 36 regions (Zhao et al., arXiv 1612.01105)
Section 3.1    UPerNetHead       a feature pyramid from the pooled map down; the classes are read from all its levels

Departure from the paper, as in the released models: the object classes are read from the fused levels.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transept.errors import UsageError
from transept.heads.segmentation import SegmentationHead
from transept.layers.conv import ConvNormAct
from transept.ops.interpolation import resize_map


class PyramidPooling(nn.ModuleList):
    """A map `b c h w` to itself and its averages over grids of regions, enlarged again: `b (c + 4 channels) h w`."""

    def __init__(self, in_channels: int, channels: int, scales: Sequence[int]) -> None:
        super().__init__(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvNormAct(in_channels, channels, 1)) for scale in scales
        )

    def forward(self, x: Float[Tensor, "b _c h w"]) -> Float[Tensor, "b _c h w"]:
        if self.training and len(x) == 1 and any(type(m) is nn.BatchNorm2d and m.training for m in self.modules()):
            raise UsageError(
                "UPerNet was given one image to train on, and the BatchNorm of its 1x1 average needs two; use a"
                " batch_size of 2 or more, or convert with torch.nn.SyncBatchNorm where several processes share a batch"
            )
        return torch.cat([x, *(resize_map(pool(x), x.shape[-2:]) for pool in self)], dim=1)


class UPerNetHead(SegmentationHead):
    """The backbone's maps, finest first, to logits `b num_classes h w` at the finest map's size.

    Args:
        in_channels: of each level.
        channels: width of all convolutions.
        pool_scales: the grids of the pyramid pooling.
        dropout: share of the channels that training leaves out before the classifier.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__(channels, num_classes, dropout)
        *finer, last = in_channels
        self.psp_modules = PyramidPooling(last, channels, pool_scales)
        self.bottleneck = ConvNormAct(last + len(pool_scales) * channels, channels)
        self.lateral_convs = nn.ModuleList(ConvNormAct(width, channels, 1) for width in finer)
        self.fpn_convs = nn.ModuleList(ConvNormAct(channels, channels) for _ in finer)
        self.fpn_bottleneck = ConvNormAct(len(in_channels) * channels, channels)

    def forward(self, maps: Sequence[Float[Tensor, "b _c _h _w"]]) -> Float[Tensor, "b k h w"]:
        *finer, last = maps
        sums = [conv(level) for conv, level in zip(self.lateral_convs, finer, strict=True)]
        sums.append(self.bottleneck(self.psp_modules(last)))
        for i in reversed(range(len(finer))):
            sums[i] = sums[i] + resize_map(sums[i + 1], sums[i].shape[-2:])
        outs = [conv(level) for conv, level in zip(self.fpn_convs, sums, strict=False)]
        outs = [resize_map(level, maps[0].shape[-2:]) for level in (*outs, sums[-1])]
        return self.classify(self.fpn_bottleneck(torch.cat(outs, dim=1)))
