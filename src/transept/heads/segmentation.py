"""The end of all segmentation heads."""

from jaxtyping import Float
from torch import Tensor, nn

CLASSIFIER_STD = 0.01
"""Standard deviation of the first weights of the classifier, as published."""


class SegmentationHead(nn.Module):
    """Dropout of whole channels and a 1x1 convolution to the classes: `classify` maps `b channels h w` to logits.

    A head's `forward` takes the maps `b c h w` of all levels, finest first.
    """

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, num_classes, kernel_size=1)
        self.dropout = nn.Dropout2d(dropout)
        nn.init.normal_(self.conv_seg.weight, std=CLASSIFIER_STD)
        nn.init.zeros_(self.conv_seg.bias)  # pyright: ignore[reportArgumentType]

    def classify(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        return self.conv_seg(self.dropout(x))
