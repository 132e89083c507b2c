"""Cutting a map into groups of tokens that attend to each other, and putting it back.

Maps are channels last, `b h w c`; `pads` are `(left, right, top, bottom)`, the order of `torch.nn.functional.pad`.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

Pads = tuple[int, int, int, int]


def to_groups(x: Tensor, sides: tuple[int, int], interval: int = 1) -> Tensor:
    """`b (R g i) (S k j) c -> (b R S i j) (g k) c` with `sides` the numbers g and k, and i and j below `interval`.

    A tile of `g * interval` rows and `k * interval` columns falls into `interval ** 2` groups, each of the tokens
    with the same row and the same column modulo `interval`. With an interval of 1, a group is a window.
    """
    b, h, w, c = x.shape
    g, k = sides
    x = x.view(b, h // (g * interval), g, interval, w // (k * interval), k, interval, c)
    return x.permute(0, 1, 4, 3, 6, 2, 5, 7).reshape(-1, g * k, c)


def from_groups(x: Tensor, sides: tuple[int, int], interval: int, size: tuple[int, int]) -> Tensor:
    """The inverse of `to_groups`: `(b R S i j) (g k) c` to the map `b h w c` of `size` `(h, w)`."""
    h, w = size
    g, k = sides
    x = x.view(-1, h // (g * interval), w // (k * interval), interval, interval, g, k, x.shape[-1])
    return x.permute(0, 1, 5, 3, 2, 6, 4, 7).reshape(-1, h, w, x.shape[-1])


def pad_map(x: Tensor, pads: Pads) -> Tensor:
    """`b h w c` with zeros around it."""
    return pad(x, (0, 0, *pads)) if any(pads) else x


def crop_map(x: Tensor, pads: Pads) -> Tensor:
    """The inverse of `pad_map`. The copy makes it contiguous, as linear layers want it."""
    left, right, top, bottom = pads
    return x[:, top : x.shape[1] - bottom, left : x.shape[2] - right].contiguous() if any(pads) else x


def relative_offsets(sides: tuple[int, int], *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """All differences of two positions in a window: `((2g-1) (2k-1)) 2`, rows outermost, from `1 - side` upwards."""
    steps = (torch.arange(1 - side, side, device=device, dtype=dtype) for side in sides)
    return torch.cartesian_prod(*steps)


def relative_index(sides: tuple[int, int], *, device: torch.device) -> Tensor:
    """For each query and key of a window, `(g k) (g k)`: the row of `relative_offsets` that holds query minus key."""
    g, k = sides
    rows, columns = (torch.arange(side, device=device) for side in sides)
    rows = rows[:, None] - rows + (g - 1)
    columns = columns[:, None] - columns + (k - 1)
    return (rows[:, None, :, None] * (2 * k - 1) + columns[:, None]).reshape(g * k, g * k)
