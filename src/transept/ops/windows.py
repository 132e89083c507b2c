"""Cutting maps into groups of tokens that attend to each other, and putting them back.

Maps are channels last, `b h w c`. Windows run row by row, and so do the tokens inside each. Sizes are written out,
not left to be inferred: exporting with symbolic sizes takes minutes otherwise. `pads` are `(left, right, top,
bottom)`, the order of `torch.nn.functional.pad`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad

Pads = tuple[int, int, int, int]
Sides = tuple[int, int]


def to_windows(x: Shaped[Tensor, "b h w c"], sides: Sides, interval: int = 1) -> Shaped[Tensor, "groups tokens c"]:
    """`b (R g i) (S k j) c -> (b R S i j) (g k) c` with `sides` the numbers g and k, and i and j below `interval`.

    A tile of `g * interval` rows and `k * interval` columns falls into `interval ** 2` groups, each of the tokens
    with the same row and the same column modulo `interval`. With an interval of 1, a group is a window.

    A map of 28 x 42 tokens in groups of 7 x 7, twice: as windows, and dilated by 2:

        to_windows(x, (7, 7))        2 28 42 96 -> (2*4*6) 49 96            neighbours of one window
        to_windows(x, (7, 7), 2)     2 28 42 96 -> (2*2*3*2*2) 49 96        every second row and column of a tile of 14
    """
    b, h, w, c = x.shape
    g, k = sides
    rows, columns = h // (g * interval), w // (k * interval)
    x = x.reshape(b, rows, g, interval, columns, k, interval, c).permute(0, 1, 4, 3, 6, 2, 5, 7)
    return x.reshape(b * rows * columns * interval**2, g * k, c)


def from_windows(
    x: Shaped[Tensor, "groups tokens c"], sides: Sides, shape: Sequence[int], interval: int = 1
) -> Shaped[Tensor, "b h w c"]:
    """The inverse of `to_windows`; `shape` is the map's; its batch may be -1, its channels are those of `x`."""
    b, h, w, _ = shape
    g, k = sides
    x = x.reshape(b, h // (g * interval), w // (k * interval), interval, interval, g, k, x.shape[-1])
    return x.permute(0, 1, 5, 3, 2, 6, 4, 7).reshape(b, h, w, x.shape[-1])


def to_channel_windows(x: Shaped[Tensor, "b h w c"], size: int) -> Shaped[Tensor, "b*c windows pixels"]:
    """`b (rows r) (cols s) c -> (b c) (rows cols) (r s)`: for each channel, its windows as vectors of pixels.

    With a size of 7, `2 28 42 96 -> (2*96) (4*6) 49`.
    """
    b, h, w, c = x.shape
    rows, cols = h // size, w // size
    x = x.reshape(b, rows, size, cols, size, c).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(b * c, rows * cols, size * size)


def from_channel_windows(
    windows: Shaped[Tensor, "_ *windows pixels"], size: int, shape: Sequence[int]
) -> Shaped[Tensor, "b h w c"]:
    """`(b c) (rows cols) (r s) -> b (rows r) (cols s) c`, the inverse of `to_channel_windows`."""
    b, h, w, c = shape
    windows = windows.reshape(b, c, h // size, w // size, size, size)
    return windows.permute(0, 2, 4, 3, 5, 1).reshape(b, h, w, c)


def space_to_depth(x: Shaped[Tensor, "b h w c"]) -> Shaped[Tensor, "b h//2 w//2 4*c"]:
    """`b (h i) (w j) c -> b h w (j i c)` with `i = j = 2`: the phases (0, 0), (1, 0), (0, 1), (1, 1) side by side.

    The order (row changes fastest) is that of Swin's and CAT's released weights.
    """
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).reshape(b, h // 2, w // 2, 4 * c)


def pad_to_multiple(x: Shaped[Tensor, "b h w c"], multiple: int) -> Shaped[Tensor, "b _h _w c"]:
    """`b h w c` with zeros at the bottom and right, so that `multiple` divides both sides; `x` itself where it does."""
    h, w = x.shape[1:3]
    bottom, right = -h % multiple, -w % multiple
    if bottom or right:
        x = pad(x, (0, 0, 0, right, 0, bottom))
    return x


def pad_map(x: Shaped[Tensor, "b h w c"], pads: Pads) -> Shaped[Tensor, "b _h _w c"]:
    """`b h w c` with zeros around it."""
    return pad(x, (0, 0, *pads)) if any(pads) else x


def crop_map(x: Shaped[Tensor, "b h w c"], pads: Pads) -> Shaped[Tensor, "b _h _w c"]:
    """The inverse of `pad_map`. The copy makes it contiguous, as linear layers want it."""
    left, right, top, bottom = pads
    return x[:, top : x.shape[1] - bottom, left : x.shape[2] - right].contiguous() if any(pads) else x


def relative_offsets(sides: Sides, *, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "offsets 2"]:
    """All differences of two positions in a window: `((2g-1) (2k-1)) 2`, rows outermost, from `1 - side` upwards."""
    steps = (torch.arange(1 - side, side, device=device, dtype=dtype) for side in sides)
    return torch.cartesian_prod(*steps)


def relative_position_index(sides: Sides, *, device: torch.device | None = None) -> Int[Tensor, "n n"]:
    """For each query and key of a window, `(g k) (g k)`: the row of `relative_offsets` that holds query minus key."""
    g, k = sides
    rows, columns = (torch.arange(side, device=device) for side in sides)
    rows = rows[:, None] - rows + (g - 1)
    columns = columns[:, None] - columns + (k - 1)
    return (rows[:, None, :, None] * (2 * k - 1) + columns[:, None]).reshape(g * k, g * k)
