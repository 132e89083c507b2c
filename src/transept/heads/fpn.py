"""The feature pyramid (Lin et al., "Feature Pyramid Networks for Object Detection", arXiv 1612.03144).

Section 3    FPN    1x1 convolutions bring all levels to one width; from the coarsest down, each level is enlarged and
                    added to the next finer one; a 3x3 convolution on each sum gives the outputs

torchvision's `ops.FeaturePyramidNetwork` computes the same; ours has the names of the released detectors and
segmenters, and their further levels.
"""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d, relu

from transept.layers.conv import ConvNormAct

Extra = Literal["none", "on_input", "on_output", "pool"]


class FPN(nn.Module):
    """Maps `b c h w` of the backbone's levels, finest first, to `num_outs` maps of `out_channels`.

    Any sizes work: a level is enlarged (nearest neighbour) to the exact size of the next finer one. Convolutions
    have biases, and neither norm nor activation.

    | use | start_level | num_outs | extra |
    |---|---|---|---|
    | Semantic FPN | 0 | 4 | none |
    | Mask R-CNN, Cascade R-CNN, Cascade Mask R-CNN | 0 | 5 | pool |
    | RetinaNet | 1 | 5 | on_input |
    | FCOS | 1 | 5 | on_output, with `relu_before_extra` |
    | ATSS | 1 | 5 | on_output |

    Args:
        in_channels: channels of all the backbone's levels.
        out_channels: channels of the outputs.
        num_outs: how many outputs; those beyond the backbone's levels have half the size of the one before.
        start_level: the first level that takes part; the finer ones are ignored.
        extra: what the further outputs are made of, each after the first from the one before it: strided 3x3
            convolutions that begin on the backbone's last map ("on_input") or on the last output ("on_output"), or
            the last output with every second row and column left out ("pool").
        relu_before_extra: ReLU before each such convolution after the first.

    Raises:
        ValueError: the levels do not add up.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        num_outs: int = 4,
        *,
        start_level: int = 0,
        extra: Extra = "none",
        relu_before_extra: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= start_level < len(in_channels):
            raise ValueError(f"start_level={start_level} is none of the {len(in_channels)} levels")
        if extra not in ("none", "on_input", "on_output", "pool"):
            raise ValueError(f"extra={extra!r}; use 'none', 'on_input', 'on_output' or 'pool'")
        used = list(in_channels[start_level:])
        if num_outs < len(used) or (num_outs > len(used)) == (extra == "none"):
            raise ValueError(
                f"num_outs={num_outs} with extra={extra!r} and {len(used)} levels from start_level={start_level}; "
                "as many outputs as levels need extra='none', and more need another"
            )
        self.in_channels = list(in_channels)
        self.out_channels = out_channels
        self.num_outs = num_outs
        self.start_level = start_level
        self.extra: Extra = extra
        self.relu_before_extra = relu_before_extra
        self.lateral_convs = nn.ModuleList(_conv(channels, out_channels, 1) for channels in used)
        self.fpn_convs = nn.ModuleList(_conv(out_channels, out_channels, 3) for _ in used)
        if extra in ("on_input", "on_output"):
            for i in range(num_outs - len(used)):
                channels = in_channels[-1] if extra == "on_input" and i == 0 else out_channels
                self.fpn_convs.append(_conv(channels, out_channels, 3, stride=2))

    def forward(self, maps: Sequence[Float[Tensor, "b _c _h _w"]]) -> list[Float[Tensor, "b c _h _w"]]:
        used = maps[self.start_level :]
        sums = [conv(level) for conv, level in zip(self.lateral_convs, used, strict=True)]
        for i in reversed(range(len(sums) - 1)):
            sums[i] = sums[i] + interpolate(sums[i + 1], size=sums[i].shape[-2:], mode="nearest")
        outs = [conv(level) for conv, level in zip(self.fpn_convs, sums, strict=False)]
        further = list(self.fpn_convs)[len(sums) :]
        for i in range(self.num_outs - len(sums)):
            if self.extra == "pool":
                outs.append(max_pool2d(outs[-1], kernel_size=1, stride=2))
                continue
            x = maps[-1] if self.extra == "on_input" and i == 0 else outs[-1]
            outs.append(further[i](relu(x) if self.relu_before_extra and i > 0 else x))
        return outs


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> ConvNormAct:
    unit = ConvNormAct(in_channels, out_channels, kernel_size, stride=stride, norm=None, act=False)
    nn.init.xavier_uniform_(unit.conv.weight)
    return unit
