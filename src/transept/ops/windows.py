"""Cutting maps into square windows, and the reshapes around it. Maps are channels-last, `b h w c`.

Windows run row by row, and so do the tokens inside each. Sizes are written out, not left to be inferred: exporting
with symbolic sizes takes minutes otherwise.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """`b h w c` with zeros at the bottom and right, so that `multiple` divides both sides; `x` itself where it does."""
    h, w = x.shape[1:3]
    bottom, right = -h % multiple, -w % multiple
    if bottom or right:
        x = pad(x, (0, 0, 0, right, 0, bottom))
    return x


def to_windows(x: Tensor, size: int) -> Tensor:
    """`b (rows r) (cols s) c -> (b rows cols) (r s) c` with `r = s = size`."""
    b, h, w, c = x.shape
    rows, cols = h // size, w // size
    x = x.reshape(b, rows, size, cols, size, c).transpose(2, 3)
    return x.reshape(b * rows * cols, size * size, c)


def from_windows(windows: Tensor, size: int, shape: Sequence[int]) -> Tensor:
    """`(b rows cols) (r s) c -> b (rows r) (cols s) c`, the inverse of `to_windows`; `shape` is the map's."""
    b, h, w, c = shape
    return windows.reshape(b, h // size, w // size, size, size, c).transpose(2, 3).reshape(b, h, w, c)


def to_channel_windows(x: Tensor, size: int) -> Tensor:
    """`b (rows r) (cols s) c -> (b c) (rows cols) (r s)`: for each channel, its windows as vectors of pixels."""
    b, h, w, c = x.shape
    rows, cols = h // size, w // size
    x = x.reshape(b, rows, size, cols, size, c).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(b * c, rows * cols, size * size)


def from_channel_windows(windows: Tensor, size: int, shape: Sequence[int]) -> Tensor:
    """`(b c) (rows cols) (r s) -> b (rows r) (cols s) c`, the inverse of `to_channel_windows`."""
    b, h, w, c = shape
    windows = windows.reshape(b, c, h // size, w // size, size, size)
    return windows.permute(0, 2, 4, 3, 5, 1).reshape(b, h, w, c)


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
