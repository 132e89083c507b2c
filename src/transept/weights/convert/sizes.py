"""Learned tables of positions, resized when the image size changes."""

from math import isqrt

import torch

from transept.models.attention import Grid
from transept.ops.interpolation import resize_position_embedding
from transept.weights.convert.rules import Entries


def side_of(cells: int) -> int | None:
    """The side of a square grid with so many cells; None where there is none."""
    side = isqrt(cells)
    return side if side * side == cells else None


def resize_positions(
    entries: Entries, name: str, grid: Grid, file_grid: Grid | None = None, *, class_tokens: int = 0
) -> Entries:
    """A position embedding `1 (h w) c` brought to `grid`; `file_grid` is the one it has, by default square.

    Those of class tokens, which come first, stay. What cannot be resized is left as it is, and then does not fit the
    model.
    """
    entry = entries.get(name)
    if entry is None or entry.tensor.ndim != 3:
        return entries
    cells = entry.tensor.shape[1] - class_tokens
    side = side_of(cells) if cells > 0 else None
    source = file_grid or ((side, side) if side else None)
    if source is None or source == grid or (file_grid is None and cells == grid[0] * grid[1]):
        return entries
    resized = resize_position_embedding(entry.tensor[:, class_tokens:], source, grid)
    resized = torch.cat([entry.tensor[:, :class_tokens], resized], dim=1)
    step = f"resized {source[0]} x {source[1]} to {grid[0]} x {grid[1]}"
    return entries | {name: entry.changed(resized, step)}
