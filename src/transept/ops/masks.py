"""Masks of instances: from the image to a box's own grid, and back."""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.ops import roi_align

IGNORE_LABEL = 255
"""Of pixels that belong to no class: they neither train nor score."""
_CHUNK = 2**25
"""So many pixels are pasted at once: 128 MiB of float32."""


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

    Bilinear, with pixel centres at +0.5 and zero outside the grid; from `threshold` on a pixel is inside.
    """
    height, width = image_size
    y, x = (torch.arange(side, device=boxes.device) + 0.5 for side in (height, width))
    chunk = max(1, _CHUNK // (height * width))
    pasted = []
    for part, corners in zip(masks.split(chunk), boxes.to(masks).split(chunk), strict=True):
        x1, y1, x2, y2 = corners[..., None].unbind(dim=1)
        u = (x - x1) / (x2 - x1) * 2 - 1
        v = (y - y1) / (y2 - y1) * 2 - 1
        shape = (len(part), height, width)
        grid = torch.stack((u[:, None].expand(shape), v[:, :, None].expand(shape)), dim=-1)
        # A box without width or height has no inside; its infinite coordinates read zeros, 0 / 0 must as well.
        grid = grid.nan_to_num(nan=-2.0, posinf=2.0, neginf=-2.0)
        pasted.append(grid_sample(part[:, None], grid, align_corners=False)[:, 0] >= threshold)
    return torch.cat(pasted) if pasted else masks.new_zeros((0, height, width), dtype=torch.bool)
