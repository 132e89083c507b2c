"""A convolution and a classifier on one level (Long et al., "Fully Convolutional Networks for Semantic Segmentation",
arXiv 1411.4038): the auxiliary head that trains beside UPerNet's.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from transept.heads.segmentation import SegmentationHead
from transept.layers.conv import ConvNormAct


class FCNHead(SegmentationHead):
    """The map of one level, of the list `maps`, to logits `b num_classes h w` at its size.

    Args:
        in_channels: of each level.
        level: which one is read, counted from the finest.
        channels: width of the convolution.
        dropout: share of the channels that training leaves out before the classifier.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        level: int = 2,
        channels: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(channels, num_classes, dropout)
        self.level = level
        self.convs = nn.Sequential(ConvNormAct(in_channels[level], channels))

    def forward(self, maps: Sequence[Float[Tensor, "b _c _h _w"]]) -> Float[Tensor, "b k h w"]:
        return self.classify(self.convs(maps[self.level]))
