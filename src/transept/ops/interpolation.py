"""Resizing of maps, and of what a model learned for one grid of tokens."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import interpolate


def resize_position_embedding(pos_embed: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Bicubic resize of a position embedding `1 (h w) c` learned on `grid`; unchanged at that grid.

    The rule of DeiT's fine-tuning code: corners not aligned, no antialiasing, in float32.
    """
    if grid == new_grid:
        return pos_embed
    table = pos_embed.float().unflatten(1, grid).permute(0, 3, 1, 2)  # 1 c h w
    table = interpolate(table, size=new_grid, mode="bicubic", align_corners=False)
    return table.flatten(2).transpose(1, 2).to(pos_embed.dtype)


def resize_map(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of maps or logits `b c h w` to `size` (height, width), corners not aligned; `x` if it has it."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
