"""Resizing of maps, and of what a model learned for one grid of tokens."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

Size = tuple[int, int]
"""Height and width in pixels."""


def same_size(size: Sequence[int], other: Sequence[int]) -> bool:
    """Whether the sizes are known to be equal.

    A symbol of an exporter equals nothing: comparing it would make the graph one for that size, or for all but that
    size. Resizing to the size that a map has leaves it as it is, to the bit.
    """
    return not any(isinstance(side, torch.SymInt) for side in (*size, *other)) and tuple(size) == tuple(other)


def resize_position_embedding(
    pos_embed: Float[Tensor, "1 _n c"], grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Tensor, "1 _n c"]:
    """Bicubic resize of a position embedding `1 (h w) c` learned on `grid`; unchanged at that grid.

    The rule of DeiT's fine-tuning code: corners not aligned, no antialiasing, in float32.
    """
    if same_size(grid, new_grid):
        return pos_embed
    table = pos_embed.float().unflatten(1, grid).permute(0, 3, 1, 2)  # 1 c h w
    table = interpolate(table, size=new_grid, mode="bicubic", align_corners=False)
    return table.flatten(2).transpose(1, 2).to(pos_embed.dtype)


def resize_map(x: Float[Tensor, "b c _h _w"], size: Sequence[int]) -> Float[Tensor, "b c _h _w"]:
    """Bilinear resize of maps or logits `b c h w` to `size` (height, width), corners not aligned; `x` if it has it."""
    if same_size(x.shape[-2:], size):
        return x
    return interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def resize_rows(
    x: Float[Tensor, "b c _h _w"], size: Sequence[int], start: int, stop: int
) -> Float[Tensor, "b c _rows _w2"]:
    """Rows `start` to `stop` of `resize_map(x, size)`, without the others; equal to rounding."""
    height = x.shape[-2]
    y = ((torch.arange(start, stop, device=x.device) + 0.5) * (height / size[0]) - 0.5).clamp(min=0)
    upper = y.floor().long()
    lower = (upper + 1).clamp(max=height - 1)
    # Down first, where the rows are short.
    rows = torch.lerp(x[..., upper, :], x[..., lower, :], (y - upper)[:, None].to(x.dtype))
    return resize_map(rows, (stop - start, size[1]))
