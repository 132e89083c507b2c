"""Semantic FPN (Kirillov et al., "Panoptic Feature Pyramid Networks", arXiv 1901.02446).

Section 3.1, Fig. 3    SemanticFPNHead    each level of the feature pyramid is brought to the finest one's size by
                                          convolutions and doublings; the classes are read from the sum

Departure from the paper, as in the released models: BatchNorm in place of GroupNorm.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from transept.errors import UsageError
from transept.heads.segmentation import SegmentationHead
from transept.layers.conv import ConvNormAct
from transept.ops.interpolation import resize_map


class SemanticFPNHead(SegmentationHead):
    """The maps of an FPN, finest first, to logits `b num_classes h w` at the finest map's size.

    A level whose stride is `2 ** n` times the finest one's passes `n` pairs of a 3x3 convolution and a bilinear
    doubling; the finest level passes one convolution.

    Args:
        in_channels, strides: of each level; the strides are the finest one's times powers of two.
        channels: width of the convolutions.
        dropout: share of the channels that training leaves out before the classifier.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        channels: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(channels, num_classes, dropout)
        self.scale_heads = nn.ModuleList(
            self._scale_head(width, channels, _doublings(stride, strides[0]))
            for width, stride in zip(in_channels, strides, strict=True)
        )

    @staticmethod
    def _scale_head(in_channels: int, channels: int, doublings: int) -> nn.Sequential:
        steps: list[nn.Module] = []
        for _ in range(max(doublings, 1)):
            steps.append(ConvNormAct(in_channels, channels))
            if doublings:
                steps.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            in_channels = channels
        return nn.Sequential(*steps)

    def forward(self, maps: Sequence[Float[Tensor, "b _c _h _w"]]) -> Float[Tensor, "b k h w"]:
        first, *others = (head(level) for head, level in zip(self.scale_heads, maps, strict=True))
        for level in others:  # an odd side is doubled to one more than the finest map has
            first = first + resize_map(level, first.shape[-2:])
        return self.classify(first)


def _doublings(stride: int, finest: int) -> int:
    ratio = stride // finest
    if stride % finest or ratio & (ratio - 1):
        raise UsageError(f"a level of stride {stride} is not the finest one's {finest} times a power of two")
    return ratio.bit_length() - 1
