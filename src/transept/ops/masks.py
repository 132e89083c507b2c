"""Masks of instances: from the image to a box's own grid, and back."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.ops import roi_align

IGNORE_LABEL = 255
"""Of pixels that belong to no class: they neither train nor score."""
_CHUNK = 2**22
"""So many pixels are pasted at once: 16 MiB of float32, several times."""


def crop_masks(masks: Shaped[Tensor, "n H W"], boxes: Float[Tensor, "n 4"], size: int) -> Float[Tensor, "n m m"]:
    """Masks `n H W` (bool or 0 and 1) inside their boxes `n 4`, as `n size size` of 0.0 and 1.0.

    RoIAlign with half-pixel shift and as many sampling points as a bin has pixels; 0.5 and more is inside.
    """
    rois = torch.cat((torch.arange(len(boxes), device=boxes.device).to(boxes)[:, None], boxes), dim=1)
    crops = roi_align(masks[:, None].to(boxes), rois, size, sampling_ratio=0, aligned=True)
    return (crops[:, 0] >= 0.5).to(boxes)


def paste_masks(
    masks: Float[Tensor, "n h w"], boxes: Float[Tensor, "n 4"], image_size: tuple[int, int], threshold: float = 0.5
) -> Bool[Tensor, "n H W"]:
    """Probabilities `n h w` on the grids of boxes `n 4` to bool masks `n H W` of the image.

    Bilinear, with pixel centres at +0.5 and zero outside the grid; from `threshold` on a pixel is inside. Only where a
    box reaches is anything computed.
    """
    shape = (len(masks), *image_size)
    # Pages that nothing is drawn on take no memory: torch.zeros fills them all.
    empty = torch.from_numpy(np.zeros(shape, dtype=bool)) if masks.is_cpu else None
    pasted = masks.new_zeros(shape, dtype=torch.bool) if empty is None else empty
    if threshold <= 0:
        pasted.fill_(True)
    for canvas, mask, box in zip(pasted, masks, boxes.to(masks), strict=True):
        for window, part in _windows(mask, box, image_size, threshold):
            canvas[window] = part
    return pasted


def _windows(
    mask: Float[Tensor, "h w"], box: Float[Tensor, "4"], image_size: tuple[int, int], threshold: float
) -> Iterator[tuple[tuple[slice, slice], Bool[Tensor, "_h _w"]]]:
    """The part of the image that a mask reaches, by strips of so many pixels: where, and what is inside."""
    x1, y1, x2, y2 = box.double().tolist()
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        return
    top, bottom = _reach(y1, y2, mask.shape[0], image_size[0])
    left, right = _reach(x1, x2, mask.shape[1], image_size[1])
    if right <= left:
        return
    corners = box[:, None]
    u = (torch.arange(left, right, device=box.device) + 0.5 - corners[0]) / (corners[2] - corners[0]) * 2 - 1
    rows = max(1, _CHUNK // (right - left))
    for start in range(top, bottom, rows):
        y = torch.arange(start, min(start + rows, bottom), device=box.device) + 0.5
        v = (y - corners[1]) / (corners[3] - corners[1]) * 2 - 1
        grid = torch.stack((u.expand(len(v), -1), v[:, None].expand(-1, len(u))), dim=-1)
        # A box without width or height has no inside; its infinite coordinates read zeros, 0 / 0 must as well.
        grid = grid.nan_to_num(nan=-2.0, posinf=2.0, neginf=-2.0)
        part = grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0] >= threshold
        yield (slice(start, start + len(v)), slice(left, right)), part


def _reach(low: float, high: float, cells: int, side: int) -> tuple[int, int]:
    """The first pixel of a side that a grid of so many cells reaches, and the one behind the last."""
    low, high = min(low, high), max(low, high)
    fade = (high - low) / (2 * cells) + 1  # half a cell fades to zero outside of the box; a pixel more for rounding
    return max(math.floor(low - fade), 0), min(math.ceil(high + fade), side)
