"""Where a detector looks: anchors and points of a feature map's cells.

Order, everywhere: level, row, column, then the anchors of the cell (ratio outermost, scale innermost). The channels
of a head follow it: anchor, then class or box coordinate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from transept.ops.interpolation import Size


def base_anchors(stride: int, scales: Sequence[float], ratios: Sequence[float]) -> Float[Tensor, "a 4"]:
    """`(r s) 4`: the anchors of the first cell, centred on image coordinate (0, 0), not on the cell's centre.

    Height is `stride * scale * sqrt(ratio)` and width `stride * scale / sqrt(ratio)`; nothing is rounded.
    """
    heights = torch.tensor(ratios).sqrt()
    sides = torch.stack((1 / heights, heights), dim=1)[:, None] * stride * torch.tensor(scales)[:, None]
    half = sides.flatten(0, 1) / 2
    return torch.cat((-half, half), dim=1)


def shifts(stride: int, size: Size, device: torch.device | None = None) -> Float[Tensor, "cells 2"]:
    """`(h w) 2`: x and y of every cell's first corner, row by row."""
    sides = (torch.arange(side, device=device, dtype=torch.float32) * stride for side in size)
    y, x = torch.meshgrid(*sides, indexing="ij")
    return torch.stack((x.flatten(), y.flatten()), dim=1)


def grid_anchors(base: Float[Tensor, "a 4"], stride: int, size: Size) -> Float[Tensor, "n 4"]:
    """`(h w a) 4`: the base anchors `a 4` at every cell of a map of `size`."""
    corners = shifts(stride, size, base.device).repeat(1, 2)
    return (corners[:, None] + base).flatten(0, 1)


def grid_points(stride: int, size: Size, device: torch.device | None = None) -> Float[Tensor, "cells 2"]:
    """`(h w) 2`: x and y of every cell's centre."""
    return shifts(stride, size, device) + stride / 2


def cells_on_image(stride: int, size: Size, image_size: Size, multiple: int = 32) -> Bool[Tensor, " cells"]:
    """`(h w)` true where a cell begins on an image that is padded to a `multiple`, not on what a batch adds to it."""
    rows, columns = (
        torch.arange(cells) < -(-(-(-side // multiple) * multiple) // stride)
        for cells, side in zip(size, image_size, strict=True)
    )
    return (rows[:, None] & columns).flatten()


def inside_image(anchors: Float[Tensor, "n 4"], image_size: Size) -> Bool[Tensor, " n"]:
    """True for those of `n 4` that lie wholly inside the unpadded image: `0 <= x1, 0 <= y1, x2 < W, y2 < H`."""
    h, w = image_size
    return (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2] < w) & (anchors[:, 3] < h)


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchors:
    """The anchors of a pyramid: the same shapes on every level, in units of its stride."""

    strides: tuple[int, ...]
    scales: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def per_cell(self) -> int:
        return len(self.scales) * len(self.ratios)

    def __call__(self, sizes: Sequence[Size], device: torch.device | None = None) -> list[Float[Tensor, "_n 4"]]:
        """`(h w a) 4` for each level of the given sizes."""
        return [
            grid_anchors(base_anchors(stride, self.scales, self.ratios).to(device), stride, size)
            for stride, size in zip(self.strides, sizes, strict=True)
        ]

    def on_image(self, sizes: Sequence[Size], image_size: Size) -> Bool[Tensor, " n"]:
        """Whether the cell of each of all levels' anchors begins on this padded image."""
        levels = zip(self.strides, sizes, strict=True)
        cells = torch.cat([cells_on_image(stride, size, image_size) for stride, size in levels])
        return cells[:, None].expand(-1, self.per_cell).flatten()
