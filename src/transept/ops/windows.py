"""Cutting a map into windows and putting it back. Maps are channels last here: `b h w c`."""

from torch import Tensor


def to_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """`b (R g) (S k) c -> (b R S) (g k) c` with `window` the sides g and k; one window makes it a view."""
    b, h, w, c = x.shape
    g, k = window
    return x.reshape(b, h // g, g, w // k, k, c).transpose(2, 3).reshape(-1, g * k, c)


def from_windows(x: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The inverse of `to_windows`: `(b R S) (g k) c` to the map `b h w c` of `size` `(h, w)`."""
    h, w = size
    g, k = window
    return x.reshape(-1, h // g, w // k, g, k, x.shape[-1]).transpose(2, 3).reshape(-1, h, w, x.shape[-1])
