"""Sliding-window inference: logits of an image of any size from windows of one size."""

import math
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from transept.errors import UsageError


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side: every `stride` pixels, the last one shifted back to end with the image."""
    count = math.ceil(max(side - window, 0) / stride) + 1
    return [min(i * stride, max(side - window, 0)) for i in range(count)]


def sliding_logits(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    crop: tuple[int, int],
    stride: tuple[int, int],
    *,
    batch_size: int = 4,
    device: torch.device | str | None = None,
) -> Tensor:
    """Logits `b k H W` of `images` `b 3 H W`: those of all windows summed, and divided by how many cover a pixel.

    Besides the images and the result, only `batch_size` windows and their logits are in memory at a time, whatever
    the size of the image. A side shorter than the window is taken whole.

    Args:
        model: images `b 3 h w` to logits `b k h w`.
        crop: height and width of the windows.
        stride: from one window to the next; no more than the window, or pixels would be left out.
        batch_size: windows of one call of `model`.
        device: where the sum is kept; default: where `model` gives the logits.

    Raises:
        UsageError: a stride that leaves gaps, or is no positive number.
    """
    for name, values in (("crop", crop), ("stride", stride)):
        if len(values) != 2 or min(values) < 1:
            raise UsageError(f"{name}={values} must be a positive height and width")
    if stride[0] > crop[0] or stride[1] > crop[1]:
        raise UsageError(f"stride={stride} is larger than crop={crop} and would leave pixels out; make it smaller")
    size = (images.shape[-2], images.shape[-1])
    height, width = (min(side, window) for side, window in zip(size, crop, strict=True))
    rows, columns = (window_starts(*of_side) for of_side in zip(size, crop, stride, strict=True))
    all_corners = list(product(range(len(images)), rows, columns))
    total = None
    for corners in (all_corners[i : i + batch_size] for i in range(0, len(all_corners), batch_size)):
        windows = torch.stack([images[i, :, y : y + height, x : x + width] for i, y, x in corners])
        logits = model(windows)
        if total is None:
            total = logits.new_zeros(len(images), logits.shape[1], *size, device=device or logits.device)
        for (i, y, x), part in zip(corners, logits.to(total.device), strict=True):
            total[i, :, y : y + height, x : x + width] += part
    assert total is not None
    # A pixel is covered by every pair of a row of windows and a column of windows that reach it.
    covers = [
        torch.stack([(pixels >= start) & (pixels < start + window) for start in starts]).sum(dim=0)
        for pixels, starts, window in (
            (torch.arange(size[0], device=total.device), rows, height),
            (torch.arange(size[1], device=total.device), columns, width),
        )
    ]
    return total.div_(covers[0][:, None] * covers[1])
