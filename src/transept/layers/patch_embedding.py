"""From pixels to tokens."""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transept.layers.batch_norm import norm_act


class ConvPatchEmbed(nn.Module):
    """Strided 3x3 convolutions with BatchNorm, GELU between: `b 3 H W -> b c h w` with `h = ceil(H / patch_size)`.

    XCiT's (its Section 3.3), and that of BiXT's convolutional models. With more convolutions than the patches need, the
    first ones keep the resolution.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int, depth: int | None = None) -> None:
        super().__init__()
        strided = int(math.log2(patch_size))
        depth = depth or strided
        widths = [in_chans, *(dim // 2**i for i in reversed(range(depth)))]
        layers: list[nn.Module] = []
        for i, (width_in, width_out) in enumerate(pairwise(widths)):
            stride = 1 if i < depth - strided else 2
            conv = nn.Conv2d(width_in, width_out, kernel_size=3, stride=stride, padding=1, bias=False)
            layers += [nn.Sequential(conv, nn.BatchNorm2d(width_out)), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, x: Float[Tensor, "b _c _H _W"]) -> Float[Tensor, "b _d _h _w"]:
        # Channels last makes the way to tokens a view, and the convolutions faster on CPUs and GPUs alike.
        x = x.contiguous(memory_format=torch.channels_last)
        *layers, last = self.proj
        for block, act in zip(layers[::2], layers[1::2], strict=True):
            conv, norm = block.children()
            x = norm_act(norm, act, conv(x))
        return last(x)
