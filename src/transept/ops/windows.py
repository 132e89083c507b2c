"""Cutting maps into square windows, and the reshapes around it. Maps are channels-last, `b h w c`.

A grid is the number of windows `(rows, columns)`; windows run row by row, and so do the tokens inside each.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """`b h w c` with zeros at the bottom and right, so that `multiple` divides both sides; `x` itself where it does."""
    h, w = x.shape[1:3]
    bottom, right = -h % multiple, -w % multiple
    # A traced program must hold for other sizes too, so it always pads, by nothing where nothing lacks.
    if torch.compiler.is_compiling() or bottom or right:
        x = pad(x, (0, 0, 0, right, 0, bottom))
    return x


def window_grid(x: Tensor, size: int) -> tuple[int, int]:
    """How many windows of `size` by `size` a map `b h w c` has, in rows and columns."""
    return x.shape[1] // size, x.shape[2] // size


def to_windows(x: Tensor, size: int) -> Tensor:
    """`b (rows r) (cols s) c -> (b rows cols) (r s) c` with `r = s = size`."""
    rows, cols = window_grid(x, size)
    x = x.reshape(-1, rows, size, cols, size, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, size * size, x.shape[-1])


def from_windows(windows: Tensor, size: int, grid: tuple[int, int]) -> Tensor:
    """`(b rows cols) (r s) c -> b (rows r) (cols s) c`, the inverse of `to_windows`."""
    rows, cols = grid
    x = windows.reshape(-1, rows, cols, size, size, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, rows * size, cols * size, windows.shape[-1])


def to_channel_windows(x: Tensor, size: int) -> Tensor:
    """`b (rows r) (cols s) c -> (b c) (rows cols) (r s)`: for each channel, its windows as vectors of pixels."""
    rows, cols = window_grid(x, size)
    x = x.reshape(-1, rows, size, cols, size, x.shape[-1])
    return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, rows * cols, size * size)


def from_channel_windows(windows: Tensor, size: int, grid: tuple[int, int], channels: int) -> Tensor:
    """`(b c) (rows cols) (r s) -> b (rows r) (cols s) c`, the inverse of `to_channel_windows`."""
    rows, cols = grid
    x = windows.reshape(-1, channels, rows, cols, size, size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(-1, rows * size, cols * size, channels)


def space_to_depth(x: Tensor) -> Tensor:
    """`b (h i) (w j) c -> b h w (j i c)` with `i = j = 2`: the phases (0, 0), (1, 0), (0, 1), (1, 1) side by side.

    The order (row changes fastest) is that of Swin's and CAT's released weights.
    """
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).reshape(b, h // 2, w // 2, 4 * c)


def relative_position_index(size: int) -> Tensor:
    """`(r s)(r s)`: for every query and key of a window, the row of a table of `(2 size - 1)^2` relative positions.

    Row `(dy + size - 1) * (2 size - 1) + (dx + size - 1)` belongs to a query `dy` below and `dx` right of the key.
    """
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy, dx = y[:, None] - y, x[:, None] - x
    return (dy + size - 1) * (2 * size - 1) + dx + size - 1
