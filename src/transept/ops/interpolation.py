"""Resizing of maps, and of what a model learned for one grid of tokens."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

Size = tuple[int, int]
"""Height and width in pixels."""
Span = tuple[int, int]
"""The first pixel of a side, and the one behind the last."""


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
    x: Float[Tensor, "b c _h _w"], size: Sequence[int], start: int, stop: int, *, first: int = 0, height: int = 0
) -> Float[Tensor, "b c _rows _w2"]:
    """Rows `start` to `stop` of `resize_map(x, size)`, without the others; equal to rounding.

    Where `x` is a part of a map of that `height`, it holds the `source_span` of the rows, from row `first` on.
    """
    # Down first, where the rows are short.
    rows = _resize_side(x, -2, first, height or x.shape[-2], size[0], (start, stop))
    return resize_map(rows, (stop - start, size[1]))


def resize_part(
    x: Float[Tensor, "b c _h _w"], corner: Size, whole: Size, size: Size, rows: Span, columns: Span
) -> Float[Tensor, "b c _rows _columns"]:
    """Rows and columns of `resize_map(map, size)`, equal to rounding, of a map of which only a part is at hand.

    Args:
        x: the part, which holds `source_span` of the rows and of the columns.
        corner: row and column of the map at which it begins.
        whole: height and width of the map.
        size: of the resized map.
        rows: first, and one behind the last.
        columns: the same.
    """
    x = _resize_side(x, -2, corner[0], whole[0], size[0], rows)
    return _resize_side(x, -1, corner[1], whole[1], size[1], columns)


def source_span(side: int, new_side: int, span: Span) -> Span:
    """The pixels, first and one behind the last, of a side that those of `span` of the resized side are made of."""
    if side == new_side:
        return span
    upper, lower, _ = _neighbours(side, new_side, span, torch.device("cpu"))
    return int(upper[0]), int(lower[-1]) + 1


def _resize_side(x: Tensor, dim: int, first: int, side: int, new_side: int, span: Span) -> Tensor:
    """Pixels `span` of a side that is resized to `new_side`, of whose `side` pixels `x` holds those from `first` on."""
    if side == new_side:
        return x.narrow(dim, span[0] - first, span[1] - span[0])
    upper, lower, weight = _neighbours(side, new_side, span, x.device)
    weight = weight.to(x.dtype)[(...,) + (None,) * (-1 - dim)]
    return torch.lerp(x.index_select(dim, upper - first), x.index_select(dim, lower - first), weight)


def _neighbours(side: int, new_side: int, span: Span, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of each resized pixel the two that it lies between, and how far it is from the first."""
    place = ((torch.arange(*span, device=device) + 0.5) * (side / new_side) - 0.5).clamp(min=0)
    upper = place.floor().long().clamp(max=side - 1)
    return upper, (upper + 1).clamp(max=side - 1), place - upper
